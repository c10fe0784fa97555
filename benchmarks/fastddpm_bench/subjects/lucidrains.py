"""Chains of denoising-diffusion-pytorch's GaussianDiffusion in every layout, and of its drop-in."""

from __future__ import annotations

import copy
import functools
import importlib
from typing import Any

import torch
from torch import Tensor

import fastddpm
from fastddpm.timing import Call
from fastddpm_bench.contest import BenchSettings, Contest, Contestant
from fastddpm_bench.costs import OpCost, watched
from fastddpm_bench.subjects.variants import Layout, arranged, engines, layouts

SEED = 1


class Chain:
    """A GaussianDiffusion that samples by DDIM (eta 0), its objective pred_v, its defaults otherwise."""

    def __init__(self, dim: int, batch: int, steps: int, device: torch.device) -> None:
        from denoising_diffusion_pytorch import GaussianDiffusion, Unet  # type: ignore[import-untyped]

        torch.manual_seed(0)
        unet = Unet(dim, dim_mults=(1, 2, 4), flash_attn=False)
        self.diffusion = GaussianDiffusion(
            unet, image_size=32, timesteps=1000, sampling_timesteps=steps
        ).eval()
        self.diffusion.to(device)
        self.batch, self.steps, self.device = batch, steps, device

    def costs(self) -> list[OpCost]:
        """Of the network's passes."""
        x = torch.zeros(self.batch, 3, 32, 32, device=self.device)
        t = torch.zeros(self.batch, dtype=torch.int64, device=self.device)
        return watched(lambda: self.diffusion.model(x, t)) * self.steps


def contests(settings: BenchSettings) -> list[Contest]:
    """One network of 32x32 colour images."""
    dim, batch, steps = (128, 64, 50) if settings.is_cuda else (24, 8, 10)
    if settings.quick:
        steps = 3
    return [
        Contest(
            subject="lucidrains",
            workload=f"32x32, dim {dim}, ddim, {steps} steps, batch {batch}",
            setup=functools.partial(Chain, dim, batch, steps, settings.device),
            contestants=_contestants(settings),
            tolerance=1e-4,
            per=steps,
            per_name="step",
            costs=Chain.costs,
            isolated=not settings.quick,
        )
    ]


def _contestants(settings: BenchSettings) -> list[Contestant]:
    theirs = [
        Contestant(f"lucidrains{layout.name}", functools.partial(_theirs, layout=layout))
        for layout in layouts(settings)
    ]
    ours = [
        Contestant(f"fastddpm.optimize, {engine}", functools.partial(_ours, engine=engine), ours=True)
        for engine in engines(settings)
    ]
    return [*theirs, *ours]


def _theirs(chain: Chain, layout: Layout) -> Call:
    diffusion = copy.deepcopy(chain.diffusion)
    diffusion.model = arranged(diffusion.model, layout)
    return _called(diffusion, chain.batch)


def _ours(chain: Chain, engine: Any) -> Call:
    diffusion = copy.deepcopy(chain.diffusion)
    diffusion.model.to(memory_format=torch.channels_last)
    return _called(fastddpm.optimize(diffusion, engine=engine), chain.batch)


def _called(diffusion: Any, batch: int) -> Call:
    # The library shows a progress bar that cannot be turned off by an argument.
    module: Any = importlib.import_module("denoising_diffusion_pytorch.denoising_diffusion_pytorch")

    def call() -> Tensor:
        torch.manual_seed(SEED)
        images: Tensor = diffusion.sample(batch_size=batch)
        return images

    module.tqdm = _silent
    return call


def _silent(steps: Any, **options: Any) -> Any:
    return steps
