"""Proofs b and f, run in a process of its own with TRITON_INTERPRET=1: prints one line of JSON.

    {"errors": {kernel: [largest error, limit]}, "traffic": {case: {"reads": n, "writes": n, "other": n}}}

tests/interpreter holds every case and shape; here each kernel is one figure.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1]))

import float64_reference
import step_cases
from step_cases import CASES, SHAPES, TOLERANCE
from traffic import Traffic

from fastddpm_kernels.group_norm_silu.launches import group_norm_silu_op
from fastddpm_kernels.noise_mse.kernel import noise_mse_op
from fastddpm_kernels.q_sample.kernel import q_sample_op
from fastddpm_kernels.reverse_step.kernel import reverse_step_op

MOVED = {
    "DDPM step": "clip",
    "DDIM step": "deterministic",
    "step with guidance": "guidance",
    "2M step": "multistep",
}
Q_SAMPLE_LIMIT = 2e-6
NOISE_LOSS_LIMIT = 8e-6
"""Of the slope 2u of the squared distance, u up to 8, with normals that are right to 2e-6."""

MAPS = {
    "one pass": ((4, 128, 8, 8), 32),
    "shared by two": ((16, 32, 16, 16), 4),
    "split": ((1, 8, 64, 64), 1),
}
"""Shapes and groups: with a program for every multiprocessor; with half as many; too large to fit on chip."""

SEED, ORDINALS = 2**32 + 5, (2**32 - 1, 3 * 2**32 + 7)


def step_errors() -> dict[str, tuple[float, float]]:
    """Every case of reverse_step, in both layouts of a half-precision m too."""
    worst = dict.fromkeys(("float32", "bfloat16", "bfloat16 channels_last"), 0.0)
    for case in CASES:
        for kind in worst:
            options = {
                "m_dtype": torch.float32 if kind == "float32" else torch.bfloat16,
                "channels_last": "channels_last" in kind,
            }
            given = step_cases.arguments(case, SHAPES[33], **options)
            result = step_cases.clone(given)
            reverse_step_op(**result)
            expected = dict(zip(("x", "x0", "kept"), step_cases.expected(given), strict=True))
            for name, values in expected.items():
                if given[name] is not None:
                    worst[kind] = max(worst[kind], largest(result[name], values))
    return {
        f"reverse_step, {len(CASES)} cases, m {kind}": (error, TOLERANCE) for kind, error in worst.items()
    }


def q_sample_errors() -> dict[str, tuple[float, float]]:
    """The noise drawn, of two ordinals that need both words."""
    shape = SHAPES[784]
    x_0 = torch.randn(2, *shape)
    t, signal, sigma = torch.tensor([1, 0]), torch.tensor([0.9, 0.4]), torch.tensor([0.3, 0.8])
    seeds, ordinals = torch.full((2,), SEED), torch.tensor(ORDINALS)
    x_t, drawn = q_sample_op(x_0, t, signal, sigma, None, seeds, ordinals, True)
    noise = training_noise(shape)
    a, b = (table.double().numpy()[t.numpy()].reshape(-1, 1, 1, 1) for table in (signal, sigma))
    expected = a * x_0.double().numpy() + b * noise
    return {
        "noise, drawn by q_sample": (largest(drawn, noise), Q_SAMPLE_LIMIT),
        "q_sample": (largest(x_t, expected), Q_SAMPLE_LIMIT),
    }


def training_noise(shape: tuple[int, ...]) -> np.ndarray:
    """Of the two samples with these ordinals, in float64."""
    return np.stack([float64_reference.sample_noise(SEED, i % 2**32, shape, 1, i // 2**32) for i in ORDINALS])


def norm_inputs(name: str, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """x, weight, bias, a bias before the norm, and the gradient of y."""
    (shape, _), generator = MAPS[name], torch.Generator().manual_seed(0)
    sizes = (shape, shape[1], shape[1], shape[:2], shape)
    return [torch.randn(size, generator=generator).to(dtype) for size in sizes]


def norm_gradients(name: str, dtype: torch.dtype, *, kernel: bool) -> list[Tensor]:
    """y and the gradients of x, weight, bias and the bias before, by the kernels or by PyTorch."""
    *inputs, dy = norm_inputs(name, dtype)
    x, weight, bias, pre_bias = (tensor.requires_grad_() for tensor in inputs)
    num_groups = MAPS[name][1]
    if kernel:
        y, _ = group_norm_silu_op(x, num_groups, weight, bias, 1e-5, pre_bias, None, None, True)
    else:
        y = F.silu(F.group_norm(x + pre_bias[..., None, None], num_groups, weight, bias, 1e-5))
    y.backward(dy)
    return [y.detach(), *(tensor.grad for tensor in inputs)]


def norm_errors() -> dict[str, tuple[float, float]]:
    """Forward and backward, against twice the error of PyTorch's float32 code."""
    errors = {}
    for name in MAPS:
        exact = norm_gradients(name, torch.float64, kernel=False)
        ours = norm_gradients(name, torch.float32, kernel=True)
        theirs = norm_gradients(name, torch.float32, kernel=False)
        for part, places in (("forward", slice(0, 1)), ("backward", slice(1, None))):
            error, limit = (
                max(largest(one, e.numpy()) for one, e in zip(given[places], exact[places], strict=True))
                for given in (ours, theirs)
            )
            errors[f"group_norm_silu, {name}, {part}"] = (error, 2 * limit)
    return errors


