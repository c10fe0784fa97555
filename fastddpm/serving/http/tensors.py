"""Tensors of the Open Inference Protocol as JSON: read within what is accepted, and written."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from fastddpm.checks import BadArgument, check_known, is_number, is_whole, quoted

Values = list[Any] | npt.NDArray[np.float32]
MOST_SIDES = 8
FIELDS = ("name", "shape", "datatype", "data", "parameters")


@dataclasses.dataclass(frozen=True)
class TensorSpec:
    """A tensor that a model takes or gives.

    Attributes:
        name: of it.
        datatype: of the protocol: INT64, FP32, UINT8 or BYTES.
        shape: -1 for a side of any length.
    """

    name: str
    datatype: str
    shape: tuple[int, ...]

    def described(self) -> dict[str, Any]:
        """As the metadata of a model holds it."""
        return {"name": self.name, "datatype": self.datatype, "shape": list(self.shape)}

    def read(self, given: dict[str, Any]) -> tuple[tuple[int, ...], Values]:
        """Shape and values of a tensor of a request, the values flat.

        Raises:
            BadArgument: (a ValueError) naming the tensor.
        """
        check_known(list(given), FIELDS, of=f"the tensor {self.name}")
        check_parameters(given.get("parameters"), self.name)
        if given.get("datatype") != self.datatype:
            raise BadArgument(self.name, f"datatype {quoted(given.get('datatype'))}", self.datatype)
        shape = self._shape(given.get("shape"))
        values = _flat(self.name, given.get("data"), shape)
        if self.datatype == "FP32":
            return shape, self._floats(values)
        for value in values:
            self._check(value)
        return shape, values

    def _shape(self, given: object) -> tuple[int, ...]:
        sides = given if isinstance(given, list) and len(given) <= MOST_SIDES else []
        fits = len(sides) == len(self.shape) and all(
            is_whole(side) and side >= 1 and wanted in (-1, side)
            for side, wanted in zip(sides, self.shape, strict=True)
        )
        if not fits:
            raise BadArgument(f"{self.name}, shape", quoted(given), str(list(self.shape)))
        return tuple(sides)

    def _check(self, value: object) -> None:
        if self.datatype == "BYTES" and not isinstance(value, str):
            raise BadArgument(self.name, quoted(value), "text")
        if self.datatype == "INT64" and not (is_whole(value) and -(2**63) <= value < 2**63):
            raise BadArgument(self.name, quoted(value), "integers of 64 bits")

    def _floats(self, values: list[Any]) -> npt.NDArray[np.float32]:
        for value in values:
            if not is_number(value):
                raise BadArgument(self.name, quoted(value), "finite numbers")
        with np.errstate(over="ignore"):
            held = np.asarray([float(value) for value in values], np.float32)
        if not np.isfinite(held).all():
            raise BadArgument(self.name, "a number beyond float32", "finite numbers")
        return held


def written(spec: TensorSpec, values: npt.NDArray[np.generic]) -> dict[str, Any]:
    """A tensor of an answer, its data flat."""
    return {
        "name": spec.name,
        "datatype": spec.datatype,
        "shape": list(values.shape),
        "data": values.reshape(-1).tolist(),
    }


def check_parameters(given: object, name: str) -> None:
    """BadArgument for parameters that are no object, or that ask for the protocol's binary extension."""
    if given is None:
        return
    if not isinstance(given, dict):
        raise BadArgument(f"{name}, parameters", quoted(given), "an object")
    for parameter in given:
        if parameter.startswith("binary_data"):
            raise BadArgument(f"{name}, {parameter}", "the binary extension", "JSON tensors alone")


def each(values: Values, count: int, name: str) -> list[Any]:
    """A value for every image: one each, or one for all."""
    listed = values if isinstance(values, list) else values.tolist()
    if len(listed) not in (1, count):
        raise BadArgument(f"{name}, shape", f"[{len(listed)}] for {count} images", f"[1] or [{count}]")
    return listed if len(listed) == count else listed * count


def _flat(name: str, data: object, shape: Sequence[int]) -> list[Any]:
    """The data of a tensor as one list, which is given flat, or nested as its shape."""
    if not isinstance(data, list):
        raise BadArgument(f"{name}, data", quoted(data), "a list")
    count = math.prod(shape)
    if not any(isinstance(value, list) for value in data[:1]):
        if len(data) != count:
            accepted = f"{count}, as its shape says,"
            raise BadArgument(f"{name}, data", f"{len(data)} values", accepted)
        return data
    level: list[Any] = [data]
    for side in shape:
        if not all(isinstance(one, list) and len(one) == side for one in level):
            raise BadArgument(
                f"{name}, data", "lists of other lengths than its shape says", "a flat list too"
            )
        level = [value for one in level for value in one]
    return level
