"""Files of checkpoints: tensors without unpickling code, and what a state dict may hold."""

from __future__ import annotations

import math
import pickle
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from fastddpm import inputs
from fastddpm.checks import fitted, shortened
from fastddpm.inputs import InputError, Json, member

FLOATS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
COUNTERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool)
"""Of buffers such as BatchNorm's; a weight of such a type is refused where it would enter a network."""
WANTED = "torch.save(network.state_dict(), path) writes what is read here"
TAR_MAGIC = 257
"""Where a tar file says that it is one."""
SHOWN = 4
"""Times that the bytes of a file may be shown by its tensors: weights may be tied."""


class CheckpointError(ValueError):
    """A checkpoint that is not there, not complete, not what it says it is, or lacks what has to be given."""


class ConfigError(CheckpointError):
    """What was given as ``config`` does not fit the checkpoint, or is not enough."""

    argument = "config"

    def __str__(self) -> str:
        return f"{self.argument}: {super().__str__()}"


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The state dict in a file, on the CPU: safetensors by that suffix, else what `torch.save` wrote.

    Nothing is executed (``weights_only=True``) or inflated: an archive with compressed entries is refused,
    and so are tensors that show more bytes than the file has.

    Raises:
        CheckpointError: not found, not a regular file, not complete, or with something else than tensors.
    """
    try:
        size = inputs.check_regular(path)
        if path.suffix == ".safetensors":
            return tensors_of(load_file(path), str(path))
        with inputs.open_regular(path) as file:
            state = tensors_of(torch_document(path, file, size), str(path))
    except InputError as error:
        raise CheckpointError(str(error)) from error
    except (SafetensorError, OSError) as error:
        kind = "safetensors" if path.suffix == ".safetensors" else "torch"
        reason = fitted(str(error), 160)
        raise CheckpointError(f"{path}: not a complete {kind} file ({reason})") from error
    check_bytes(state, path)
    return state


def check_bytes(state: Mapping[str, Tensor], path: Path) -> None:
    """Refuses tensors that show many times the bytes of the file or folder that they are from."""
    files = list(path.iterdir()) if path.is_dir() else [path]
    size = sum(file.stat().st_size for file in files)
    if sum(value.numel() * value.element_size() for value in state.values()) > SHOWN * size:
        raise CheckpointError(f"{path}: its tensors show many times the {size:,} bytes that it has")


def torch_document(path: Path, file: BinaryIO, size: int) -> object:
    """What `torch.save` wrote into an open file of ``size`` bytes, on the CPU; without code or inflation.

    Raises:
        CheckpointError: caused by an `UnpicklingError` where there is more than ``weights_only`` takes.
    """
    try:
        _check_archive(file, size)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's own, about formats; what is wrong becomes an error
            return torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(f"{path}: holds more than tensors, or is damaged; {WANTED}") from error
    except Exception as error:  # the unpickler raises whatever a damaged file trips it over
        reason = shortened(str(error), 160) or type(error).__name__
        raise CheckpointError(f"{path}: not a complete torch file ({reason})") from error


def _check_archive(file: BinaryIO, size: int) -> None:
    """Refuses what torch.save does not write: compressed entries, or more bytes than the file has.

    Raises:
        ValueError, or what zipfile raises for a damaged archive.
    """
    if zipfile.is_zipfile(file):  # files from before torch 1.6 are not
        with zipfile.ZipFile(file) as archive:
            entries = archive.infolist()
        for entry in entries:
            if entry.compress_type != zipfile.ZIP_STORED:
                raise ValueError(f"{entry.filename!r} in it is compressed, which torch.save never does")
        if sum(entry.file_size for entry in entries) > size:
            raise ValueError(f"its entries declare more than its {size:,} bytes")
    file.seek(0)
    if file.read(TAR_MAGIC + 5).endswith(b"ustar"):
        raise ValueError("a tar file, as early versions of torch wrote; " + WANTED)
    file.seek(0)


def tensors_of(document: object, name: str) -> dict[str, Tensor]:
    """The state dict that an object is.

    Raises:
        CheckpointError: not a mapping from names to tensors, of which the keys are listed; or one with a
            tensor that no network here has: sparse, quantised, complex, without data, or of another class.
    """
    if not isinstance(document, Mapping):
        raise CheckpointError(f"{name}: holds {type(document).__name__}, a state dict accepted")
    other = [key for key, value in document.items() if not isinstance(value, Tensor)]
    if other or not document:
        keys = ", ".join(repr(key)[:80] for key in list(document)[:8])
        raise CheckpointError(
            f"{name}: a state dict of tensors accepted; it has the entries {keys or 'none'}"
        )
    check_tensors(document, name)
    return {str(key): value.detach() for key, value in document.items()}


def check_tensors(state: Mapping[str, Tensor], where: str) -> None:
    """Refuses tensors that no network here has: sparse, quantised, complex, empty, of other classes."""
    for key, value in state.items():
        kind = _strange(value)
        if kind:
            raise CheckpointError(
                f"{where}: {shortened(str(key))} is {kind} ({value.dtype}); dense tensors of float32, "
                "float64, float16 or bfloat16, and integers as counters, accepted"
            )


def _strange(value: Tensor) -> str:
    """What is unusual about a tensor; empty for those that are accepted."""
    if type(value) not in (Tensor, torch.nn.Parameter):
        return f"a {type(value).__name__}"
    if value.is_nested or value.layout is not torch.strided:
        return "nested" if value.is_nested else "sparse"
    if value.is_quantized or value.is_complex():
        return "quantised" if value.is_quantized else "complex"
    if value.is_meta:
        return "without data"
    return "" if value.dtype in FLOATS + COUNTERS else "of another type"


def check_finite(
    state: Mapping[str, Tensor], where: str, *, named_as: Mapping[str, Tensor] | None = None
) -> None:
    """Refuses weights with NaN or infinity; one pass over each tensor, without a copy.

    Args:
        state: of a network. A diffusion's buffers are left out by who calls: some are infinite by formula.
        where: the file, for the error.
        named_as: the file's own tensors, if ``state`` has other names; the one of the same memory is named.

    Raises:
        CheckpointError: naming the file and the first such tensor.
    """
    for name, value in state.items():
        if _is_finite(value):
            continue
        memory = value.untyped_storage().data_ptr()
        same = (n for n, v in (named_as or {}).items() if v.untyped_storage().data_ptr() == memory)
        bad = value.numel() - int(torch.isfinite(value).sum())
        raise CheckpointError(
            f"{where}: {next(same, name)} holds NaN or infinity ({bad} of {value.numel()} values), finite "
            "weights accepted (training in "
            "float16 can leave such; an earlier checkpoint may be whole)"
        )


def _is_finite(value: Tensor) -> bool:
    if not value.is_floating_point() or not value.numel():
        return True
    low, high = torch.aminmax(value.detach())
    return math.isfinite(low) and math.isfinite(high)


def read_json(path: Path) -> Json:
    """A JSON object, as of :func:`fastddpm.inputs.read_json`.

    Raises:
        CheckpointError: not found, not JSON, not an object, or beyond the limits there.
    """
    try:
        return inputs.read_json(path)
    except InputError as error:
        raise CheckpointError(str(error)) from error


def shards(index: Path, kind: str) -> list[Path]:
    """The files that an index of weights lists, all beside it; ``kind`` is ``safetensors`` or ``bin``."""
    listed = read_json(index).get("weight_map")
    if not isinstance(listed, dict) or not listed:
        raise CheckpointError(f"{index}: no weight_map given, one from tensors to files accepted")
    for name in listed.values():
        if not isinstance(name, str) or not name.endswith(f".{kind}"):
            raise CheckpointError(f"{index}: {shortened(repr(name))} given, names of .{kind} files accepted")
    try:
        return [member(index.parent, name) for name in sorted(set(listed.values()))]
    except InputError as error:
        raise CheckpointError(f"{index}: {error}") from error
