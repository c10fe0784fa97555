"""What the processes of a run do as one, so that none waits for another that has stopped."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

import torch

if TYPE_CHECKING:
    from accelerate import Accelerator
    from typing_extensions import TypeVarTuple, Unpack

    Ts = TypeVarTuple("Ts")

T = TypeVar("T")


class MainProcessFailed(RuntimeError):
    """What every other process raises where the main process raised; the message is that of the cause."""


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
