"""Models on disk, whoever wrote them: a ready `Sampler` from a folder, a file or the name of a model.

`load` reads a model folder (`fastddpm.model_folder`), the model in the box, or a checkpoint of another
library (`fastddpm.formats`). Nothing read is executed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fastddpm.checks import LONGEST, BadArgument, check_choice, fitted, image_shape
from fastddpm.formats import accelerate, diffusers, lerobot, refused
from fastddpm.formats.documents import StandIn, read_document
from fastddpm.formats.files import (
    WANTED,
    CheckpointError,
    check_bytes,
    check_finite,
    check_tensors,
    read_json,
)
from fastddpm.formats.loaded import Loaded, check_shape, known
from fastddpm.formats.registry import FORMATS as STATE_FORMATS
from fastddpm.formats.wrapped import chosen, networks, state_dicts
from fastddpm.inputs import Json
from fastddpm.model_folder import read_folder
from fastddpm.options import HubOptions, ModelOptions
from fastddpm.sampler import Sampler
from fastddpm.signatures import checked, in_words
from fastddpm.sources import located
from fastddpm.transfer import device_of

if TYPE_CHECKING:
    from typing_extensions import Unpack

FORMATS = ("auto", *STATE_FORMATS)
Source = str | Path | Mapping[str, Any] | Sequence[Any]

__all__ = ["CheckpointError", "load", "read"]


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
        source: a folder that `fastddpm.save_folder` wrote, the run of a training, or ``"mnist"``, the model
            in the box; a file that a training script wrote, with a network of a library in docs/formats.md in
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
    return read_folder(path)


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
