"""A part of the state that is given at every step: diffusers' schedulers in Diffusion Policy's loop."""

from __future__ import annotations

import math

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler
from replay import RecordingBackend
from tolerances import DROP_IN, SAME_OPS
from torch import nn

from fastddpm import NoiseSchedule, Sampler
from fastddpm.engine import Loops, executors
from fastddpm.request import make_batches
from fastddpm_kernels import normal

SHAPES = {"trajectory": (8, 3), "image": (1, 4, 6), "vector": (7,)}
SCHEDULE = NoiseSchedule.linear(50, 1e-3, 0.15)
SEEDS = [3, 2**40 + 1, 8]
CALL = {"seeds": SEEDS, "progress": False}


class Net(nn.Module):
    """Mixes all numbers of a state, so that the unknown ones depend on those that are known."""

    def __init__(self, shape):
        super().__init__()
        size = math.prod(shape)
        generator = torch.Generator().manual_seed(0)
        self.weight = nn.Parameter(torch.randn(size, size, generator=generator) / math.sqrt(size))
        self.goal = nn.Parameter(torch.tensor(0.5))

    def forward(self, x, t, *, goal=None):
        m = torch.tanh(x.flatten(1) @ self.weight.T) + t[:, None] / 200
        return (m if goal is None else m + self.goal * goal).reshape(x.shape)


def given(shape, seed=0):
    """Of each sample, values and where they are known: its first places, and one of another of its own."""
    generator = torch.Generator().manual_seed(seed)
    known = torch.randn(3, *shape, generator=generator)
    mask = torch.zeros(3, math.prod(shape), dtype=torch.bool)
    mask[:, :3] = True
    mask[range(3), [-1, -2, -3]] = True
    return known, mask.reshape(known.shape)


class Spec:
    """Stands for a generator in diffusers' `randn_tensor`: the noise of the spec, step by step."""

    def __init__(self, shape):
        self.shape, self.step = shape, 0

    def __call__(self, *args, **kwargs):
        self.step += 1
        return normal(torch.tensor(SEEDS), self.step, self.shape)


def conditional_sample(
    scheduler, network, shape, known, mask, *, halves=(None,), scale=1.0, noise, **options
):
    """`conditional_sample` of real-stanford's diffusion_policy, in whose loop the mask is put on first."""
    x = normal(torch.tensor(SEEDS), 0, shape)
    with torch.no_grad():
        for k, t in enumerate(scheduler.timesteps):
            x[mask] = known[mask]
            outputs = [
                network(x, t.expand(len(x)), **({} if goal is None else {"goal": goal})) for goal in halves
            ]
            m = outputs[0] if len(outputs) == 1 else outputs[0] + scale * (outputs[1] - outputs[0])
            noise.step = k
            x = scheduler.step(m, t, x, **options).prev_sample
    x[mask] = known[mask]
    return x


@pytest.mark.parametrize("method", ["ddpm", "ddim"])
@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("guided", [False, True], ids=["plain", "guided"])
def test_the_given_part_stands_in_every_step(name, method, guided, monkeypatch):
    shape = SHAPES[name]
    network, (known, mask) = Net(shape), given(shape)
    noise = Spec(shape)
    kind = {"ddpm": DDPMScheduler, "ddim": DDIMScheduler}[method]
    scheduler = kind(50, 1e-3, 0.15, steps_offset=0, clip_sample=True)
    scheduler.set_timesteps(10)
    monkeypatch.setattr("diffusers.schedulers.scheduling_ddpm.randn_tensor", noise)
    goal, no_goal = torch.tensor([[1.0], [-1.0], [2.0]]), torch.zeros(1, 1)
    halves, call = (None,), dict(CALL)
    if guided:
        halves = (no_goal, goal)
        call |= {"cond": {"goal": goal}, "uncond": {"goal": no_goal}, "guidance_scale": 2.0}
    # The sampler's DDIM computes eps anew from the clipped x0.
    anew = {"use_clipped_model_output": True} if method == "ddim" else {}
    loop = {"halves": halves, "scale": 2.0, "noise": noise, **anew}
    wanted = conditional_sample(scheduler, network, shape, known, mask, **loop)
    options = {"method": method, "num_inference_steps": 10, "clip_sample_range": 1.0, "shape": shape}
    sampler = Sampler(network, SCHEDULE, engine="eager", **options)
    drawn = sampler.sample(known=known, known_mask=mask, **call)
    assert (drawn - wanted).abs().max() <= DROP_IN
    assert torch.equal(drawn[mask], known[mask])
    assert (sampler.sample(**call) - drawn)[~mask].abs().max() > 0.02  # it reaches the rest
    # Cut into batches, of which the last is padded; every sample with its own.
    cut = sampler.sample(known=known, known_mask=mask, max_batch=2, **call)
    assert (cut - wanted).abs().max() <= DROP_IN
    way = sampler.sample_trajectory(known=known, known_mask=mask, **call)
    assert torch.equal(way[-1], drawn)
    assert all(torch.equal(state[mask], known[mask]) for state in way)


