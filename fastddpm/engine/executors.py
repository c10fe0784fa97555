"""How n steps are run: one after the other, compiled, or as graph replays; and which way is chosen.

Engine names: `eager`; `compile`, on CUDA the network by Inductor inside captured graphs, elsewhere the whole
step; `cudagraph`, captured as it is; `max`, as `compile` on CUDA with autotuning; `onnxruntime`, on a CPU the
network by ONNX Runtime (`fastddpm.engine.sessions`); `auto`, cudagraph on CUDA and eager elsewhere, so that
nothing is ever compiled that was not asked for.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Hashable
from typing import Literal, Protocol, TypedDict

import torch
from torch import Tensor

from fastddpm.checks import check_choice
from fastddpm.engine.errors import EngineUnavailable
from fastddpm.engine.graph import CaptureFailed, CudaGraphBackend, GraphExecutor
from fastddpm.engine.int8 import QuantisedSession
from fastddpm.engine.refusal import Refusal
from fastddpm.engine.sessions import Session, missing
from fastddpm.network import Network
from fastddpm_kernels import compat
from fastddpm_kernels.compat import compiled

Engine = Literal["auto", "eager", "compile", "cudagraph", "max", "onnxruntime"]
ENGINES = ("auto", "eager", "compile", "cudagraph", "max", "onnxruntime")
Run = Callable[[], None]


class Executor(Protocol):
    """Advances a loop's state."""

    def prepare(self, kind: Hashable, work: Run) -> None:
        """Does what comes before the steps of a chain; work of one kind is the same operators each time."""

    def run(self, n_steps: int) -> None:
        """Runs that many steps."""

    def memory(self) -> int:
        """Bytes that it holds besides the buffers."""


class EagerExecutor:
    """Calls the step, as it is or compiled."""

    def __init__(self, step: Run) -> None:
        self._step = step

    def prepare(self, kind: Hashable, work: Run) -> None:
        """Does it."""
        work()

    def run(self, n_steps: int) -> None:
        """Runs that many steps."""
        for _ in range(n_steps):
            self._step()

    def memory(self) -> int:
        """None."""
        return 0


class FallbackExecutor:
    """Graph replays for engine `auto`; from a failed capture on, eager steps.

    Args:
        graph: tried first.
        eager: takes over.
        report: called when it takes over.
        refusal: asked before the first capture: what it would refuse.
    """

    def __init__(
        self,
        graph: GraphExecutor,
        eager: Executor,
        report: Run,
        refusal: Callable[[], Refusal] | None = None,
    ) -> None:
        self._current: Executor = graph
        self._graph, self._eager, self._report, self._refusal = graph, eager, report, refusal

    def prepare(self, kind: Hashable, work: Run) -> None:
        """Does what comes before the steps."""
        try:
            self._current.prepare(kind, work)
        except CaptureFailed as failure:
            self._fall_back(str(failure))
            self._eager.prepare(kind, work)

    def run(self, n_steps: int) -> None:
        """Runs that many steps."""
        refusal, self._refusal = self._refusal, None
        found = Refusal() if refusal is None else refusal()
        if found.reason:
            self._fall_back(found.reason)
        elif found.sends:
            self._graph.keep_constants()
        try:
            self._current.run(n_steps)
        except CaptureFailed as failure:
            self._fall_back(str(failure))
            self._eager.run(failure.steps_left)

    def _fall_back(self, reason: str) -> None:
        first = next(iter(reason.splitlines()), "no reason given")
        warnings.warn(
            "engine 'auto': this model cannot be captured in a CUDA graph, sampling goes on eagerly "
            f"({first}); fastddpm.engine.check_capturable names the operation",
            RuntimeWarning,
            stacklevel=3,
        )
        self._current = self._eager
        self._report()

    def memory(self) -> int:
        """Bytes of the graphs, while they are in use."""
        return self._current.memory()


