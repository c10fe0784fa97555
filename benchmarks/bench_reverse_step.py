"""One DDPM step (clip, noise) of a batch: `reverse_step`, diffusers' scheduler, and the formula in PyTorch.

`given` and `formula` read their noise; `drawn` and `diffusers` draw it, from the seeds and from a generator.
"""

from __future__ import annotations

import pytest
import torch

from fastddpm import NoiseSchedule, ddpm_plan
from fastddpm_kernels import reverse_step

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SHAPES = {"mnist": (64, 1, 28, 28), "cifar10": (64, 3, 32, 32), "256x256": (4, 3, 256, 256)}
ROW, T = 500, 1000


def synchronized(function):
    def run():
        function()
        if DEVICE == "cuda":
            torch.cuda.synchronize()

    return run


class Contest:
    """The same step, four ways, on the same state and output."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        generator = torch.Generator().manual_seed(0)
        self.x, self.m, self.z = (torch.randn(shape, generator=generator).to(DEVICE) for _ in range(3))
        schedule = NoiseSchedule.linear(T)
        plan = ddpm_plan(schedule, clip_sample_range=1.0)
        self.t = int(plan.timesteps[ROW])
        self.table = torch.tensor(plan.table, device=DEVICE)
        self.counter = torch.tensor([ROW, 0], device=DEVICE)
        self.seeds = torch.arange(shape[0], device=DEVICE)
        self.state = self.x.clone()
        names = (
            "betas",
            "alphas_cumprod",
            "posterior_variance",
            "posterior_mean_coef1",
            "posterior_mean_coef2",
        )
        self.columns = {
            n: torch.tensor(getattr(schedule, n), dtype=torch.float32, device=DEVICE) for n in names
        }

    def drawn(self) -> torch.Tensor:
        reverse_step(self.state, self.m, self.table, self.counter, noise=self.seeds, clip=True)
        return self.state

    def given(self) -> torch.Tensor:
        reverse_step(self.state, self.m, self.table, self.counter, noise=self.z[None], clip=True)
        return self.state

    def formula(self) -> torch.Tensor:
        """Ho et al. 2020, eq. 7, with x0 clipped."""
        c, t = self.columns, self.t
        abar = c["alphas_cumprod"][t]
        x_0 = ((self.x - (1 - abar).sqrt() * self.m) / abar.sqrt()).clamp(-1, 1)
        mean = c["posterior_mean_coef1"][t] * x_0 + c["posterior_mean_coef2"][t] * self.x
        return mean + c["posterior_variance"][t].sqrt() * self.z

    def diffusers(self) -> torch.Tensor:
        schedulers = pytest.importorskip("diffusers.schedulers")
        if not hasattr(self, "scheduler"):
            self.scheduler = schedulers.DDPMScheduler(T, beta_schedule="linear", clip_sample=True)
            self.generator = torch.Generator(DEVICE)
        return self.scheduler.step(self.m, self.t, self.x, generator=self.generator).prev_sample


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("contestant", ["drawn", "given", "formula", "diffusers"])
def test_reverse_step(benchmark, shape, contestant):
    contest = Contest(SHAPES[shape])
    assert (contest.given() - contest.formula()).abs().max() < 1e-5
    benchmark.group = f"reverse_step {shape} {SHAPES[shape]} {DEVICE}"
    benchmark(synchronized(getattr(contest, contestant)))
