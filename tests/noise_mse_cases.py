"""The cases of `noise_mse` that its tests share: arguments for a case, and what float64 makes of them."""

from __future__ import annotations

from typing import Any

import float64_reference
import numpy as np
import torch

LOSSES = ("l2", "l1", "huber")
SEED = 2**32 + 5
ORDINALS = (7, 2**32 - 1, 3 * 2**32 + 7)
WORDS = ((7, 0), (2**32 - 1, 0), (7, 3))
"""Step and repeat of the noise spec for each of the ordinals."""

LOSS_TOLERANCE = 1e-6
"""Of a mean of distances of order 1, in float32, relative; the noise itself is within 2e-6."""

GRADIENT_TOLERANCE = {torch.float32: 1e-6, torch.float16: 2**-11, torch.bfloat16: 2**-8}
"""Relative to the largest element: float32's noise, or half a unit in the last place of what is stored."""


def arguments(
    shape: tuple[int, ...],
    *,
    v: bool = False,
    dtype: torch.dtype = torch.float32,
    channels_last: bool = False,
    device: str = "cpu",
) -> dict[str, Any]:
    """The operator's arguments but `loss`, by name; prediction requires a gradient."""
    generator = torch.Generator().manual_seed(3)
    size = (len(ORDINALS), *shape)
    prediction = (1.5 * torch.randn(size, generator=generator)).to(device, dtype)
    if channels_last:
        prediction = prediction.to(memory_format=torch.channels_last)
    given = {
        "prediction": prediction.requires_grad_(),
        "seeds": torch.full((len(ORDINALS),), SEED),
        "ordinals": torch.tensor(ORDINALS),
        "weights": torch.tensor([0.5, 2.0, 1.25]),
    }
    if v:
        given["x_0"] = torch.rand(size, generator=generator) * 2 - 1
        given["signal"], given["sigma"] = torch.tensor([0.9, 0.3, 0.6]), torch.tensor([0.436, 0.954, 0.8])
    return {name: value.to(device) if name != "prediction" else value for name, value in given.items()}


def expected(given: dict[str, Any], loss: str) -> tuple[float, np.ndarray, np.ndarray]:
    """(loss, gradient of prediction, gradient of weights) in float64, by formulas and torch's autograd."""
    prediction = given["prediction"].detach().cpu().double().requires_grad_()
    weights = given["weights"].detach().cpu().double().requires_grad_()
    shape = tuple(prediction.shape[1:])
    noise = [float64_reference.sample_noise(SEED, step, shape, 1, repeat) for step, repeat in WORDS]
    target = torch.from_numpy(np.stack(noise))
    if "x_0" in given:
        x_0, signal, sigma = (given[name].detach().cpu().double() for name in ("x_0", "signal", "sigma"))
        target = torch.stack([signal[i] * target[i] - sigma[i] * x_0[i] for i in range(len(target))])
    u = prediction - target
    if loss == "l2":
        distance = u**2
    elif loss == "l1":
        distance = u.abs()
    else:
        distance = torch.where(u.abs() < 1, u**2 / 2, u.abs() - 0.5)
    value = sum(weights[i] * distance[i].mean() for i in range(len(u))) / len(u)
    value.backward()
    return value.item(), prediction.grad.numpy(), weights.grad.numpy()


def check(given: dict[str, Any], loss: str, value: torch.Tensor, grad: torch.Tensor) -> None:
    """The loss and the prediction's gradient against float64, and the gradient's dtype and layout."""
    prediction = given["prediction"]
    expected_value, expected_grad, _ = expected(given, loss)
    assert value.dtype == torch.float32
    assert abs(value.item() - expected_value) <= LOSS_TOLERANCE * max(1.0, expected_value)
    assert (grad.dtype, grad.stride()) == (prediction.dtype, prediction.stride())
    # Where the noise lies within rounding of the prediction, |u| has either slope; no element here does.
    tolerance = GRADIENT_TOLERANCE[prediction.dtype] * abs(expected_grad).max()
    np.testing.assert_allclose(grad.detach().cpu().double().numpy(), expected_grad, rtol=0, atol=tolerance)
