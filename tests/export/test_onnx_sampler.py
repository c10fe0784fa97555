"""`OnnxSampler` against the PyTorch `Sampler`: the same call, the same images, in both loops."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import torch
from onnx_exports import exported, tiny_sampler
from tolerances import ACROSS_BACKENDS, ACROSS_ONNX_LOOPS

from fastddpm.finite import NonFiniteSamples
from fastddpm.images import to_uint8
from fastddpm.onnx import OnnxSampler

SEEDS = [5, 0, 2**40 + 3, 2**63 - 1, 77]
LABELS = [0, 1, 2, 3, 1]
METHODS = [
    {},
    {"method": "ddpm", "num_inference_steps": 3, "timestep_spacing": "trailing"},
    {"method": "ddim", "num_inference_steps": 9},
    {"method": "ddim", "eta": 0.6, "timesteps": [900, 500, 333, 20, 1]},
    {"method": "dpmpp_2m", "num_inference_steps": 17, "timestep_spacing": "linspace"},
]


def largest_difference(images, expected):
    """Relative to the largest value where a chain of an untrained network leaves [-1, 1]."""
    expected = np.asarray(expected)
    return np.abs(images - expected).max() / max(1.0, np.abs(expected).max())


@pytest.fixture(params=["file", "steps"])
def loop(request):
    return request.param


@pytest.mark.parametrize(
    "options", METHODS, ids=lambda options: "-".join(map(str, options.values())) or "own"
)
@pytest.mark.parametrize("guidance_scale", [1.0, 2.5])
def test_the_images_are_those_of_pytorch(loop, options, guidance_scale):
    call = {"seeds": SEEDS, "class_labels": LABELS, "guidance_scale": guidance_scale, "progress": False}
    sampler = OnnxSampler(exported("classes"), "cpu", threads=1, loop=loop)
    images = sampler.sample(**options, **call)
    steps = {"num_inference_steps": None} if "timesteps" in options else {}
    expected = tiny_sampler("classes").replace(**steps, **options).sample(**call).numpy()
    assert images.dtype == np.float32
    assert images.shape == (5, 3, 8, 8)
    assert expected.std() > 0.1
    assert largest_difference(images, expected) < ACROSS_BACKENDS


@pytest.mark.parametrize(
    ("own", "options"),
    [
        ({"method": "ddim", "eta": 0.7}, {"method": "ddpm"}),
        ({"method": "ddim", "eta": 0.7}, {"method": "dpmpp_2m"}),
        ({"sigma_scale": 0.5}, {"method": "ddim"}),
        ({"variance_type": "fixed_large"}, {"method": "ddim", "eta": 0.6}),
    ],
)
def test_another_method_leaves_the_options_of_the_folders(loop, own, options, tmp_path):
    folder = shutil.copytree(exported("classes"), tmp_path / "export")
    description = json.loads((folder / "export.json").read_text())
    description["defaults"] |= own
    (folder / "export.json").write_text(json.dumps(description))
    call = {"seeds": SEEDS, "class_labels": LABELS, "progress": False}
    images = OnnxSampler(folder, "cpu", threads=1, loop=loop).sample(**options, **call)
    expected = tiny_sampler("classes").replace(**options).sample(**call)
    assert largest_difference(images, expected) < ACROSS_BACKENDS


def test_a_condition_image_and_noise_levels(loop):
    condition = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    sampler = OnnxSampler(exported("superres"), "cpu", threads=1, loop=loop)
    reference = tiny_sampler("superres")
    for given in (condition, condition[:1]):
        images = sampler.sample(seeds=[5, 6], condition=given.numpy(), progress=False)
        expected = reference.sample(seeds=[5, 6], condition=given, progress=False)
        assert largest_difference(images, expected) < ACROSS_BACKENDS
    other = sampler.sample(seeds=[5, 6], condition=np.zeros((1, 3, 8, 8), np.float32), progress=False)
    assert largest_difference(other, expected) > 0.1


@pytest.mark.parametrize("guidance_scale", [1.0, 1.5])
def test_a_learned_variance(loop, guidance_scale):
    call = {"seeds": SEEDS, "class_labels": 2, "guidance_scale": guidance_scale, "progress": False}
    images = OnnxSampler(exported("learned"), "cpu", threads=1, loop=loop).sample(**call)
    assert largest_difference(images, tiny_sampler("learned").sample(**call)) < ACROSS_BACKENDS


def test_both_loops_agree_and_repeat_bit_for_bit():
    call = {"seeds": SEEDS, "class_labels": LABELS, "guidance_scale": 1.5, "progress": False}
    by_loop = {}
    for loop in ("file", "steps"):
        sampler = OnnxSampler(exported("classes"), "cpu", threads=1, loop=loop)
        by_loop[loop] = sampler.sample(**call)
        np.testing.assert_array_equal(sampler.sample(**call), by_loop[loop])
    assert largest_difference(by_loop["steps"], by_loop["file"]) < ACROSS_ONNX_LOOPS


def test_a_seed_is_the_same_alone_in_a_batch_and_cut_into_batches(loop):
    sampler = OnnxSampler(exported("classes"), "cpu", threads=1, loop=loop)
    call = {"class_labels": 3, "progress": False}
    many = sampler.sample(seeds=range(64), **call)
    cut = sampler.sample(seeds=range(64), max_batch=9, **call)
    assert np.abs(cut - many).max() < ACROSS_BACKENDS
    for seed in (0, 5, 63):
        alone = sampler.sample(seeds=[seed], **call)
        assert np.abs(alone[0] - many[seed]).max() < ACROSS_BACKENDS
    assert np.abs(many[5] - many[6]).max() > 0.1


def test_labels_default_to_none_of_the_classes(loop):
    sampler = OnnxSampler(exported("classes"), "cpu", threads=1, loop=loop)
    images = sampler.sample(seeds=[1, 2], progress=False)
    assert np.abs(images - sampler.sample(seeds=[1, 2], class_labels=4, progress=False)).max() == 0
    assert np.abs(images - sampler.sample(seeds=[1, 2], class_labels=0, progress=False)).max() > 0.01


def test_fresh_seeds_differ(loop):
    sampler = OnnxSampler(exported("classes"), "cpu", threads=1, loop=loop)
    first, second = sampler.sample(2, progress=False), sampler.sample(progress=False)
    assert first.shape == (2, 3, 8, 8)
    assert second.shape == (1, 3, 8, 8)
    assert np.abs(first[0] - second[0]).max() > 0.01


def test_uint8_is_one_conversion(loop):
    sampler = OnnxSampler(exported("classes"), "cpu", threads=1, loop=loop)
    images = sampler.sample(seeds=SEEDS, progress=False)
    pixels = sampler.sample(seeds=SEEDS, output="uint8", progress=False)
    assert pixels.dtype == np.uint8
    assert pixels.flags.c_contiguous
    np.testing.assert_array_equal(pixels, to_uint8(torch.tensor(images)))


def test_more_or_fewer_steps_than_a_chunk_and_buffers_used_again():
    """The state of a run must not show in the next: odd step counts, other batch sizes, other methods."""
    used = OnnxSampler(exported("classes"), "cpu", threads=1, loop="steps")
    for steps, count in ((1, 1), (8, 3), (9, 4), (15, 2), (17, 4), (3, 3)):
        for method in ("ddpm", "dpmpp_2m"):
            call = {"method": method, "num_inference_steps": steps, "seeds": range(count), "progress": False}
            images = used.sample(**call)
            fresh = OnnxSampler(exported("classes"), "cpu", threads=1, loop="steps").sample(**call)
            np.testing.assert_array_equal(images, fresh)


def test_nothing_of_a_chain_that_ended_in_nan_is_left():
    """The first row of DPM-Solver++ multiplies the x0 before it by 0, which makes no NaN a number."""
    sampler = OnnxSampler(exported("classes"), "cpu", threads=1, loop="steps")
    call = {"method": "dpmpp_2m", "num_inference_steps": 3, "seeds": SEEDS, "progress": False}
    images = sampler.sample(**call)
    (loop,) = sampler._step_loops.values()
    for buffer in (*loop._states, *loop._cleans):
        buffer.update_inplace(np.full(buffer.shape(), np.nan, dtype=np.float32))
    np.testing.assert_array_equal(sampler.sample(**call), images)


def test_torch_is_not_needed():
    code = f"""
        import sys
        sys.modules["torch"] = None  # importing it raises
        from fastddpm.onnx import OnnxSampler
        for loop in ("file", "steps"):
            sampler = OnnxSampler({str(exported("classes"))!r}, "cpu", threads=1, loop=loop)
            images = sampler.sample(seeds=[1, 2], class_labels=1, guidance_scale=2.0, num_inference_steps=2)
            assert images.shape == (2, 3, 8, 8)
        print(sorted(name for name in ("torch", "onnx", "triton", "PIL", "rich") if sys.modules.get(name)))
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=False
    )
    assert done.stdout.strip() == "[]", done.stderr


def test_an_image_that_is_not_finite_is_an_error_that_names_its_seed(loop, monkeypatch):
    drawn = OnnxSampler(exported("classes"), "cpu", threads=1, loop=loop)
    assert np.isfinite(drawn.sample(seeds=[1, 2], class_labels=0, progress=False)).all()
    right = getattr(drawn, run := "_run_file" if loop == "file" else "_run_steps")

    def broken(*arguments):
        images = right(*arguments)
        images[-1, 0, 0, 0] = np.nan
        return images

    monkeypatch.setattr(drawn, run, broken)
    for output in ("float", "uint8"):
        with pytest.raises(NonFiniteSamples, match=r"images: 1 of 2 hold NaN or infinity \(of seeds 2\)"):
            drawn.sample(seeds=[1, 2], class_labels=0, output=output, progress=False)
