"""How an exported network is called: what its inputs are, of which shapes and kinds."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fastddpm.export.nodes import FLOAT, INT64
from fastddpm.plans.time_input import TimeInput

EXAMPLE_BATCH = 2


@dataclass(frozen=True)
class Condition:
    """What a network is given by name besides x, time and labels.

    Attributes:
        name: as the network has it.
        kind: ONNX's number of its dtype in the files; floating ones are float32 there.
        rows: examples of it, ``(1 or more, ...)``, on the CPU.
    """

    name: str
    kind: int
    rows: Tensor

    @property
    def input(self) -> str:
        """What the files call it; so it cannot be taken for another input of theirs."""
        return f"cond_{self.name}"

    @property
    def without(self) -> str:
        """What the files call it in the half without conditions."""
        return f"uncond_{self.name}"

    def shape(self) -> list[int | str]:
        """Of the input."""
        return ["batch", *self.rows.shape[1:]]

    def examples(self, batch: int, *, first: int = 0) -> Tensor:
        """So many rows, from one on, again and again."""
        return self.rows[(torch.arange(batch) + first) % len(self.rows)]


@dataclass(frozen=True)
class NetworkCall:
    """How the network is called.

    Attributes:
        shape: of one state, (C, H, W) of an image; where sizes are fixed, they are these.
        condition_channels: channels concatenated in front of the state's.
        num_classes: None without classes.
        null_label: the label that means "no class", or None.
        time_input: what it is told: timesteps, int64, or levels, float32.
        half: whether it runs in float16.
        between: whether the exported plan tells it times between two timesteps of training, as float32.
        cond: what it is given by name besides, in order.
        preconditioned: whether it is told log(sigma)/4 (Karras et al. 2022), float32, as by the plans of
            diffusers' EDM schedulers alone.
    """

    shape: tuple[int, ...]
    condition_channels: int
    num_classes: int | None
    null_label: int | None
    time_input: TimeInput
    half: bool
    between: bool = False
    cond: tuple[Condition, ...] = ()
    preconditioned: bool = False

    @property
    def channels(self) -> int:
        """C: the size of a state's first axis."""
        return self.shape[0]

    @property
    def guides(self) -> bool:
        """Whether there is something for the half without conditions: a null label, or conditions alone."""
        return self.null_label is not None or (bool(self.cond) and not self.has_classes)

    @property
    def has_classes(self) -> bool:
        """Whether it is called with class labels."""
        return self.num_classes is not None

    @property
    def time_kind(self) -> int:
        """ONNX's number of the dtype of the files' input."""
        return FLOAT if self.tells_levels else INT64

    @property
    def tells_levels(self) -> bool:
        """Whether it is told levels, or logarithms of them, instead of timesteps."""
        return self.time_input != "timestep" or self.preconditioned

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of weights and activations."""
        return torch.float16 if self.half else torch.float32
