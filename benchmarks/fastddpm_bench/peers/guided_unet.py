"""The UNetModel of improved-diffusion and guided-diffusion, restated: names, order of channels, arithmetic.

Source: openai/guided-diffusion, unet.py, and improved-diffusion, unet.py, read for what they compute.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def embedding(t: Tensor, width: int) -> Tensor:
    """Cosines, then sines, of t times 10000**(-i/half)."""
    half = width // 2
    frequencies = torch.exp(-math.log(10000) * torch.arange(half) / half).to(device=t.device)
    angles = t[:, None].float() * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


class Parts(nn.Sequential):
    """Parts of which residual blocks are given the time embedding."""

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:  # type: ignore[override]
        for part in self:
            x = part(x, emb) if isinstance(part, ResBlock) else part(x)
        return x


class Up(nn.Module):
    """Twice the size, then a convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv(F.interpolate(x, scale_factor=2, mode="nearest"))
        return out


class Down(nn.Module):
    """Half the size by a strided convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.op = nn.Conv2d(channels, channels, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.op(x)
        return out


class ResBlock(nn.Module):
    """Time is added before the second norm, or scales and shifts what follows it.

    ``updown``: "up" or "down" changes the size between activation and convolution, and in the skip.
    """

    def __init__(self, channels: int, out: int, emb: int, scale_shift: bool, updown: str = "") -> None:
        super().__init__()
        self.scale_shift = scale_shift
        changes = {"up": nn.Upsample(scale_factor=2, mode="nearest"), "down": nn.AvgPool2d(2, 2)}
        self.change = changes.get(updown, nn.Identity())
        self.in_layers = nn.Sequential(
            nn.GroupNorm(32, channels), nn.SiLU(), nn.Conv2d(channels, out, 3, padding=1)
        )
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(emb, (2 if scale_shift else 1) * out))
        self.out_layers = nn.Sequential(
            nn.GroupNorm(32, out), nn.SiLU(), nn.Dropout(0.0), nn.Conv2d(out, out, 3, padding=1)
        )
        self.skip_connection = nn.Identity() if channels == out else nn.Conv2d(channels, out, 1)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        h = self.in_layers[2](self.change(self.in_layers[:2](x)))
        x = self.change(x)
        time = self.emb_layers(emb)[:, :, None, None]
        if self.scale_shift:
            scale, shift = time.chunk(2, dim=1)
            h = self.out_layers[1:](self.out_layers[0](h) * (1 + scale) + shift)
        else:
            h = self.out_layers(h + time)
        out: Tensor = self.skip_connection(x) + h
        return out


class AttentionBlock(nn.Module):
    """Over pixels; queries, keys and values of a head lie together, in the new order those of all heads."""

    def __init__(self, channels: int, heads: int, new_order: bool) -> None:
        super().__init__()
        self.heads, self.new_order = heads, new_order
        self.norm = nn.GroupNorm(32, channels)
        self.qkv = nn.Conv1d(channels, 3 * channels, 1)
        self.proj_out = nn.Conv1d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        flat = x.flatten(2)
        n, channels, length = flat.shape
        width = channels // self.heads
        qkv = self.qkv(self.norm(flat))
        if self.new_order:
            q, k, v = (part.reshape(n * self.heads, width, length) for part in qkv.chunk(3, dim=1))
        else:
            q, k, v = qkv.reshape(n * self.heads, 3 * width, length).split(width, dim=1)
        weights = torch.softmax(torch.einsum("bct,bcs->bts", q, k) / math.sqrt(width), dim=-1)
        mixed = torch.einsum("bts,bcs->bct", weights, v).reshape(n, channels, length)
        out: Tensor = (flat + self.proj_out(mixed)).reshape(x.shape)
        return out


class UNetModel(nn.Module):
    """Levels of residual blocks; attention where the size was halved as often as ``attention`` says.

    Args:
        channels: of the input.
        outputs: of the output.
        width: of the first level.
        mults: a factor a level.
        blocks: residual blocks a level.
        attention: levels.
        heads: of every attention; or, if negative, minus the channels of a head.
        scale_shift: ``use_scale_shift_norm``.
        new_order: ``use_new_attention_order``.
        classes: of a class-conditional network.
        updown: ``resblock_updown``.
    """

    def __init__(
        self,
        channels: int = 3,
        outputs: int = 6,
        width: int = 32,
        mults: Sequence[int] = (1, 2),
        blocks: int = 1,
        attention: Sequence[int] = (1,),
        heads: int = 2,
        scale_shift: bool = True,
        new_order: bool = False,
        classes: int | None = None,
        updown: bool = False,
    ) -> None:
        super().__init__()
        self.width = width
        emb = 4 * width
        self.time_embed = nn.Sequential(nn.Linear(width, emb), nn.SiLU(), nn.Linear(emb, emb))
        if classes is not None:
            self.label_emb = nn.Embedding(classes, emb)

        def attends(level: int, at: int) -> list[nn.Module]:
            count = heads if heads > 0 else at // -heads
            return [AttentionBlock(at, count, new_order)] if level in attention else []

        self.input_blocks = nn.ModuleList([Parts(nn.Conv2d(channels, width, 3, padding=1))])
        kept, now = [width], width
        for level, mult in enumerate(mults):
            for _ in range(blocks):
                block = ResBlock(now, mult * width, emb, scale_shift)
                now = mult * width
                self.input_blocks.append(Parts(block, *attends(level, now)))
                kept.append(now)
            if level + 1 < len(mults):
                self.input_blocks.append(
                    Parts(ResBlock(now, now, emb, scale_shift, "down") if updown else Down(now))
                )
                kept.append(now)
        count = heads if heads > 0 else now // -heads
        middle = AttentionBlock(now, count, new_order)
        first, last = (ResBlock(now, now, emb, scale_shift) for _ in range(2))
        self.middle_block = Parts(first, middle, last)
        self.output_blocks = nn.ModuleList()
        for level, mult in reversed(list(enumerate(mults))):
            for index in range(blocks + 1):
                parts: list[nn.Module] = [ResBlock(now + kept.pop(), mult * width, emb, scale_shift)]
                now = mult * width
                parts += attends(level, now)
                if level and index == blocks:
                    parts.append(ResBlock(now, now, emb, scale_shift, "up") if updown else Up(now))
                self.output_blocks.append(Parts(*parts))
        self.out = nn.Sequential(nn.GroupNorm(32, now), nn.SiLU(), nn.Conv2d(width, outputs, 3, padding=1))

    def embedded(self, t: Tensor) -> Tensor:
        """Times ``(B,)`` -> ``(B, 4 * width)``."""
        emb: Tensor = self.time_embed(embedding(t, self.width))
        return emb

    def forward(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        """``(B, channels, H, W)`` -> ``(B, outputs, H, W)``."""
        emb = self.embedded(t)
        if y is not None:
            emb = emb + self.label_emb(y)
        kept = []
        for block in self.input_blocks:
            x = block(x, emb)
            kept.append(x)
        x = self.middle_block(x, emb)
        for block in self.output_blocks:
            x = block(torch.cat([x, kept.pop()], dim=1), emb)
        out: Tensor = self.out(x)
        return out
