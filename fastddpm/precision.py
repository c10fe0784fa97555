"""The precision that a network computes in: float32 with TF32 or without, bfloat16, float16.

`highest` and `tf32` are settings of the process in torch; here they hold while a loop is made or runs
(`fastddpm.turn`), and what was set before is set again whenever the caller's code goes on. `bf16` and `fp16`
are a copy of the network in that dtype; `int8` is ONNX Runtime's, on a CPU (`fastddpm.engine.int8`). The
state, the tables and the noise are float32 in all of them. None leaves torch as it is set.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal, TypeAlias

import torch

from fastddpm.checks import BadArgument, check_choice, quoted

Precision = Literal["highest", "tf32", "bf16", "fp16", "int8"]
PRECISIONS = ("highest", "tf32", "bf16", "fp16", "int8")
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def dtype_of(precision: str | None, dtype: torch.dtype | None) -> torch.dtype | None:
    """The dtype that a network runs in by both of its options; None for that of its weights.

    Raises:
        ValueError: an unknown precision, or one that ``dtype`` contradicts.
    """
    if dtype is not None and not isinstance(dtype, torch.dtype):
        raise BadArgument("dtype", quoted(dtype), "a torch dtype or None")
    if precision is None:
        return dtype
    check_choice("precision", precision, PRECISIONS)
    wanted = DTYPES.get(precision, torch.float32)
    if dtype not in (None, wanted):
        raise BadArgument("dtype", f"{dtype} with precision {precision!r}", f"None or {wanted}")
    return DTYPES.get(precision, dtype)


def precision_for(
    precision: Precision | None, dtype: torch.dtype | None, weights: torch.dtype
) -> Precision | None:
    """The precision of a network that takes x in its weights' dtype alone, as ours does: ``dtype`` bfloat16
    or float16 for float32 weights is ``bf16`` or ``fp16``.

    Raises:
        ValueError: a dtype that is neither the weights' nor one that they are cast to.
    """
    if precision is not None or dtype in (None, weights):
        return precision
    if weights == torch.float32 and dtype == torch.bfloat16:
        return "bf16"
    if weights == torch.float32 and dtype == torch.float16:
        return "fp16"
    raise BadArgument("dtype", f"{dtype} for a network in {weights}", f"None or {weights}")


def check_runs(precision: str | None, dtype: torch.dtype, engine: str) -> None:
    """ValueError for a precision that starts from float32 and a network in another dtype, or for an engine
    that does not compute in it."""
    if precision in ("highest", "tf32", "int8") and dtype != torch.float32:
        raise BadArgument("precision", f"{precision!r} for a network in {dtype}", "None or float32 weights")
    if precision in DTYPES and engine == "onnxruntime":
        raise BadArgument(
            "precision",
            f"{precision!r} with engine 'onnxruntime', whose convolutions on a CPU are float32 or int8,",
            "engine 'compile' or 'eager', or another precision,",
        )
    if precision == "int8" and engine != "onnxruntime":
        raise BadArgument(
            "precision",
            f"'int8' with engine {engine!r}",
            "engine 'onnxruntime', on a CPU, or another precision,",
        )


def described(precision: str | None, dtype: torch.dtype, device: torch.device) -> str:
    """What a network runs in, in words. Of None, by torch's settings as they are now."""
    if dtype != torch.float32:
        return str(dtype).removeprefix("torch.")
    if precision == "int8":
        return "int8 in convolutions and products, float32 around them"
    if device.type != "cuda":
        return "float32"
    if precision is not None:
        return f"float32, TF32 {'off' if precision == 'highest' else 'in convolutions and products'}"
    settings = {"convolutions": _SETTINGS["cuda"]["conv"](), "products": _SETTINGS["cuda"]["matmul"]()}
    found = [name for name, place in settings.items() if place.fp32_precision == "tf32"]
    where = f"in {' and '.join(found)}" if found else "off"
    return f"float32, TF32 as torch is set: {where}"


# ---------------------------------------------------------------- torch's settings
# A setting has a value of its own, or "none" and follows its parent: cuDNN's and cuBLAS's follow
# ``torch.backends.cudnn``, which follows ``torch.backends``, as oneDNN's do. What is read is what it follows.

