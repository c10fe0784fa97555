"""The q_sample kernel in Triton's interpreter, against float64, between guard bytes."""

import float64_reference
import numpy as np
import pytest
import torch
from guards import Guarded
from step_cases import SHAPES

from fastddpm_kernels.q_sample.kernel import configure, q_sample_kernel
from fastddpm_kernels.q_sample.reference import Arguments

T = 10
ALPHAS_CUMPROD = torch.linspace(0.99, 0.01, T, dtype=torch.float64)
SIGNAL, SIGMA = ALPHAS_CUMPROD.sqrt().float(), (1 - ALPHAS_CUMPROD).sqrt().float()
SEED, ORDINALS = 2**32 + 5, (2**32 - 1, 3 * 2**32 + 7)


def launch(x_0, t, noise, seeds, ordinals, x_t, drawn):
    given = Arguments(x_0, t, SIGNAL, SIGMA, noise, seeds, ordinals)
    grid, operands, options = configure(given, x_t, drawn)
    q_sample_kernel[grid](*operands, **options)


def expected(x_0, t, noise):
    per_sample = (-1, *(1,) * (x_0.dim() - 1))
    signal, sigma = (table.double().numpy()[t.numpy()].reshape(per_sample) for table in (SIGNAL, SIGMA))
    return signal * x_0.double().numpy() + sigma * noise


@pytest.mark.parametrize("n", SHAPES)
def test_draws_the_training_noise(n):
    shape = SHAPES[n]
    x_0 = torch.randn(2, *shape, generator=torch.Generator().manual_seed(0))
    t = torch.tensor([T - 1, 3])
    x_t, drawn = Guarded(torch.zeros_like(x_0)), Guarded(torch.zeros_like(x_0))
    seeds, ordinals = torch.full((2,), SEED), torch.tensor(ORDINALS)
    launch(x_0, t, None, seeds, ordinals, x_t.tensor, drawn.tensor)
    noise = np.stack(
        [
            float64_reference.sample_noise(SEED, ordinal % 2**32, shape, 1, ordinal // 2**32)
            for ordinal in ORDINALS
        ]
    )
    np.testing.assert_allclose(drawn.tensor.numpy(), noise, rtol=0, atol=2e-6)
    np.testing.assert_allclose(x_t.tensor.numpy(), expected(x_0, t, noise), rtol=0, atol=2e-6)
    assert x_t.intact()
    assert drawn.intact()
    without = torch.zeros_like(x_0)
    launch(x_0, t, None, seeds, ordinals, without, None)
    assert torch.equal(without, x_t.tensor)


@pytest.mark.parametrize("n", SHAPES)
def test_takes_given_noise(n):
    generator = torch.Generator().manual_seed(0)
    x_0, noise = (torch.randn(2, *SHAPES[n], generator=generator) for _ in range(2))
    t = torch.tensor([0, 5])
    x_t = Guarded(torch.zeros_like(x_0))
    launch(x_0, t, noise, None, None, x_t.tensor, None)
    expected_x_t = expected(x_0, t, noise.double().numpy())
    np.testing.assert_allclose(x_t.tensor.numpy(), expected_x_t, rtol=0, atol=1e-6)
    assert x_t.intact()


def test_t_outside_the_tables_gives_nan():
    x_0 = torch.ones(4, 1, 1, 5)
    x_t = torch.zeros_like(x_0)
    t = torch.tensor([T, -1, T - 1, 2**62])
    launch(x_0, t, x_0, None, None, x_t, None)
    assert x_t.isnan().flatten(1).all(1).tolist() == [True, True, False, True]
