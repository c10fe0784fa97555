"""Checks of the operators: the noise and the plain references on this machine's CPU, the kernels on its card,
or, without one, in Triton's interpreter.
"""

from __future__ import annotations

import functools
import importlib.util
import json
import os
import subprocess
import sys
from typing import TypedDict

import numpy as np
import torch

import fastddpm_kernels
from fastddpm.doctor import layers
from fastddpm.doctor.cases import SEEDS, SHAPES, STEP_LIMIT, Case, cases, error, on, written
from fastddpm.doctor.comparison import Check, Comparison
from fastddpm_kernels import compat
from fastddpm_kernels.noise import normal, words
from fastddpm_kernels.noise import reference as noise_spec

KNOWN_ANSWER = (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)
"""Philox4x32-10 of key 0 and counter 0, from Random123's known-answer tests."""

NOISE_LIMIT = 2e-6
"""Of float32 normals up to 5.8 against float64."""


def references() -> list[Comparison]:
    """The noise specification, and the plain torch references against float64, on the CPU."""
    cpu = torch.device("cpu")
    found = [
        Comparison("noise, known answer", 0.0, _known_answer),
        Comparison("noise, torch against NumPy, words", 0.0, lambda: _words(cpu)),
        Comparison("noise, torch against NumPy, normals", NOISE_LIMIT, lambda: _normals(cpu)),
    ]
    return found + [_comparison(case, cpu, "cpu") for case in (*cases(SHAPES[0]), *layers.cases())]


def comparisons(device: torch.device) -> list[Comparison]:
    """The operators on a CUDA device against float64; nothing for a CPU."""
    if device.type != "cuda":
        return []
    found = [
        Comparison("noise on the card, words", 0.0, lambda: _words(device)),
        Comparison("noise on the card, normals", NOISE_LIMIT, lambda: _normals(device)),
    ]
    every = [*(case for shape in SHAPES for case in cases(shape)), *layers.cases()]
    where = "card" if compat.HAS_TRITON else "card, plain torch without Triton"
    return found + [_comparison(case, device, where) for case in every]


def _comparison(case: Case, device: torch.device, where: str) -> Comparison:
    return Comparison(f"{case.name}, {where}", limit(case.operator), functools.partial(_run, case, device))


def limit(operator: str) -> float:
    """The largest difference accepted of an operator."""
    return STEP_LIMIT if operator in ("reverse_step", "q_sample") else layers.LAYER_LIMIT


def _run(case: Case, device: torch.device) -> float:
    """The public operator on a device."""
    arguments = on(device, case.arguments)
    if case.operator == "q_sample":
        return error(case, [fastddpm_kernels.q_sample(**arguments)])
    if case.operator == "group_norm_silu":
        return error(case, layers.norm_results(fastddpm_kernels.group_norm_silu, arguments))
    if case.operator == "noise_mse":
        return error(case, layers.loss_results(fastddpm_kernels.noise_mse, arguments))
    fastddpm_kernels.reverse_step(**arguments)
    return error(case, written(arguments))


def interpreted() -> list[Check]:
    """The kernels on the CPU in Triton's interpreter, in a process of its own: it is chosen at import."""
    name = "kernels in Triton's interpreter"
    if importlib.util.find_spec("triton") is None:
        return [Check(name, "skipped", note="triton is not installed")]
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    command = [sys.executable, "-m", "fastddpm.doctor.interpreter"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["no output"])[-1]
        return [Check(name, "failed", note=last)]
    return [_judged(row) for row in json.loads(done.stdout.splitlines()[-1])]


class Row(TypedDict):
    """What `fastddpm.doctor.interpreter` prints of a case."""

    name: str
    operator: str
    error: float


def _judged(row: Row) -> Check:
    most = limit(row["operator"])
    return Check(row["name"], "passed" if row["error"] <= most else "failed", row["error"], most)


def _known_answer() -> float:
    got = [int(word[()]) for word in noise_spec.philox((0, 0), (0, 0, 0, 0))]
    return float(max(abs(ours - known) for ours, known in zip(got, KNOWN_ANSWER, strict=True)))


def _words(device: torch.device) -> float:
    ours = torch.stack(words(torch.tensor(SEEDS, device=device), 3, 3072, stream=1, repeat=5), dim=1)
    expected = noise_spec.words(SEEDS, 3, 3072, stream=1, repeat=5)
    return float(np.abs(ours.cpu().numpy() - expected.astype(np.int64)).max())


def _normals(device: torch.device) -> float:
    ours = normal(torch.tensor(SEEDS, device=device), 3, (3, 32, 32), repeat=5)
    expected = noise_spec.normal(SEEDS, 3, (3, 32, 32), repeat=5)
    return float(np.abs(ours.double().cpu().numpy() - expected).max())
