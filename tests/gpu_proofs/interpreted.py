"""Proofs b and f, run in a process of its own with TRITON_INTERPRET=1: prints one line of JSON.

    {"errors": {kernel: [largest error, limit]}, "traffic": {case: {"reads": .., "writes": .., "other": ..}}}

tests/interpreter holds every case and shape; here each kernel is one figure.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

import float64_reference
import step_cases
from step_cases import CASES, SHAPES, TOLERANCE
from traffic import Traffic

from fastddpm_kernels.q_sample.kernel import launch as launch_q_sample
from fastddpm_kernels.reverse_step.kernel import launch as launch_reverse_step

MOVED = {
    "DDPM step": "clip",
    "DDIM step": "deterministic",
    "step with guidance": "guidance",
    "2M step": "multistep",
}
Q_SAMPLE_LIMIT = 2e-6


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
            launch_reverse_step(**result)
            expected = dict(zip(("x", "x0"), step_cases.expected(given), strict=True))
            for name, values in expected.items():
                if given[name] is not None:
                    worst[kind] = max(worst[kind], largest(result[name], values))
    return {
        f"reverse_step, {len(CASES)} cases, m {kind}": (error, TOLERANCE) for kind, error in worst.items()
    }


def q_sample_errors() -> dict[str, tuple[float, float]]:
    """The noise drawn, of two ordinals that need both words."""
    shape, seed, ordinals = SHAPES[784], 2**32 + 5, (2**32 - 1, 3 * 2**32 + 7)
    x_0, x_t, drawn = torch.randn(2, *shape), torch.zeros(2, *shape), torch.zeros(2, *shape)
    t, signal, sigma = torch.tensor([1, 0]), torch.tensor([0.9, 0.4]), torch.tensor([0.3, 0.8])
    launch_q_sample(x_0, t, signal, sigma, None, torch.full((2,), seed), torch.tensor(ordinals), x_t, drawn)
    noise = np.stack(
        [float64_reference.sample_noise(seed, i % 2**32, shape, 1, i // 2**32) for i in ordinals]
    )
    columns = (table.double().numpy()[t.numpy()].reshape(-1, 1, 1, 1) for table in (signal, sigma))
    a, b = columns
    expected = a * x_0.double().numpy() + b * noise
    return {
        "noise, drawn by q_sample": (largest(drawn, noise), Q_SAMPLE_LIMIT),
        "q_sample": (largest(x_t, expected), Q_SAMPLE_LIMIT),
    }


def largest(ours: torch.Tensor, expected: np.ndarray) -> float:
    return float(np.abs(ours.double().numpy() - expected).max())


def step_traffic() -> dict[str, Any]:
    """Steps on one sample of 784 elements."""
    moved = {}
    for name, case_name in MOVED.items():
        case = next(case for case in CASES if case.name == case_name)
        given = step_cases.arguments(case, SHAPES[784], seeds=(5,))
        tensors = {key: given[key] for key in ("x", "m", "x0") if given[key] is not None}
        with Traffic(**tensors) as traffic:
            launch_reverse_step(**given)
        moved[name] = traffic.figures()
    return moved


def q_sample_traffic() -> dict[str, Any]:
    """The noise drawn, not stored."""
    x_0, x_t = torch.zeros(2, *SHAPES[784]), torch.zeros(2, *SHAPES[784])
    t, table = torch.tensor([1, 0]), torch.tensor([0.9, 0.4])
    with Traffic(x_0=x_0, x_t=x_t) as traffic:
        launch_q_sample(x_0, t, table, table, None, t, t, x_t, None)
    return {"q_sample, noise drawn": traffic.figures()}


def main() -> None:
    errors = {**step_errors(), **q_sample_errors()}
    traffic = {**q_sample_traffic(), **step_traffic()}
    print(json.dumps({"errors": errors, "traffic": traffic}))


if __name__ == "__main__":
    main()
