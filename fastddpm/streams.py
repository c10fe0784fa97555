"""Streams that CUDA graphs are captured in, where nothing else runs.

cuBLAS has a workspace for each stream and thread, which torch keeps, and a graph keeps its address. One that
was there before a capture is ordinary memory. torch gives it to others when somebody has it forget the
workspaces: Inductor's graphs have all forgotten (`torch._inductor.cudagraph_trees`), and from torch 2.12 on
the end of a graph those of its stream (pytorch #193402). The other graphs then go on writing there. In a
stream where nothing has run before, the workspace is made in the capture, in the graph's own pool, which
lives as long as the graph.
"""

from __future__ import annotations

import weakref
from collections.abc import MutableMapping

import torch

from fastddpm.forks import ForkLock

STREAMS = 32
"""That torch hands out in turn, of each card."""

_of_owners: MutableMapping[object, torch.cuda.Stream] = weakref.WeakKeyDictionary()
_lock = ForkLock()


def stream_of(owner: object, device: torch.device | None = None) -> torch.cuda.Stream:
    """A stream for the captures of an owner, which is no other's while it lives; one of theirs where all are.

    Args:
        owner: what holds the graphs.
        device: a card; None for the current one.
    """
    with _lock:
        taken = list(_of_owners.values())
        for _ in range(STREAMS):
            stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
            if stream not in taken:
                break
        _of_owners[owner] = stream
        return stream