def resolve_engine(engine: str, device: torch.device) -> Engine:
    """The engine that will run: `auto` resolved, the others checked against the device.

    Raises:
        ValueError: unknown name.
        EngineUnavailable: a CUDA engine on another device, or compilation for one without Triton.
    """
    check_choice("engine", engine, ENGINES)
    if engine == "auto":
        return "cudagraph" if device.type == "cuda" else "eager"
    if engine in ("cudagraph", "max") and device.type != "cuda":
        raise EngineUnavailable(
            f"engine: {engine!r} needs a CUDA device and the model is on {str(device)!r}; "
            "auto, eager or compile accepted here"
        )
    if engine == "onnxruntime":
        if device.type != "cpu":
            raise EngineUnavailable(
                f"engine: {engine!r} runs on a CPU and the model is on {str(device)!r}; "
                "auto, eager, compile, cudagraph or max accepted here"
            )
        absent = missing()
        if absent:
            raise EngineUnavailable(f"engine: {engine!r} needs {absent}")
    if engine in ("compile", "max") and device.type == "cuda" and not compat.HAS_TRITON:
        raise EngineUnavailable(
            f"engine: {engine!r} needs Triton on a CUDA device and it is not installed; "
            "auto, eager or cudagraph accepted here"
        )
    return engine  # type: ignore[return-value]


def is_captured(engine: Engine, device: torch.device) -> bool:
    """Whether a resolved engine replays graphs."""
    return engine in ("cudagraph", "max") or (engine == "compile" and device.type == "cuda")


def is_compiled_whole(engine: Engine, device: torch.device) -> bool:
    """Whether a resolved engine compiles the network with the step around it."""
    return engine == "compile" and not is_captured(engine, device)


def is_uncompiled(engine: Engine, device: torch.device) -> bool:
    """Whether Python runs every operator of a step on a CPU, around the network at least."""
    return device.type == "cpu" and engine in ("eager", "onnxruntime")


def compile_network(
    engine: Engine, network: Network, device: torch.device, *, in_integers: bool = False
) -> Session | None:
    """Compiles the network by itself where the step around it is captured, or hands it to ONNX Runtime.

    Graphs are captured outside, never by Inductor: the noise and the update belong into them too.

    Args:
        engine: resolved name.
        network: told what computes it.
        device: where.
        in_integers: of ONNX Runtime: quantised.

    Returns:
        ONNX Runtime's session, which is to look at the weights before each chain; else None.

    Raises:
        EngineUnavailable: ONNX Runtime for a network that is not in float32.
    """
    if engine == "onnxruntime":
        if network.dtype != torch.float32 or torch.is_autocast_enabled("cpu"):
            computes = "autocast" if torch.is_autocast_enabled("cpu") else str(network.dtype)
            raise EngineUnavailable(
                f"engine: {engine!r} computes in float32 and the model in {computes}; "
                "auto, eager or compile accepted here"
            )
        session = QuantisedSession(network) if in_integers else Session(network)
        network.run_by(session)
        return session
    if engine == "max":
        network.compile(mode="max-autotune-no-cudagraphs")
    elif engine == "compile" and is_captured(engine, device):
        network.compile()
    return None


class ExecutorOptions(TypedDict):
    """The options of :func:`make_executor`."""

    steps_per_graph: int
    on_fallback: Run | None
    refusal: Callable[[], Refusal] | None


def make_executor(
    engine: Engine,
    step: Run,
    state: list[Tensor],
    *,
    steps_per_graph: int,
    on_fallback: Run | None = None,
    refusal: Callable[[], Refusal] | None = None,
) -> Executor:
    """The executor for a resolved engine.

    Args:
        engine: a result of :func:`resolve_engine`.
        step: one step on static buffers.
        state: the tensors that a step changes.
        steps_per_graph: see :class:`GraphExecutor`.
        on_fallback: called when capture failed and eager steps took over; None makes that an error.
        refusal: see :class:`FallbackExecutor`.
    """
    device = state[0].device
    if engine in ("eager", "onnxruntime"):
        return EagerExecutor(step)
    if is_compiled_whole(engine, device):
        return EagerExecutor(compiled(step))
    graph = GraphExecutor(step, state, CudaGraphBackend(device), steps_per_graph)
    if on_fallback is None:
        return graph
    return FallbackExecutor(graph, EagerExecutor(step), on_fallback, refusal)
