"""Proof i: a chain of a scheduler of diffusers, alone, on fake CUDA tensors: what its loop waits for.

A solver's twin knows its row on the host, as the original knows its step index: a timestep on a card is read
in the first step of a chain, where the plan is made and sent, and in no other. All steps after it have one
kernel of ours, whose table, counters and kept predictions are on the card, and touch nothing on the host.
"""

from __future__ import annotations

import contextlib

import pytest
import torch
from dropin_checks import Reads
from fake_cuda_steps import Devices
from kernel_build import TARGETS, pretended
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorMode,
)

import fastddpm
from fastddpm.plans.diffusers.solver_classes import STEPPED

diffusers = pytest.importorskip("diffusers")

from diffusers.schedulers.deprecated.scheduling_karras_ve import KarrasVeScheduler  # noqa: E402

import fastddpm.dropin._diffusers.rows as rows_module  # noqa: E402
import fastddpm.dropin._diffusers.walk as walk_module  # noqa: E402

# NumPy's, of how diffusers makes arrays of tensors: hundreds of thousands.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

SHAPE = (2, 3, 4, 4)
STEPS = 5
CONFIGURATIONS = {
    **{name: {} for name in sorted(STEPPED)},
    "UniPCMultistepScheduler, order 3": {"solver_order": 3},
    "DPMSolverMultistepScheduler, SDE": {"algorithm_type": "sde-dpmsolver++"},
    "DPMSolverSinglestepScheduler, thresholds": {"thresholding": True},
}


def begun(configuration):
    """A twin after the first step of a chain on the host, and that chain's walk."""
    name = configuration.split(",")[0]
    options = dict(CONFIGURATIONS[configuration])
    if name == "PNDMScheduler":
        options["skip_prk_steps"] = True
    twin = fastddpm.optimize(getattr(diffusers, name)(**options))
    twin.set_timesteps(STEPS)
    step(twin, twin.timesteps[0], "cpu")
    return twin, twin._walk


def step(twin, timestep, device):
    sample, output = (torch.zeros(SHAPE, device=device) for _ in range(2))
    return twin.step(output, timestep, sample).prev_sample


@contextlib.contextmanager
def on_the_card(walk, monkeypatch):
    """The walk as the first step of a chain leaves it, with all of it on a card."""
    made = [(values.shape, values.dtype) for values in walk._on(torch.device("cpu"))]
    monkeypatch.setattr(rows_module, "current", lambda device: contextlib.nullcontext())
    monkeypatch.setattr(walk_module, "to_device", lambda *arguments: pytest.fail("sent once more"))
    # Not by the fixture: what begins a chain has to be real.
    with pretended(TARGETS["sm_90"]), FakeTensorMode(), torch.no_grad():
        device = torch.empty(0, device="cuda").device
        walk._tensors = {device: tuple(torch.empty(s, dtype=d, device=device) for s, d in made)}
        if walk.plan.kept:
            walk._kept = torch.empty((walk.plan.kept, *SHAPE), device=device)
        if walk._reached is not None:
            walk._returned, walk._reached = (torch.empty(SHAPE, device=device) for _ in range(2))
        yield device


@pytest.mark.parametrize("configuration", CONFIGURATIONS)
def test_steps_after_the_first_stay_on_the_card(configuration, monkeypatch, proof):
    twin, walk = begun(configuration)
    counts = []
    with on_the_card(walk, monkeypatch) as device:
        timesteps = torch.empty(len(walk.plan), device=device)
        for row in range(1, len(walk.plan)):
            with Devices() as devices:
                out = step(twin, timesteps[row], device)
            assert devices.strays == []
            assert devices.operators.count("fastddpm::reverse_step") == 1
            assert out.device == device
            counts.append(len(devices.operators))
    assert twin._walk is walk
    proof("i", configuration, **{"operators of a step, at most": max(counts), "on the host": 0})


