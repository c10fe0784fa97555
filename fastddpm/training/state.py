"""What a run goes on from: the weights, their average, the optimiser, and the scale of fp16's gradients."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fastddpm.checkpoint import CheckpointError
from fastddpm.checks import shortened
from fastddpm.inputs import Json
from fastddpm.training import checkpoints
from fastddpm.training.average import MovingAverage
from fastddpm.unet import UNet

if TYPE_CHECKING:
    from accelerate import Accelerator


class State:
    """The parts of a training that its checkpoints hold.

    Args:
        unet: the network in training.
        average: of its weights.
        optimizer: theirs, as accelerate has prepared it.
        accelerator: whose gradient scaler there may be.
    """

    def __init__(
        self,
        unet: UNet,
        average: MovingAverage[UNet],
        optimizer: torch.optim.Optimizer,
        accelerator: Accelerator,
    ) -> None:
        self.unet, self.average = unet, average
        self.optimizer: torch.optim.Optimizer = getattr(optimizer, "optimizer", optimizer)
        self.accelerator = accelerator

    def saved(self, step: int, best: tuple[float, int]) -> tuple[dict[str, dict[str, Tensor]], Json]:
        """The tensors and the counters of a checkpoint; ``best`` is the lowest loss and its step."""
        tensors = {
            "model": self.unet.state_dict(),
            "ema": self.average.module.state_dict(),
            "optimizer": checkpoints.optimizer_tensors(self.optimizer),
        }
        counters: Json = {"step": step, "best_loss": best[0], "best_step": best[1]}
        scaler = self.accelerator.scaler
        if scaler is not None:
            counters["scaler"] = scaler.state_dict()
        return tensors, counters

    def restore(self, run: Path, step: int) -> tuple[float, int]:
        """Puts back what the checkpoint of a step holds; returns its ``best``.

        Raises:
            CheckpointError: it is damaged, or of another network or step.
        """
        tensors, counters = checkpoints.read(run, step)
        try:
            self.unet.load_state_dict(tensors["model"])
            self.average.module.load_state_dict(tensors["ema"])
            checkpoints.restore_optimizer(self.optimizer, tensors["optimizer"])
            if self.accelerator.scaler is not None:
                self.accelerator.scaler.load_state_dict(counters["scaler"])
            best = float(counters["best_loss"]), int(counters["best_step"])
            if counters["step"] != step:
                raise ValueError(f"state.json has step {shortened(repr(counters['step']))}")
        except (RuntimeError, TypeError, ValueError, KeyError) as error:
            raise CheckpointError(f"checkpoint of step {step} in {run}: does not fit ({error})") from error
        return best
