"""A run whose loss or weights are no numbers any more is stopped before they become a checkpoint."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from fastddpm.training import checkpoints


class TrainingDiverged(RuntimeError):
    """The loss or the weights became NaN or infinite."""


def check_losses(losses: Tensor, step: int, batch_size: int, run: Path) -> None:
    """Refuses losses that are not finite.

    Args:
        losses: float32 ``(n,)`` of the last n steps, means over all processes.
        step: steps done.
        batch_size: samples per step.
        run: folder of the run.

    Raises:
        TrainingDiverged: naming the first such step, counted from 1, its samples, and the last checkpoint.
    """
    bad = (~losses.isfinite()).nonzero()
    if len(bad):
        first_bad = step - len(losses) + int(bad[0])
        sample = first_bad * batch_size
        raise TrainingDiverged(
            f"the loss is {losses[bad[0]].item()} at step {first_bad + 1} (samples {sample} to "
            f"{sample + batch_size - 1} of the run); {_last_checkpoint(run)}"
        )


def check_weights(network: torch.nn.Module, step: int, run: Path) -> None:
    """Refuses weights that are not finite: a gradient may overflow where the loss did not.

    Raises:
        TrainingDiverged: naming the step and the last checkpoint.
    """
    if not all(bool(value.isfinite().all()) for value in network.parameters()):
        raise TrainingDiverged(f"the weights are not finite after step {step}; {_last_checkpoint(run)}")


def _last_checkpoint(run: Path) -> str:
    saved = checkpoints.steps(run)
    return f"last checkpoint: {f'step {saved[-1]} in {run}' if saved else 'none'}"
