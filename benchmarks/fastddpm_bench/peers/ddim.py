"""ermongroup/ddim and pesser/pytorch_diffusion, restated: the network, and ancestral sampling.

Written from what models/diffusion.py and functions/denoising.py compute; for checks of what is read from
their checkpoints.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def _norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(32, channels, eps=1e-6)


class _Residual(nn.Module):
    def __init__(self, width: int, out: int, time: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = _norm(width), nn.Conv2d(width, out, 3, padding=1)
        self.temb_proj = nn.Linear(time, out)
        self.norm2, self.conv2 = _norm(out), nn.Conv2d(out, out, 3, padding=1)
        self.nin_shortcut = nn.Conv2d(width, out, 1) if width != out else nn.Identity()

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x))) + self.temb_proj(F.silu(time))[:, :, None, None]
        out: Tensor = self.nin_shortcut(x) + self.conv2(F.silu(self.norm2(h)))
        return out


class _Attention(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = _norm(width)
        self.q, self.k, self.v, self.proj_out = (nn.Conv2d(width, width, 1) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        normed = self.norm(x)
        q, k, v = (part(normed).flatten(2) for part in (self.q, self.k, self.v))
        weights = torch.softmax(q.transpose(1, 2) @ k / math.sqrt(x.shape[1]), dim=2)
        out: Tensor = x + self.proj_out((v @ weights.transpose(1, 2)).view_as(x))
        return out


class _Resize(nn.Module):
    def __init__(self, width: int, *, up: bool) -> None:
        super().__init__()
        self.up = up
        self.conv = nn.Conv2d(width, width, 3, stride=1 if up else 2, padding=1 if up else 0)

    def forward(self, x: Tensor) -> Tensor:
        resized = F.interpolate(x, scale_factor=2.0, mode="nearest") if self.up else F.pad(x, (0, 1, 0, 1))
        out: Tensor = self.conv(resized)
        return out


class _Level(nn.Module):
    def __init__(self, widths: Sequence[tuple[int, int]], time: int, attends: bool, resize: str) -> None:
        super().__init__()
        self.block = nn.ModuleList(_Residual(width, out, time) for width, out in widths)
        self.attn = nn.ModuleList(_Attention(out) for _, out in widths if attends)
        if resize:
            setattr(self, resize, _Resize(widths[-1][1], up=resize == "upsample"))
        self.resize = resize

    def run(self, index: int, x: Tensor, time: Tensor) -> Tensor:
        x = self.block[index](x, time)
        return self.attn[index](x) if len(self.attn) else x


class Network(nn.Module):
    """Their ``Model``: ``network(x, t)`` with x ``(B, C, H, W)`` and t ``(B,)``."""

    temb: Any
    down: Any
    mid: Any
    up: Any

    def __init__(
        self,
        channels: int = 3,
        ch: int = 32,
        ch_mult: Sequence[int] = (1, 2),
        num_res_blocks: int = 1,
        attn_levels: Sequence[int] = (1,),
        out_ch: int | None = None,
        bayesian: bool = False,
    ) -> None:
        super().__init__()
        time, widths, blocks = 4 * ch, [ch * m for m in ch_mult], num_res_blocks
        if bayesian:
            self.logvar = nn.Parameter(torch.zeros(1000))
        self.ch = ch
        self.temb = nn.Module()
        self.temb.dense = nn.ModuleList([nn.Linear(ch, time), nn.Linear(time, time)])
        self.conv_in = nn.Conv2d(channels, ch, 3, padding=1)
        before, last = [ch, *widths[:-1]], len(widths) - 1
        self.down, self.up = nn.ModuleList(), nn.ModuleList()
        for level, out in enumerate(widths):
            pairs = [(before[level], out), *[(out, out)] * (blocks - 1)]
            resize = "" if level == last else "downsample"
            self.down.append(_Level(pairs, time, level in attn_levels, resize))
            skips = [*[out] * blocks, before[level]]
            entering = [widths[min(level + 1, last)], *[out] * blocks]
            pairs = [(a + b, out) for a, b in zip(entering, skips, strict=True)]
            self.up.append(_Level(pairs, time, level in attn_levels, "upsample" if level else ""))
        self.mid = nn.Module()
        self.mid.block_1, self.mid.attn_1 = _Residual(out, out, time), _Attention(out)
        self.mid.block_2 = _Residual(out, out, time)
        self.norm_out, self.conv_out = (
            _norm(ch * ch_mult[0]),
            nn.Conv2d(ch * ch_mult[0], out_ch or channels, 3, padding=1),
        )

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        half = self.ch // 2
        angles = t.float()[:, None] * torch.exp(torch.arange(half) * (-math.log(10000) / (half - 1)))
        first, second = self.temb.dense
        time = second(F.silu(first(torch.cat([angles.sin(), angles.cos()], dim=1))))
        maps = [self.conv_in(x)]
        for level in self.down:
            for index in range(len(level.block)):
                maps.append(level.run(index, maps[-1], time))
            if level.resize:
                maps.append(level.downsample(maps[-1]))
        h = self.mid.block_1(maps[-1], time)
        h = self.mid.block_2(self.mid.attn_1(h), time)
        for level in reversed(self.up):
            for index in range(len(level.block)):
                h = level.run(index, torch.cat([h, maps.pop()], dim=1), time)
            if level.resize:
                h = level.upsample(h)
        out: Tensor = self.conv_out(F.silu(self.norm_out(h)))
        return out


@torch.no_grad()
def ddpm_steps(network: Network, betas: Tensor, x: Tensor) -> Tensor:
    """Ancestral sampling from x ``(B, C, H, W)`` at the last of the timesteps."""
    cumulative = torch.cat([torch.ones(1, dtype=betas.dtype), (1 - betas).cumprod(0)])
    for t in reversed(range(len(betas))):
        now, after = cumulative[t + 1], cumulative[t]
        beta = 1 - now / after
        eps = network(x, torch.full((len(x),), t))
        x0 = ((1 / now).sqrt() * x - (1 / now - 1).sqrt() * eps).clamp(-1, 1)
        mean = (after.sqrt() * beta * x0 + (1 - beta).sqrt() * (1 - after) * x) / (1 - now)
        x = mean + (t > 0) * beta.sqrt() * torch.randn_like(x)
    return x
