"""The model in the box as `fastddpm export` writes it: its files, and one image of a seed on both sides."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from tolerances import ACROSS_BACKENDS
from torch import nn

import fastddpm
from fastddpm.onnx import OnnxSampler

SEED = 5
BATCH = 16
LABELS = [seed % 10 for seed in range(BATCH)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The bundled model as the command line exports it, default options."""
    out = tmp_path_factory.mktemp("bundled") / "onnx"
    done = subprocess.run(
        [sys.executable, "-m", "fastddpm", "export", "--out", str(out)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert f"{out / 'sampler.onnx'}: 4.5" in done.stdout
    assert done.stdout.count(" from PyTorch") == 5
    return out


@pytest.fixture(scope="module")
def expected():
    """Seed 5 from PyTorch, drawn alone: float32 (1, 28, 28)."""
    images = fastddpm.load(device="cpu").sample(seeds=[SEED], class_labels=SEED, progress=False)
    return images[0].numpy()


def levels(images):
    return np.rint((np.clip(images, -1, 1) + 1) * 127.5)


@pytest.mark.slow
@pytest.mark.parametrize("count", [1, BATCH])
@pytest.mark.parametrize("backend", ["torch", "file", "steps"])
def test_seed_5_is_one_image(folder, backend, count, expected):
    seeds = [SEED] if count == 1 else range(BATCH)
    labels = [LABELS[seed] for seed in seeds]
    call = {"seeds": seeds, "class_labels": labels, "progress": False}
    if backend == "torch":
        images = fastddpm.load(device="cpu").sample(**call).numpy()
    else:
        images = OnnxSampler(folder, "cpu", threads=1, loop=backend).sample(**call)
    assert images.shape == (count, 1, 28, 28)
    image = images[0 if count == 1 else SEED]
    assert np.abs(image - expected).max() < ACROSS_BACKENDS
    assert np.abs(levels(image) - levels(expected)).max() <= 1
    assert expected.max() > 0.5 > -0.5 > expected.min()
    if count == BATCH:
        assert np.abs(images[15] - expected).max() > 0.5  # another five


def test_other_languages_get_the_same(folder, expected):
    """sampler.onnx by its inputs alone, as a client without Python runs it: docs/onnx.md."""
    session = ort.InferenceSession(str(folder / "sampler.onnx"), providers=["CPUExecutionProvider"])
    images, pixels = session.run(
        ["images", "pixels"],
        {
            "seeds": np.array([SEED], np.int64),
            "timesteps": np.arange(999, -1, -20, dtype=np.int64),
            "method": np.array(1, np.int64),
            "eta": np.array(0.0, np.float32),
            "class_labels": np.array([SEED], np.int64),
            "guidance_scale": np.array(1.0, np.float32),
        },
    )
    assert np.abs(images[0] - expected).max() < ACROSS_BACKENDS
    assert np.abs(pixels[0, ..., 0].astype(int) - levels(torch.tensor(expected)[0].numpy())).max() <= 1


@pytest.mark.parametrize("method", ["ddpm", "dpmpp_2m"])
def test_guided_images_by_other_methods(folder, method):
    call = {"seeds": [1, 2], "class_labels": [7, 8], "guidance_scale": 2.0, "progress": False}
    reference = fastddpm.load(device="cpu", method=method, num_inference_steps=12)
    images = OnnxSampler(folder, "cpu").sample(method=method, num_inference_steps=12, **call)
    assert np.abs(images - reference.sample(**call).numpy()).max() < ACROSS_BACKENDS


def test_parity_is_stored_and_well_inside_its_limits(folder):
    parity = json.loads((folder / "export.json").read_text())["parity"]
    limits = {"denoiser.onnx": 1e-5, "step.onnx": 1e-5, "step_guided.onnx": 1e-5, "sampler.onnx": 1e-3}
    assert {name: parity[name]["limit"] for name in limits} == limits
    assert all(0 < parity[name]["max_abs_error"] <= limit for name, limit in limits.items())


def test_the_sampler_is_hardly_larger_than_the_weights(folder):
    weights = sum(p.numel() * p.element_size() for p in fastddpm.load().model.parameters())
    assert (folder / "sampler.onnx").stat().st_size <= 1.1 * weights + 300_000


def test_every_3x3_convolution_of_the_loop_runs_in_the_blocked_layout(folder, tmp_path):
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    ort.InferenceSession(folder / "sampler.onnx", options, providers=["CPUExecutionProvider"])
    (loop,) = [n for n in onnx.load(tmp_path / "optimised.onnx").graph.node if n.op_type == "Loop"]
    (body,) = [attribute.g for attribute in loop.attribute if attribute.name == "body"]
    convolutions = [node for node in body.node if "Conv" in node.op_type]
    kernels = [next(a.ints for a in node.attribute if a.name == "kernel_shape") for node in convolutions]
    three = [node for node, kernel in zip(convolutions, kernels, strict=True) if list(kernel) == [3, 3]]
    expected = [part for part in fastddpm.load().model.modules() if isinstance(part, nn.Conv2d)]
    assert len(three) == sum(part.kernel_size == (3, 3) for part in expected)
    assert {node.domain for node in three} == {"com.microsoft.nchwc"}


def test_steps_have_no_control_flow(folder):
    for name in ("denoiser.onnx", "step.onnx", "step_guided.onnx"):
        nodes = onnx.load(folder / name).graph.node
        assert not {node.op_type for node in nodes} & {"If", "Loop", "Scan", "BitShift", "BitwiseAnd"}
