"""`python -m fastddpm.doctor.interpreter`: the kernels on CPU tensors, in Triton's interpreter.

It needs TRITON_INTERPRET=1 and prints one line of JSON: name and error of every case.
"""

from __future__ import annotations

import json

import torch
from torch import Tensor

from fastddpm.doctor import layers
from fastddpm.doctor.cases import SHAPES, Case, cases, error, on, written
from fastddpm_kernels.group_norm_silu.launches import group_norm_silu_op
from fastddpm_kernels.noise_mse.kernel import noise_mse_op
from fastddpm_kernels.q_sample.kernel import q_sample_op
from fastddpm_kernels.reverse_step.kernel import reverse_step_op


def run(case: Case) -> float:
    """The error of a kernel launched on the case's arguments."""
    arguments = on(torch.device("cpu"), case.arguments)
    if case.operator == "group_norm_silu":
        return error(case, layers.norm_results(_norm, arguments))
    if case.operator == "noise_mse":
        return error(case, layers.loss_results(_loss, arguments))
    if case.operator == "q_sample":
        return error(case, [q_sample_op(**arguments, return_noise=False)[0]])
    reverse_step_op(**arguments)
    return error(case, written(arguments))


def _norm(x: Tensor, num_groups: int, weight: Tensor, bias: Tensor, *, pre_bias: Tensor) -> Tensor:
    y: Tensor = group_norm_silu_op(x, num_groups, weight, bias, 1e-5, pre_bias, None, None, True)[0]
    return y


def _loss(prediction: Tensor, seeds: Tensor, ordinals: Tensor) -> Tensor:
    losses: Tensor = noise_mse_op(prediction, seeds, ordinals, "l2", None, None, None)
    return losses.mean()


def main() -> None:
    """Runs the cases whose rows are not aligned: they are small, and the interpreter is slow."""
    rows = [
        {"name": f"{case.name}, interpreter", "operator": case.operator, "error": run(case)}
        for case in (*cases(SHAPES[1]), *layers.cases())
    ]
    print(json.dumps(rows))


if __name__ == "__main__":
    main()