def loss_errors() -> dict[str, tuple[float, float]]:
    """The squared distance and its slope, which is its gradient times the elements of a sample."""
    prediction = torch.randn(2, *SHAPES[784], generator=torch.Generator().manual_seed(0)).requires_grad_()
    ordinals, seeds = torch.tensor(ORDINALS), torch.full((2,), SEED)
    loss = noise_mse_op(prediction, seeds, ordinals, "l2", None, None, None)
    loss.sum().backward()
    u = prediction.detach().double().numpy() - training_noise(SHAPES[784])
    slope = prediction.grad * u[0].size
    return {
        "noise_mse, forward": (largest(loss.detach(), (u**2).mean((1, 2, 3))), NOISE_LOSS_LIMIT),
        "noise_mse, backward": (largest(slope, 2 * u), NOISE_LOSS_LIMIT),
    }


def largest(ours: torch.Tensor, expected: np.ndarray) -> float:
    return float(np.abs(ours.double().numpy() - expected).max())


def step_traffic() -> dict[str, Any]:
    """Steps on one sample of 784 elements."""
    moved = {}
    for name, case_name in MOVED.items():
        case = next(case for case in CASES if case.name == case_name)
        given = step_cases.arguments(case, SHAPES[784], seeds=(5,))
        with Traffic() as traffic:
            reverse_step_op(**given)
        moved[name] = traffic.figures(
            *(given[key] for key in ("x", "m", "x0", "kept") if given[key] is not None)
        )
    return moved


def q_sample_traffic() -> dict[str, Any]:
    """The noise drawn, not stored."""
    x_0 = torch.zeros(2, *SHAPES[784])
    t, table = torch.tensor([1, 0]), torch.tensor([0.9, 0.4])
    with Traffic() as traffic:
        x_t, _ = q_sample_op(x_0, t, table, table, None, t, t, False)
    return {"q_sample, noise drawn": traffic.figures(x_0, x_t)}


def norm_traffic() -> dict[str, Any]:
    """Maps read and written by a norm."""
    moved = {}
    for name, (_, num_groups) in MAPS.items():
        x, weight, bias, pre_bias, _ = norm_inputs(name)
        with Traffic() as traffic:
            y, _ = group_norm_silu_op(x, num_groups, weight, bias, 1e-5, pre_bias, None, None, True)
        moved[f"group_norm_silu, {name}"] = traffic.figures(x, y)
    return moved


def loss_traffic() -> dict[str, Any]:
    """The prediction, read once for the loss and once for the gradient that is written."""
    prediction = torch.zeros(2, *SHAPES[784]).requires_grad_()
    zeros = torch.zeros(2, dtype=torch.int64)
    with Traffic() as forward:
        loss = noise_mse_op(prediction, zeros, zeros, "l2", None, None, None)
    with Traffic() as backward:
        [grad] = torch.autograd.grad(loss.sum(), prediction)
    return {
        "noise_mse, forward": forward.figures(prediction),
        "noise_mse, backward": backward.figures(prediction, grad),
    }


def main() -> None:
    errors = {**step_errors(), **q_sample_errors(), **norm_errors(), **loss_errors()}
    traffic = {**q_sample_traffic(), **step_traffic(), **norm_traffic(), **loss_traffic()}
    print(json.dumps({"errors": errors, "traffic": traffic}))


if __name__ == "__main__":
    main()
