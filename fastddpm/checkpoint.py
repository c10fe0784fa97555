"""Models on disk: a folder of `config.json`, `model.safetensors`, `schedule.json` and `sampler.json`.

`save_folder` writes one; `load` reads one, the model in the box, or a checkpoint of another library
(`fastddpm.formats`), and gives a ready `Sampler`. Everything written is JSON or safetensors; nothing read is
executed. Files are written under a temporary name and renamed together.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar, cast

import torch
from torch import Tensor

from fastddpm.checks import BadArgument, check_choice
from fastddpm.files import WRITER, check_replaceable, made_folder, replacing, write_tensors
from fastddpm.formats import abarankab, diffusers, sr3
from fastddpm.formats.files import CheckpointError, check_finite, read_json, read_tensors, tensors_of
from fastddpm.formats.loaded import SHARED, Loaded, ask, groups_asked, known, network, schedule_of, square
from fastddpm.inputs import Json
from fastddpm.interruption import postponed
from fastddpm.options import ModelOptions, SamplerOptions
from fastddpm.sampler import Sampler
from fastddpm.schedule import NoiseSchedule
from fastddpm.unet import UNet, UNetConfig
from fastddpm.unet.inference import assemble

if TYPE_CHECKING:
    from typing_extensions import Unpack

T = TypeVar("T")
ASSETS = Path(__file__).parent / "assets"
BUNDLED = ("mnist", "mnist_sr", "mnist_deblur", "photo_sr")
FILES = ("config.json", "model.safetensors", "schedule.json", "sampler.json")
FORMATS = ("auto", "abarankab", "sr3", "diffusers", "fastddpm")
Source = str | Path | Mapping[str, Tensor]

__all__ = ["CheckpointError", "load", "read", "save_folder"]


def save_folder(
    folder: str | Path, model: UNet, schedule: NoiseSchedule, sampler: SamplerOptions | None = None
) -> Path:
    """Writes a model folder.

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
        for name, text in documents.items():
            stack.enter_context(replacing(folder / name)).write_text(text)
        weights = stack.enter_context(replacing(folder / "model.safetensors"))
        write_tensors(weights, model.state_dict(), format=WRITER)
        with postponed():
            (folder / "config.json").unlink(missing_ok=True)
            stack.close()
    return folder


