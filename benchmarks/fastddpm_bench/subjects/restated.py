"""Chains of abarankab/DDPM and of the SR3 repository, which are no packages, and of their drop-ins.

The originals are restatements (`fastddpm_bench.peers`) that the tests hold to those repositories' stored
outputs: the same operators on images a step as in the published code (tests/bench/test_bench_workloads.py
counts).
"""

from __future__ import annotations

import copy
import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import fastddpm
from fastddpm.timing import Call
from fastddpm_bench.contest import BenchSettings, Contest, Contestant
from fastddpm_bench.costs import OpCost, watched
from fastddpm_bench.peers import abarankab as peers_abarankab
from fastddpm_bench.peers import sr3 as peers_sr3
from fastddpm_bench.subjects.variants import Layout, arranged, engines, layouts

SEED = 1


@dataclasses.dataclass
class Chain:
    """A peer's diffusion object, where its network is, and the call that makes a batch of images."""

    diffusion: Any
    network: str
    draw: Callable[[Any], Tensor]
    costs_of_step: Callable[[Any], list[OpCost]]
    steps: int

    def costs(self) -> list[OpCost]:
        """Of the network's passes."""
        return self.costs_of_step(self.diffusion) * self.steps


def contests(settings: BenchSettings) -> list[Contest]:
    """abarankab with classes, SR3 with a condition, and SR3's published 16 -> 128 network on a GPU."""
    steps = 3 if settings.quick else 10
    small = 64 if settings.is_cuda else 8
    plans: list[tuple[str, Callable[[], Chain], bool]] = [
        (
            f"abarankab 32x32, {steps} steps, batch {small}",
            functools.partial(abarankab, small, steps, settings.device),
            False,
        ),
        (
            f"SR3 32x32, {steps} steps, batch {small}",
            functools.partial(sr3, small, steps, settings.device),
            False,
        ),
        (
            "SR3 16 to 128, 97.8 M, 20 steps, batch 4",
            functools.partial(sr3, 4, 20, settings.device, published=True),
            True,
        ),
    ]
    return [
        Contest(
            subject="restated",
            workload=workload,
            setup=setup,
            contestants=_contestants(settings),
            tolerance=1e-4,
            per=int(workload.split(" steps")[0].split()[-1]),
            per_name="step",
            costs=Chain.costs,
            isolated=not settings.quick,
            needs_gpu=needs_gpu,
        )
        for workload, setup, needs_gpu in plans
    ]


def abarankab(batch: int, steps: int, device: torch.device) -> Chain:
    """Class-conditional, all steps of a short chain, unclipped."""
    torch.manual_seed(0)
    options: dict[str, Any] = {
        "num_res_blocks": 2,
        "num_classes": 10,
        "attention_resolutions": (1,),
        "num_groups": 8,
    }
    network = peers_abarankab.Network(3, 40, channel_mults=(1, 2), time_emb_dim=128, **options)
    betas = peers_abarankab.linear_betas(steps)
    diffusion = peers_abarankab.Diffusion(network, (32, 32), 3, betas).eval().to(device)
    labels = torch.arange(batch, device=device) % 10

    def costs(original: Any) -> list[OpCost]:
        x, t = torch.zeros(batch, 3, 32, 32, device=device), torch.zeros(batch, device=device)
        return watched(lambda: original.ema_model(x, t, labels))

    return Chain(diffusion, "ema_model", lambda obj: obj.sample(batch, device, labels), costs, steps)


def sr3(batch: int, steps: int, device: torch.device, *, published: bool = False) -> Chain:
    """Super-resolution with the condition already upsampled; ``published``: sr_sr3_16_128.json's network."""
    torch.manual_seed(0)
    side, width, groups, mults = (128, 64, 32, (1, 2, 4, 8, 8)) if published else (32, 40, 8, (1, 2))
    options: dict[str, Any] = {"channel_mults": mults, "attn_res": (16,), "res_blocks": 2, "image_size": side}
    network = peers_sr3.Network("sr3", 6, 3, width, norm_groups=groups, **options)
    diffusion = peers_sr3.Diffusion(network, side, 3, kind="sr3")
    diffusion.set_betas(peers_sr3.betas_of("linear", steps, 1e-4, 0.4))
    diffusion.eval().to(device)
    condition = torch.rand(batch, 3, side, side, generator=torch.Generator().manual_seed(2)) * 2 - 1
    condition = condition.to(device)

    def draw(obj: Any) -> Tensor:
        # The last frame of the whole batch: without `continous` the repository returns one image.
        frames: Tensor = obj.super_resolution(condition, continous=True)
        return frames[-batch:]

    def costs(original: Any) -> list[OpCost]:
        x = torch.cat([condition, condition], dim=1)
        return watched(lambda: original.denoise_fn(x, torch.ones(batch, 1, device=device)))

    return Chain(diffusion, "denoise_fn", draw, costs, steps)


def _contestants(settings: BenchSettings) -> list[Contestant]:
    theirs = [
        Contestant(f"original{layout.name}", functools.partial(_theirs, layout=layout))
        for layout in layouts(settings)
    ]
    ours = [
        Contestant(f"fastddpm.optimize, {engine}", functools.partial(_ours, engine=engine), ours=True)
        for engine in engines(settings)
    ]
    return [*theirs, *ours]


def _theirs(chain: Chain, layout: Layout) -> Call:
    diffusion = copy.deepcopy(chain.diffusion)
    setattr(diffusion, chain.network, arranged(getattr(diffusion, chain.network), layout))
    return _seeded(chain, diffusion)


def _ours(chain: Chain, engine: Any) -> Call:
    diffusion = copy.deepcopy(chain.diffusion)
    getattr(diffusion, chain.network).to(memory_format=torch.channels_last)
    return _seeded(chain, fastddpm.optimize(diffusion, engine=engine))


def _seeded(chain: Chain, diffusion: Any) -> Call:
    def call() -> Tensor:
        torch.manual_seed(SEED)
        return chain.draw(diffusion)

    return call
