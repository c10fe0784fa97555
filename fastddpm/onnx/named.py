"""What a network is given by name, checked against what its export says of it. NumPy in, NumPy out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from fastddpm.checks import BadArgument, check_known, check_values, shown
from fastddpm.onnx.folder import Condition, ModelFolder

Numbers = npt.NDArray[Any]


def named_inputs(
    folder: ModelFolder,
    cond: Mapping[str, Numbers] | None,
    uncond: Mapping[str, Numbers] | None,
    count: int,
    *,
    guided: bool,
) -> dict[str, Numbers]:
    """The inputs ``cond_NAME`` and, where the files guide, ``uncond_NAME``, ``[count, ...]`` each.

    Args:
        folder: the export.
        cond: as of `OnnxSampler.sample`.
        uncond: likewise; without guidance none is used, and conditions stand in the place of those left out.
        count: images.
        guided: whether a second pass uses ``uncond``.

    Raises:
        ValueError: naming the condition, what was given and what is accepted.
    """
    names = [one.name for one in folder.cond]
    for argument, given in (("cond", cond), ("uncond", uncond)):
        if given is not None and not isinstance(given, Mapping):
            raise BadArgument(argument, type(given).__name__, "a dictionary of arrays by name")
        check_known(list(given or {}), names, of=f"{argument} of this export")
    inputs = {}
    for one in folder.cond:
        if one.name not in (cond or {}):
            raise BadArgument("cond", f"no {one.name!r}, which the network needs,", _accepted(one, count))
        inputs[f"cond_{one.name}"] = _rows("cond", one, (cond or {})[one.name], count)
        if not folder.guides:
            continue
        if one.name in (uncond or {}):
            without = _rows("uncond", one, (uncond or {})[one.name], count)
        elif guided:
            raise BadArgument(
                "guidance_scale",
                f"a number other than 1 without uncond of {one.name}",
                f"1, or uncond={{{one.name!r}: {_accepted(one, count)}}},",
            )
        else:
            without = inputs[f"cond_{one.name}"]
        inputs[f"uncond_{one.name}"] = without
    return inputs


def _accepted(one: Condition, count: int) -> str:
    sides = ", ".join(map(str, (f"{count} or 1", *one.shape)))
    return f"a {one.dtype} array ({sides})"


def _rows(argument: str, one: Condition, value: object, count: int) -> Numbers:
    name = f"{argument}[{one.name!r}]"
    if not isinstance(value, np.ndarray):
        raise BadArgument(name, shown(value), _accepted(one, count))
    fits = value.ndim and value.shape[0] in (1, count) and value.shape[1:] == one.shape
    if not fits or value.dtype != np.dtype(one.dtype):
        raise BadArgument(name, f"{value.dtype} of shape {value.shape}", _accepted(one, count))
    check_values(name, value)
    return np.ascontiguousarray(np.broadcast_to(value, (count, *one.shape)))
