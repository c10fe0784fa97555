"""The batches of a run: made where it trains, or ahead of it by workers, the same for any number of these.

A micro-batch is a function of the run's seed and the ordinal of its first sample. Workers are torch's
`DataLoader`'s, which gives them out in turn and their batches in order, so a resumed run may have another
number of them.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from types import TracebackType
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from fastddpm.data.order import indices_for
from fastddpm.interruption import RESUMABLE
from fastddpm.training.config import TrainConfig
from fastddpm.training.validation import TrainingData

DIED = "DataLoader worker"
"""How torch's error begins where a worker is gone."""


class Samples(NamedTuple):
    """A micro-batch: images float32 ``(B, C, H, W)``; labels (or None) and ordinals, int64 ``(B,)``."""

    x_0: Tensor
    labels: Tensor | None
    ordinals: Tensor


class WorkerDied(ChildProcessError):
    """A process that made batches has ended, as where memory ran out. The last checkpoint stays."""


class MicroBatches(Dataset[Samples]):
    """Micro-batches by the ordinal of their first sample.

    Args:
        data: training images.
        size: samples in one.
        seed: the run's.
    """

    def __init__(self, data: TrainingData, size: int, seed: int) -> None:
        self.data, self.size, self.seed = data, size, seed

    def __getitem__(self, start: int) -> Samples:
        """The one that begins at an ordinal."""
        ordinals = torch.arange(start, start + self.size)
        indices = indices_for(start, self.size, len(self.data), self.seed)
        return Samples(*self.data.batch(indices, ordinals, seed=self.seed), ordinals)


class Outcomes(Dataset[Samples | Exception]):
    """The same, with an error as what is returned: torch would raise another in its place, of one text."""

    def __init__(self, batches: MicroBatches) -> None:
        self.batches = batches

    def __getitem__(self, start: int) -> Samples | Exception:
        """The micro-batch, or what was wrong with it."""
        try:
            return self.batches[start]
        except Exception as error:
            return error


class Batches:
    """The micro-batches of one process of a run; a context, at whose end its workers end.

    Args:
        data: training images.
        config: of the run: its batch size, accumulation, steps, seed and workers.
        processes: that share each batch.
        process: which of them this is.
    """

    def __init__(
        self, data: TrainingData, config: TrainConfig, *, processes: int = 1, process: int = 0
    ) -> None:
        self.config, self.process = config, process
        self.stride = config.batch_size // config.gradient_accumulation  # of all processes
        self.batches = MicroBatches(data, self.stride // processes, config.seed)
        self.next = -1
        self.ahead: Iterator[Samples | Exception] | None = None

    def get(self, step: int, micro: int) -> Samples:
        """The ``micro``-th micro-batch of a step. Workers go on from it; asked for another, they begin anew.

        Raises:
            Exception: what the data raises.
            WorkerDied: (an OSError) a worker has ended.
        """
        start = (step * self.config.gradient_accumulation + micro) * self.stride
        start += self.process * self.batches.size
        if self.config.workers == 0:
            return self.batches[start]
        if self.ahead is None or start != self.next:
            self.close()
            self.ahead = iter(self._loader(start))
        found = next(self.ahead)
        self.next = start + self.stride
        if isinstance(found, Exception):
            raise found
        return found

    def close(self) -> None:
        """Ends the workers, if there are any."""
        self.ahead = None  # whose end waits for them

    def __enter__(self) -> Batches:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
        if isinstance(error, RuntimeError) and str(error).startswith(DIED):
            which = f"one of {self.config.workers} has ended ({str(error).partition('. ')[0].rstrip('.')})"
            raise WorkerDied(f"workers: {which}; fewer, or 0, accepted; the last checkpoint stays") from error

    def _loader(self, start: int) -> DataLoader[Samples | Exception]:
        """The rest of the run from an ordinal on."""
        return DataLoader(
            Outcomes(self.batches),
            batch_size=None,
            sampler=range(start, self.config.steps * self.config.batch_size, self.stride),
            num_workers=self.config.workers,
            worker_init_fn=_leave_signals,
        )


def _leave_signals(worker: int) -> None:
    """Signals to a group of processes are the training's to answer, which still needs a batch."""
    for name in ("SIGINT", *RESUMABLE):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
