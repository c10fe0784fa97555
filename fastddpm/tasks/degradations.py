"""What degrades an image: bicubic scaling, Gaussian and motion blur, noise, masks, the loss of colour.

Images are float32 ``(B, C, H, W)`` in [-1, 1]. What is random follows from the run's seed and each sample's
ordinal alone (noise spec v1), so that a resumed run degrades its images as the first would have.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from fastddpm.checks import MAX_SEED, whole
from fastddpm.randomness import check_ordinals
from fastddpm_kernels import normal
from fastddpm_kernels.noise import words

# Words of a training sample: block 0 of stream 2 has t and class dropout, block 1 the augmentation.
DRAW_STREAM, DRAW_BLOCK = 2, 2
# Degradation noise: stream 4, "tasks".
NOISE_STREAM = 4
LUMA = (0.299, 0.587, 0.114)
"""ITU-R BT.601, as Pillow's "L"."""


def rescaled(images: Tensor, height: int, width: int) -> Tensor:
    """Bicubic scaling as Pillow does it (a = -1/2, widened where it shrinks), in floating point.

    Values may go beyond [-1, 1] at edges.
    """
    return F.interpolate(images, size=(height, width), mode="bicubic", antialias=True)


def quantized(images: Tensor) -> Tensor:
    """The nearest of the 256 levels that a file has, clamped: as a condition that was read from a file."""
    return ((images.clamp(-1, 1) + 1) * 127.5).round() / 127.5 - 1


def gaussian_blur(images: Tensor, sigma: float) -> Tensor:
    """A Gaussian of ``sigma`` pixels, cut at 3 sigma; the edge's pixels go on outside."""
    radius = math.ceil(3 * sigma)
    offsets = torch.arange(-radius, radius + 1, dtype=torch.float32, device=images.device)
    weights = torch.exp(-0.5 * (offsets / sigma) ** 2)
    weights = weights / weights.sum()
    channels = images.shape[1]
    padded = F.pad(images, (radius, radius, radius, radius), mode="replicate")
    rows = F.conv2d(padded, weights.reshape(1, 1, -1, 1).expand(channels, 1, -1, 1), groups=channels)
    return F.conv2d(rows, weights.reshape(1, 1, 1, -1).expand(channels, 1, 1, -1), groups=channels)


def motion_blur(images: Tensor, length: int, angles: Tensor) -> Tensor:
    """The mean along a line of ``length`` pixels through each pixel; the edge's pixels go on outside.

    Args:
        images: ``(B, C, H, W)``.
        length: of the line, 2 or more.
        angles: ``(B,)`` in radians, from the horizontal.
    """
    batch, channels, height, width = images.shape
    kernels = torch.stack([line_kernel(length, float(angle)) for angle in angles]).to(images.device)
    radius = kernels.shape[-1] // 2
    padded = F.pad(images, (radius, radius, radius, radius), mode="replicate")
    weights = kernels[:, None, None].expand(batch, channels, 1, -1, -1).flatten(0, 1)
    planes = padded.reshape(1, batch * channels, *padded.shape[2:])
    return F.conv2d(planes, weights, groups=batch * channels).reshape(batch, channels, height, width)


def line_kernel(length: int, angle: float) -> Tensor:
    """``(K, K)`` weights, K odd, that sum to 1: a line of ``length`` pixels through the middle.

    The line is taken at eight points a pixel, and each point is shared bilinearly among its four pixels.
    """
    radius = math.ceil(length / 2)
    kernel = torch.zeros(2 * radius + 1, 2 * radius + 1)
    places = (torch.arange(8 * length) + 0.5) / 8 - length / 2
    rows, columns = radius - places * math.sin(angle), radius + places * math.cos(angle)
    top, left = rows.floor().long(), columns.floor().long()
    down, right = rows - top, columns - left
    for row, column, weight in (
        (top, left, (1 - down) * (1 - right)),
        (top, left + 1, (1 - down) * right),
        (top + 1, left, down * (1 - right)),
        (top + 1, left + 1, down * right),
    ):
        inside = (row <= 2 * radius) & (column <= 2 * radius)  # beyond it the weight is 0
        kernel.index_put_((row[inside], column[inside]), weight[inside], accumulate=True)
    return kernel / kernel.sum()


def noise_like(images: Tensor, ordinals: Tensor, seed: int) -> Tensor:
    """Standard normals of the images' shape: stream 4, step and repeat from the ordinal."""
    seeds = _seeds(ordinals, seed)
    step, repeat = ordinals & 0xFFFFFFFF, ordinals >> 32
    return normal(seeds, step, images.shape[1:], stream=NOISE_STREAM, repeat=repeat)


def uniform(ordinals: Tensor, seed: int) -> Tensor:
    """Four numbers a sample, float32 ``(B, 4)`` in [0, 1): block 2 of the words of t and augmentation."""
    seeds = _seeds(ordinals, seed)
    elements = 4 * (DRAW_BLOCK + 1)
    lanes = words(seeds, ordinals & 0xFFFFFFFF, elements, stream=DRAW_STREAM, repeat=ordinals >> 32)
    drawn = torch.stack([lane[:, DRAW_BLOCK] for lane in lanes], dim=1)
    return (drawn >> 8).float() * 2.0**-24


def _seeds(ordinals: Tensor, seed: int) -> Tensor:
    check_ordinals(ordinals, len(ordinals) if ordinals.ndim else 1)
    return torch.full_like(ordinals, whole("seed", seed, least=0, most=MAX_SEED))


def boxes(draws: Tensor, height: int, width: int) -> Tensor:
    """Masks float32 ``(B, 1, H, W)``: 1 in a rectangle with sides of a quarter to a half of the image's.

    Args:
        draws: ``(B, 4)`` in [0, 1): height, width, top, left.
        height: of the image, in pixels.
        width: likewise.
    """
    size = torch.tensor([height, width], device=draws.device)
    sides = (size * (0.25 + 0.25 * draws[:, :2])).round()
    starts = ((size - sides + 1) * draws[:, 2:]).floor()
    rows = torch.arange(height, device=draws.device)[None, :, None]
    columns = torch.arange(width, device=draws.device)[None, None, :]
    (top, left), (tall, wide) = starts[:, :, None, None].unbind(1), sides[:, :, None, None].unbind(1)
    inside = (rows >= top) & (rows < top + tall) & (columns >= left) & (columns < left + wide)
    return inside[:, None].float()


def grey(images: Tensor) -> Tensor:
    """``(B, 3, H, W)`` -> ``(B, 1, H, W)``: luma, 0.299 R + 0.587 G + 0.114 B."""
    weights = torch.tensor(LUMA, device=images.device).reshape(1, 3, 1, 1)
    return (images * weights).sum(dim=1, keepdim=True)