_Setting: TypeAlias = Any
"""A place of torch's with an ``fp32_precision``, which its stubs do not know."""
# Of what each kind of device computes with: cuDNN and cuBLAS, oneDNN.
_SETTINGS: dict[str, dict[str, Callable[[], _Setting]]] = {
    "cuda": {
        "conv": lambda: torch.backends.cudnn.conv,  # type: ignore[attr-defined]
        "rnn": lambda: torch.backends.cudnn.rnn,
        "matmul": lambda: torch.backends.cuda.matmul,
    },
    "cpu": {
        "conv": lambda: torch.backends.mkldnn.conv,  # type: ignore[attr-defined]
        "rnn": lambda: torch.backends.mkldnn.rnn,  # type: ignore[attr-defined]
        "matmul": lambda: torch.backends.mkldnn.matmul,  # type: ignore[attr-defined]
    },
}


@contextmanager
def forced(precision: str | None) -> Iterator[None]:
    """Float32 without TF32 (``highest``) or, on CUDA, with it (``tf32``) inside, in the whole process.

    Anything else changes nothing. Afterwards torch's settings are what they were, by whichever of its
    switches they had been made. Inside, the oldest of these, ``cudnn.allow_tf32``, cannot be read.
    """
    restore = set_for(precision, *_SETTINGS)
    try:
        yield
    finally:
        restore()


def set_for(precision: str | None, *kinds: str) -> Callable[[], None]:
    """Sets it for kinds of devices; what is returned sets what was there."""
    undo = []
    if precision in ("highest", "tf32"):
        for kind in kinds:
            undo.append(_set_for(kind, "tf32" if (precision, kind) == ("tf32", "cuda") else "ieee"))

    def restore() -> None:
        for one in reversed(undo):
            one()

    return restore


def _set_for(kind: str, value: str) -> Callable[[], None]:
    backends: _Setting = torch.backends
    parent = backends
    parents_own: str = parent.fp32_precision
    kept: list[tuple[_Setting, str]] = []
    changed: list[_Setting] = []
    if kind == "cuda":
        parent = torch.backends.cudnn
        parents_own = _own(parent, backends, parents_own)
        kept, changed = [(parent, parents_own)], [parent]
    for name, find in _SETTINGS[kind].items():
        place = find()
        own = _own(place, parent, parents_own)
        # A convolution on CUDA that follows is left to: in torch 2.14 cuDNN's default is TF32 unless the
        # parent says otherwise, which is no value that could be set again. cuBLAS has no such default, and
        # torch.compile sets cuBLAS's in passing.
        if kind == "cpu" or own != "none" or name == "matmul":
            kept.append((place, own))
            changed.append(place)
    older = _older_switch() if kind == "cuda" else None
    if older is not None:
        # Engine `max` reads it, and torch refuses where it disagrees. It sets oneDNN's product too.
        product: _Setting = _SETTINGS["cpu"]["matmul"]()
        kept.append((product, _own(product, backends, backends.fp32_precision)))
        torch.set_float32_matmul_precision("high" if value == "tf32" else "highest")
        product.fp32_precision = kept[-1][1]
    for place in changed:
        place.fp32_precision = value

    def restore() -> None:
        if older is not None:
            torch.set_float32_matmul_precision(older)
        for place, own in kept:
            place.fp32_precision = own

    return restore


def _own(place: _Setting, parent: _Setting, parents_own: str) -> str:
    """A setting's own value, ``none`` where it follows its parent; what is read is its parent's then."""
    value: str = place.fp32_precision
    read = []
    for trial in ("ieee", "tf32"):
        parent.fp32_precision = trial
        read.append(place.fp32_precision)
    parent.fp32_precision = parents_own
    return "none" if read == ["ieee", "tf32"] else value


def _older_switch() -> str | None:
    """`torch.get_float32_matmul_precision`; None where it cannot be read beside newer settings."""
    try:
        return torch.get_float32_matmul_precision()
    except RuntimeError:
        return None
