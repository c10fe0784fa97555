"""States of any shape (B, ...): vectors, sound, actions, volumes; held to the textbook's loop in float64."""

from __future__ import annotations

import math
import re
from pathlib import Path

import float64_reference
import numpy as np
import pytest
import torch
from networks import make_unet
from replay import RecordingBackend
from tolerances import DROP_IN, SAME_KERNELS, SAME_OPS
from torch import nn

from fastddpm import NoiseSchedule, Sampler
from fastddpm.engine import Loops, executors
from fastddpm.repaint import repaint

SHAPES = {"vector": (5,), "sound": (2, 17), "actions": (8, 3), "volume": (2, 3, 2, 4)}
SCHEDULE = NoiseSchedule.linear(30, 1e-3, 0.2)
SEEDS = [3, 2**40 + 1, 8]
CALL = {"seeds": SEEDS, "progress": False}


class Net(nn.Module):
    """Mixes all numbers of a state; knows its time, its class, and what stands in front of it."""

    def __init__(self, shape: tuple[int, ...], *, channels: int | None = None, outputs: int = 1) -> None:
        super().__init__()
        self.shape = (outputs * shape[0], *shape[1:])
        seen = math.prod((channels or shape[0], *shape[1:]))
        generator = torch.Generator().manual_seed(0)
        weight = torch.randn(math.prod(self.shape), seen, generator=generator) / math.sqrt(seen)
        self.weight = nn.Parameter(weight)
        self.label = nn.Embedding(4, 1)
        with torch.no_grad():
            self.label.weight.copy_(torch.tensor([[0.0], [0.3], [-0.4], [0.1]]))

    def forward(self, x, t, class_labels=None):
        mixed = torch.tanh(x.flatten(1) @ self.weight.T) + t[:, None] / 100
        if class_labels is not None:
            mixed = mixed + self.label(class_labels)
        return mixed.reshape(-1, *self.shape)


def textbook(network, shape, *, clip=None, label=None, scale=1.0) -> np.ndarray:
    """Algorithm 2 of Ho et al. 2020 in float64, with the noise of the spec element by element; the posterior
    mean of a clipped x0 (equation 7), and guidance of Ho and Salimans 2022."""
    betas = SCHEDULE.betas
    abar = np.concatenate([[1.0], np.cumprod(1 - betas)])
    network = network.double()
    states = []
    for seed in SEEDS:
        x = float64_reference.sample_noise(seed, 0, shape)
        for k, t in enumerate(reversed(range(len(betas)))):

            def eps(which, x=x, t=t):
                given = {} if which is None else {"class_labels": torch.tensor([which])}
                with torch.no_grad():
                    return network(torch.tensor(x)[None], torch.tensor([t]).double(), **given)[0].numpy()

            m = eps(label)
            if scale != 1.0:
                m = eps(0) + scale * (m - eps(0))
            x0 = (x - math.sqrt(1 - abar[t + 1]) * m) / math.sqrt(abar[t + 1])
            x0 = x0 if clip is None else np.clip(x0, -clip, clip)
            mean = math.sqrt(abar[t]) * betas[t] * x0 + math.sqrt(1 - betas[t]) * (1 - abar[t]) * x
            x = mean / (1 - abar[t + 1])
            if t > 0:
                sigma = math.sqrt(betas[t] * (1 - abar[t]) / (1 - abar[t + 1]))
                x = x + sigma * float64_reference.sample_noise(seed, k + 1, shape)
        states.append(x)
    network.float()
    return np.stack(states)


