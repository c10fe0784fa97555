"""Upsampling and the 3x3 convolution after it as one 2x2 convolution: 4/9 of the operations.

Nearest-neighbour doubling makes a 3x3 kernel meet each input pixel once, twice or four times; its weights are
added up beforehand (the sub-pixel convolution of Shi et al. 2016, run backwards). Each of the four phases of
the output then sees 2x2 pixels of the input.
"""

from __future__ import annotations

import torch
from torch import Tensor


def phase_kernels(weight: Tensor) -> Tensor:
    """``(out, in, 3, 3)`` -> ``(4*out, in, 2, 2)``, for a convolution padded by 1: phase after phase."""
    above, middle, below = weight.unbind(2)
    rows = (torch.stack((above, middle + below), 2), torch.stack((above + middle, below), 2))
    kernels = []
    for row in rows:
        left, centre, right = row.unbind(3)
        kernels += [torch.stack((left, centre + right), 3), torch.stack((left + centre, right), 3)]
    return torch.cat(kernels)


def phases_interleaved(phases: Tensor) -> Tensor:
    """``(B, 4C, H + 1, W + 1)`` -> ``(B, C, 2H, 2W)``, channels_last, in one copy.

    Phase (i, j) of output pixel (y, x) stands at (y + i, x + j): every index has a stride, so that the output
    is a view of the phases.
    """
    pixels = phases.permute(0, 2, 3, 1).contiguous()
    batch, height, width, channels = pixels.shape
    row, column, own = width * channels, channels, channels // 4
    shape = (batch, height - 1, 2, width - 1, 2, own)
    strides = (height * row, row, row + 2 * own, column, column + own, 1)
    out = pixels.as_strided(shape, strides).reshape(batch, 2 * height - 2, 2 * width - 2, own)
    return out.permute(0, 3, 1, 2)
