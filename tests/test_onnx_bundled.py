"""The model in the box on both backends: one seed, one image, alone or in a batch of 64."""

from __future__ import annotations

import numpy as np
import onnxruntime
import pytest
import torch
from onnx_exports import exported
from tolerances import ACROSS_BACKENDS

import fastddpm
from fastddpm.onnx import OnnxSampler

SEED = 5
LABELS = [seed % 10 for seed in range(64)]


@pytest.fixture(scope="module")
def expected():
    """Seed 5 from PyTorch, drawn alone: float32 (1, 28, 28)."""
    images = fastddpm.load(device="cpu").sample(seeds=[SEED], class_labels=SEED, progress=False)
    return images[0].numpy()


def levels(images):
    return np.rint((np.clip(images, -1, 1) + 1) * 127.5)


@pytest.mark.slow
@pytest.mark.parametrize("count", [1, 64])
@pytest.mark.parametrize("backend", ["torch", "file", "steps"])
def test_seed_5_is_one_image(backend, count, expected):
    seeds = [SEED] if count == 1 else range(64)
    labels = [LABELS[seed] for seed in seeds]
    call = {"seeds": seeds, "class_labels": labels, "progress": False}
    if backend == "torch":
        images = fastddpm.load(device="cpu").sample(**call).numpy()
    else:
        images = OnnxSampler(exported("bundled"), "cpu", threads=1, loop=backend).sample(**call)
    assert images.shape == (count, 1, 28, 28)
    image = images[0 if count == 1 else SEED]
    assert np.abs(image - expected).max() < ACROSS_BACKENDS
    assert np.abs(levels(image) - levels(expected)).max() <= 1
    assert expected.max() > 0.5 > -0.5 > expected.min()
    if count == 64:
        assert np.abs(images[15] - expected).max() > 0.5  # another five


def test_other_languages_get_the_same(expected):
    """sampler.onnx by its inputs alone, as a client without Python runs it: docs/onnx.md."""
    session = onnxruntime.InferenceSession(
        str(exported("bundled") / "sampler.onnx"), providers=["CPUExecutionProvider"]
    )
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
def test_guided_images_by_other_methods(method):
    call = {"seeds": [1, 2], "class_labels": [7, 8], "guidance_scale": 2.0, "progress": False}
    reference = fastddpm.load(device="cpu", method=method, num_inference_steps=12)
    images = OnnxSampler(exported("bundled"), "cpu").sample(method=method, num_inference_steps=12, **call)
    assert np.abs(images - reference.sample(**call).numpy()).max() < ACROSS_BACKENDS
