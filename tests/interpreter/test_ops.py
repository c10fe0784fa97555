"""opcheck's schema and autograd checks of the operators: they run the kernels, here in the interpreter."""

import pytest
import step_cases
import torch
from step_cases import CASES, SHAPES
from torch.library import opcheck

from fastddpm_kernels.q_sample.kernel import q_sample_op
from fastddpm_kernels.reverse_step.kernel import reverse_step_op

CHECKS = ("test_schema", "test_autograd_registration")


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_reverse_step(case):
    """It changes what its schema says, and nothing else."""
    given = step_cases.arguments(case, SHAPES[33])
    opcheck(reverse_step_op, tuple(given.values()), test_utils=CHECKS)


def q_sample_arguments(drawn):
    generator = torch.Generator().manual_seed(0)
    x_0, noise = (torch.randn(2, 3, 4, 4, generator=generator, requires_grad=True) for _ in range(2))
    t, tables = torch.tensor([1, 2]), torch.rand(2, 9, generator=generator)
    if drawn:
        return x_0, t, *tables.clone(), None, torch.tensor([5, 5]), torch.tensor([0, 1]), True
    return x_0, t, *tables.clone(), noise, None, None, False


@pytest.mark.parametrize("drawn", [True, False])
def test_q_sample(drawn):
    opcheck(q_sample_op, q_sample_arguments(drawn), test_utils=CHECKS)


def test_gradients_of_q_sample():
    arguments = q_sample_arguments(drawn=False)
    x_0, t, signal, sigma, noise, *_ = arguments
    weight = torch.randn(x_0.shape, generator=torch.Generator().manual_seed(1))
    (q_sample_op(*arguments)[0] * weight).sum().backward()
    torch.testing.assert_close(x_0.grad, weight * signal[t].reshape(-1, 1, 1, 1))
    torch.testing.assert_close(noise.grad, weight * sigma[t].reshape(-1, 1, 1, 1))


def test_drawn_noise_has_no_gradient():
    x_t, z = q_sample_op(*q_sample_arguments(drawn=True))
    assert x_t.requires_grad
    assert not z.requires_grad
