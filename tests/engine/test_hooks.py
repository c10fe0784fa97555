"""Hooks put on a model, and parts exchanged, after a sampler has drawn with it.

Every engine's images are those of a sampler made afterwards, also where a copy in another dtype runs.
"""

from __future__ import annotations

import pytest
import torch
from networks import make_unet
from replay import RecordingBackend
from torch import nn

from fastddpm import NoiseSchedule, Sampler
from fastddpm.engine import Loops, executors

CALL = {"seeds": [3, 4], "progress": False}
# DDIM draws no noise in a step, which torch.compile would take long to trace.
OPTIONS = {"method": "ddim", "num_inference_steps": 4, "clip_sample_range": 1.0, "shape": (3, 8, 8)}


def make(model, engine, monkeypatch, **options):
    """A sampler: `cudagraph` by a backend that records on the CPU, `compile` without Inductor."""
    if engine == "onnxruntime":
        pytest.importorskip("onnxruntime")
    compile_ = torch.compile
    if engine == "compile":
        monkeypatch.setattr(torch, "compile", lambda f, **_: compile_(f, backend="eager", dynamic=False))
    name = "eager" if engine == "cudagraph" else engine
    made = Sampler(model, NoiseSchedule.linear(1000), engine=name, **{**OPTIONS, **options})
    if engine == "cudagraph":
        monkeypatch.setattr(executors, "CudaGraphBackend", RecordingBackend)
        monkeypatch.setattr(executors, "is_captured", lambda engine, device: engine == "cudagraph")
        made.runner.loops = Loops("cudagraph")
    return made


class Foreign(nn.Module):
    """A network whose nonlinearity is a part without weights."""

    def __init__(self):
        super().__init__()
        self.first, self.between = nn.Conv2d(3, 8, 3, padding=1), nn.SiLU()
        self.conv_out = nn.Conv2d(8, 3, 3, padding=1)

    def forward(self, x, t):
        return self.conv_out(self.between(self.first(x)))


def foreign():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Foreign()


def halved(module, arguments, output):
    return 0.5 * output


class Doubling:
    """A hook with a state, which a copy of it would have for itself."""

    def __init__(self):
        self.calls = 0

    def before(self, module, arguments):
        self.calls += 1
        return tuple(2 * value for value in arguments)


@pytest.mark.filterwarnings("ignore:engine 'onnxruntime':RuntimeWarning")
@pytest.mark.parametrize(
    ("engine", "precision", "network"),
    [
        ("eager", None, foreign),
        ("eager", "bf16", foreign),
        ("eager", "fp16", make_unet),
        ("cudagraph", None, foreign),
        ("cudagraph", "bf16", make_unet),
        ("compile", "bf16", foreign),
        ("onnxruntime", None, foreign),
    ],
)
def test_hooks_that_come_later_run(engine, precision, network, monkeypatch):
    """One, then another beside it, then none: each image is that of a sampler which knew no other state."""
    model = network()
    call = CALL | ({"class_labels": 1} if network is make_unet else {})
    sampler = make(model, engine, monkeypatch, precision=precision)

    def fresh():
        return make(model, engine, monkeypatch, precision=precision).sample(**call)

    plain, doubling = sampler.sample(**call), Doubling()
    first = model.conv_out.register_forward_hook(halved)
    one = sampler.sample(**call)
    assert torch.equal(one, fresh())
    assert (one - plain).abs().max() > 1e-2
    second = model.conv_out.register_forward_pre_hook(doubling.before)
    both = sampler.sample(**call)
    assert doubling.calls > 0
    assert torch.equal(both, fresh())
    assert (both - one).abs().max() > 1e-2
    first.remove()
    second.remove()
    assert torch.equal(sampler.sample(**call), plain)


def exchanged(model):
    model.between = nn.ReLU()


def own_forward(model):
    model.between.forward = torch.relu


@pytest.mark.parametrize("change", [exchanged, own_forward])
def test_a_part_without_weights_is_exchanged_in_the_copy_too(change, monkeypatch):
    model = foreign()
    sampler = make(model, "eager", monkeypatch, precision="bf16")
    before = sampler.sample(**CALL)
    change(model)
    after = sampler.sample(**CALL)
    assert torch.equal(after, make(model, "eager", monkeypatch, precision="bf16").sample(**CALL))
    assert not torch.equal(after, before)