@pytest.mark.parametrize(
    ("name", "engine"),
    [*((name, "eager") for name in SHAPES), ("volume", "captured"), ("vector", "onnxruntime")],
)
def test_any_shape_is_drawn_as_the_textbook_draws_it(name, engine, monkeypatch):
    shape = SHAPES[name]
    network = Net(shape)
    chosen = "onnxruntime" if engine == "onnxruntime" else "eager"
    sampler = Sampler(network, SCHEDULE, clip_sample_range=1.0, shape=shape, engine=chosen, null_label=0)
    if engine == "captured":
        monkeypatch.setattr(executors, "CudaGraphBackend", RecordingBackend)
        sampler.runner.loops = Loops("cudagraph")
        sampler.sample(**{**CALL, "seeds": [1, 2, 4]})  # what is replayed below
    drawn = sampler.sample(**CALL)
    assert drawn.shape == (3, *shape)
    wanted = textbook(network, shape, clip=1.0)
    assert np.abs(drawn.numpy() - wanted).max() <= DROP_IN
    guided = sampler.sample(class_labels=2, guidance_scale=2.5, **CALL)
    wanted = textbook(network, shape, clip=1.0, label=2, scale=2.5)
    assert np.abs(guided.numpy() - wanted).max() <= DROP_IN
    assert (guided - drawn).abs().max() > 0.05
    if engine == "captured":
        return
    # Cut and padded.
    cut = sampler.sample(class_labels=2, guidance_scale=2.5, max_batch=2, **CALL)
    assert (cut - guided).abs().max() <= DROP_IN


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize(
    "options",
    [
        {"variance_type": "learned_range", "clip_sample_range": 1.0},
        {"method": "ddim", "eta": 0.7},
        {"method": "dpmpp_2m"},
        {"method": "unipc"},
    ],
    ids=lambda options: options.get("method", "learned"),
)
def test_a_method_takes_a_state_as_the_numbers_it_is_made_of(name, options):
    """The state of an image with the same numbers in the same order is drawn the same, by every method."""
    shape = SHAPES[name]
    options = {"num_inference_steps": 6, "timestep_spacing": "trailing", "engine": "eager"} | options
    learns = "variance_type" in options
    network = Net(shape, outputs=2 if learns else 1)
    sampler = Sampler(network, SCHEDULE, shape=shape, **options)
    flat = (shape[0], 1, math.prod(shape[1:]))

    def as_image(x, t):
        m = network(x.reshape(len(x), *shape), t)
        return m.reshape(len(x), -1, *flat[1:])

    images = Sampler(as_image, SCHEDULE, shape=flat, **options)
    drawn = sampler.sample(**CALL)
    assert (drawn.flatten(1) - images.sample(**CALL).flatten(1)).abs().max() <= SAME_OPS
    way = sampler.sample_trajectory(frames=3, **CALL)
    assert way.shape == (3, 3, *shape)
    assert torch.equal(way[-1], drawn)
    again = sampler.sample_from(drawn, 15, **CALL)
    wanted = images.sample_from(drawn.reshape(3, *flat), 15, **CALL)
    assert (again.flatten(1) - wanted.flatten(1)).abs().max() <= SAME_OPS
    row = sampler.interpolate(drawn[0], drawn[1], 15, steps=3, seed=5, progress=False)
    wanted = images.interpolate(
        drawn[0].reshape(flat), drawn[1].reshape(flat), 15, steps=3, seed=5, progress=False
    )
    assert (row.flatten(1) - wanted.flatten(1)).abs().max() <= SAME_OPS
    if options.get("method") == "ddim":
        back = sampler.replace(eta=0.0).invert(drawn, progress=False)
        wanted = images.replace(eta=0.0).invert(drawn.reshape(3, *flat), progress=False)
        assert (back.flatten(1) - wanted.flatten(1)).abs().max() <= SAME_OPS


@pytest.mark.parametrize("name", SHAPES)
def test_a_condition_stands_in_front_of_any_state(name):
    """As if the network put it there itself."""
    shape = SHAPES[name]
    network = Net(shape, channels=shape[0] + 2)
    condition = torch.linspace(-1, 1, 3 * 2 * math.prod(shape[1:])).reshape(3, 2, *shape[1:])
    sampler = Sampler(network, SCHEDULE, clip_sample_range=1.0, shape=shape, engine="eager")
    itself = Sampler(
        lambda x, t: network(torch.cat((condition, x), dim=1), t),
        SCHEDULE,
        clip_sample_range=1.0,
        shape=shape,
        engine="eager",
    )
    assert torch.equal(sampler.sample(condition=condition, **CALL), itself.sample(**CALL))
    with pytest.raises(ValueError, match=r"condition: shape .* given, \(3 or 1, Cc"):
        sampler.sample(condition=condition[:, None], **CALL)


