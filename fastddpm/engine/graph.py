"""The captured loop: several steps recorded once and replayed, with nothing but a launch per replay.

`GraphExecutor` decides what is captured and how often it is replayed; a `CaptureBackend` does the
capturing. `CudaGraphBackend` is the real one. The steps touch static buffers only, so a replay with other
buffer contents (new seeds, plan, labels, weights) is a new chain.
"""

from __future__ import annotations

import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from typing import Protocol

import torch
from torch import Tensor

from fastddpm.engine.constants import SEND, Constants
from fastddpm.engine.watch import SENT
from fastddpm.forks import ForkLock
from fastddpm.streams import stream_of
from fastddpm_kernels.compat import pool_segments

Run = Callable[[], None]
# Not measured yet: one launch per 64 steps should leave the host idle, and more only adds graph memory.
LONGEST_GRAPH = 64
WARM_UP_STEPS = 3
# Each takes memory and time to capture; a loop is asked for one or two lengths besides its own.
MOST_GRAPHS = 6
# Kinds of work before a chain: plans of so many lengths, each with and without a given x_T.
MOST_PREPARED = 4
# A capture empties torch's allocator first, which may not be while another stream is captured.
_capturing = ForkLock()


class CaptureFailed(RuntimeError):
    """Steps could not be captured; the state is where ``steps_left`` more steps would go on from."""

    steps_left: int = 0


class CaptureBackend(Protocol):
    """Records what a function does on the device, to be done again."""

    def warm_up(self, run: Run) -> None:
        """Runs it where libraries may still allocate, tune and load, before capture forbids that."""

    def capture(self, run: Run) -> Run:
        """Records it, without effect on the buffers, and returns the replay."""

    def memory(self) -> int:
        """Bytes that the captured work holds beyond the buffers."""


class CudaGraphBackend:
    """`torch.cuda.CUDAGraph` on a side stream, one memory pool for all graphs of a loop."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.stream = stream_of(self, device)
        self.pool = torch.cuda.graph_pool_handle()

    def warm_up(self, run: Run) -> None:
        """Runs it in the caller's stream: nothing else may run in that of captures (`fastddpm.streams`)."""
        run()

    def capture(self, run: Run) -> Run:
        """Captures into a new graph in the shared pool; other threads may use the device meanwhile.

        One capture at a time in a process. One that fails raises its first error and leaves nothing behind.
        """
        with _capturing:
            return self._captured(run)

    def _captured(self, run: Run) -> Run:
        graph, current = torch.cuda.CUDAGraph(), torch.cuda.current_stream(self.device)
        first: list[BaseException] = []

        def watched() -> None:
            try:
                run()
            except BaseException as error:
                first.append(error)
                raise

        try:
            with torch.cuda.graph(
                graph, pool=self.pool, stream=self.stream, capture_error_mode="thread_local"
            ):
                watched()
        except BaseException as error:
            # Where the end of a capture fails, torch leaves the side stream current.
            torch.cuda.set_stream(current)
            self._mend()
            # Ending a broken capture fails with an error of its own, which would hide what broke it.
            if first and first[0] is not error:
                raise first[0] from None
            raise
        return graph.replay

    def _mend(self) -> None:
        """Takes torch out of a capture that could not be ended.

        Before torch 2.13 the allocator would go on handing out the graph's memory (pytorch #180395), and the
        generator refuse to draw ("Offset increment outside graph capture"). The end of a sound capture tells
        the generator that captures are over; where nothing is amiss, this changes nothing.
        """
        with suppress(RuntimeError, AttributeError):
            torch._C._cuda_endAllocateToPool(self.stream.device_index, self.pool)
        current = torch.cuda.current_stream(self.device)
        try:
            scratch = torch.zeros(1, device=self.device)
            with torch.cuda.graph(
                torch.cuda.CUDAGraph(), stream=self.stream, capture_error_mode="thread_local"
            ):
                scratch.zero_()
        except RuntimeError:
            # What went wrong first is what is reported.
            torch.cuda.set_stream(current)

    def memory(self) -> int:
        """Bytes of the pool, as torch's allocator has reserved them for the graphs."""
        return sum(segment["total_size"] for segment in pool_segments(self.pool))


