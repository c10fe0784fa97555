"""What the images of a job are conditioned on besides labels, by name: a row per seed, or one for all."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypedDict

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fastddpm.checks import BadArgument, check_count, check_values, shown
from fastddpm.inputs import Json

Numbers = npt.NDArray[Any]
Rows = Mapping[str, Tensor | Numbers]


class Halves(TypedDict, total=False):
    """Of the arguments of `Sampler.sample`."""

    cond: Mapping[str, Tensor]
    uncond: Mapping[str, Tensor]


class ArrayHalves(TypedDict, total=False):
    """Of the arguments of `fastddpm.onnx.OnnxSampler.sample`."""

    cond: Mapping[str, Numbers]
    uncond: Mapping[str, Numbers]


@dataclass(frozen=True, eq=False)
class Given:
    """`cond` and `uncond` of `Sampler.sample`, as arrays on the host.

    Attributes:
        cond: arrays ``(N or 1, ...)`` by name.
        uncond: the same for the half without them.
    """

    cond: Mapping[str, Numbers]
    uncond: Mapping[str, Numbers]

    @classmethod
    def of(cls, cond: Rows | None, uncond: Rows | None, count: int) -> Given | None:
        """The same from what a caller gives; None for nothing.

        Raises:
            ValueError: naming the argument, what was given and what is accepted.
        """
        if cond is None and uncond is None:
            return None
        return cls(_arrays("cond", cond or {}, count), _arrays("uncond", uncond or {}, count))

    def rows(self, places: npt.NDArray[np.int64]) -> Given:
        """Those of some of the seeds, by their places; what is one for all stays so."""
        some = [
            {name: array if len(array) == 1 else array[places] for name, array in half.items()}
            for half in (self.cond, self.uncond)
        ]
        return Given(*some)

    def tensors(self, *, first: bool = False) -> Halves:
        """As `Sampler.sample` takes them; of the first seed alone, where only what they are is asked."""
        cond, uncond = (
            {name: torch.tensor(array[:1] if first else array) for name, array in half.items()}
            for half in (self.cond, self.uncond)
        )
        return {"cond": cond, "uncond": uncond}

    def arrays(self, *, first: bool = False) -> ArrayHalves:
        """The same as `OnnxSampler.sample` takes them."""
        cond, uncond = (
            {name: array[:1] if first else array for name, array in half.items()}
            for half in (self.cond, self.uncond)
        )
        return {"cond": cond, "uncond": uncond}

    def digests(self) -> Json:
        """What a job's settings hold of them: SHA-256 of each by name."""
        return {
            argument: {name: _digest(array) for name, array in sorted(half.items())}
            for argument, half in (("cond", self.cond), ("uncond", self.uncond))
            if half
        }


def _arrays(argument: str, given: Rows, count: int) -> dict[str, Numbers]:
    if not isinstance(given, Mapping):
        raise BadArgument(argument, type(given).__name__, "a dictionary of arrays by name")
    arrays = {}
    for key, value in given.items():
        name = f"{argument}[{key!r}]"
        if isinstance(value, Tensor):
            value = (value.float() if value.is_floating_point() else value).detach().cpu().numpy()
        if not isinstance(value, np.ndarray) or not value.ndim or value.dtype.kind not in "biuf":
            raise BadArgument(name, shown(value), f"an array ({count} or 1, ...) of numbers")
        if len(value) != 1:
            check_count(name, len(value), count, of="seeds", accepted="a row for all, or one each,")
        check_values(name, value)
        arrays[key] = np.ascontiguousarray(value, dtype=value.dtype.newbyteorder("="))
    return arrays


def _digest(array: Numbers) -> str:
    digest = hashlib.sha256(f"{array.dtype.str} {array.shape}".encode())
    digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()
