"""What a model does to its input, and how many channels it returns, is looked at in its first call."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from replay import RecordingBackend
from torch import nn

from fastddpm import NoiseSchedule, Sampler
from fastddpm.engine import Loops, executors

CALL = {"seeds": [3, 4], "progress": False}
IN_PLACE = r"model: one that changes its input 'x' in place given, .*clone"


class InPlace(nn.Module):
    """Halves its input, in one of the ways in which models do it by accident."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how, self.weight = how, nn.Parameter(torch.tensor(0.5))

    def forward(self, x, t):
        if self.how == "operator":
            x *= 0.5
        elif self.how == "data":  # moves no version counter
            x.data.mul_(0.5)
        elif self.how == "view":
            x.view(len(x), -1).sub_(1.0)
        return SimpleNamespace(sample=self.weight * x)


def sampler(model, **options) -> Sampler:
    chosen = {"method": "ddim", "num_inference_steps": 4, "shape": (1, 4, 4), "engine": "eager"} | options
    return Sampler(model, NoiseSchedule.linear(1000), **chosen)


@pytest.mark.parametrize("how", ["operator", "data", "view"])
def test_a_model_that_changes_its_input_is_refused_before_the_second_step(how):
    steps = []
    one = sampler(InPlace(how))
    for _ in range(2):  # the second call finds the same loop
        with pytest.raises(ValueError, match=IN_PLACE):
            one.sample(**CALL, callback=lambda step, t, x: steps.append(step))
    assert steps == []
    cloned = sampler(lambda x, t: InPlace(how)(x.clone(), t).sample).sample(**CALL)
    kept = sampler(InPlace("not").eval()).sample(**CALL)
    assert not torch.equal(cloned, kept) or how == "not"


@pytest.mark.parametrize("engine", ["compile", "onnxruntime"])
def test_other_engines_refuse_it_too(engine):
    with pytest.raises(ValueError, match=IN_PLACE):
        sampler(InPlace("operator"), engine=engine).sample(**CALL)


def test_a_captured_loop_refuses_it_and_looks_once(monkeypatch):
    monkeypatch.setattr(executors, "CudaGraphBackend", RecordingBackend)
    refused, sound = sampler(InPlace("operator")), sampler(InPlace("not"))
    refused.runner.loops, sound.runner.loops = Loops("cudagraph"), Loops("cudagraph")
    with pytest.raises(ValueError, match=IN_PLACE):
        refused.sample(**CALL)
    assert torch.equal(sound.sample(**CALL), sampler(InPlace("not")).sample(**CALL))
    (loop,) = sound.runner.loops._loops.values()
    recorded = [str(op[0]) for r in loop._executor._backend.recorders for op in r.ops]
    assert recorded
    assert not [name for name in recorded if "equal" in name or "clone" in name]


def test_a_condition_that_is_changed_in_place_is_named():
    def model(x, t, class_labels):
        class_labels += 1
        return x * 0.5

    with pytest.raises(ValueError, match="changes its input 'class_labels' in place"):
        sampler(model).sample(**CALL, class_labels=[1, 2])


def test_what_the_model_does_to_a_copy_is_its_own_affair():
    """Guidance and a dtype of its own give it a copy: the state stays, and so do the images."""
    seen = []

    def model(x, t, class_labels):
        seen.append(x)
        x *= 0.5
        return x

    options = {"null_label": 0}
    guided = {**CALL, "class_labels": 1, "guidance_scale": 2.0}
    found = sampler(model, **options).sample(**guided)
    wanted = sampler(lambda x, t, class_labels: 0.5 * x, **options).sample(**guided)
    assert torch.equal(found, wanted)
    assert len(seen) == 4


@pytest.mark.parametrize("method", ["ddpm", "ddim"])
def test_twice_the_channels_under_a_fixed_variance_are_refused(method):
    def model(x, t):
        return torch.cat((0.5 * x, torch.zeros_like(x)), dim=1)

    options = {"method": method}
    one = sampler(model, **options)
    for _ in range(2):
        with pytest.raises(ValueError, match="variance_type: a fixed one with a model that returns 2"):
            one.sample(**CALL)
    told = sampler(model, **options, variance_type="learned_range")
    assert told.sample(**CALL).shape == (2, 1, 4, 4)
    if method == "ddim":  # which learns no variance: the first half alone
        assert torch.equal(told.sample(**CALL), sampler(lambda x, t: 0.5 * x, **options).sample(**CALL))
