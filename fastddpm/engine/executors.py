"""How n steps are run: one after the other, compiled, or as graph replays; and which way is chosen.

An executor has one method, ``run(n_steps)``. Engine names: `eager`, `compile`, `cudagraph`, `max` (compiled
network inside captured graphs) and `auto` (cudagraph on CUDA, eager elsewhere).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Literal, Protocol

import torch
from torch import Tensor

from fastddpm.engine.graph import CudaGraphBackend, GraphExecutor
from fastddpm.engine.step import Predict
from fastddpm.network import Network

Engine = Literal["auto", "eager", "compile", "cudagraph", "max"]
ENGINES = ("auto", "eager", "compile", "cudagraph", "max")
Run = Callable[[], None]


class EngineUnavailable(RuntimeError):
    """An engine was asked for by name that this machine or model cannot run."""


class Executor(Protocol):
    """Advances a loop's state."""

    def run(self, n_steps: int) -> None:
        """Runs that many steps."""


class EagerExecutor:
    """Calls the step, as it is or compiled."""

    def __init__(self, step: Run) -> None:
        self._step = step

    def run(self, n_steps: int) -> None:
        """Runs that many steps."""
        for _ in range(n_steps):
            self._step()


class FallbackExecutor:
    """Graph replays for engine `auto`; where capture fails it warns once and goes on eagerly.

    Args:
        graph: tried first.
        eager: takes over.
        state: the tensors that a step changes; put back before the eager executor starts.
        report: called when it takes over.
    """

    def __init__(self, graph: Executor, eager: Executor, state: list[Tensor], report: Run) -> None:
        self._graph, self._eager, self._state, self._report = graph, eager, state, report
        self._chosen: Executor | None = None

    def run(self, n_steps: int) -> None:
        """Runs that many steps."""
        if self._chosen is None:
            self._chosen = self._choose(n_steps)
        else:
            self._chosen.run(n_steps)

    def _choose(self, n_steps: int) -> Executor:
        saved = [tensor.clone() for tensor in self._state]
        try:
            self._graph.run(n_steps)
            return self._graph
        except RuntimeError as error:
            warnings.warn(
                "engine 'auto': this model cannot be captured in a CUDA graph, sampling goes on eagerly "
                f"({str(error).splitlines()[0]})",
                RuntimeWarning,
                stacklevel=2,
            )
        for tensor, value in zip(self._state, saved, strict=True):
            tensor.copy_(value)
        self._report()
        self._eager.run(n_steps)
        return self._eager


def resolve_engine(engine: str, device: torch.device) -> Engine:
    """The engine that will run: `auto` resolved, the others checked against the device.

    Raises:
        ValueError: unknown name.
        EngineUnavailable: a CUDA engine on another device.
    """
    if engine not in ENGINES:
        raise ValueError(f"engine: {engine!r} given, one of {', '.join(ENGINES)} accepted")
    if engine == "auto":
        return "cudagraph" if device.type == "cuda" else "eager"
    if engine in ("cudagraph", "max") and device.type != "cuda":
        raise EngineUnavailable(
            f"engine: {engine!r} needs a CUDA device and the model is on {str(device)!r}; "
            "auto, eager or compile accepted here"
        )
    return engine  # type: ignore[return-value]


def compiled_network(network: Network) -> Predict:
    """The network compiled for engine `max`; graphs are captured outside, never by Inductor."""
    predict: Predict = torch.compile(network.__call__, mode="max-autotune-no-cudagraphs", dynamic=False)
    return predict


def make_executor(
    engine: Engine,
    step: Run,
    state: list[Tensor],
    *,
    steps_per_graph: int | None = None,
    on_fallback: Run | None = None,
) -> Executor:
    """The executor for a resolved engine.

    Args:
        engine: a result of :func:`resolve_engine`.
        step: one step on static buffers.
        state: the tensors that a step changes.
        steps_per_graph: see :class:`GraphExecutor`.
        on_fallback: called when capture failed and eager steps took over; None makes that an error.
    """
    if engine == "eager":
        return EagerExecutor(step)
    if engine == "compile":
        return EagerExecutor(torch.compile(step, dynamic=False))
    graph = GraphExecutor(step, state, CudaGraphBackend(state[0].device), steps_per_graph)
    if on_fallback is None:
        return graph
    return FallbackExecutor(graph, EagerExecutor(step), state, on_fallback)
