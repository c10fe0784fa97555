"""The parts of the UNet: residual block, attention, up- and downsampling, the time embedding.

Feature maps are ``(B, C, H, W)`` in either memory format; nothing here changes it. What depends on time
and class reaches a residual block as one vector, a bias ``(B or 1, C)`` or a scale and a shift
``(B or 1, 2C)``, so that the caller may tabulate it.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastddpm.unet.config import Activation, UNetConfig
from fastddpm_kernels import group_norm_silu
from fastddpm_kernels.compat import runs_kernels

Resize = Literal["none", "down", "up"]
"""What a block does to the size."""


def activate(x: Tensor, kind: Activation) -> Tensor:
    """The network's nonlinearity, by name."""
    if kind == "silu":
        return F.silu(x)
    if kind == "relu":
        return F.relu(x)
    if kind == "mish":
        return F.mish(x)
    return F.gelu(x)


def make_norm(config: UNetConfig, channels: int) -> nn.Module:
    """The network's normalisation of ``channels`` channels."""
    if config.norm == "gn":
        return nn.GroupNorm(config.num_groups, channels, eps=config.norm_eps)
    if config.norm == "bn":
        return nn.BatchNorm2d(channels)
    if config.norm == "in":
        return nn.InstanceNorm2d(channels, affine=True)
    return nn.Identity()


def fuses(norm: nn.Module, activation: Activation | None, x: Tensor) -> bool:
    """Whether the norm of ``x`` and the activation after it are one kernel: GroupNorm and SiLU on CUDA."""
    return type(norm) is nn.GroupNorm and activation in ("silu", None) and runs_kernels(x.device)


def normalize(x: Tensor, norm: nn.Module, activation: Activation | None = None) -> Tensor:
    """The norm of ``x (B, C, H, W)`` and the activation after it, if any."""
    if fuses(norm, activation, x):
        assert isinstance(norm, nn.GroupNorm)
        return group_norm_silu(
            x, norm.num_groups, norm.weight, norm.bias, norm.eps, activation=activation or "none"
        )
    x = norm(x)
    return x if activation is None else activate(x, activation)


def sinusoidal_embedding(
    t: Tensor, dim: int, scale: float = 1.0, *, shift: float = 0.0, cosine_first: bool = False
) -> Tensor:
    """Sinusoidal position embedding of Vaswani et al. 2017 with the sines first, as in the DDPM code.

    Args:
        t: ``(N,)`` times, integer or float.
        dim: even width.
        scale: factor on t.
        shift: frequencies are ``10000**(-i/(dim/2 - shift))``; 1 in the DDPM code, so that the last is 1e-4.
        cosine_first: the cosines first.

    Returns:
        float32 ``(N, dim)``.
    """
    half = dim // 2
    frequencies = torch.exp(torch.arange(half, device=t.device) * (-math.log(10000) / (half - shift)))
    angles = torch.outer(t * scale, frequencies)
    halves = (angles.cos(), angles.sin()) if cosine_first else (angles.sin(), angles.cos())
    return torch.cat(halves, dim=-1)


