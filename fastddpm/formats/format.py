"""What a format is to who looks for networks: how it is recognised, and how it is read."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping

from torch import Tensor

from fastddpm.formats.loaded import Loaded
from fastddpm.inputs import Fields


@dataclasses.dataclass(frozen=True)
class Format:
    """A library's state dicts of networks.

    Attributes:
        anchor: a name of tensor that every one of them has.
        recognises: whether a state dict is one of them; called with names that begin where ``anchor`` does.
        read: ``read(state, buffers, given)``: the network's tensors, those beside it in the diffusion object
            that held it, and what the caller says; raises `CheckpointError`.
    """

    anchor: str
    recognises: Callable[[Mapping[str, Tensor]], bool]
    read: Callable[[Mapping[str, Tensor], Mapping[str, Tensor], Fields], Loaded]
