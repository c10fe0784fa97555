"""Models on disk: a folder of `config.json`, `model.safetensors`, `schedule.json` and `sampler.json`.

`save_folder` writes one, `load` reads one (or the model in the box) and gives a ready `Sampler`. Everything
is JSON or safetensors; nothing is unpickled. Files are written under a temporary name and renamed together.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from fastddpm.files import replacing
from fastddpm.sampler import Sampler
from fastddpm.schedule import NoiseSchedule
from fastddpm.unet import UNet, UNetConfig

ASSETS = Path(__file__).parent / "assets"
BUNDLED = ("mnist",)
FILES = ("config.json", "model.safetensors", "schedule.json", "sampler.json")


class CheckpointError(ValueError):
    """A model folder that is not there, not complete, or not what it says it is."""


def save_folder(
    folder: str | Path, model: UNet, schedule: NoiseSchedule, sampler: Mapping[str, Any] | None = None
) -> Path:
    """Writes a model folder.

    Args:
        folder: made if need be; files of the same names are replaced.
        model: the network, weights as they are.
        schedule: the schedule it was trained with.
        sampler: default options of :class:`Sampler` (JSON values), such as ``method`` or ``shape``.

    Returns:
        The folder.

    Raises:
        ValueError: an option that is not accepted, or is no JSON value. The folder is as it was then, and
            after an error while the files are written.
    """
    folder = Path(folder)
    options = dict(sampler or {})
    Sampler(model, schedule, **options)  # an option that cannot be read back fails here
    documents = {
        "config.json": _as_json(model.config.to_dict()),
        "sampler.json": _as_json(options),
        "schedule.json": _as_json(schedule.to_dict()),
    }
    state = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
    folder.mkdir(parents=True, exist_ok=True)
    # All four are written before the first takes its name. They take it in reverse, config.json last, and the
    # old config.json goes before that: whatever ends the process in between leaves a folder that `load`
    # refuses, never the weights of one model with the schedule or the options of another.
    with ExitStack() as stack:
        for name, text in documents.items():
            stack.enter_context(replacing(folder / name)).write_text(text)
        weights = stack.enter_context(replacing(folder / "model.safetensors"))
        save_file(state, weights, metadata={"format": "fastddpm"})
        (folder / "config.json").unlink(missing_ok=True)
    return folder


def _as_json(document: Mapping[str, Any]) -> str:
    for name, value in document.items():
        try:
            json.dumps(value, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{name}: {value!r} given, a value that JSON can hold accepted") from error
    return json.dumps(document, indent=2) + "\n"


def load(
    folder: str | Path = "mnist",
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    **options: Any,
) -> Sampler:
    """Reads a model folder into a sampler with the network at ``.model``.

    Args:
        folder: a folder that :func:`save_folder` wrote, or ``"mnist"``, the model in the box.
        device: where the network goes.
        dtype: of the network's weights: float32, float16 or bfloat16. The state stays float32.
        **options: options of :class:`Sampler` that replace the folder's defaults.

    Raises:
        CheckpointError: naming the file and what is wrong with it.
        ValueError: an option that is not accepted.
    """
    path = ASSETS / str(folder) if str(folder) in BUNDLED and not Path(folder).is_dir() else Path(folder)
    if not path.is_dir():
        raise CheckpointError(
            f"model folder {str(folder)!r}: not found; a folder with {', '.join(FILES)}, "
            f"or one of {', '.join(BUNDLED)} accepted"
        )
    model = _read_model(path)
    schedule = _parsed(path / "schedule.json", NoiseSchedule.from_dict)
    defaults = _read_json(path / "sampler.json")
    model = model.to(torch.device(device), dtype).to(memory_format=torch.channels_last)
    try:
        sampler = Sampler(model, schedule, **defaults)
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{path / 'sampler.json'}: {error}") from error
    return sampler.replace(**options) if options else sampler


def _read_model(path: Path) -> UNet:
    config = _parsed(path / "config.json", UNetConfig.from_dict)
    with torch.device("meta"):
        model = UNet(config)
    weights = path / "model.safetensors"
    try:
        state = load_file(weights)
    except FileNotFoundError:
        raise CheckpointError(f"{weights}: not found") from None
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{weights}: not a complete safetensors file ({error})") from error
    expected = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    given = {name: tuple(value.shape) for name, value in state.items()}
    for name in sorted(set(expected) | set(given)):
        if expected.get(name) != given.get(name):
            raise CheckpointError(
                f"{weights}: {name} has shape {given.get(name, 'none (missing)')}, "
                f"{expected.get(name, 'no such tensor')} expected from config.json"
            )
    model.load_state_dict(state, assign=True)
    return model.eval()


def _read_json(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(path.read_text())
    except FileNotFoundError:
        raise CheckpointError(f"{path}: not found") from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: not readable as JSON ({error})") from error
    if not isinstance(document, dict):
        raise CheckpointError(f"{path}: holds {type(document).__name__}, an object is expected")
    return document


def _parsed(path: Path, parse: Any) -> Any:
    try:
        return parse(_read_json(path))
    except CheckpointError:
        raise
    except (TypeError, ValueError, KeyError) as error:
        raise CheckpointError(f"{path}: {error}") from error
