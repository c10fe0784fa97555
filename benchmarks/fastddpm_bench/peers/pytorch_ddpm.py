"""w86763777/pytorch-ddpm, restated: the network under its names, and its sampling with ``fixedlarge``.

Written from what model.py and diffusion.py compute; for checks of what is read from its checkpoints.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class _Attention(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.group_norm = nn.GroupNorm(32, width)
        self.proj_q, self.proj_k, self.proj_v, self.proj = (nn.Conv2d(width, width, 1) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        normed = self.group_norm(x)
        q, k, v = (
            part(normed).flatten(2).transpose(1, 2) for part in (self.proj_q, self.proj_k, self.proj_v)
        )
        mixed = torch.softmax(q @ k.transpose(1, 2) * x.shape[1] ** -0.5, dim=-1) @ v
        out: Tensor = x + self.proj(mixed.transpose(1, 2).reshape(x.shape))
        return out


class _Residual(nn.Module):
    def __init__(self, width: int, out: int, time: int, attends: bool) -> None:
        super().__init__()
        conv = nn.Conv2d(width, out, 3, padding=1)
        self.block1 = nn.Sequential(nn.GroupNorm(32, width), nn.SiLU(), conv)
        self.temb_proj = nn.Sequential(nn.SiLU(), nn.Linear(time, out))
        conv = nn.Conv2d(out, out, 3, padding=1)
        self.block2 = nn.Sequential(nn.GroupNorm(32, out), nn.SiLU(), nn.Dropout(0.1), conv)
        self.shortcut = nn.Conv2d(width, out, 1) if width != out else nn.Identity()
        self.attn = _Attention(out) if attends else nn.Identity()

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        h = self.block2(self.block1(x) + self.temb_proj(time)[:, :, None, None])
        out: Tensor = self.attn(h + self.shortcut(x))
        return out


class _Resize(nn.Module):
    def __init__(self, width: int, *, up: bool) -> None:
        super().__init__()
        self.up = up
        self.main = nn.Conv2d(width, width, 3, stride=1 if up else 2, padding=1)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        out: Tensor = self.main(F.interpolate(x, scale_factor=2, mode="nearest") if self.up else x)
        return out


class Network(nn.Module):
    """Its ``UNet``: ``network(x, t)`` with x ``(B, 3, H, W)`` and t ``(B,)`` below ``T``."""

    time_embedding: Any

    def __init__(
        self,
        T: int = 1000,
        ch: int = 32,
        ch_mult: Sequence[int] = (1, 2),
        attn: Sequence[int] = (1,),
        num_res_blocks: int = 1,
    ) -> None:
        super().__init__()
        time = 4 * ch
        angles = torch.arange(T)[:, None] * torch.exp(-math.log(10000) * torch.arange(0, ch, 2) / ch)
        table = torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(1)
        self.time_embedding = nn.Module()
        fixed = nn.Embedding.from_pretrained(table)  # type: ignore[no-untyped-call]
        self.time_embedding.timembedding = nn.Sequential(
            fixed, nn.Linear(ch, time), nn.SiLU(), nn.Linear(time, time)
        )
        self.head = nn.Conv2d(3, ch, 3, padding=1)
        self.downblocks, self.upblocks = nn.ModuleList(), nn.ModuleList()
        width, skips = ch, [ch]
        for level, mult in enumerate(ch_mult):
            for _ in range(num_res_blocks):
                self.downblocks.append(_Residual(width, ch * mult, time, level in attn))
                width = ch * mult
                skips.append(width)
            if level < len(ch_mult) - 1:
                self.downblocks.append(_Resize(width, up=False))
                skips.append(width)
        middle = (_Residual(width, width, time, attends) for attends in (True, False))
        self.middleblocks = nn.ModuleList(middle)
        for level, mult in reversed(list(enumerate(ch_mult))):
            for _ in range(num_res_blocks + 1):
                self.upblocks.append(_Residual(skips.pop() + width, ch * mult, time, level in attn))
                width = ch * mult
            if level:
                self.upblocks.append(_Resize(width, up=True))
        self.tail = nn.Sequential(nn.GroupNorm(32, width), nn.SiLU(), nn.Conv2d(width, 3, 3, padding=1))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        time = self.time_embedding.timembedding(t)
        h = self.head(x)
        maps = [h]
        for layer in self.downblocks:
            h = layer(h, time)
            maps.append(h)
        for layer in self.middleblocks:
            h = layer(h, time)
        for layer in self.upblocks:
            h = torch.cat([h, maps.pop()], dim=1) if isinstance(layer, _Residual) else h
            h = layer(h, time)
        out: Tensor = self.tail(h)
        return out


@torch.no_grad()
def sample(network: Network, betas: Tensor, x: Tensor) -> Tensor:
    """Its sampler from x ``(B, 3, H, W)``, without the clip to [-1, 1] at the end."""
    cumulative = (1 - betas).cumprod(0)
    before = torch.cat([torch.ones(1, dtype=betas.dtype), cumulative[:-1]])
    for t in reversed(range(len(betas))):
        eps = network(x, torch.full((len(x),), t))
        x0 = (1 / cumulative[t]).sqrt() * x - (1 / cumulative[t] - 1).sqrt() * eps
        first = before[t].sqrt() * betas[t] / (1 - cumulative[t])
        second = (1 - betas[t]).sqrt() * (1 - before[t]) / (1 - cumulative[t])
        x = (first * x0 + second * x).float()
        if t > 0:
            x = x + betas[t].sqrt().float() * torch.randn_like(x)
    return x
