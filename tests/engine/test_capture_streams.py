"""What a captured product writes to is its graph's own, whatever else ends or is forgotten. Without a card.

Restated here is how torch keeps workspaces of cuBLAS: one for each stream, made by the first product there,
in the memory of the capture if one is under way, else in everybody's; that of a stream is forgotten when a
graph ends that was captured in it (from torch 2.12 on, pytorch #193402). Streams are 32, handed out in turn.
"""

from __future__ import annotations

import contextlib
import itertools

import pytest
import torch

from fastddpm.engine.graph import CudaGraphBackend
from fastddpm.timing import replayed

CALLERS, TORCHS = "the caller's stream", "torch's own stream for captures"
EVERYBODYS = "memory that is anybody's"


class Stream:
    """One of a card's."""


class Card:
    """Streams, workspaces by stream, and the graph that is captured."""

    def __init__(self):
        self.streams = itertools.cycle([Stream() for _ in range(32)])
        self.current, self.captured, self.workspaces = CALLERS, None, {}

    def product(self):
        """cuBLAS multiplies in the current stream."""
        new = EVERYBODYS if self.captured is None else self.captured.pool
        place = self.workspaces.setdefault(self.current, new)
        if self.captured is not None:
            self.captured.writes.append(place)


@pytest.fixture
def card(monkeypatch):
    card, pools = Card(), itertools.count()

    class Graph:
        def __init__(self):
            self.writes, self.pool, self.stream = [], None, None

        def replay(self):
            pass

        def __del__(self):
            card.workspaces.pop(self.stream, None)

    @contextlib.contextmanager
    def within(stream):
        before, card.current = card.current, stream
        yield
        card.current = before

    @contextlib.contextmanager
    def graph(graph, pool=None, stream=TORCHS, capture_error_mode="global"):
        graph.pool, graph.stream, card.captured = next(pools) if pool is None else pool, stream, graph
        with within(stream):
            yield
        card.captured = None

    monkeypatch.setattr(torch.cuda, "Stream", lambda device=None: next(card.streams))
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: next(pools))
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "graph", graph)
    monkeypatch.setattr(torch.cuda, "stream", within)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device=None: card.current)
    return card


def test_a_loops_graphs_write_to_their_own_pool(card):
    """Also after one of them has ended, and where another library has had all workspaces forgotten."""
    backend = CudaGraphBackend(torch.device("cpu"))
    backend.warm_up(card.product)
    first, second = backend.capture(card.product), backend.capture(card.product)
    kept = [first.__self__]
    del second
    kept.append(backend.capture(card.product).__self__)
    card.workspaces.clear()
    kept.append(backend.capture(card.product).__self__)
    for graph in kept:
        assert graph.writes == [backend.pool]


def test_loops_share_no_stream_while_there_is_another(card):
    """Of forty loops one after the other some stay: a stream comes again, after 32, but not one of theirs."""
    kept = []
    for number in range(40):
        backend = CudaGraphBackend(torch.device("cpu"))
        backend.warm_up(card.product)
        graph = backend.capture(card.product).__self__
        if number < 5 or number > 35:
            kept.append((backend, graph))
    assert len({backend.stream for backend, _ in kept}) == len(kept) == 9
    for backend, graph in kept:
        assert graph.writes == [backend.pool]
    more = [CudaGraphBackend(torch.device("cpu")) for _ in range(40)]  # more than there are streams
    assert len({backend.stream for backend in more}) >= 32 - 9


def test_what_is_timed_as_replays_writes_to_its_own_pool(card):
    replays = [replayed(card.product) for _ in range(3)]
    graphs = [
        next(cell.cell_contents for cell in one.__closure__ if hasattr(cell.cell_contents, "writes"))
        for one in replays
    ]
    for graph in graphs:
        assert graph.writes == [graph.pool]
    assert card.workspaces[CALLERS] == EVERYBODYS
