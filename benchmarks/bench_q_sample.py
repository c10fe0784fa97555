"""Noising a batch at random timesteps: `q_sample` against the formula in PyTorch, noise drawn and given."""

from __future__ import annotations

import pytest
import torch
from bench_reverse_step import DEVICE, SHAPES, T, synchronized

from fastddpm import NoiseSchedule
from fastddpm_kernels import q_sample


class Contest:
    """x_t = sqrt(abar_t)*x_0 + sqrt(1-abar_t)*z, four ways."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        generator = torch.Generator().manual_seed(0)
        self.x_0, self.z = (torch.randn(shape, generator=generator).to(DEVICE) for _ in range(2))
        self.t = torch.randint(0, T, shape[:1], generator=generator).to(DEVICE)
        schedule = NoiseSchedule.linear(T)
        tables = (schedule.sqrt_alphas_cumprod, schedule.sqrt_one_minus_alphas_cumprod)
        self.tables = [torch.tensor(v, dtype=torch.float32, device=DEVICE) for v in tables]
        self.seeds = torch.zeros(shape[0], dtype=torch.int64, device=DEVICE)
        self.ordinals = torch.arange(shape[0], device=DEVICE)

    def drawn(self) -> torch.Tensor:
        return q_sample(self.x_0, self.t, *self.tables, seeds=self.seeds, ordinals=self.ordinals)

    def given(self) -> torch.Tensor:
        return q_sample(self.x_0, self.t, *self.tables, noise=self.z)

    def formula(self) -> torch.Tensor:
        a, s = (table[self.t][:, None, None, None] for table in self.tables)
        return a * self.x_0 + s * self.z

    def formula_with_randn(self) -> torch.Tensor:
        a, s = (table[self.t][:, None, None, None] for table in self.tables)
        return a * self.x_0 + s * torch.randn_like(self.x_0)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("contestant", ["drawn", "formula_with_randn", "given", "formula"])
def test_q_sample(benchmark, shape, contestant):
    contest = Contest(SHAPES[shape])
    assert (contest.given() - contest.formula()).abs().max() < 1e-5
    benchmark.group = f"q_sample {shape} {SHAPES[shape]} {DEVICE}"
    benchmark(synchronized(getattr(contest, contestant)))
