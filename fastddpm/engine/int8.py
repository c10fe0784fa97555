"""A network run by ONNX Runtime in 8-bit integers on a CPU: `precision="int8"`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from fastddpm.engine import quantised
from fastddpm.engine.errors import EngineUnavailable
from fastddpm.engine.sessions import Running, Session, one_line, started

LARGEST_ERROR = 0.1
"""Of what the output moves the state by, relative to it, over all states of the calibration (both by the root
of the mean square).

The model in the box has 0.009 to 0.036 by eight plans, from 6 steps of DPM-Solver++ to 100 of DDPM. Of the
output by itself it has up to 0.11, by 10 leading steps: the last is at timestep 0, where it predicts noise
that is hardly there, and moves the state by next to nothing."""


class States(Protocol):
    """Where the states of a calibration come from; `fastddpm.engine.calibration`.

    Attributes:
        key: another where the states would be others, of the same model.
    """

    key: int

    def states(self) -> list[tuple[Tensor, ...]]:
        """Arguments of `Network.core`, of several samples each."""

    def weights(self) -> list[float]:
        """How much the network's output counts in each of them."""


class QuantisedSession(Session):
    """As `Session`, in integers: quantised from what the network computes on the way of a chain of its own.

    `calibrate_by` says by which chain, before the first step. Whatever lets a model be handed over again has
    it quantised again, and so does a chain by another plan.
    """

    work = "quantise it again"
    _states: States | None = None

    def calibrate_by(self, states: States) -> None:
        """Says which states the network sees."""
        self._states = states

    def _surroundings_now(self) -> tuple[int, ...]:
        return *super()._surroundings_now(), -1 if self._states is None else self._states.key

    def _arranged(self, proto: bytes, inputs: Sequence[Tensor]) -> tuple[bytes, Running]:
        super()._arranged(proto, inputs)
        assert self._states is not None
        model = quantised.read(proto)
        nodes = quantised.candidates(model)
        states = self._states.states() if nodes else []
        batches = in_batches(states, len(inputs[0])) if nodes else []
        names = [one.name for one in model.graph.input]
        feeds = [
            {name: batch[int(name.removeprefix("input_"))].numpy() for name in names} for batch in batches
        ]
        seen = quantised.observed(model, nodes, feeds, torch.get_num_threads())
        nodes = quantised.chosen(nodes, seen)
        if not nodes:
            raise EngineUnavailable(
                "precision: 'int8' for a network without a convolution or product of weights that bytes are "
                "enough for; None accepted"
            )
        try:
            small = quantised.quantised(model, nodes, seen)
        except Exception as error:  # it raises many kinds
            raise EngineUnavailable(
                f"precision: ONNX Runtime does not quantise the model ({one_line(error)})"
            ) from error
        running = started(small)
        counts = [
            (torch.full((len(state[0]),), weight, dtype=torch.float64),)
            for state, weight in zip(states, self._states.weights(), strict=True)
        ]
        self._hold_to_the_module(running, batches, in_batches(counts, len(inputs[0])))
        return small, running

    def _hold_to_the_module(
        self, running: Running, batches: Sequence[tuple[Tensor, ...]], counts: Sequence[tuple[Tensor, ...]]
    ) -> None:
        error = energy = 0.0
        for batch, (weights,) in zip(batches, counts, strict=True):
            wanted = self._network.core(*batch).double()
            of_samples = weights.square().reshape(-1, *(1,) * (wanted.ndim - 1))
            error += float((of_samples * (running(batch) - wanted).square()).sum())
            energy += float((of_samples * wanted.square()).sum())
        off = (error / energy) ** 0.5 if energy else error
        if not off <= LARGEST_ERROR:  # NaN too
            raise EngineUnavailable(
                f"precision: 'int8' for a network whose outputs are {off:.2f} off in it, relative to them; "
                f"{LARGEST_ERROR} is accepted, and another precision"
            )


def in_batches(states: Sequence[Sequence[Tensor]], size: int) -> list[tuple[Tensor, ...]]:
    """The samples of all states in batches of another size; the last is filled up from the first on."""
    pools = [torch.cat(parts) for parts in zip(*states, strict=True)]
    places = torch.arange(-(-len(pools[0]) // size) * size) % len(pools[0])
    return [tuple(pool[some] for pool in pools) for some in torch.chunk(places, len(places) // size)]
