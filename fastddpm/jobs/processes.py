"""The processes that torchrun or accelerate started together, if any: who draws what, and who speaks."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch.distributed as dist
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous

from fastddpm.jobs.errors import FirstProcessFailed

T = TypeVar("T")

# A process waits for the slowest one at the end of a job.
LONGEST_WAIT = timedelta(days=30)


@dataclass(frozen=True)
class Group:
    """This process's place among those started together."""

    rank: int
    size: int

    @property
    def is_first(self) -> bool:
        """Whether this one reads and writes what there is one of."""
        return self.rank == 0

    def from_first(self, work: Callable[[], T]) -> T:
        """``work()`` of the first process, in all; each calls this, and waits for the others to do so.

        Raises:
            Exception: in the first what ``work`` raised; FirstProcessFailed in the others.
        """
        if self.size == 1:
            return work()
        dist.barrier()
        answer: list[object] = [None, None]
        failure = None
        if self.is_first:
            try:
                answer[0] = work()
            except Exception as error:
                failure, answer[1] = error, str(error)
        dist.broadcast_object_list(answer)
        if failure is not None:
            raise failure
        if answer[1] is not None:
            raise FirstProcessFailed(answer[1])
        return answer[0]  # type: ignore[return-value]


@contextmanager
def started_together() -> Iterator[Group]:
    """The group that this process belongs to; of one, unless torchrun or accelerate started more.

    They talk over gloo, whatever the device: shards go to the disk, and only their numbers between processes.
    """
    if dist.is_initialized():
        yield Group(dist.get_rank(), dist.get_world_size())
    elif int(os.environ.get("WORLD_SIZE", "1")) > 1:
        store, rank, size = next(iter(rendezvous("env://", timeout=LONGEST_WAIT)))
        # A restart of torchrun's may find the addresses of its lost processes in the same store.
        attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        store = PrefixStore(f"attempt_{attempt}", store)
        dist.init_process_group("gloo", store=store, rank=rank, world_size=size, timeout=LONGEST_WAIT)
        try:
            yield Group(dist.get_rank(), dist.get_world_size())
        finally:
            dist.destroy_process_group()
    else:
        yield Group(0, 1)
