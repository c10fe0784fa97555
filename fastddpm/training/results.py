"""What a run writes on its main process, in the order in which it counts: log, checkpoint, model, images."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import Tensor

from fastddpm.inputs import Json
from fastddpm.model_folder import save_folder
from fastddpm.options import SamplerOptions
from fastddpm.sampler import Sampler
from fastddpm.schedule import NoiseSchedule
from fastddpm.tasks import Task, write_task
from fastddpm.training import checkpoints, report
from fastddpm.training.validation import TrainingData
from fastddpm.unet import UNet


class Results:
    """The files of a run.

    Args:
        run: its folder.
        step: that it goes on from; lines of the log beyond it are dropped.
        keep: checkpoints kept besides the best.
        schedule: of the model.
        options: likewise, of a sampler.
        task: likewise, if any.
        data: images that pictures of a task are made from.

    Raises:
        OSError: from here on, where a file cannot be written; says what is left and how to go on.
    """

    def __init__(
        self,
        run: Path,
        step: int,
        keep: int,
        *,
        schedule: NoiseSchedule,
        options: SamplerOptions,
        task: Task | None,
        data: TrainingData,
    ) -> None:
        self.run, self.keep = run, keep
        self.schedule, self.options, self.task, self.data = schedule, options, task, data
        with checkpoints.explained(run):
            self.log = report.Log(run, step)
        self._plots = True

    def write(self, entry: Json) -> None:
        """A line of the log."""
        with checkpoints.explained(self.run):
            self.log.write(entry)

    def checkpoint(self, tensors: Mapping[str, Mapping[str, Tensor]], state: Json) -> None:
        """What the run goes on from; arguments as of `checkpoints.save`."""
        with checkpoints.explained(self.run):
            checkpoints.save(self.run, state["step"], tensors, state, self.keep)

    def model(self, network: UNet) -> None:
        """`RUN/model`, whole at any time: who samples from it meanwhile has the one before, or this one."""
        with checkpoints.explained(self.run):
            if self.task is not None:
                write_task(self.run / "model", self.task)
            save_folder(self.run / "model", network, self.schedule, self.options)

    def pictures(self, step: int, sampler: Sampler, stopped: Sequence[int]) -> None:
        """The loss plot and the samples of a step, unless the run is stopped meanwhile.

        Everything that a run goes on from is written before, and none of these is needed for it: without
        matplotlib, a warning says so once.

        Args:
            step: of the checkpoint.
            sampler: of the averaged weights.
            stopped: empty until a signal stops the run.
        """
        with checkpoints.explained(self.run):
            try:
                if self._plots:
                    report.plot_losses(self.run, self.log.entries)
            except ImportError as error:
                self._plots = False
                warnings.warn(f"{error}; training goes on without loss.png", stacklevel=2)
            report.draw(self.run, step, sampler, self.task, self.data, stopped)

    def close(self) -> None:
        """Ends the log."""
        with checkpoints.explained(self.run):
            self.log.close()
