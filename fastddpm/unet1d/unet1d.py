"""`UNet1D`: the network of Diffusion Policy (Chi et al. 2023), its conditions apart from its trajectories.

The published network gives every residual block ``Linear(Mish(cat(time, observations)))`` (FiLM, Perez et al.
2018). Mish is taken of each number by itself, so the product falls apart exactly into a part of the time, of
which a chain has one for each row of its plan, and one of the observations, which a chain has once.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastddpm.checks import BadArgument
from fastddpm.unet1d.config import UNet1DConfig
from fastddpm_kernels import group_norm_silu
from fastddpm_kernels.compat import runs_kernels

P = TypeVar("P", bound=nn.Module)


class Block(nn.Module):
    """Twice convolution, GroupNorm and Mish, what FiLM gives in between, and the input added at the end.

    Args:
        inputs: channels.
        outputs: channels.
        config: of the network.
    """

    def __init__(self, inputs: int, outputs: int, config: UNet1DConfig) -> None:
        super().__init__()
        kernel, groups = config.kernel_size, config.num_groups
        self.conv1 = nn.Conv1d(inputs, outputs, kernel, padding=kernel // 2)
        self.norm1 = nn.GroupNorm(groups, outputs)
        self.film = nn.Linear(config.time_dim + config.cond_dim, outputs * (1 + config.film_scale))
        self.conv2 = nn.Conv1d(outputs, outputs, kernel, padding=kernel // 2)
        self.norm2 = nn.GroupNorm(groups, outputs)
        self.residual = nn.Conv1d(inputs, outputs, 1) if inputs != outputs else None

    def forward(self, x: Tensor, film: Tensor) -> Tensor:
        """``(B, C, T)`` of x ``(B, C_in, T)`` and FiLM's numbers ``(B, C or 2C)``, scales first."""
        h = mish_of(self.norm1, self.conv1(x))
        h = mish_of(self.norm2, self.conv2(modulated(h, film)))
        out: Tensor = h + (x if self.residual is None else self.residual(x))
        return out


class Pair(nn.Module):
    """Two blocks of one level.

    Args:
        inputs: channels.
        outputs: channels.
        config: of the network.
    """

    def __init__(self, inputs: int, outputs: int, config: UNet1DConfig) -> None:
        super().__init__()
        self.first, self.second = Block(inputs, outputs, config), Block(outputs, outputs, config)

    def forward(self, x: Tensor, films: Iterator[Tensor]) -> Tensor:
        """Through both, each with the next of FiLM's numbers."""
        h: Tensor = self.first(x, next(films))
        h = self.second(h, next(films))
        return h


