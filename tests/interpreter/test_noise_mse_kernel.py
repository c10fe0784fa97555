"""The kernels of noise_mse in Triton's interpreter, against float64, between guard values."""

from __future__ import annotations

import math

import pytest
import torch
from guards import Guarded
from noise_mse_cases import GRADIENT_TOLERANCE, LOSSES, arguments, check
from step_cases import SHAPES
from test_reverse_step_kernel import CountedTraffic
from torch.library import opcheck

from fastddpm_kernels.noise_mse.kernel import configure, gradient_kernel, loss_kernel, noise_mse_op, tiles
from fastddpm_kernels.noise_mse.reference import Arguments, distances


def operands(given, loss):
    image = (given.get(name) for name in ("x_0", "signal", "sigma"))
    return Arguments(given["prediction"].detach(), given["seeds"], given["ordinals"], loss, *image)


def launch(kernel, given, *outputs):
    grid, arguments, options = configure(given, *outputs)
    kernel[grid](*arguments, **options)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("v", [False, True], ids=["epsilon", "v"])
@pytest.mark.parametrize("n", SHAPES)
def test_loss_and_gradient_against_float64(loss, v, n):
    given = arguments(SHAPES[n], v=v)
    prediction = given["prediction"].detach()
    sums = Guarded(torch.full((3, tiles(prediction)), math.nan))
    launch(loss_kernel, operands(given, loss), sums.tensor)
    value = (given["weights"] * sums.tensor.sum(dim=1) / n).mean()
    grad = Guarded(torch.full_like(prediction, math.nan))
    launch(gradient_kernel, operands(given, loss), given["weights"] / 3, grad.tensor)
    check(given, loss, value, grad.tensor)
    assert sums.intact()
    assert grad.intact()


@pytest.mark.parametrize("shape", [(3, 4, 5), (2, 33, 32)], ids=["one program", "three programs"])
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("v", [False, True], ids=["epsilon", "v"])
def test_the_operator_in_both_layouts_and_half_precision(shape, channels_last, dtype, v, monkeypatch):
    # The interpreter truncates to bfloat16 where a GPU rounds: a whole unit in the last place.
    monkeypatch.setitem(GRADIENT_TOLERANCE, torch.bfloat16, 2**-7)
    given = arguments(shape, v=v, dtype=dtype, channels_last=channels_last)
    operand = (given["prediction"], *operands(given, "huber")[1:])
    value = (given["weights"] * noise_mse_op(*operand)).mean()
    value.backward()
    check(given, "huber", value, given["prediction"].grad)


@pytest.mark.parametrize("loss", LOSSES)
def test_nan_and_infinity_give_the_gradients_of_torch(loss):
    given = arguments((3, 4, 4))
    given["prediction"].data.view(-1)[:3] = torch.tensor([math.nan, math.inf, -math.inf])
    grads = []
    for function in (noise_mse_op, lambda *operand: distances(Arguments(*operand))):
        given["prediction"].grad = None
        value = function(given["prediction"], *operands(given, loss)[1:])
        value.sum().backward()
        assert value.isfinite().tolist() == [False, True, True]
        grads.append(given["prediction"].grad)
    torch.testing.assert_close(*grads, rtol=0, atol=1e-6, equal_nan=True)


def test_what_the_schema_says_and_the_autograd_registration():
    given = arguments((3, 4, 5), v=True)
    operand = (given["prediction"], *operands(given, "l2")[1:])
    opcheck(noise_mse_op, operand, test_utils=("test_schema", "test_autograd_registration"))


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize(
    ("v", "dtype"), [(False, torch.float32), (True, torch.float32), (True, torch.float16)]
)
def test_the_prediction_is_read_once_each_way(v, dtype, channels_last):
    """Bytes an element that the interpreter's loads and stores move, scalars aside."""
    given = arguments((2, 20, 20), v=v, dtype=dtype, channels_last=channels_last)
    prediction = given["prediction"].detach()
    size, image, counted = prediction.element_size(), 4 * v, operands(given, "l2")
    with CountedTraffic() as moved:
        launch(loss_kernel, operands(given, "l2"), torch.empty(3, tiles(prediction)))
    assert moved["bytes"] == (size + image) * prediction.numel() == counted.traffic().bytes
    with CountedTraffic() as moved:
        launch(gradient_kernel, operands(given, "l2"), torch.ones(3), torch.empty_like(prediction))
    assert moved["bytes"] == (2 * size + image) * prediction.numel()
    assert moved["bytes"] == counted.traffic(backward=True).bytes
