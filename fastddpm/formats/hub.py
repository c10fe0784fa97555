"""Models on the Hugging Face Hub, by ``organisation/name``: the files that are needed, from its cache or new.

Weights as safetensors where there are any. Nothing in a repository is executed; what is read of it is read as
any other file of a stranger.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastddpm.checks import BadArgument, fitted
from fastddpm.extras import needed
from fastddpm.formats import diffusers
from fastddpm.formats.files import CheckpointError
from fastddpm.options import HubOptions

if TYPE_CHECKING:
    from typing_extensions import Unpack

_NAME = r"[A-Za-z0-9][\w.-]{0,95}"
REPOSITORY = re.compile(rf"(?P<id>{_NAME}/{_NAME})(?:@(?P<revision>[\w./-]{{1,200}}))?")
"""``organisation/name`` or ``organisation/name@revision``."""
DOCUMENTS = (
    *("config.json", "schedule.json", "sampler.json", "task.json", "model_index.json"),
    *("scheduler/*.json", "unet/*.json", "unet_ema/*.json"),
    *("policy_preprocessor*", "policy_postprocessor*"),
)
"""What says what a model is: all of it is small."""
WEIGHTS = ("model", diffusers.WEIGHTS)
"""What files of weights begin with, in our folders and in diffusers'."""


def names_repository(source: str | Path) -> bool:
    """Whether a source can be one on the Hub: ``a/b`` without a folder ``a`` here, where it is a path."""
    text = str(source)
    return REPOSITORY.fullmatch(text) is not None and not Path(text).parent.is_dir()


def check_unasked(source: str | Path, **options: Unpack[HubOptions]) -> None:
    """Refuses options of the Hub for what is here.

    Raises:
        ValueError: naming the first that was given.
    """
    for name, value in options.items():
        if value is not None and value is not False:
            raise BadArgument(name, f"one for {str(source)!r}, which is not on the Hub,", "None")


def downloaded(
    source: str, *, ema: bool = True, variant: str | None = None, **options: Unpack[HubOptions]
) -> Path:
    """The folder of a repository in the Hub's cache, with what `fastddpm.load` reads of it.

    Args:
        source: ``organisation/name``, and a revision after ``@``, if any.
        ema: as of `fastddpm.load`; of two networks the other one is not fetched.
        variant: likewise.
        **options: ``revision``: a branch, tag or commit; ``token``: of an account, True for the one that was
            logged in with, None for that where it is wanted; ``cache_dir``: None for the Hub's own, which
            HF_HOME and HF_HUB_CACHE say; ``local_files_only``: True asks nobody, as does HF_HUB_OFFLINE=1.

    Raises:
        CheckpointError: no such repository or revision, not for this account, not in the cache where nobody
            is to be asked, or nothing of a model in it.
        MissingExtra: huggingface-hub is not installed.
    """
    found = REPOSITORY.fullmatch(source)
    assert found is not None
    given: dict[str, Any] = {**options}
    if found["revision"] is not None:
        if given.get("revision") is not None:
            raise BadArgument("revision", f"{given['revision']!r} with {source!r}", "one revision")
        given["revision"] = found["revision"]
    hub = needed("huggingface_hub", by=f"{source!r} of the Hugging Face Hub")

    def fetched(patterns: Sequence[str]) -> Path:
        try:
            return Path(hub.snapshot_download(found["id"], allow_patterns=list(patterns), **given))
        except (OSError, ValueError, hub.errors.HfHubHTTPError) as error:
            raise CheckpointError(f"{source}: {_reason(hub, error)}") from error

    folder = fetched(DOCUMENTS)
    network = diffusers.network_of(folder, ema=ema) if diffusers.recognises(folder) else folder
    inside = "" if network == folder else f"{network.name}/"
    for patterns in _of_weights(inside, variant):
        folder = fetched([*DOCUMENTS, *patterns])
        if _has_weights(folder / inside):
            return folder
    raise CheckpointError(f"{source}: no weights of a model in this repository or in the cache")


def _of_weights(inside: str, variant: str | None) -> Iterator[list[str]]:
    """Patterns of weights, those that are best first: of the variant, of any, and only then pickled ones."""
    kinds = "" if variant is None else f".{variant}"
    indices = [f"{inside}{name}*.index*.json" for name in WEIGHTS]
    for ends in ((f"{kinds}.safetensors", f"-*{kinds}.safetensors"), ("*.safetensors",), ("*.bin",)):
        yield [*indices, *(f"{inside}{name}{end}" for name in WEIGHTS for end in ends)]


def _has_weights(folder: Path) -> bool:
    files = (path for kind in ("safetensors", "bin") for path in folder.glob(f"*.{kind}"))
    return any(path.name.startswith(WEIGHTS) for path in files)


def _reason(hub: Any, error: Exception) -> str:
    errors = hub.errors
    if isinstance(error, errors.GatedRepoError):
        return "a repository that asks for consent; the token of an account that has given it accepted"
    if isinstance(error, errors.RepositoryNotFoundError):
        return "not found here or on the Hugging Face Hub; a private repository needs token="
    if isinstance(error, errors.RevisionNotFoundError):
        return "no such revision; a branch, tag or commit of the repository accepted"
    if isinstance(error, errors.LocalEntryNotFoundError):
        return "not here, and not in the cache of the Hugging Face Hub, which was not asked or not reached"
    return f"not fetched from the Hugging Face Hub ({fitted(str(error), 120)})"
