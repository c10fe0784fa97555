"""A folder as diffusers writes it: which parts a pipeline has, and the files of its network.

Source: diffusers 0.42.1, pipelines/pipeline_utils.py, models/modeling_utils.py, utils/hub_utils.py; the
names of sharded variants also as 0.25 to 0.30 wrote them.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from fastddpm.checks import shortened
from fastddpm.formats.files import CheckpointError, ConfigError, check_finite, read_json, read_tensors, shards
from fastddpm.inputs import Json
from fastddpm.unet.diffusers_classes import is_coder

INDEX = "model_index.json"
WEIGHTS = "diffusion_pytorch_model"
NETWORKS = ("unet_ema", "unet")
"""Folders of a network: `checkpoint-500/` of the training scripts has both."""
_CODERS = ("vae", "vqvae", "movq")
_LATENT = re.compile("LDM|Latent|StableDiffusion")
_DRAWS_LATENTS = (
    "which draws latents; a pipeline of pixels accepted (diffusers' own draws its pictures, and "
    "fastddpm.Sampler(unet, schedule) the latents)"
)
_FILE = re.compile(
    rf"{WEIGHTS}(?:\.([^.]+))?\.(safetensors|bin)(\.index\.json|\.([^.]+)\.index\.json|\.index\.([^.]+)\.json)?"
)
_SHARD = re.compile(r"-\d{5}-of-\d{5}$")
_SHOWN = 5


@dataclass(frozen=True)
class Parts:
    """Where a folder's parts are.

    Attributes:
        network: the folder of its network.
        scheduler: the file of its scheduler's configuration, or None.
        classes: of the two, as ``model_index.json`` names them; empty without one.
    """

    network: Path
    scheduler: Path | None
    classes: dict[str, str]


def is_folder(folder: Path) -> bool:
    """Whether a folder is a pipeline, a training checkpoint, or a model of diffusers."""
    if (folder / INDEX).is_file() or any((folder / name / "config.json").is_file() for name in NETWORKS):
        return True
    path = folder / "config.json"
    try:
        return path.is_file() and "_class_name" in read_json(path)
    except CheckpointError:
        return False


def parts(folder: Path, *, ema: bool) -> Parts:
    """Where the parts of a folder are, ``unet_ema`` before ``unet`` if ``ema``.

    The scheduler is the folder's own, or that of the run or pipeline that it is a part of.

    Raises:
        CheckpointError: a pipeline that draws latents, or a part of one; a pipeline that has other parts than
            a network and a scheduler.
    """
    path = folder / INDEX
    names = NETWORKS if ema else NETWORKS[::-1]
    network = next((folder / name for name in names if (folder / name).is_dir()), folder)
    if path.is_file():
        classes, wholes = _classes(path), []
    else:
        classes, wholes = {}, _wholes(folder, is_network=network == folder)
        for whole in (folder, *wholes):
            _check_pixels(whole)
    places = (folder / "scheduler", folder, *(whole / "scheduler" for whole in wholes))
    files = (place / "scheduler_config.json" for place in places)
    return Parts(network, next((file for file in files if file.is_file()), None), classes)


def _wholes(folder: Path, *, is_network: bool) -> list[Path]:
    """What a folder without an index may be part of: the run of ``checkpoint-500``, and of ``unet`` there."""
    place = Path(os.path.abspath(folder))
    if not is_network:
        return list(place.parents[:1])
    return list(place.parents[:2]) if place.name in NETWORKS else []


def _check_pixels(folder: Path) -> None:
    """CheckpointError where a folder has a coder, or the index of a pipeline with one."""
    path = folder / INDEX
    words = _latent(read_json(path)) if path.is_file() else None
    if words is not None:
        raise CheckpointError(f"{path}: {words} given, {_DRAWS_LATENTS}")
    coder = next((name for name in _CODERS if (folder / name).is_dir()), None)
    if coder is not None:
        raise CheckpointError(f"{folder / coder}: a coder beside the network given, {_DRAWS_LATENTS}")


def _latent(index: Json) -> str | None:
    """What of an index says that the pipeline draws latents; None where nothing does."""
    pipeline = index.get("_class_name")
    words = (value[-1] for value in index.values() if isinstance(value, list) and value)
    coder = next((word for word in words if isinstance(word, str) and is_coder(word)), None)
    if coder is None and not (isinstance(pipeline, str) and _LATENT.match(pipeline)):
        return None
    return f"{shortened(repr(pipeline))}" + (f" with a {shortened(coder)}" if coder else "")


def _classes(path: Path) -> dict[str, str]:
    """The classes of a pipeline's network and scheduler."""
    index = read_json(path)
    pairs = {
        name: value for name, value in index.items() if isinstance(value, list) and value != [None, None]
    }
    for name, value in pairs.items():
        if len(value) != 2 or not all(isinstance(word, str) for word in value):
            given = f"{shortened(name)}={shortened(repr(value))}"
            raise CheckpointError(f"{path}: {given} given, [library, class] accepted")
    classes = {name: value[1] for name, value in pairs.items()}
    pipeline, words = index.get("_class_name"), _latent(index)
    if words is not None:
        raise CheckpointError(f"{path}: {words} given, {_DRAWS_LATENTS}")
    for name, kind in classes.items():
        if name not in ("unet", "scheduler"):
            given = f"{shortened(repr(pipeline))} with {shortened(name)} ({shortened(kind)})"
            raise CheckpointError(
                f"{path}: {given} given, a unet and a scheduler accepted; its unet's folder alone is read too"
            )
    if "unet" not in classes:
        raise CheckpointError(
            f"{path}: {shortened(repr(pipeline))} without a unet given, one with it accepted"
        )
    return classes


