"""Tensors of the Open Inference Protocol, as JSON or as bytes: read within what is accepted, and written."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from fastddpm.checks import BadArgument, check_known, is_number, is_whole, quoted
from fastddpm.inputs import Json
from fastddpm.serving.http.binary import NUMBERS, Tail, numbers, texts

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

    def described(self) -> Json:
        """As the metadata of a model holds it."""
        return {"name": self.name, "datatype": self.datatype, "shape": list(self.shape)}

    def read(self, given: Json, tail: Tail) -> tuple[tuple[int, ...], Values]:
        """Shape and values of a tensor of a request, the values flat; they may be in the body's tail.

        Raises:
            BadArgument: (a ValueError) naming the tensor.
        """
        check_known(list(given), FIELDS, of=f"the tensor {self.name}")
        parameters = parameters_of(given, self.name, binary="binary_data_size")
        if given.get("datatype") != self.datatype:
            raise BadArgument(self.name, f"datatype {quoted(given.get('datatype'))}", self.datatype)
        shape = self._shape(given.get("shape"))
        if "binary_data_size" in parameters:
            if "data" in given:
                raise BadArgument(f"{self.name}, data", "binary_data_size beside it", "one of the two")
            raw = tail.take(self.name, parameters["binary_data_size"])
            return shape, self._from_bytes(raw, math.prod(shape))
        values = _flat(self.name, given.get("data"), shape)
        if self.datatype == "FP32":
            return shape, self._floats(values)
        for value in values:
            self._check(value)
        return shape, values

    def _from_bytes(self, raw: bytes, count: int) -> Values:
        if self.datatype == "BYTES":
            return list(texts(self.name, raw, count))
        found = numbers(self.name, self.datatype, raw, count)
        if self.datatype == "INT64":
            return list(found.tolist())
        if not np.isfinite(found).all():
            raise BadArgument(self.name, "NaN or infinity", "finite numbers")
        return found.astype(np.float32)

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


def written(spec: TensorSpec, values: npt.NDArray[np.generic], *, binary: bool) -> tuple[Json, list[bytes]]:
    """A tensor of an answer, its data flat in it, or, where they are ``binary``, beside it."""
    described = {"name": spec.name, "datatype": spec.datatype, "shape": list(values.shape)}
    if not binary:
        return {**described, "data": values.reshape(-1).tolist()}, []
    raw = np.ascontiguousarray(values, NUMBERS[spec.datatype]).tobytes()
    return {**described, "parameters": {"binary_data_size": len(raw)}}, [raw]


def parameters_of(given: Json, name: str, *, binary: str) -> Json:
    """The parameters of a request, a tensor or an output, of which ``binary`` is its one of the extension.

    Raises:
        BadArgument: (a ValueError) for what is no object, or a parameter of the extension that belongs to
            something else.
    """
    found = given.get("parameters")
    if found is None:
        return {}
    if not isinstance(found, dict):
        raise BadArgument(f"{name}, parameters", quoted(found), "an object")
    for parameter, value in found.items():
        if parameter.startswith("binary_data") and parameter != binary:
            raise BadArgument(f"{name}, {parameter}", quoted(value), f"{binary} alone")
    return found


def is_binary(parameters: Json, parameter: str, otherwise: bool = False) -> bool:
    """The truth of a parameter that says whether outputs are bytes.

    Raises:
        BadArgument: (a ValueError) for what is neither true nor false.
    """
    found = parameters.get(parameter, otherwise)
    if not isinstance(found, bool):
        raise BadArgument(parameter, quoted(found), "true or false")
    return found


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
