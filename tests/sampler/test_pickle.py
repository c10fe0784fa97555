"""Samplers in other processes and as copies: the same images, with buffers and sessions of their own."""

from __future__ import annotations

import copy
import pickle
import warnings
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import numpy as np
import pytest
import torch
from networks import make_unet
from onnx_exports import exported

import fastddpm
from fastddpm import BadArgument, NoiseSchedule, Sampler
from fastddpm.onnx import OnnxSampler
from fastddpm.plans import ddim_plan

SHAPE = (3, 8, 8)
REQUEST = {"seeds": [3, 2**40], "class_labels": ["dog", "fox"], "guidance_scale": 2.0, "progress": False}
NAMES = ["cat", "dog", "owl", "fox"]


def drawn(sampler, request):
    return sampler.sample(**request)


def with_method(network, schedule):
    options = {"method": "ddim", "num_inference_steps": 3, "eta": 0.5, "clip_sample_range": 1.0}
    return Sampler(network, schedule, **options, shape=SHAPE, class_names=NAMES, engine="eager")


def with_plan(network, schedule):
    plan = ddim_plan(schedule, 3, clip_sample_range=1.0)
    return Sampler.from_plan(network, schedule, plan, shape=SHAPE, class_names=NAMES)


@pytest.mark.parametrize("made", [with_method, with_plan])
@pytest.mark.parametrize("again", [lambda one: pickle.loads(pickle.dumps(one)), copy.deepcopy, copy.copy])
def test_a_copy_draws_the_same_images(made, again):
    sampler = made(make_unet(), NoiseSchedule.linear(20))
    expected = drawn(sampler, REQUEST)
    assert sampler.memory() > 0
    other = again(sampler)
    assert other.memory() == 0
    assert torch.equal(drawn(other, REQUEST), expected)
    assert other.method == sampler.method
    assert other.options == sampler.options
    # Their buffers are not each other's.
    assert torch.equal(drawn(sampler, REQUEST), expected)
    other.clear()
    assert sampler.memory() > 0


def test_a_deep_copy_has_weights_of_its_own_and_a_copy_has_not():
    sampler = with_method(make_unet(), NoiseSchedule.linear(20))
    assert copy.copy(sampler).model is sampler.model
    deep, before = copy.deepcopy(sampler), drawn(sampler, REQUEST)
    with torch.no_grad():
        deep.model.conv_out.bias.add_(1.0)
    assert torch.equal(drawn(sampler, REQUEST), before)
    assert not torch.equal(drawn(deep, REQUEST), before)


def test_a_cast_copy_of_the_weights_stays_behind():
    sampler = with_method(make_unet(), NoiseSchedule.linear(20)).replace(precision="bf16")
    expected = drawn(sampler, REQUEST)
    content = pickle.dumps(sampler)
    assert len(content) < 1.1 * len(pickle.dumps(with_method(make_unet(), NoiseSchedule.linear(20))))
    assert torch.equal(drawn(pickle.loads(content), REQUEST), expected)


def test_late_starts_are_warned_of_once():
    with pytest.warns(UserWarning, match="leading"):
        sampler = Sampler(make_unet(), NoiseSchedule.linear(1000), num_inference_steps=2, shape=SHAPE)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        copy.deepcopy(sampler)


def test_another_process_draws_the_same_images():
    """A process that has nothing of this one: it imports, and gets the samplers by pickle."""
    sampler, export = with_method(make_unet(), NoiseSchedule.linear(20)), OnnxSampler(exported("classes"))
    request = {"seeds": [3, 4], "class_labels": [1, 2], "progress": False}
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        ours = pool.submit(drawn, sampler, request)
        theirs = pool.submit(drawn, export, request)
        torch.testing.assert_close(ours.result(), drawn(sampler, request), rtol=0, atol=1e-5)
        np.testing.assert_allclose(theirs.result(), drawn(export, request), rtol=0, atol=1e-5)


def test_joblib_draws_the_same_images():
    """By loky, its own processes and its own pickle; methods of the samplers are what is called."""
    joblib = pytest.importorskip("joblib")
    sampler, export = with_method(make_unet(), NoiseSchedule.linear(20)), OnnxSampler(exported("classes"))
    requests = [{"seeds": [seed], "class_labels": [seed % 4], "progress": False} for seed in (3, 2**40)]
    calls = [joblib.delayed(one.sample)(**request) for one in (sampler, export) for request in requests]
    drawn_there = joblib.Parallel(n_jobs=2, backend="loky")(calls)
    expected = [one.sample(**request) for one in (sampler, export) for request in requests]
    for ours, theirs in zip(expected, drawn_there, strict=True):
        assert type(ours) is type(theirs)
        np.testing.assert_allclose(theirs, ours, rtol=0, atol=1e-5)
    assert not np.allclose(expected[0], expected[1], atol=0.1)


@pytest.mark.parametrize("loop", ["file", "steps"])
@pytest.mark.parametrize("again", [lambda one: pickle.loads(pickle.dumps(one)), copy.deepcopy, copy.copy])
def test_a_copy_of_an_export_draws_the_same_images(monkeypatch, loop, again):
    sampler = OnnxSampler(exported("classes"), "cpu", threads=1, loop=loop)
    request = {"seeds": [3, 4], "class_labels": [1, 2], "progress": False}
    expected = drawn(sampler, request)
    other = again(sampler)
    assert (other.loop, other.provider, other.folder) == (loop, sampler.provider, sampler.folder)
    np.testing.assert_array_equal(drawn(other, request), expected)
    np.testing.assert_array_equal(drawn(sampler, request), expected)


def test_a_model_of_another_class_is_not_saved(tmp_path):
    foreign = torch.nn.Conv2d(3, 3, 1)
    for model in (foreign, Sampler(foreign, NoiseSchedule.linear(20))):
        with pytest.raises(BadArgument, match=rf"model: {type(model).__name__} given, a UNet"):
            fastddpm.save_folder(tmp_path / "a", model, NoiseSchedule.linear(20))
    assert list(tmp_path.iterdir()) == []
