"""Proof h: recorded steps, replayed with other contents in the buffers, give the images of eager steps.

The captured loop runs with a backend that records the operators of a step and replays them on their tensors,
without the Python that led to them (replay.py): what a CUDA graph would have baked in, it has too.
"""

from __future__ import annotations

import pytest
import torch
from networks import TINY, make_unet
from replay import RecordingBackend
from tolerances import SAME_OPS

from fastddpm import NoiseSchedule, Sampler
from fastddpm.engine import Loops, executors

METHODS = {
    "ddpm": {"method": "ddpm"},
    "ddpm, fixed_large, unclipped": {"variance_type": "fixed_large", "clip_sample_range": None},
    "ddim": {"method": "ddim"},
    "ddim, eta 0.7": {"method": "ddim", "eta": 0.7},
    "dpmpp_2m": {"method": "dpmpp_2m"},
    "unipc": {"method": "unipc"},
    "heun": {"method": "heun"},
}


@pytest.mark.parametrize("guidance_scale", [1.0, 2.5])
@pytest.mark.parametrize("method", METHODS)
def test_replays(method, guidance_scale, monkeypatch, proof):
    monkeypatch.setattr(executors, "CudaGraphBackend", RecordingBackend)
    monkeypatch.setattr(RecordingBackend, "captures", 0)
    unet = make_unet()
    options = {"num_inference_steps": 10, "clip_sample_range": 1.0, "shape": (3, 8, 8), "engine": "eager"}
    eager = Sampler(unet, NoiseSchedule.linear(1000), **{**options, **METHODS[method]})
    captured = eager.replace()
    captured.runner.loops = Loops("cudagraph")

    def difference(seeds, labels):
        call = {"seeds": seeds, "class_labels": labels, "guidance_scale": guidance_scale, "progress": False}
        expected = eager.sample(**call)
        assert expected.isfinite().all()
        assert expected.std() > 0.05
        return (captured.sample(**call) - expected).abs().max().item()

    found = {"first": difference([3, 2**32 + 5], [0, 3])}
    found["other seeds and labels"] = difference([7, 8], [2, 1])
    unet.load_state_dict(make_unet(TINY, seed=1).state_dict())
    found["other weights"] = difference([7, 8], [2, 1])
    timesteps = torch.arange(900, 0, -90).tolist()
    eager = eager.replace(timesteps=timesteps, num_inference_steps=None)
    captured.plan = eager.plan
    found["other timesteps"] = difference([7, 8], [2, 1])
    figures = {name: f"{error:g}" for name, error in found.items()}
    proof("h", f"{method}, guidance {guidance_scale:g}", captures=RecordingBackend.captures, **figures)
    assert max(found.values()) <= SAME_OPS
    assert RecordingBackend.captures == 1