class UNet1D(nn.Module):
    """Predicts of trajectories ``(B, T, A)``, T a multiple of `UNet1DConfig.length_multiple`.

    Source: real-stanford/diffusion_policy, conditional_unet1d.py, and LeRobot's modeling_diffusion.py.

    Args:
        config: the options.
    """

    def __init__(self, config: UNet1DConfig) -> None:
        super().__init__()
        self.config, dims = config, config.down_dims
        width = config.time_dim
        self.time_mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.Mish(), nn.Linear(4 * width, width))
        pairs = list(pairwise((config.action_dim, *dims)))
        self.down = nn.ModuleList([Pair(before, after, config) for before, after in pairs])
        self.downsample = nn.ModuleList([nn.Conv1d(width, width, 3, 2, 1) for width in dims[:-1]])
        self.mid = Pair(dims[-1], dims[-1], config)
        levels = list(pairwise(dims))[::-1]
        self.up = nn.ModuleList([Pair(2 * below, above, config) for above, below in levels])
        self.upsample = nn.ModuleList([nn.ConvTranspose1d(above, above, 4, 2, 1) for above, _ in levels])
        self.final_conv = nn.Conv1d(dims[0], dims[0], config.kernel_size, padding=config.kernel_size // 2)
        self.final_norm = nn.GroupNorm(config.final_groups, dims[0])
        self.conv_out = nn.Conv1d(dims[0], config.action_dim, 1)

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights."""
        return self.conv_out.weight.dtype

    @property
    def bias_width(self) -> int:
        """Numbers that FiLM gives all blocks together."""
        return sum(block.film.out_features for block in self.blocks())

    def blocks(self) -> list[Block]:
        """The residual blocks, in the order in which they run."""
        pairs = (*parts(self.down, Pair), self.mid, *parts(self.up, Pair))
        return [block for pair in pairs for block in (pair.first, pair.second)]

    def forward(self, x: Tensor, t: Tensor, global_cond: Tensor | None = None) -> Tensor:
        """Predicts.

        Args:
            x: ``(B, T, A)``.
            t: ``(B,)``, timesteps.
            global_cond: ``(B, cond_dim)``, what was observed; None of a network without.

        Returns:
            ``(B, T, A)``.

        Raises:
            ValueError: a trajectory or condition of another shape.
        """
        bias = self.time_biases(t)
        if (global_cond is None) != (self.config.cond_dim == 0):
            given = "none" if global_cond is None else "a vector"
            accepted = f"{self.config.cond_dim} numbers" if self.config.cond_dim else "none"
            raise BadArgument("global_cond", given, accepted)
        if global_cond is not None:
            bias = bias + self.condition_biases(global_cond)
        return self.forward_biased(x, bias)

    def check_shape(self, name: str, shape: Sequence[int]) -> None:
        """BadArgument unless a shape is that of trajectories that the levels can halve."""
        width, multiple = self.config.action_dim, self.config.length_multiple
        if len(shape) != 3 or shape[2] != width or not shape[1] or shape[1] % multiple:
            raise BadArgument(
                name, f"shape {tuple(shape)}", f"(B, T, {width}) with T a multiple of {multiple}"
            )

    def time_biases(self, t: Tensor) -> Tensor:
        """The part of every block's FiLM that times ``(N,)`` give, its bias with it: ``(N, bias_width)``."""
        half = self.config.time_dim // 2
        rates = torch.exp(torch.arange(half, device=t.device) * -(math.log(10000) / (half - 1)))
        angles = t[:, None] * rates
        embedded = torch.cat((angles.sin(), angles.cos()), dim=1).to(self.dtype)
        return self._projected(F.mish(self.time_mlp(embedded)), 0)

    def condition_biases(self, global_cond: Tensor) -> Tensor:
        """The part that observations ``(B, cond_dim)`` give: ``(B, bias_width)``.

        Raises:
            ValueError: observations of another shape.
        """
        if global_cond.ndim != 2 or global_cond.shape[1] != self.config.cond_dim:
            given = f"shape {tuple(global_cond.shape)}"
            raise BadArgument("global_cond", given, f"(B, {self.config.cond_dim})")
        return self._projected(F.mish(global_cond.to(self.dtype)), self.config.time_dim)

    def _projected(self, features: Tensor, first: int) -> Tensor:
        """Of every block's FiLM, the product with so many of its columns from one on."""
        last = first + features.shape[1]
        parts = [
            F.linear(features, block.film.weight[:, first:last], None if first else block.film.bias)
            for block in self.blocks()
        ]
        return torch.cat(parts, dim=1)

    def forward_biased(self, x: Tensor, bias: Tensor) -> Tensor:
        """As `forward`, given FiLM's numbers of all blocks, ``(B, bias_width)``, in place of time and
        observations."""
        self.check_shape("x", x.shape)
        films = iter(torch.split(bias, [block.film.out_features for block in self.blocks()], dim=1))
        h, kept = x.transpose(1, 2), []
        for i, pair in enumerate(self.down):
            h = pair(h, films)
            if i < len(self.downsample):
                kept.append(h)
                h = self.downsample[i](h)
        last = h  # of the lowest level, which is kept without being halved
        h = self.mid(h, films)
        for pair, upsample in zip(self.up, self.upsample, strict=True):
            h = upsample(pair(torch.cat((h, last), dim=1), films))
            last = kept.pop()
        h = mish_of(self.final_norm, self.final_conv(h))
        out: Tensor = self.conv_out(h)
        return out.transpose(1, 2)


def mish_of(norm: nn.GroupNorm, h: Tensor) -> Tensor:
    """Mish of the norm of h ``(B, C, T)``: one kernel on CUDA, where Triton is."""
    if not runs_kernels(h.device):
        return F.mish(norm(h))
    return group_norm_silu(h, norm.num_groups, norm.weight, norm.bias, norm.eps, activation="mish")


def modulated(h: Tensor, film: Tensor) -> Tensor:
    """``scale * h + shift``, or ``h + shift``, for h ``(B, C, T)`` and numbers ``(B, 2C or C)``."""
    channels = h.shape[1]
    if film.shape[1] == channels:
        return h + film[:, :, None]
    return film[:, :channels, None] * h + film[:, channels:, None]


def parts(held: nn.ModuleList, kind: type[P]) -> list[P]:
    """What a list of modules holds, all of one kind."""
    return [part for part in held if isinstance(part, kind)]