@pytest.mark.parametrize("engine", ["captured", "onnxruntime"])
def test_other_engines_hold_it_too(engine, monkeypatch):
    shape = SHAPES["trajectory"]
    options = {"clip_sample_range": 1.0, "num_inference_steps": 10, "shape": shape}
    sampler = Sampler(Net(shape), SCHEDULE, engine="eager", **options)
    calls = [given(shape, seed) for seed in range(3)]
    wanted = [sampler.sample(known=known, known_mask=mask, **CALL) for known, mask in calls]
    made = sampler.replace(engine="onnxruntime" if engine == "onnxruntime" else "eager")
    if engine == "captured":
        monkeypatch.setattr(executors, "CudaGraphBackend", RecordingBackend)
        made.runner.loops = Loops("cudagraph")
    for (known, mask), expected in zip(calls, wanted, strict=True):
        drawn = made.sample(known=known, known_mask=mask, **CALL)
        assert (drawn - expected).abs().max() <= (SAME_OPS if engine == "captured" else DROP_IN)
    assert len(made.runner.loops) == 1


def test_one_row_and_sides_of_one_are_for_all():
    shape = SHAPES["trajectory"]
    sampler = Sampler(Net(shape), SCHEDULE, clip_sample_range=1.0, shape=shape, engine="eager")
    known = torch.linspace(-1, 1, 24).reshape(1, 8, 3)
    start = torch.zeros(1, 8, 1, dtype=torch.bool)
    start[:, :2] = True  # of a trajectory, the first two places whole
    drawn = sampler.sample(known=known, known_mask=start, **CALL)
    whole = sampler.sample(known=known.expand(3, 8, 3), known_mask=start.expand(3, 8, 3), **CALL)
    assert torch.equal(drawn, whole)
    assert torch.equal(drawn[:, :2], known[:, :2].expand(3, 2, 3))
    varied = sampler.sample_from(drawn, 20, known=known, known_mask=start, **CALL)
    assert torch.equal(varied[:, :2], known[:, :2].expand(3, 2, 3))
    # What comes after holds nothing of it.
    plain = Sampler(Net(shape), SCHEDULE, clip_sample_range=1.0, shape=shape, engine="eager")
    assert torch.equal(sampler.sample(**CALL), plain.sample(**CALL))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"known": None}, "known, known_mask: one without the other given, both, or neither, accepted"),
        ({"known_mask": None}, "known, known_mask: one without"),
        (
            {"known": torch.zeros(3, 8, 2)},
            r"known: shape \(3, 8, 2\) given, a floating tensor \(3 or 1, 8, 3\)",
        ),
        ({"known": torch.zeros(2, 8, 3)}, r"known: shape \(2, 8, 3\) given, \(3 or 1, 8, 3\) accepted"),
        ({"known": torch.zeros(3, 8, 3, dtype=torch.int64)}, "known: shape .* a floating tensor"),
        ({"known": torch.full((3, 8, 3), math.nan)}, "known: NaN or infinity among the values"),
        ({"known_mask": torch.zeros(3, 8, 3)}, "known_mask: .* a bool tensor"),
        ({"known_mask": torch.zeros(3, 8, dtype=torch.bool)}, r"known_mask: shape \(3, 8\) given, a bool"),
        (
            {"known_mask": torch.zeros(3, 2, 3, dtype=torch.bool)},
            r"known_mask: .* of whose sides any may be 1",
        ),
    ],
)
def test_what_is_refused(changes, message):
    known, mask = given((8, 3))
    facts = Sampler(Net((8, 3)), SCHEDULE).facts
    with pytest.raises(ValueError, match=message):
        make_batches(facts, seeds=SEEDS, shape=(8, 3), **{"known": known, "known_mask": mask} | changes)