LEVELS = (9.0, 4.0)
EXPLODING = {
    "predictor": lambda twin, m, x, t, *levels: twin.step_pred(m, t, x),
    "Euler's step": lambda twin, m, x, t, *levels: twin.step(m, *levels, x),
    "its correction": lambda twin, m, x, t, *levels: twin.step_correct(m, *levels, x, x, m),
}


@pytest.mark.parametrize("name", EXPLODING)
def test_steps_between_exploding_levels_stay_on_the_card(name, monkeypatch, proof):
    """Of ScoreSdeVe and KarrasVe, by levels that are on the card; once their rows have been sent."""
    kind = diffusers.ScoreSdeVeScheduler if name == "predictor" else KarrasVeScheduler
    twin, take = fastddpm.optimize(kind()), EXPLODING[name]
    twin.set_timesteps(STEPS)
    take(twin, torch.zeros(SHAPE), torch.zeros(SHAPE), 0.5, *LEVELS)
    for module in ("score_sde_ve", "karras_ve"):
        monkeypatch.setattr(
            f"fastddpm.dropin._diffusers.{module}.current", lambda device: contextlib.nullcontext()
        )
    with pretended(TARGETS["sm_90"]), FakeTensorMode(), torch.no_grad():
        x, m = (torch.empty(SHAPE, device="cuda") for _ in range(2))
        levels = tuple(torch.empty((), device="cuda") for _ in range(3))
        rows = vars(twin).get("_rows", {})
        for row, _ in list(rows):
            rows[row, x.device] = torch.empty((1, 32), device="cuda")
        if "_levels" in vars(twin):
            held = vars(twin)["_levels"][2]
            held[x.device] = torch.empty((len(twin.discrete_sigmas) + 1, 32), device="cuda")
        with Devices() as devices:
            out = take(twin, m, x, *levels)
    assert devices.strays == []
    assert devices.operators.count("fastddpm::reverse_step") == (1 if name == "predictor" else 2)
    assert out.prev_sample.device == x.device
    words = f"{kind.__name__}, {name}"
    proof("i", words, **{"operators of a step, at most": len(devices.operators), "on the host": 0})


# Not of thresholds: torch 2.11 reads the q of `quantile` on the host, whose number it is.
@pytest.mark.parametrize("configuration", [name for name in CONFIGURATIONS if "thresholds" not in name])
def test_the_timestep_is_read_once_a_chain(configuration, monkeypatch):
    """Whoever begins the chain reads it; real tensors, of which every read by the host is counted."""
    twin, _ = begun(configuration)
    kind, asked = type(twin), []
    begin = kind._begin
    monkeypatch.setattr(kind, "_begin", lambda self, t: asked.append(t) or begin(self, t))
    for chain in range(1, 3):
        twin.set_timesteps(STEPS)
        for place, timestep in enumerate(twin.timesteps):
            with Reads() as reads:
                step(twin, timestep, "cpu")
            assert (reads.count > 0) is (place == 0)
        assert len(asked) == chain


@pytest.mark.parametrize("offence", ["row by the timestep", "state", "table sent each step"])
def test_known_offenders_are_caught(offence, monkeypatch, proof):
    """What a change of the walk could bring in: the checks above see it."""
    twin, walk = begun("UniPCMultistepScheduler")
    take, index = walk.take, type(twin)._index
    seen = []
    if offence == "row by the timestep":
        monkeypatch.setattr(type(twin), "_index", lambda self: index(self) + 0 * int(seen[-1]))
    elif offence == "state":
        walk.take = lambda row, m, x, z: take(row, m, x * float(x.sum()), z)
    with on_the_card(walk, monkeypatch) as device:
        if offence == "table sent each step":
            walk._tensors = {}
        seen.append(torch.empty((), device=device))
        errors = (DataDependentOutputException, DynamicOutputShapeException, pytest.fail.Exception)
        with pytest.raises(errors):
            step(twin, seen[-1], device)
    proof("i", f"offender: {offence}", caught="yes")