def _as_json(document: Mapping[str, object]) -> str:
    for name, value in document.items():
        try:
            json.dumps(value, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise BadArgument(name, repr(value), "a value that JSON can hold") from error
    return json.dumps(document, indent=2) + "\n"


def load(
    source: Source = "mnist",
    *,
    format: str = "auto",
    config: Mapping[str, object] | str | Path | None = None,
    ema: bool = True,
    variant: str | None = None,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    **options: Unpack[ModelOptions],
) -> Sampler:
    """Reads a model into a sampler with the network at ``.model``.

    Args:
        source: a folder that :func:`save_folder` wrote, or ``"mnist"``, the model in the box; a ``.pth`` or
            ``.safetensors`` file of abarankab/DDPM or the SR3 repository; a folder of diffusers; or a state
            dict of any of them.
        format: ``abarankab``, ``sr3``, ``diffusers`` or ``fastddpm``; ``auto`` tells them apart by their
            names of tensors and files.
        config: what a checkpoint of another library does not say, as a mapping or a JSON file (with or
            without // comments, such as the SR3 repository's): an error names what is missing.
        ema: take the averaged weights where a checkpoint has both.
        variant: of a diffusers folder's weights, such as ``fp16``; None is those without one, or the only one
            there.
        device: where the network goes.
        dtype: of the network's weights: float32, float16 or bfloat16. The state stays float32. To keep
            float32 weights and compute in another precision: ``precision=``, an option of :class:`Sampler`.
        **options: options of :class:`Sampler` that replace the checkpoint's defaults, which are those of the
            library: abarankab's DDPM is unclipped with sigma = sqrt(beta), SR3's is clipped to +-1, a
            diffusers folder has its scheduler's.

    Raises:
        CheckpointError: naming the file, tensor or option and what is wrong with it.
        ValueError: an option that is not accepted.
    """
    given = _configuration(config)
    if variant is not None:
        given["variant"] = variant
    shape = options.get("shape")
    if shape is not None and "model" not in given:
        given.setdefault("image_size", list(shape)[-2:])
    loaded = read(source, format=format, config=given, ema=ema, method=options.get("method"))
    model = loaded.model.to(torch.device(device), dtype).to(memory_format=torch.channels_last)
    try:
        sampler = Sampler(model, loaded.schedule, **loaded.options)
    except (TypeError, ValueError) as error:
        where = f"{Path(source) / 'sampler.json'}: " if isinstance(source, (str, Path)) else ""
        raise CheckpointError(f"{where}{error}") from error
    return sampler.replace(**options) if options else sampler


def read(
    source: Source,
    *,
    format: str = "auto",
    config: Mapping[str, object] | None = None,
    ema: bool = True,
    method: str | None = None,
) -> Loaded:
    """What is in a checkpoint: network, schedule and options of a sampler. Arguments as of :func:`load`."""
    check_choice("format", format, FORMATS)
    given = dict(config or {})
    if isinstance(source, Mapping):
        # Copies: the network is not to change with what was given, nor the other way round.
        state = {name: value.clone() for name, value in tensors_of(source, "state dict").items()}
        return _read_state(state, "state dict", format, given, ema=ema, method=method)
    path = _path(source)
    if not path.is_dir():
        return _read_state(read_tensors(path), str(path), format, given, ema=ema, method=method)
    if format in ("abarankab", "sr3"):
        raise CheckpointError(f"{path}: a folder, a file that torch.save wrote is what {format} has")
    if format == "diffusers" or (format == "auto" and diffusers.recognises(path)):
        return diffusers.read(path, given, ema=ema, method=method)
    known(given, ("image_size",))
    model = _read_model(path)
    schedule = _parsed(path / "schedule.json", NoiseSchedule.from_dict)
    stored = cast("SamplerOptions", read_json(path / "sampler.json"))  # which `Sampler` checks
    return Loaded(model, schedule, stored)


def _path(source: str | Path) -> Path:
    """Where a checkpoint is: a bundled model, a file or folder, or the SR3 repository's name of a state."""
    path = Path(source)
    if str(source) in BUNDLED and not path.is_dir():
        return ASSETS / str(source)
    if path.exists():
        return path
    if path.name and path.with_name(f"{path.name}_gen.pth").is_file():
        return path.with_name(f"{path.name}_gen.pth")
    raise CheckpointError(
        f"model folder {str(source)!r}: not found; a folder with {', '.join(FILES)}, a folder of diffusers, "
        f"a .pth or .safetensors file, or one of {', '.join(BUNDLED)} accepted"
    )


def _read_state(
    state: dict[str, Tensor], where: str, format: str, given: Json, *, ema: bool, method: str | None
) -> Loaded:
    if format == "auto":
        format = _format_of(state)
    if format == "abarankab":
        loaded = abarankab.read(state, given, ema=ema)
    elif format == "sr3":
        loaded = sr3.read(state, given)
    elif format == "diffusers":
        loaded = diffusers.read_state(state, given, method=method)
    else:
        loaded = _read_ours(state, given)
    check_finite(loaded.model.state_dict(), where, named_as=state)
    return loaded


def _format_of(state: Mapping[str, Tensor]) -> str:
    checks: dict[str, Callable[[Mapping[str, Tensor]], bool]] = {
        "abarankab": abarankab.recognises,
        "sr3": sr3.recognises,
        "diffusers": diffusers.recognises_state,
        "fastddpm": lambda names: "conv_in.weight" in names and "down.0.conv1.weight" in names,
    }
    for name, recognises in checks.items():
        if recognises(state):
            return name
    names = ", ".join(list(state)[:5])
    raise CheckpointError(
        f"state dict: of none of {', '.join(checks)}; its first names are {names}. For another network: "
        "fastddpm.Sampler(model, schedule) with the model built by its own code"
    )


def _read_ours(state: dict[str, Tensor], given: Json) -> Loaded:
    """A state dict of our UNet without its folder; the rest comes from ``given``."""
    known(given, (*UNetConfig().to_dict(), *SHARED))
    asked = {**groups_asked(state), "activation": "silu, relu, gelu or mish"}
    asked |= {"image_size": "a side in pixels or (H, W)", "schedule": "the content of a schedule.json"}
    ask(given, asked, "a state dict")
    schedule, (height, width) = schedule_of(given.pop("schedule")), square(given.pop("image_size"))
    unet = network(state, given, {})
    return Loaded(unet, schedule, {"shape": [unet.config.image_channels, height, width]})


def _configuration(config: Mapping[str, object] | str | Path | None) -> Json:
    if config is None:
        return {}
    if isinstance(config, (str, Path)):
        return read_json(Path(config))
    if not isinstance(config, Mapping):
        raise BadArgument("config", type(config).__name__, "a mapping or a JSON file")
    return dict(config)


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
