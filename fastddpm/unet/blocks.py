"""The parts of the UNet: residual block, attention, up- and downsampling, the time embedding.

Feature maps are ``(B, C, H, W)`` in either memory format; nothing here changes it. What depends on time
and class reaches a residual block as one per-channel bias ``(B or 1, C)``, so that the caller may tabulate
it.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastddpm.unet.config import Activation, Norm, UNetConfig


def activate(x: Tensor, kind: Activation) -> Tensor:
    """The network's nonlinearity, by name."""
    if kind == "silu":
        return F.silu(x)
    if kind == "relu":
        return F.relu(x)
    return F.gelu(x)


def make_norm(kind: Norm, channels: int, groups: int) -> nn.Module:
    """The network's normalisation of ``channels`` channels, by name."""
    if kind == "gn":
        return nn.GroupNorm(groups, channels)
    if kind == "bn":
        return nn.BatchNorm2d(channels)
    if kind == "in":
        return nn.InstanceNorm2d(channels, affine=True)
    return nn.Identity()


def sinusoidal_embedding(t: Tensor, dim: int, scale: float = 1.0) -> Tensor:
    """Sinusoidal position embedding of Vaswani et al. 2017 with the sines first, as in the DDPM code.

    Args:
        t: ``(N,)`` times, integer or float.
        dim: even width.
        scale: factor on t.

    Returns:
        float32 ``(N, dim)``.
    """
    half = dim // 2
    frequencies = torch.exp(torch.arange(half, device=t.device) * (-math.log(10000) / half))
    angles = torch.outer(t * scale, frequencies)
    return torch.cat((angles.sin(), angles.cos()), dim=-1)


class Attention(nn.Module):
    """Self-attention over pixels with one head and a residual connection."""

    def __init__(self, channels: int, config: UNetConfig) -> None:
        super().__init__()
        self.norm = make_norm(config.norm, channels, config.num_groups)
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.proj = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, H, W)`` -> ``(B, C, H, W)``."""
        batch, channels, height, width = x.shape
        # (B, H*W, 3C): a view of channels_last data
        qkv = self.qkv(self.norm(x)).permute(0, 2, 3, 1).reshape(batch, 1, height * width, 3 * channels)
        q, k, v = qkv.split(channels, dim=-1)
        out = F.scaled_dot_product_attention(q, k, v)
        out = out.reshape(batch, height, width, channels).permute(0, 3, 1, 2)
        projected: Tensor = self.proj(out)
        return x + projected


class ResidualBlock(nn.Module):
    """norm, activation, conv, + bias(time, class), norm, activation, dropout, conv, + skip, [attention]."""

    def __init__(self, in_channels: int, out_channels: int, config: UNetConfig, attention: bool) -> None:
        super().__init__()
        self.activation = config.activation
        self.out_channels = out_channels
        self.norm1 = make_norm(config.norm, in_channels, config.num_groups)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.time_proj = nn.Linear(config.time_dim, out_channels)
        rows = 0 if config.num_classes is None else config.num_classes + config.null_class
        self.class_embed = nn.Embedding(rows, out_channels) if rows else None
        self.norm2 = make_norm(config.norm, out_channels, config.num_groups)
        self.dropout = nn.Dropout(config.dropout)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.skip = nn.Conv2d(in_channels, out_channels, 1) if in_channels != out_channels else nn.Identity()
        self.attention = Attention(out_channels, config) if attention else nn.Identity()

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        """``x (B, in, H, W)``, ``bias (B or 1, out)`` -> ``(B, out, H, W)``."""
        h = self.conv1(activate(self.norm1(x), self.activation))
        h = activate(self.norm2(h + bias[:, :, None, None]), self.activation)
        h = self.conv2(self.dropout(h)) + self.skip(x)
        out: Tensor = self.attention(h)
        return out


class Downsample(nn.Module):
    """Halves height and width by a strided 3x3 convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, H, W)`` -> ``(B, C, H/2, W/2)``."""
        out: Tensor = self.conv(x)
        return out


class Upsample(nn.Module):
    """Doubles height and width: nearest neighbour, then a 3x3 convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, H, W)`` -> ``(B, C, 2H, 2W)``."""
        out: Tensor = self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))
        return out