class WeightsFile(NamedTuple):
    """A file of weights, or an index of several: ``kind`` is ``safetensors`` or ``bin``."""

    name: str
    variant: str | None
    kind: str
    is_index: bool


def read_weights(folder: Path, variant: str | None = None) -> dict[str, Tensor]:
    """The state dict of a network's folder.

    Args:
        folder: with ``diffusion_pytorch_model.safetensors`` or ``.bin``, or an index of its shards.
        variant: the word in the names of files that ``save_pretrained(variant=...)`` wrote; None is the files
            without one, or the only variant there.

    Raises:
        CheckpointError: no such file, which lists those that are there; an index or a file that is damaged;
            NaN or infinity among the weights.
    """
    chosen = _chosen(folder, variant)
    files = shards(folder / chosen.name, chosen.kind) if chosen.is_index else [folder / chosen.name]
    state: dict[str, Tensor] = {}
    for file in files:
        part = read_tensors(file)
        check_finite(part, str(file))
        twice = next((name for name in part if name in state), None)
        if twice is not None:
            raise CheckpointError(f"{file}: {shortened(twice)} given, which another shard has; one accepted")
        state |= part
    return state


def _chosen(folder: Path, variant: str | None) -> WeightsFile:
    """The file to read: shards before one file, safetensors before what `torch.save` wrote."""
    try:
        names = sorted(os.listdir(folder))
    except OSError as error:
        raise CheckpointError(f"{folder}: cannot be read ({error.strerror})") from error
    files = list(_weights_files(names))
    variants = sorted({file.variant or "" for file in files})
    if variant is None and variants and variants[0] and len(variants) > 1:
        words = " or ".join(f'"{name}"' for name in variants[:_SHOWN])
        raise ConfigError(f"variant not given, and {folder} has several; variant={shortened(words)} accepted")
    wanted = variant if variant is not None or not files else variants[0] or None
    fitting = [file for file in files if file.variant == wanted]
    if not fitting:
        others = [name for name in names if name.endswith((".safetensors", ".bin", ".pt", ".pth", ".ckpt"))]
        found = shortened(", ".join([file.name for file in files] or others) or "no file of weights")
        middle = f".{shortened(str(variant))}" if variant is not None else ""
        raise CheckpointError(
            f"{folder / WEIGHTS}{middle}.safetensors: not found, nor .bin; there is {found}"
        )
    return min(fitting, key=lambda file: (file.kind == "bin", not file.is_index, file.name))


def _weights_files(names: list[str]) -> Iterator[WeightsFile]:
    for name in names:
        match = _FILE.fullmatch(name)
        if match and not _SHARD.search(match[1] or ""):
            yield WeightsFile(name, match[1] or match[4] or match[5], match[2], match[3] is not None)
