"""The captured loop: several steps recorded once and replayed, with nothing but a launch per replay.

`GraphExecutor` decides what is captured and how often it is replayed; a `CaptureBackend` does the
capturing. `CudaGraphBackend` is the real one. The steps touch static buffers only, so a replay with other
buffer contents (new seeds, plan, labels, weights) is a new chain.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

Run = Callable[[], None]
# Measured nowhere yet: one launch per 64 steps leaves the host idle; more only adds graph memory.
LONGEST_GRAPH = 64
WARM_UP_STEPS = 3


class CaptureBackend(Protocol):
    """Records what a function does on the device, to be done again."""

    def warm_up(self, run: Run) -> None:
        """Runs it where libraries may still allocate, tune and load, before capture forbids that."""

    def capture(self, run: Run) -> Run:
        """Records it, without effect on the buffers, and returns the replay."""


class CudaGraphBackend:
    """`torch.cuda.CUDAGraph` on a side stream, one memory pool for all graphs of a loop."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self.pool = torch.cuda.graph_pool_handle()

    def warm_up(self, run: Run) -> None:
        """Runs it on the side stream and waits for it in stream order."""
        self.stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(self.stream):
            run()
        torch.cuda.current_stream(self.device).wait_stream(self.stream)

    def capture(self, run: Run) -> Run:
        """Captures into a new graph in the shared pool."""
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self.pool, stream=self.stream):
            run()
        return graph.replay


class GraphExecutor:
    """Runs n steps as replays of captured graphs.

    Args:
        step: one step on static buffers.
        state: the tensors that a step changes; saved before warm-up and restored after.
        backend: what captures.
        steps_per_graph: steps in the large graph; None for all steps of the first chain, at most 64.
    """

    def __init__(
        self, step: Run, state: list[Tensor], backend: CaptureBackend, steps_per_graph: int | None = None
    ) -> None:
        self._step, self._state, self._backend = step, state, backend
        self._steps_per_graph = steps_per_graph
        self._replays: dict[int, Run] = {}

    def run(self, n_steps: int) -> None:
        """Advances the state by ``n_steps``: as many large graphs as fit, then single steps."""
        if self._steps_per_graph is None:
            self._steps_per_graph = min(n_steps, LONGEST_GRAPH)
        large = self._steps_per_graph
        for length, count in ((large, n_steps // large), (1, n_steps % large)):
            if count:
                replay = self._replay(length)
                for _ in range(count):
                    replay()

    def _replay(self, length: int) -> Run:
        if length not in self._replays:
            saved = [tensor.clone() for tensor in self._state]
            if not self._replays:
                # Row numbers may pass the end of the plan here; tables are padded to take it.
                self._backend.warm_up(lambda: self._repeat(WARM_UP_STEPS))
            self._replays[length] = self._backend.capture(lambda: self._repeat(length))
            for tensor, value in zip(self._state, saved, strict=True):
                tensor.copy_(value)
        return self._replays[length]

    def _repeat(self, n_steps: int) -> None:
        for _ in range(n_steps):
            self._step()
