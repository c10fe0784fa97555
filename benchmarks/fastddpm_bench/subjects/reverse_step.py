"""One DDPM step of a batch (clip, noise): the operator, the formula, and diffusers' scheduler.

With the noise given, and with the noise drawn: per sample from seeds here, from a generator elsewhere.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from fastddpm.plans import ddpm_plan
from fastddpm.schedule import NoiseSchedule
from fastddpm.timing import Call, replayed
from fastddpm_bench.contest import BenchSettings, Contest, Contestant
from fastddpm_bench.costs import OpCost
from fastddpm_bench.subjects.variants import numba_too, replayed_too
from fastddpm_bench.workloads import noise
from fastddpm_kernels import reverse_step
from fastddpm_kernels.noise.reference import normal
from fastddpm_kernels.reverse_step.reference import Arguments

SHAPES = {"mnist": (64, 1, 28, 28), "cifar10": (64, 3, 32, 32), "256x256": (4, 3, 256, 256)}
ROW = 500
T = 1000


class Step:
    """State, model output, noise and coefficients of one step."""

    def __init__(self, shape: tuple[int, ...], device: torch.device) -> None:
        self.x, self.m, self.z = (noise(shape, device, seed) for seed in range(3))
        schedule = NoiseSchedule.linear(T)
        plan = ddpm_plan(schedule, clip_sample_range=1.0)
        self.device, self.t = device, int(plan.timesteps[ROW])
        self.table = torch.tensor(plan.table, device=device)
        self.counter = torch.tensor([[ROW, 0]], device=device).repeat(shape[0], 1)
        self.seeds = torch.arange(shape[0], device=device)
        self.columns = {
            name: schedule.tensor(name, device=device)
            for name in (
                "alphas_cumprod",
                "posterior_variance",
                "posterior_mean_coef1",
                "posterior_mean_coef2",
            )
        }

    def formula(self, z: Tensor) -> Tensor:
        """Ho et al. 2020, eq. 7, with x0 clipped."""
        c, t = self.columns, self.t
        abar = c["alphas_cumprod"][t]
        x_0 = ((self.x - (1 - abar).sqrt() * self.m) / abar.sqrt()).clamp(-1, 1)
        mean = c["posterior_mean_coef1"][t] * x_0 + c["posterior_mean_coef2"][t] * self.x
        return mean + c["posterior_variance"][t].sqrt() * z

    def from_seeds(self) -> Tensor:
        """The formula on what the noise specification gives for the seeds."""
        z = normal(self.seeds.cpu().numpy(), ROW + 1, tuple(self.x.shape[1:]))
        return self.formula(torch.as_tensor(z, device=self.device).reshape(self.x.shape))


def contests(settings: BenchSettings) -> list[Contest]:
    """Each shape with the noise given and drawn."""
    shapes = {"mnist": SHAPES["mnist"], "cifar10": SHAPES["cifar10"]} if settings.quick else SHAPES
    return [
        Contest(
            subject="reverse_step",
            workload=f"{name} {'x'.join(map(str, shape))}, noise {kind}",
            setup=functools.partial(Step, shape, settings.device),
            contestants=entrants,
            tolerance=1e-5,
            costs=functools.partial(_traffic, kind == "drawn"),
        )
        for name, shape in shapes.items()
        for kind, entrants in (("given", _given(settings)), ("drawn", _drawn(settings)))
    ]


def _traffic(drawn: bool, step: Step) -> list[OpCost]:
    """x and m (and z) read, x written: what any implementation moves."""
    noise = step.seeds if drawn else step.z[None]
    given = Arguments(step.x, step.m, step.table, step.counter, noise, clip=True)
    return [OpCost("reverse_step", 0, given.traffic().bytes, tuple(step.x.shape))]


def _given(settings: BenchSettings) -> list[Contestant]:
    return [
        *replayed_too(Contestant("formula", lambda step: functools.partial(step.formula, step.z)), settings),
        *([] if settings.quick else [Contestant("formula, compiled", _compiled_formula)]),
        *_entrants("fastddpm", settings, drawn=False),
    ]


def _drawn(settings: BenchSettings) -> list[Contestant]:
    return [
        Contestant("diffusers DDPMScheduler.step", _diffusers, expected=_expected_of_generator),
        Contestant("formula", _formula_drawn, expected=_expected_of_generator),
        *_entrants("fastddpm", settings, drawn=True),
    ]


def _entrants(name: str, settings: BenchSettings, *, drawn: bool) -> list[Contestant]:
    """The operator, on a CPU by numba too, and on a GPU replays of a graph of it."""
    expected = Step.from_seeds if drawn else None
    if not settings.is_cuda:
        build = functools.partial(_ours, drawn=drawn, graph=False)
        return numba_too(Contestant(name, build, ours=True, expected=expected), settings)
    return [
        Contestant(label, functools.partial(_ours, drawn=drawn, graph=graph), ours=True, expected=expected)
        for label, graph in ((name, False), (f"{name}, replayed", True))
    ]


def _compiled_formula(step: Step) -> Call:
    formula = torch.compile(step.formula, dynamic=False)
    return lambda: formula(step.z)


def _ours(step: Step, *, drawn: bool, graph: bool) -> Call:
    state = step.x.clone()
    noise = step.seeds if drawn else step.z[None]

    def call() -> Tensor:
        reverse_step(state, step.m, step.table, step.counter, noise=noise, clip=True)
        return state

    if not graph:
        return call
    replay = replayed(call)
    state.copy_(step.x)  # which the warm-up changed
    return replay


def _generator(step: Step) -> torch.Generator:
    return torch.Generator(step.device).manual_seed(3)


def _formula_drawn(step: Step) -> Call:
    generator = _generator(step)
    shape = step.x.shape
    return lambda: step.formula(torch.randn(shape, generator=generator, device=step.device))


def _expected_of_generator(step: Step) -> Tensor:
    return step.formula(torch.randn(step.x.shape, generator=_generator(step), device=step.device))


def _diffusers(step: Step) -> Call:
    from diffusers.schedulers.scheduling_ddpm import DDPMScheduler

    scheduler = DDPMScheduler(T, beta_schedule="linear", clip_sample=True)
    generator = _generator(step)

    def call() -> Tensor:
        out: Tensor = scheduler.step(step.m, step.t, step.x, generator=generator).prev_sample
        return out

    return call
