"""The processes of a run, and what they do as one, so that none waits for another that has stopped."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

import torch

from fastddpm.checks import BadArgument
from fastddpm.extras import needed
from fastddpm.training.config import TrainConfig

if TYPE_CHECKING:
    from accelerate import Accelerator
    from typing_extensions import TypeVarTuple, Unpack

    Ts = TypeVarTuple("Ts")

T = TypeVar("T")


class MainProcessFailed(RuntimeError):
    """What every other process raises where the main process raised; the message is that of the cause."""


def accelerator_for(config: TrainConfig) -> Accelerator:
    """What runs a training's processes.

    Raises:
        ValueError: a mixed precision that is not to be had here, or a batch size that does not divide.
    """
    needed("accelerate", by="fastddpm.training")
    from accelerate import Accelerator, PartialState

    if config.mixed_precision == "fp16" and PartialState().device.type == "cpu":
        # accelerate would train in float32 and say nothing.
        raise BadArgument("mixed_precision", "'fp16' on a CPU", "'no' or 'bf16'")
    try:
        accelerator = Accelerator(mixed_precision=config.mixed_precision)
    except ValueError as error:
        raise BadArgument(
            "mixed_precision", f"{config.mixed_precision!r}, which fails here ({error}),", "'no'"
        ) from error
    chunks = accelerator.num_processes * config.gradient_accumulation
    if config.batch_size % chunks:
        raise BadArgument(
            "batch_size",
            str(config.batch_size),
            f"a multiple of {chunks} (processes times gradient_accumulation)",
        )
    return accelerator


def on_main(accelerator: Accelerator, work: Callable[[Unpack[Ts]], T], *arguments: Unpack[Ts]) -> T:
    """``work(*arguments)`` on the main process alone; all processes call this and get its result.

    Args:
        accelerator: the run's ``accelerate.Accelerator``.
        work: what is done once: files, pictures. Its result can be pickled.
        *arguments: of ``work``.

    Raises:
        Exception: on the main process what ``work`` raised; MainProcessFailed on the others.
    """
    result = None
    failure: Exception | None = None
    if accelerator.is_main_process:
        try:
            result = work(*arguments)
        except Exception as error:
            failure = error
    if accelerator.num_processes > 1:
        from accelerate.utils import broadcast_object_list

        result, message = broadcast_object_list([result, failure and str(failure)])
        if message is not None and failure is None:
            raise MainProcessFailed(message)
    if failure is not None:
        raise failure
    return result  # type: ignore[return-value]


def on_any(accelerator: Accelerator, flag: bool) -> bool:
    """Whether ``flag`` is true on any process; all processes call this at the same step.

    Waits for the device: on a GPU not a thing for every step.
    """
    if accelerator.num_processes == 1:
        return flag
    value = torch.tensor(float(flag), device=accelerator.device)
    return bool(accelerator.reduce(value, reduction="sum") > 0)
