"""Noising a batch at random timesteps: the operator and the formula, with the noise given and drawn."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from fastddpm.schedule import NoiseSchedule
from fastddpm.timing import Call
from fastddpm_bench.contest import BenchSettings, Contest, Contestant
from fastddpm_bench.costs import OpCost
from fastddpm_bench.subjects.reverse_step import SHAPES, T
from fastddpm_bench.subjects.variants import numba_too, replayed_too
from fastddpm_bench.workloads import noise
from fastddpm_kernels import q_sample
from fastddpm_kernels.noise.reference import normal
from fastddpm_kernels.q_sample.reference import Arguments

TRAINING_STREAM = 1


class CleanImages:
    """x_t = sqrt(abar_t)*x_0 + sqrt(1-abar_t)*z for a batch."""

    def __init__(self, shape: tuple[int, ...], device: torch.device) -> None:
        self.device = device
        self.x_0, self.z = (noise(shape, device, seed) for seed in range(2))
        self.t = torch.randint(0, T, shape[:1], generator=torch.Generator().manual_seed(2)).to(device)
        schedule = NoiseSchedule.linear(T)
        names = ("sqrt_alphas_cumprod", "sqrt_one_minus_alphas_cumprod")
        self.tables = [schedule.tensor(name, device=device) for name in names]
        self.seeds = torch.zeros(shape[0], dtype=torch.int64, device=device)
        self.ordinals = torch.arange(shape[0], device=device)

    def formula(self, z: Tensor) -> Tensor:
        """Ho et al. 2020, eq. 4."""
        a, s = (table[self.t][:, None, None, None] for table in self.tables)
        return a * self.x_0 + s * z

    def from_seeds(self) -> Tensor:
        """The formula on what the noise specification gives: sample i's step is its ordinal."""
        shape = tuple(self.x_0.shape[1:])
        rows = [normal([0], i, shape, stream=TRAINING_STREAM) for i in range(len(self.x_0))]
        z = torch.stack([torch.as_tensor(row).reshape(shape) for row in rows])
        return self.formula(z.to(self.device))


def contests(settings: BenchSettings) -> list[Contest]:
    """Each shape with the noise given and drawn."""
    shapes = {"mnist": SHAPES["mnist"], "cifar10": SHAPES["cifar10"]} if settings.quick else SHAPES
    return [
        Contest(
            subject="q_sample",
            workload=f"{name} {'x'.join(map(str, shape))}, noise {kind}",
            setup=functools.partial(CleanImages, shape, settings.device),
            contestants=entrants,
            tolerance=1e-5,
            costs=functools.partial(_traffic, kind == "drawn"),
        )
        for name, shape in shapes.items()
        for kind, entrants in (("given", _given(settings)), ("drawn", _drawn(settings)))
    ]


def _traffic(drawn: bool, batch: CleanImages) -> list[OpCost]:
    """x_0 (and z) read, x_t written."""
    signal, sigma = batch.tables
    given = Arguments(batch.x_0, batch.t, signal, sigma, None if drawn else batch.z)
    return [OpCost("q_sample", 0, given.traffic().bytes, tuple(batch.x_0.shape))]


def _given(settings: BenchSettings) -> list[Contestant]:
    ours = Contestant("fastddpm", lambda b: lambda: q_sample(b.x_0, b.t, *b.tables, noise=b.z), ours=True)
    return [
        Contestant("formula", lambda batch: functools.partial(batch.formula, batch.z)),
        *([] if settings.quick else [Contestant("formula, compiled", _compiled)]),
        Contestant("diffusers DDPMScheduler.add_noise", _diffusers),
        *replayed_too(ours, settings),
    ]


def _drawn(settings: BenchSettings) -> list[Contestant]:
    ours = Contestant("fastddpm", _ours_drawn, ours=True, expected=CleanImages.from_seeds)
    return [
        Contestant("formula", _formula_drawn, expected=_expected_of_generator),
        *numba_too(ours, settings),
    ]


def _compiled(batch: CleanImages) -> Call:
    formula = torch.compile(batch.formula, dynamic=False)
    return lambda: formula(batch.z)


def _ours_drawn(b: CleanImages) -> Call:
    return lambda: q_sample(b.x_0, b.t, *b.tables, seeds=b.seeds, ordinals=b.ordinals)


def _diffusers(batch: CleanImages) -> Call:
    from diffusers.schedulers.scheduling_ddpm import DDPMScheduler

    scheduler = DDPMScheduler(T, beta_schedule="linear")
    return lambda: scheduler.add_noise(batch.x_0, batch.z, batch.t)


def _generator(batch: CleanImages) -> torch.Generator:
    return torch.Generator(batch.device).manual_seed(3)


def _formula_drawn(batch: CleanImages) -> Call:
    generator, shape = _generator(batch), batch.x_0.shape
    return lambda: batch.formula(torch.randn(shape, generator=generator, device=batch.device))


def _expected_of_generator(batch: CleanImages) -> Tensor:
    z = torch.randn(batch.x_0.shape, generator=_generator(batch), device=batch.device)
    return batch.formula(z)
