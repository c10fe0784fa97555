"""What a capture of somebody's model would refuse, asked before the first one.

A capture that fails costs more than time: older torch has to be mended after it (`fastddpm.engine.graph`).
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from fastddpm.engine.capturable import run_on_fakes
from fastddpm.engine.constants import SEND
from fastddpm.engine.watch import SENT, UNKNOWN, Offence
from fastddpm.network import Model, modules_of
from fastddpm.tabulated import ModelInputs
from fastddpm.weights import Inventory

if TYPE_CHECKING:
    from typing_extensions import Unpack

# Models fill caches in their first pass, before anything is captured.
PASSES = 2


class FakeRun(ModelInputs):
    """What a model is run on: see :func:`fastddpm.engine.capturable.run_on_fakes`."""

    cond: Mapping[str, Tensor]
    condition: Tensor | None


class Refusal(NamedTuple):
    """What a capture would refuse.

    Attributes:
        reason: in words; an empty text for nothing, or where that cannot be told.
        sends: whether passes send tensors of the host, which may be constants (`fastddpm.engine.constants`).
    """

    reason: str = ""
    sends: bool = False


def refusal(model: Model, shape: Sequence[int], **options: Unpack[FakeRun]) -> Refusal:
    """What a capture would refuse of a model.

    A copy of the model's structure is run, which shares its weights: the model itself is not touched, so that
    other threads may use it.

    Args:
        model: as `Sampler` takes it.
        shape: ``(B, ...)`` of the state.
        **options: of :func:`fastddpm.engine.capturable.run_on_fakes`.
    """
    if not torch.version.cuda:
        return Refusal()
    try:
        modules = modules_of(model)
        shared = {id(tensor): tensor for tensor in Inventory(modules).tensors()}
        copied = copy.deepcopy(model, shared)
        # Functions are not copied, nor are the modules that they hold.
        if any(one is other for one in modules for other in modules_of(copied)):
            return Refusal()
        found = run_on_fakes(copied, shape, passes=PASSES, device=torch.device("cuda"), **options)
    except Exception:  # a stranger's code on tensors without data may raise anything
        return Refusal()
    certain = [offence for offence in found if _is_certain(offence)]
    sent = [offence for offence in certain if offence.operator == SEND and offence.reason == SENT]
    return Refusal(next((str(one) for one in certain if one not in sent), ""), bool(sent))


def _is_certain(offence: Offence) -> bool:
    """Whether a capture would refuse it: not a value of the host, nor what fake tensors cannot do."""
    named = "::" in offence.operator or offence.operator.startswith("torch.")
    return named and offence.reason != UNKNOWN
