"""Images set aside, on fake CUDA tensors: copied by index between slots and rows, nothing read on the host.

A fake tensor has no values, so that reading one raises; the known offender shows it.
"""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from kernel_build import TARGETS, pretended
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from fastddpm.serving import parked as parked_module
from fastddpm.serving.parked import STATES, Parked

SHAPE = (3, 8, 8)


@pytest.fixture
def on_the_card(monkeypatch):
    """Makes loops of so many slots; the indices go to the card unlocked, since nothing is locked here."""
    monkeypatch.setattr(parked_module, "to_device", lambda values, device: values.to(device))

    def loop(slots):
        x, x0 = (torch.empty((slots, *SHAPE), device="cuda") for _ in range(2))
        kept = torch.empty((2, slots, *SHAPE), device="cuda")
        return SimpleNamespace(device=x.device, buffers=SimpleNamespace(x=x, x0=x0, kept=kept))

    with pretended(TARGETS["sm_90"]), FakeTensorMode(), torch.no_grad():
        yield loop


def test_states_stay_on_the_card(on_the_card):
    small, large, parked = on_the_card(4), on_the_card(8), Parked()
    parked.put({"a": 0, "b": 3}, small)
    parked.put({"c": 1, "d": 2, "e": 0}, small)  # more rows than there were
    parked.take({"b": 7, "c": 0}, large)
    parked.drop("a")
    parked.put({"f": 5}, large)
    assert [name for name in "abcdef" if name in parked] == ["d", "e", "f"]
    assert {name: values.device.type for name, values in parked._states.items()} == dict.fromkeys(
        STATES, "cuda"
    )
    assert {values.shape[STATES[name]] for name, values in parked._states.items()} == {8}


def test_a_read_is_caught(on_the_card, monkeypatch):
    monkeypatch.setattr(
        parked_module, "_indices", lambda places, loop: torch.tensor([int(loop.buffers.x.sum())])
    )
    with pytest.raises(DataDependentOutputException):
        Parked().put({"a": 0}, on_the_card(4))
