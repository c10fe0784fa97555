"""A model folder: `config.json`, `model.safetensors`, `schedule.json` and `sampler.json`, written and read.

Everything written is JSON or safetensors. Files are written under a temporary name and renamed together.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import TypeVar, cast

from fastddpm.checks import BadArgument
from fastddpm.files import WRITER, check_replaceable, made_folder, replacing, write_tensors
from fastddpm.formats.files import CheckpointError, check_finite, read_json, read_tensors
from fastddpm.formats.loaded import Loaded
from fastddpm.inputs import Json
from fastddpm.interruption import postponed
from fastddpm.options import SamplerOptions
from fastddpm.sampler import Sampler
from fastddpm.schedule import NoiseSchedule
from fastddpm.signatures import checked
from fastddpm.sources import FILES
from fastddpm.unet import UNet, UNetConfig
from fastddpm.unet.inference import assemble

T = TypeVar("T")


@checked
def save_folder(
    folder: str | Path, model: UNet, schedule: NoiseSchedule, sampler: SamplerOptions | None = None
) -> Path:
    """Writes a model folder. One of the same network, schedule and options gets its weights at one stroke.

    Args:
        folder: made if need be; an earlier model folder is replaced, other files in it stay.
        model: the network, weights as they are.
        schedule: the schedule it was trained with.
        sampler: default options of :class:`Sampler` (JSON values), such as ``method`` or ``shape``.

    Returns:
        The folder.

    Raises:
        ValueError: an option that is not accepted, or is no JSON value; a folder with a `config.json` or the
            like that is of something else. The folder is as it was then, and after an error while the files
            are written.
        OSError: it cannot be written.
    """
    folder = Path(folder)
    options: SamplerOptions = {**(sampler or {})}
    Sampler(model, schedule, **options)  # an option that cannot be read back fails here
    documents = {
        "config.json": _as_json(model.config.to_dict()),
        "sampler.json": _as_json(options),
        "schedule.json": _as_json(schedule.to_dict()),
    }
    check_replaceable(folder, FILES, folder / "model.safetensors")
    # All four are written before the first takes its name. They take it in reverse, config.json last, and the
    # old config.json goes before that: whatever ends the process in between leaves a folder that `load`
    # refuses, never the weights of one model with the schedule or the options of another.
    with ExitStack() as stack:
        stack.enter_context(made_folder(folder))
        if not _differ(folder, documents):
            documents = {}  # weights alone: whoever reads the folder meanwhile has one model or the other
        for name, text in documents.items():
            stack.enter_context(replacing(folder / name)).write_text(text)
        weights = stack.enter_context(replacing(folder / "model.safetensors"))
        write_tensors(weights, model.state_dict(), format=WRITER)
        with postponed():
            if documents:
                (folder / "config.json").unlink(missing_ok=True)
            stack.close()
    return folder


def _differ(folder: Path, documents: Mapping[str, str]) -> bool:
    """Whether a folder holds other documents than these, or not all of them."""
    try:
        return any((folder / name).read_text() != text for name, text in documents.items())
    except (OSError, ValueError):
        return True


def _as_json(document: Mapping[str, object]) -> str:
    for name, value in document.items():
        try:
            json.dumps(value, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise BadArgument(name, repr(value), "a value that JSON can hold") from error
    return json.dumps(document, indent=2) + "\n"


def read_folder(path: Path) -> Loaded:
    """What is in a model folder.

    Raises:
        CheckpointError: naming the file and what is wrong with it.
    """
    model = _read_model(path)
    schedule = _parsed(path / "schedule.json", NoiseSchedule.from_dict)
    stored = cast("SamplerOptions", read_json(path / "sampler.json"))  # which `Sampler` checks
    return Loaded(model, schedule, stored)


def _read_model(path: Path) -> UNet:
    config = _parsed(path / "config.json", UNetConfig.from_dict)
    weights = path / "model.safetensors"
    state = read_tensors(weights)
    check_finite(state, str(weights))
    try:
        return assemble(config, state)
    except ValueError as error:
        raise CheckpointError(f"{weights}: {error} from config.json") from error


def _parsed(path: Path, parse: Callable[[Json], T]) -> T:
    try:
        return parse(read_json(path))
    except CheckpointError:
        raise
    except (TypeError, ValueError, KeyError, ArithmeticError) as error:
        raise CheckpointError(f"{path}: {error}") from error
