"""The networks of policies as they are published, restated: their parts have the published names.

Sources: real-stanford/diffusion_policy, diffusion_policy/model/diffusion/conditional_unet1d.py and
conv1d_components.py (Chi et al. 2023); lerobot 0.4.4, policies/diffusion/modeling_diffusion.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from fastddpm_bench.peers.diffusion_policy import TimeEmbedding


class ConvBlock(nn.Module):
    """Conv1d, GroupNorm, Mish."""

    def __init__(self, inputs: int, outputs: int, kernel: int, groups: int = 8) -> None:
        super().__init__()
        conv = nn.Conv1d(inputs, outputs, kernel, padding=kernel // 2)
        self.block = nn.Sequential(conv, nn.GroupNorm(groups, outputs), nn.Mish())

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.block(x)
        return out


class Sampling(nn.Module):
    """A convolution that halves or doubles the length, as diffusion_policy holds it."""

    def __init__(self, conv: nn.Module) -> None:
        super().__init__()
        self.conv = conv

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv(x)
        return out


class ResidualBlock(nn.Module):
    """diffusion_policy's ``ConditionalResidualBlock1D``."""

    def __init__(
        self, inputs: int, outputs: int, cond_dim: int, kernel: int, groups: int, scales: bool
    ) -> None:
        super().__init__()
        self.outputs, self.scales = outputs, scales
        first, second = (
            ConvBlock(inputs, outputs, kernel, groups),
            ConvBlock(outputs, outputs, kernel, groups),
        )
        self._hold(first, second)
        self.cond_encoder = nn.Sequential(nn.Mish(), nn.Linear(cond_dim, outputs * (1 + scales)))
        self.residual_conv = nn.Conv1d(inputs, outputs, 1) if inputs != outputs else nn.Identity()

    def _hold(self, first: ConvBlock, second: ConvBlock) -> None:
        self.blocks = nn.ModuleList([first, second])

    def _convs(self) -> tuple[nn.Module, nn.Module]:
        return self.blocks[0], self.blocks[1]

    def forward(self, x: Tensor, cond: Tensor) -> Tensor:
        first, second = self._convs()
        out, film = first(x), self.cond_encoder(cond)[..., None]
        if self.scales:
            scale, bias = film[:, : self.outputs], film[:, self.outputs :]
            out = scale * out + bias
        else:
            out = out + film
        result: Tensor = second(out) + self.residual_conv(x)
        return result


class LeRobotBlock(ResidualBlock):
    """LeRobot's ``DiffusionConditionalResidualBlock1d``: the same under other names."""

    def _hold(self, first: ConvBlock, second: ConvBlock) -> None:
        self.conv1, self.conv2 = first, second

    def _convs(self) -> tuple[nn.Module, nn.Module]:
        return self.conv1, self.conv2


class ConditionalUnet1D(nn.Module):
    """diffusion_policy's network: ``(B, T, A)``, times, and a vector for the whole trajectory."""

    block = ResidualBlock

    def __init__(
        self,
        input_dim: int,
        local_cond_dim: int | None = None,
        global_cond_dim: int | None = None,
        diffusion_step_embed_dim: int = 256,
        down_dims: Sequence[int] = (256, 512, 1024),
        kernel_size: int = 3,
        n_groups: int = 8,
        cond_predict_scale: bool = False,
    ) -> None:
        super().__init__()
        width = diffusion_step_embed_dim
        time = nn.Linear(width, 4 * width), nn.Mish(), nn.Linear(4 * width, width)
        self.diffusion_step_encoder = nn.Sequential(TimeEmbedding(width), *time)
        rest = (width + (global_cond_dim or 0), kernel_size, n_groups, cond_predict_scale)
        self.local_cond_encoder = None
        if local_cond_dim is not None:
            both = [self.block(local_cond_dim, down_dims[0], *rest) for _ in range(2)]
            self.local_cond_encoder = nn.ModuleList(both)
        inputs = [input_dim, *down_dims[:-1]]
        self.down_modules = nn.ModuleList()
        for i, (before, after) in enumerate(zip(inputs, down_dims, strict=True)):
            halve = self.resampling(nn.Conv1d(after, after, 3, 2, 1))
            parts = [self.block(before, after, *rest), self.block(after, after, *rest)]
            self.down_modules.append(
                nn.ModuleList([*parts, halve if i < len(down_dims) - 1 else nn.Identity()])
            )
        last = down_dims[-1]
        self.mid_modules = nn.ModuleList([self.block(last, last, *rest) for _ in range(2)])
        self.up_modules = nn.ModuleList()
        for above, below in reversed(list(pairwise(down_dims))):
            parts = [self.block(2 * below, above, *rest), self.block(above, above, *rest)]
            double = self.resampling(nn.ConvTranspose1d(above, above, 4, 2, 1))
            self.up_modules.append(nn.ModuleList([*parts, double]))
        first = down_dims[0]
        self.final_conv = nn.Sequential(ConvBlock(first, first, kernel_size), nn.Conv1d(first, input_dim, 1))

    @staticmethod
    def resampling(conv: nn.Module) -> nn.Module:
        return Sampling(conv)

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor | int,
        local_cond: Tensor | None = None,
        global_cond: Tensor | None = None,
        **kwargs: Any,
    ) -> Tensor:
        x = sample.moveaxis(-1, -2)
        t = timestep if isinstance(timestep, Tensor) else torch.tensor([timestep], device=x.device)
        cond = self.diffusion_step_encoder(t.reshape(-1).to(x.device).expand(len(x)))
        if global_cond is not None:
            cond = torch.cat((cond, global_cond), dim=-1)
        local: list[Tensor] = []
        if local_cond is not None:
            if self.local_cond_encoder is None:
                raise TypeError("cannot unpack non-iterable NoneType object")
            local = [block(local_cond.moveaxis(-1, -2), cond) for block in self.local_cond_encoder]
        kept = []
        for i, level in enumerate(self.down_modules):
            first, second, halve = level.children()
            x = first(x, cond)
            x = x + local[0] if local and i == 0 else x
            kept.append(second(x, cond))
            x = halve(kept[-1])
        for block in self.mid_modules:
            x = block(x, cond)
        for level in self.up_modules:
            # The second of the local ones is never added there: the level that it is for is not reached.
            first, second, double = level.children()
            x = first(torch.cat((x, kept.pop()), dim=1), cond)
            x = double(second(x, cond))
        out: Tensor = self.final_conv(x).moveaxis(-1, -2)
        return out


class DiffusionConditionalUnet1d(ConditionalUnet1D):
    """LeRobot's network."""

    block = LeRobotBlock

    def __init__(self, config: Any, global_cond_dim: int) -> None:
        super().__init__(
            config.action_feature.shape[0],
            global_cond_dim=global_cond_dim,
            diffusion_step_embed_dim=config.diffusion_step_embed_dim,
            down_dims=config.down_dims,
            kernel_size=config.kernel_size,
            n_groups=config.n_groups,
            cond_predict_scale=config.use_film_scale_modulation,
        )

    @staticmethod
    def resampling(conv: nn.Module) -> nn.Module:
        return conv

    def forward(  # type: ignore[override]
        self, x: Tensor, timestep: Tensor | int, global_cond: Tensor | None = None
    ) -> Tensor:
        return super().forward(x, timestep, global_cond=global_cond)