@pytest.mark.parametrize("name", SHAPES)
def test_any_state_is_painted_anew_where_it_is_unknown(name):
    shape = SHAPES[name]
    sampler = Sampler(Net(shape), SCHEDULE, clip_sample_range=1.0, shape=shape, engine="eager")
    states = torch.linspace(-1, 1, math.prod(shape)).reshape(1, *shape)
    mask = torch.zeros(1, *shape)
    mask.view(-1)[1::2] = 1
    painted = repaint(sampler, states, mask, jump=2, resample=2, **CALL)
    known = (mask == 0).expand(3, *shape)
    assert torch.equal(painted[known], states.expand(3, *shape)[known])
    assert (painted[0][mask[0] > 0] - painted[1][mask[0] > 0]).abs().max() > 0.05


def test_noise_of_torch_generators_of_any_shape():
    """In the order of a plain loop: x_T first, then a draw a step but the last."""
    shape, abar = (4, 6), SCHEDULE.tensor("alphas_cumprod", dtype=torch.float64)
    network = Net(shape)
    generator = torch.Generator().manual_seed(5)
    x = torch.randn((2, *shape), generator=generator).double()
    before = torch.cat([torch.ones(1, dtype=torch.float64), abar])
    for t in reversed(range(30)):
        with torch.no_grad():
            m = network(x.float(), torch.full((2,), t)).double()
        beta = 1 - before[t + 1] / before[t]
        x = (x - beta / (1 - before[t + 1]).sqrt() * m) / (1 - beta).sqrt()
        if t > 0:
            z = torch.randn((2, *shape), generator=generator).double()
            x = x + (beta * (1 - before[t]) / (1 - before[t + 1])).sqrt() * z
    sampler = Sampler(network, SCHEDULE, shape=shape, engine="eager")
    drawn = sampler.sample(2, noise="torch", generator=torch.Generator().manual_seed(5), progress=False)
    assert (drawn - x).abs().max() <= SAME_KERNELS * max(1.0, float(x.abs().max()))


def test_what_is_an_image_only_says_so():
    unet, vectors = make_unet(), Net((5,))
    refused = [
        (lambda: Sampler(unet, SCHEDULE, shape=(8, 8)), r"shape: \(8, 8\) given, three positive integers"),
        (lambda: Sampler(unet, SCHEDULE).sample(shape=(5,)), "shape: .* three positive integers"),
        (
            lambda: Sampler(unet, SCHEDULE).sample(x_T=torch.zeros(2, 5)),
            r"x_T: shape \(2, 5\) given, a tensor \(B, C, H, W\) accepted",
        ),
        (lambda: Sampler(vectors, SCHEDULE, shape=()), r"shape: \(\) given, one or more positive integers"),
        (lambda: Sampler(vectors, SCHEDULE, shape=(4, 0)), r"shape: \(4, 0\) given, one or more"),
        (lambda: Sampler(vectors, SCHEDULE).sample(), "shape: none, .* that of a state, as"),
        (lambda: Sampler(vectors, SCHEDULE).sample(x_T=torch.zeros(5)), r"x_T: shape \(5,\) given"),
        (
            lambda: Sampler(vectors, SCHEDULE).sample(shape=(4,), x_T=torch.zeros(1, 5)),
            r"shape: \(4,\) with x_T of \(5,\) given, one shape",
        ),
        (
            lambda: Sampler(Net((5,), outputs=2), SCHEDULE).sample(shape=(5,), progress=False),
            "variance_type: a fixed one with a model that returns 10 channels",
        ),
    ]
    for call, message in refused:
        with pytest.raises(ValueError, match=message):
            call()


def test_what_the_page_says_runs():
    text = (Path(__file__).parents[2] / "docs" / "sampling.md").read_text()
    names: dict[str, object] = {}
    for block in re.findall(r"```python\n(.*?)```", text, re.S):
        exec(block, names)
    shapes = {"vectors": (4, 16), "sounds": (2, 2, 512), "volumes": (1, 1, 8, 16, 16)}
    for name, shape in shapes.items():
        assert names[name].shape == shape
        assert names[name].isfinite().all()
    assert names["way"].shape == (4, 1, 1, 8, 16, 16)
    assert names["plans"].shape == (4, 8, 3)
    assert torch.equal(names["plans"][:, 0], torch.tensor([[0.5, -0.5, 0.0]]).expand(4, 3))
