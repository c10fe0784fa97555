"""Files in a repository of the Hugging Face Hub: which say what a model is, which are its weights."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from fastddpm.checks import shortened
from fastddpm.formats import accelerate, diffusers

DOCUMENTS = (
    *(
        "config.json",
        "schedule.json",
        "sampler.json",
        "task.json",
        "model_index.json",
        "scheduler_config.json",
    ),
    *("scheduler/*.json", "unet/*.json", "unet_ema/*.json"),
    *("policy_preprocessor*", "policy_postprocessor*"),
)
"""What says what a model is: all of it is small."""
WEIGHTS = ("model", diffusers.WEIGHTS)
"""What files of weights begin with, in our folders and in diffusers'."""
SUFFIXES = (".safetensors", ".pt", ".pth", ".ckpt", ".bin")
"""Of files that training scripts write."""
PLACE = r"\w[\w .+=-]{0,199}"
"""The name of a file or folder in a repository: no pattern, and no way out of it."""
NOTHING = ("\0",)
"""A pattern of no file."""
_OTHER = ("opt", "optim", "scheduler", "random_states", "training_args", "scaler", "policy_")
"""What other files of training scripts begin with; the SR3 repository's optimiser ends with ``_opt.pth``."""
_SHOWN = 5


def documents(inside: str) -> list[str]:
    """Patterns of documents at a place, and of those of the run or pipeline that it is a part of."""
    parts = inside.split("/") if inside else []
    places = ["".join(f"{part}/" for part in parts[:count]) for count in range(len(parts) + 1)]
    return [f"{place}{name}" for place in places for name in DOCUMENTS]


def weights(inside: str, variant: str | None) -> Iterator[list[str]]:
    """Patterns of weights, the best first: of the variant as safetensors, or pickled; then of any."""
    place = f"{inside}/" if inside else ""
    own = "" if variant is None else f".{variant}"
    indices = [f"{place}{name}*.index*.json" for name in WEIGHTS]
    for kind in ("safetensors", "bin"):
        yield [*indices, *(f"{place}{name}{end}" for name in WEIGHTS for end in _ends(own, kind))]
    for kind in ("safetensors", "bin"):
        yield [*indices, *(f"{place}{name}*.{kind}" for name in WEIGHTS)]


def _ends(variant: str, kind: str) -> list[str]:
    """Of a file of a variant and of its shards, as diffusers named these at different times."""
    number = "-[0-9][0-9][0-9][0-9][0-9]-of-[0-9][0-9][0-9][0-9][0-9]"
    return [f"{variant}.{kind}", f"{variant}{number}.{kind}", f"{number}{variant}.{kind}"]


def is_model(folder: Path, network: Path) -> bool:
    """Whether a folder says what model it is, or is accelerate's, and has weights of its network."""
    files = (path for kind in ("safetensors", "bin") for path in network.glob(f"*.{kind}"))
    if not any(path.name.startswith(WEIGHTS) for path in files):
        return False
    return (folder / "config.json").exists() or diffusers.recognises(folder) or accelerate.recognises(folder)


def places(names: Iterable[str], inside: str) -> list[str]:
    """Files of weights below a place, and in the place of those of a model's folder the folder.

    The SR3 repository's optimiser, and others', are left out.
    """
    start = f"{inside}/" if inside else ""
    found: dict[str, None] = {}
    for name in sorted(names):
        folder, _, last = name.rpartition("/")
        is_other = last.startswith(_OTHER) or last.rpartition(".")[0].endswith("_opt")
        is_plain = re.fullmatch(rf"(?:{PLACE}/)*{PLACE}", name) is not None
        if not is_plain or not name.startswith(start) or not last.endswith(SUFFIXES) or is_other:
            continue
        pipeline, _, part = folder.rpartition("/")
        if part in ("unet", "unet_ema") and pipeline.startswith(start) and pipeline != inside:
            folder = pipeline
        is_folder = last.startswith((diffusers.WEIGHTS, "model.safetensors")) and folder.startswith(start)
        found[folder if is_folder and folder != inside else name] = None
    return list(found)


def listed(names: Sequence[str]) -> str:
    """Names in an error."""
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return (", ".join(shortened(name) for name in names[:_SHOWN]) or "none") + more


def gone(hub: Any, folder: Path, patterns: Sequence[str]) -> str | None:
    """A file of these patterns whose link in the cache leads to nothing."""
    broken = (path for path in folder.rglob("*") if path.is_symlink() and not path.exists())
    names = [path.relative_to(folder).as_posix() for path in broken]
    return next(iter(hub.utils.filter_repo_objects(names, allow_patterns=list(patterns))), None)


def kept(hub: Any, id: str, cache_dir: str | Path | None) -> str:
    """The branches and tags of a repository that the cache has, or the commits; empty without any."""
    cache = Path(cache_dir or hub.constants.HF_HUB_CACHE) / f"models--{id.replace('/', '--')}"
    refs = [
        path.relative_to(cache / "refs") for path in sorted((cache / "refs").rglob("*")) if path.is_file()
    ]
    commits = sorted(os.listdir(cache / "snapshots")) if (cache / "snapshots").is_dir() else []
    names = [ref.as_posix() for ref in refs] or commits
    return listed(names) if names else ""