class Attention(nn.Module):
    """Self-attention over pixels with a residual connection; ``norm``: whether its input is normalised."""

    def __init__(self, channels: int, config: UNetConfig, norm: bool = True) -> None:
        super().__init__()
        self.heads = config.attention_heads or channels // (config.attention_head_dim or channels)
        self.norm = make_norm(config, channels) if norm else nn.Identity()
        self.qkv = nn.Conv2d(channels, 3 * channels, 1, bias=config.attention_bias)
        self.proj = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, H, W)`` -> ``(B, C, H, W)``."""
        batch, channels, height, width = x.shape
        mixed = self.mixed(normalize(x, self.norm))
        projected = per_pixel(self.proj, mixed).reshape(batch, height, width, channels).permute(0, 3, 1, 2)
        return x + projected

    def mixed(self, normed: Tensor) -> Tensor:
        """What attention makes of ``normed (B, C, H, W)``, before its projection: likewise."""
        return attended(per_pixel(self.qkv, normed), self.heads, normed.shape)


def attended(qkv: Tensor, heads: int, shape: torch.Size) -> Tensor:
    """Attention of queries, keys and values ``(B, H*W, 3C)``: a map of this shape, ``(B, C, H, W)``."""
    batch, channels, height, width = shape
    # (B, heads, H*W, C/heads) each: views of channels_last data; a head's channels are consecutive
    qkv = qkv.reshape(batch, height * width, 3 * heads, -1)
    q, k, v = torch.split(qkv.transpose(1, 2), heads, dim=1)
    out = F.scaled_dot_product_attention(q, k, v)
    return out.transpose(1, 2).reshape(batch, height, width, channels).permute(0, 3, 1, 2)


def per_pixel(conv: nn.Conv2d, x: Tensor) -> Tensor:
    """A 1x1 convolution of ``x (B, C, H, W)`` -> ``(B, H*W, out)``; on CUDA as a matrix product.

    That takes its bias with it and leaves views; around a convolution Inductor puts kernels that add the bias
    and copy, three a convolution.
    """
    if x.device.type == "cuda":
        return pixel_product(conv, x)
    batch, _, height, width = x.shape
    return conv(x).permute(0, 2, 3, 1).reshape(batch, height * width, -1)  # type: ignore[no-any-return]


def pixel_product(conv: nn.Conv2d, x: Tensor) -> Tensor:
    """A 1x1 convolution of ``x (B, C, H, W)`` as a matrix product, ``(B, H*W, out)``."""
    batch, channels, height, width = x.shape
    pixels = x.permute(0, 2, 3, 1).reshape(batch, height * width, channels)
    return F.linear(pixels, conv.weight.flatten(1), conv.bias)


def resized(x: Tensor, resize: Resize) -> Tensor:
    """``(B, C, H, W)`` at half the size by means of 2x2, at twice by nearest neighbours, or as it is."""
    if resize == "down":
        return F.avg_pool2d(x, 2)
    return F.interpolate(x, scale_factor=2.0, mode="nearest") if resize == "up" else x


class ResidualBlock(nn.Module):
    """norm, activation, conv, + bias(time, class), norm, activation, dropout, conv, + skip, [attention].

    Instead of the bias a scale and a shift before or after the second norm, where the config says so. A block
    that changes the size does it before the first convolution, and in the skip.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        config: UNetConfig,
        attention: bool,
        resize: Resize = "none",
    ) -> None:
        super().__init__()
        self.resize = resize
        self.activation = config.activation
        self.conditioning = config.time_conditioning
        self.out_channels = out_channels
        self.bias_width = out_channels * (1 if self.conditioning == "bias" else 2)
        self.norm1 = make_norm(config, in_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.time_proj = nn.Linear(config.time_dim, self.bias_width)
        rows = 0 if config.num_classes is None else config.num_classes + config.null_class
        has_rows = rows > 0 and config.class_conditioning == "bias"
        self.class_embed = nn.Embedding(rows, self.bias_width) if has_rows else None
        self.norm2 = make_norm(config, out_channels)
        self.dropout = nn.Dropout(config.dropout)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.skip = nn.Conv2d(in_channels, out_channels, 1) if in_channels != out_channels else nn.Identity()
        self.attention = Attention(out_channels, config) if attention else nn.Identity()

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        """``x (B, in, H, W)``, ``bias (B or 1, bias_width)`` -> ``(B, out, H, W)``, resized where it does."""
        h = resized(normalize(x, self.norm1, self.activation), self.resize)
        x = resized(x, self.resize)
        if self.conditioning != "affine" and fuses(self.norm2, self.activation, h):
            h = self.fused(h, bias)
        else:
            h = activate(self.conditioned(self.conv1(h), bias[:, :, None, None]), self.activation)
        h = self.conv2(self.dropout(h)) + self.skip(x)
        out: Tensor = self.attention(h)
        return out

    def conditioned(self, h: Tensor, bias: Tensor) -> Tensor:
        """The second norm of ``h (B, out, H, W)`` with ``bias (B or 1, bias_width, 1, 1)`` in its place."""
        normed: Tensor
        if self.conditioning == "bias":
            normed = self.norm2(h + bias)
            return normed
        scale, shift = bias.chunk(2, dim=1)
        if self.conditioning == "affine":
            normed = self.norm2(h * (1 + scale) + shift)
            return normed
        return self.norm2(h) * (1 + scale) + shift  # type: ignore[no-any-return]

    def fused(self, h: Tensor, bias: Tensor) -> Tensor:
        """The first convolution of ``h (B, in, H, W)``, :meth:`conditioned`, and SiLU, in two kernels.

        The convolution's bias is added in the norm's pass, which reads the map anyway.
        """
        norm, conv = self.norm2, self.conv1
        assert isinstance(norm, nn.GroupNorm)
        assert conv.bias is not None
        scale = shift = None
        if self.conditioning == "scale_shift":
            scale, shift = bias.chunk(2, dim=1)
            pre_bias = conv.bias[None]
        else:
            pre_bias = bias + conv.bias
        h = F.conv2d(h, conv.weight, None, conv.stride, conv.padding)
        return group_norm_silu(
            h,
            norm.num_groups,
            norm.weight,
            norm.bias,
            norm.eps,
            pre_bias=pre_bias,
            scale=scale,
            shift=shift,
        )


class Downsample(nn.Module):
    """Halves height and width by a strided 3x3 convolution."""

    def __init__(self, channels: int, padding: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2, padding=padding)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, H, W)`` -> ``(B, C, H/2, W/2)``."""
        if self.conv.padding == (0, 0):
            x = F.pad(x, (0, 1, 0, 1))  # as TensorFlow's "SAME" does, and the DDPM code with it
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