class GraphExecutor:
    """Runs n steps as replays of captured graphs.

    There is one graph of ``steps_per_graph`` steps and one of a single step. A remainder that is asked for
    again, as a callback every k steps asks for k, gets a graph of its own.

    Args:
        step: one step on static buffers.
        state: the tensors that a step changes; saved before warm-up and restored after.
        backend: what captures.
        steps_per_graph: steps in the large graph.
    """

    def __init__(self, step: Run, state: list[Tensor], backend: CaptureBackend, steps_per_graph: int) -> None:
        self._step, self._state, self._backend = step, state, backend
        self._steps_per_graph = steps_per_graph
        self._replays: dict[int, Run] = {}
        self._asked = {1}
        self._prepared: OrderedDict[Hashable, Run | None] = OrderedDict()
        self._constants: Constants | None = None
        # Threads in which such work has run. cuBLAS and cuDNN make handles, and keep what cudnn.benchmark
        # found, for each thread, and may not do so while it captures.
        self._warm: dict[Hashable, weakref.WeakSet[threading.Thread]] = {}

    def keep_constants(self) -> None:
        """From here on tensors that every step sends from the host are kept on the card."""
        self._constants = Constants()

    def prepare(self, kind: Hashable, work: Run) -> None:
        """Does the work that comes before a chain's steps; from the second time of a kind on, as one graph.

        It may be done twice: it must depend on nothing that it changes.

        Raises:
            CaptureFailed: nothing was lost.
        """
        replay = self._prepared.get(kind)
        if replay is None:
            with uncached_autocast():
                if not self._warmed_up(kind, work):
                    replay = self._attempt(work, steps_left=0)
        if replay is not None:
            replay()
        self._prepared[kind] = replay
        self._prepared.move_to_end(kind)
        while len(self._prepared) > MOST_PREPARED:
            self._warm.pop(self._prepared.popitem(last=False)[0], None)

    def run(self, n_steps: int) -> None:
        """Advances the state by ``n_steps``: as many large graphs as fit, then what is left.

        Raises:
            CaptureFailed: with the steps that are left; those before them are done.
        """
        left = n_steps
        for length in self._lengths(n_steps):
            if length not in self._replays:
                self._replays[length] = self._captured(length, left)
            self._replays[length]()
            left -= length

    def memory(self) -> int:
        """Bytes that the graphs hold."""
        return self._backend.memory()

    def _lengths(self, n_steps: int) -> list[int]:
        whole, rest = divmod(n_steps, self._steps_per_graph)
        lengths = [self._steps_per_graph] * whole
        has_graph = rest in self._replays or (rest in self._asked and len(self._replays) < MOST_GRAPHS)
        self._asked.add(rest)
        if rest:
            lengths += [rest] if has_graph else [1] * rest
        return lengths

    def _captured(self, length: int, steps_left: int) -> Run:
        saved = [tensor.clone() for tensor in self._state]
        try:
            with uncached_autocast():
                # Row numbers may pass the end of the plan here; tables have rows to spare for it.
                self._warmed_up(None, lambda: self._repeat(WARM_UP_STEPS))
                return self._attempt(lambda: self._repeat(length), steps_left)
        finally:
            for tensor, value in zip(self._state, saved, strict=True):
                tensor.copy_(value)

    def _warmed_up(self, kind: Hashable, run: Run) -> bool:
        """Runs work of a kind, None for steps, if this thread has run none of it yet; whether it did."""
        here, warm = threading.current_thread(), self._warm.setdefault(kind, weakref.WeakSet())
        if here in warm:
            return False
        self._backend.warm_up(run)
        warm.add(here)
        return True

    def _attempt(self, work: Run, steps_left: int) -> Run:
        try:
            if self._constants is not None and self._constants.varies:
                raise RuntimeError(f"{SEND}: {SENT}")
            return self._backend.capture(work)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            failure = CaptureFailed(str(error))
            failure.steps_left = steps_left
            raise failure from error

    def _repeat(self, n_steps: int) -> None:
        for _ in range(n_steps):
            with nullcontext() if self._constants is None else self._constants.passing():
                self._step()


@contextmanager
def uncached_autocast() -> Iterator[None]:
    """Autocast without its cache of cast weights.

    A graph captured with the cache holds no casts: it would go on reading copies of the weights as they were,
    in memory that is freed when the autocast context ends.
    """
    enabled = torch.is_autocast_cache_enabled()
    torch.clear_autocast_cache()
    torch.set_autocast_cache_enabled(False)
    try:
        yield
    finally:
        torch.set_autocast_cache_enabled(enabled)
