"""Solvers in exported files: every one against the PyTorch `Sampler`, in both loops."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from onnx_exports import exported, tiny_sampler

from fastddpm import Sampler
from fastddpm.onnx import OnnxSampler
from fastddpm.plans import METHODS, Method, register_solver
from fastddpm.plans.formula import FormulaOptions
from fastddpm.plans.tableau import Tableau, steps

SEEDS = [5, 2**40 + 3, 77]
LABELS = [0, 2, 3]
SOLVERS = [name for name, entry in METHODS.items() if entry.solver is not None]
NEAR = 1e-4
"""Of [-1, 1], or of the largest value of a chain that leaves it."""


@pytest.fixture(params=["file", "steps"])
def loop(request):
    return request.param


@pytest.fixture(scope="module")
def runs():
    """Samplers of exports, each made once."""
    made = {}

    def get(kind, loop):
        if (kind, loop) not in made:
            made[kind, loop] = OnnxSampler(exported(kind), "cpu", threads=1, loop=loop)
        return made[kind, loop]

    return get


def difference(images, expected):
    expected = np.asarray(expected)
    return np.abs(images - expected).max() / max(1.0, np.abs(expected).max())


def changed(sampler, **options):
    return sampler.replace(**sampler.method.adapted(**options).to_dict())


@pytest.mark.parametrize("guidance_scale", [1.0, 2.5])
@pytest.mark.parametrize("method", SOLVERS)
def test_every_solver_draws_the_images_of_pytorch(runs, loop, method, guidance_scale):
    options = {"method": method, "num_inference_steps": 6}
    call = {"seeds": SEEDS, "class_labels": LABELS, "guidance_scale": guidance_scale, "progress": False}
    images = runs("classes", loop).sample(**options, **call)
    expected = changed(tiny_sampler("classes"), **options).sample(**call)
    assert expected.std() > 0.1
    print(method, loop, difference(images, expected))
    assert difference(images, expected) < NEAR
