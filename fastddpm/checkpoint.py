"""Models on disk: a folder of `config.json`, `model.safetensors`, `schedule.json` and `sampler.json`.

`save_folder` writes one; `load` reads one, the model in the box, or a checkpoint of another library
(`fastddpm.formats`), and gives a ready `Sampler`. Everything written is JSON or safetensors; nothing read is
executed. Files are written under a temporary name and renamed together.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

import torch
from torch import Tensor

from fastddpm.checks import LONGEST, BadArgument, check_choice, fitted, image_shape
from fastddpm.files import WRITER, check_replaceable, made_folder, replacing, write_tensors
from fastddpm.formats import accelerate, diffusers, lerobot, refused
from fastddpm.formats.documents import StandIn, read_document
from fastddpm.formats.files import (
    WANTED,
    CheckpointError,
    check_bytes,
    check_finite,
    check_tensors,
    read_json,
    read_tensors,
)
from fastddpm.formats.loaded import Loaded, check_shape, known
from fastddpm.formats.registry import FORMATS as STATE_FORMATS
from fastddpm.formats.wrapped import chosen, networks, state_dicts
from fastddpm.inputs import Json
from fastddpm.interruption import postponed
from fastddpm.options import HubOptions, ModelOptions, SamplerOptions
from fastddpm.sampler import Sampler
from fastddpm.schedule import NoiseSchedule
from fastddpm.signatures import checked, in_words
from fastddpm.sources import FILES, located
from fastddpm.transfer import device_of
from fastddpm.unet import UNet, UNetConfig
from fastddpm.unet.inference import assemble

if TYPE_CHECKING:
    from typing_extensions import Unpack

T = TypeVar("T")
FORMATS = ("auto", *STATE_FORMATS)
Source = str | Path | Mapping[str, Any] | Sequence[Any]

__all__ = ["CheckpointError", "load", "read", "save_folder"]


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


@checked
def load(
    source: Source = "mnist",
    *,
    format: str = "auto",
    config: Mapping[str, object] | str | Path | None = None,
    ema: bool = True,
    variant: str | None = None,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
    **options: Unpack[ModelOptions],
) -> Sampler:
    """Reads a model into a sampler with the network at ``.model``.

    Args:
        source: a folder that :func:`save_folder` wrote, the run of a training, or ``"mnist"``, the model in
            the box; a file that a training script wrote, with a network of a library in docs/formats.md in
            it; a folder of diffusers or accelerate, or of a policy of LeRobot; a state dict or other document
            of any of them; or ``organisation/name`` of the Hugging Face Hub (extra ``hub``), if need be with
            a folder or file in it, ``organisation/name/model.pt``, and ``@revision``.
        format: whose network it is, one of `FORMATS`; ``auto`` tells them apart by their names of tensors
            and files.
        config: what a checkpoint of another library does not say, as a mapping or a JSON file (with or
            without // comments, such as the SR3 repository's): an error names what is missing. ``weights``
            in it picks one network of several, by the place that an error lists.
        ema: take the averaged weights where a checkpoint has both.
        variant: of a diffusers folder's weights, such as ``fp16``; None is those without one, or the only one
            there.
        device: where the network goes.
        dtype: of the network's weights: float32, float16 or bfloat16. The state stays float32. To keep
            float32 weights and compute in another precision: ``precision=``, an option of :class:`Sampler`.
        revision: on the Hub: a branch, tag or commit; None for its main branch.
        token: for the Hub: of an account; True for the one that was logged in with.
        cache_dir: where files of the Hub are kept; None for its own place, of HF_HOME and HF_HUB_CACHE.
        local_files_only: True asks the Hub for nothing, as does HF_HUB_OFFLINE=1: what is kept is used.
        **options: options of :class:`Sampler` that replace the checkpoint's defaults, which are those of the
            library: abarankab's DDPM is unclipped with sigma = sqrt(beta), SR3's is clipped to +-1, a
            diffusers folder has its scheduler's. A checkpoint's own ``shape`` is bounded; one given here is
            not.

    Raises:
        CheckpointError: naming the file, tensor or option and what is wrong with it.
        ValueError: an option that is not accepted.
    """
    if not isinstance(source, (str, Path, Mapping, list, tuple)):
        raise BadArgument("source", in_words(source), "a path, the name of a bundled model or a state dict")
    place, given = device_of(device), _configuration(config)
    if variant is not None:
        given["variant"] = variant
    shape = options.get("shape")
    if shape is not None and "model" not in given:
        given.setdefault("image_size", list(image_shape(shape)[-2:]))
    hub: HubOptions = {"revision": revision, "token": token, "cache_dir": cache_dir}
    hub["local_files_only"] = local_files_only
    loaded = read(source, format=format, config=given, ema=ema, method=options.get("method"), hub=hub)
    model = loaded.model.to(place, dtype).to(memory_format=torch.channels_last)
    try:
        if shape is None:
            check_shape(loaded)
        sampler = Sampler(model, loaded.schedule, **loaded.options)
    except (TypeError, ValueError, RuntimeError) as error:  # torch's own for the name of a device
        where = f"{Path(source) / 'sampler.json'}: " if isinstance(source, (str, Path)) else ""
        raise CheckpointError(f"{where}{fitted(str(error), LONGEST)}") from error
    return sampler.replace(**options) if options else sampler


def read(
    source: Source,
    *,
    format: str = "auto",
    config: Mapping[str, object] | None = None,
    ema: bool = True,
    method: str | None = None,
    hub: HubOptions | None = None,
) -> Loaded:
    """What is in a checkpoint: network, schedule and options of a sampler. Arguments as of :func:`load`."""
    check_choice("format", format, FORMATS)
    given = dict(config or {})
    if not isinstance(source, (str, Path)):
        return _read_document(source, "state dict", format, given, ema=ema, method=method, is_callers=True)
    variant = given.get("variant")
    path = located(source, ema=ema, variant=variant if isinstance(variant, str) else None, **(hub or {}))
    if not path.is_dir():
        return _read_document(read_document(path), str(path), format, given, ema=ema, method=method)
    if format == "auto" and lerobot.recognises(path):
        return lerobot.read(path, given)
    if format == "diffusers" or (format == "auto" and diffusers.recognises(path)):
        return diffusers.read(path, given, ema=ema, method=method)
    if accelerate.recognises(path):
        return _read_document(accelerate.read(path), str(path), format, given, ema=ema, method=method)
    if format not in ("auto", "fastddpm"):
        raise CheckpointError(f"{path}: a folder, a file that torch.save wrote is what {format} has")
    known(given, ("image_size",))
    model = _read_model(path)
    schedule = _parsed(path / "schedule.json", NoiseSchedule.from_dict)
    stored = cast("SamplerOptions", read_json(path / "sampler.json"))  # which `Sampler` checks
    return Loaded(model, schedule, stored)


def _read_document(
    document: object,
    where: str,
    format: str,
    given: Json,
    *,
    ema: bool,
    method: str | None,
    is_callers: bool = False,
) -> Loaded:
    """The network in what a file holds, or in an object of ``is_callers``, whose tensors are copied."""
    formats = STATE_FORMATS if format == "auto" else {format: STATE_FORMATS[format]}
    found = networks(document, formats)
    if not found:
        raise CheckpointError(_nothing_found(document, where, formats))
    for one in found:
        check_tensors({**one.named, **one.buffers}, where)
    one = chosen(document, found, ema=ema, weights=given.pop("weights", None), where=where)
    values = {id(value): value.detach() for value in (*one.state.values(), *one.named.values())}
    if is_callers:  # the network is not to change with what was given, nor the other way round
        values = {key: value.clone() for key, value in values.items()}
    state = {name: values[id(value)] for name, value in one.state.items()}
    named = {name: values[id(value)] for name, value in one.named.items()}
    if not is_callers:
        check_bytes(state, Path(where))
    if one.format == "diffusers":
        loaded = diffusers.read_state(state, given, method=method)
    else:
        loaded = formats[one.format].read(state, one.buffers, given)
    check_finite(loaded.model.state_dict(), where, named_as=named)
    return loaded


def _nothing_found(document: object, where: str, formats: Mapping[str, object]) -> str:
    """What a document without a network of these formats has instead."""
    held = list(document.values()) if isinstance(document, Mapping) else [document]
    if any(isinstance(value, (StandIn, type)) for value in held):
        return f"{where}: holds more than tensors; {WANTED}"
    if not isinstance(document, (Mapping, list, tuple)):
        return f"{where}: holds {type(document).__name__}, a state dict accepted"
    tensors: list[dict[str, Tensor]] = [value for _, value in state_dicts(document)]
    if isinstance(document, Mapping) and all(isinstance(value, Tensor) for value in held) and held:
        tensors = tensors or [dict(document)]
    if not tensors:
        keys = ", ".join(repr(key)[:40] for key in list(document)[:8])
        return f"{where}: a state dict of tensors accepted; it has the entries {keys or 'none'}"
    foreign = refused.name_of(tensors)
    if foreign is not None:
        return f"{where}: {foreign}"
    names = ", ".join(str(name)[:60] for name in list(sorted(tensors, key=len)[-1])[:3])
    return (
        f"state dict: of none of {', '.join(formats)}; its first names are {names}. For another network: "
        "fastddpm.Sampler(model, schedule) with the model built by its own code"
    )


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
