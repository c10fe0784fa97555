"""Models on the Hugging Face Hub, by ``organisation/name``: the files that are needed, from its cache or new.

A model's folder, or a file of weights, which may be one of several or lie in a folder of the repository.
Nothing in a repository is executed; what is read of it is read as any other file of a stranger.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastddpm.checks import BadArgument, fitted
from fastddpm.extras import needed
from fastddpm.formats import diffusers, repository
from fastddpm.formats.files import CheckpointError
from fastddpm.options import HubOptions

if TYPE_CHECKING:
    from typing_extensions import Unpack

_NAME = r"[A-Za-z0-9][\w.-]{0,95}"
_REVISION = r"(?:@(?P<revision>[\w./-]{1,200}))?"
REPOSITORY = re.compile(rf"(?P<id>{_NAME}/{_NAME}){_REVISION}")
"""``organisation/name`` or ``organisation/name@revision``."""
SOURCE = re.compile(rf"(?P<id>{_NAME}/{_NAME})(?P<inside>(?:/{repository.PLACE}){{0,8}}){_REVISION}")
"""The same, or a file or folder in one: ``organisation/name/folder/model.pt@revision``."""


def names_repository(source: str | Path) -> bool:
    """Whether a source can be one on the Hub: ``a/b``, or in one, without a folder ``a`` here."""
    text = str(source)
    return SOURCE.fullmatch(text) is not None and not Path(text.partition("/")[0]).is_dir()


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
    """A folder in the Hub's cache with what `fastddpm.load` reads of a repository, or a file of weights.

    Args:
        source: ``organisation/name``, a place in it, and a revision after ``@``, if any.
        ema: as of `fastddpm.load`; of two networks the other one is not fetched.
        variant: likewise.
        **options: ``revision``: a branch, tag or commit; ``token``: of an account, True for the one that was
            logged in with, None for that where it is wanted; ``cache_dir``: None for the Hub's own, which
            HF_HOME and HF_HUB_CACHE say; ``local_files_only``: True asks nobody, as does HF_HUB_OFFLINE=1.

    Raises:
        CheckpointError: no such repository or revision, not for this account, not in the cache where nobody
            is to be asked, nothing of a model in it, or several files of weights.
        MissingExtra: huggingface-hub is not installed.
    """
    found = SOURCE.fullmatch(source)
    assert found is not None
    given: dict[str, Any] = {**options}
    if found["revision"] is not None:
        if given.get("revision") is not None:
            raise BadArgument("revision", f"{given['revision']!r} with {source!r}", "one revision")
        given["revision"] = found["revision"]
    hub = needed("huggingface_hub", by=f"{source!r}, not here but perhaps on the Hugging Face Hub")
    return _Repository(hub, source, found["id"], given).model(found["inside"].strip("/"), ema, variant)


class _Repository:
    """One revision of a repository.

    Args:
        hub: huggingface_hub.
        source: as it was named, for errors.
        id: ``organisation/name``.
        options: of `downloaded`.
    """

    def __init__(self, hub: Any, source: str, id: str, options: dict[str, Any]) -> None:
        self.hub, self.source, self.id, self.options = hub, source, id, options

    def model(self, inside: str, ema: bool, variant: str | None) -> Path:
        """What `fastddpm.load` reads of a place in it."""
        if inside.endswith(repository.SUFFIXES):
            return self.file(inside)
        documents = repository.documents(inside)
        folder = self.fetched(documents) / inside
        network = diffusers.network_of(folder, ema=ema) if diffusers.recognises(folder) else folder
        at = "/".join(part for part in (inside, "" if network == folder else network.name) if part)
        for patterns in repository.weights(at, variant):
            root = self.fetched([*documents, *patterns])
            if repository.is_model(folder, root / at):
                return folder
        place = self.only(inside)
        return self.file(place) if place.endswith(repository.SUFFIXES) else self.model(place, ema, variant)

    def file(self, name: str) -> Path:
        """One file of weights.

        Raises:
            CheckpointError: not there; lists those that are.
        """
        path = self.fetched([name]) / name
        if path.is_file():
            return path
        there = repository.listed(self.places(name.rpartition("/")[0]))
        raise CheckpointError(
            f"{self.source}: no such file in this repository, or in what the cache has of it where the Hub "
            f"is not asked; of weights there: {there}"
        )

    def only(self, inside: str) -> str:
        """The one model below a place that is none itself: a file or a folder.

        Raises:
            CheckpointError: none, or several: lists them.
        """
        places = self.places(inside)
        if len(places) == 1:
            return places[0]
        if not places:
            raise CheckpointError(
                f"{self.source}: no weights of a model in this repository, or in what the cache has of it "
                "where the Hub is not asked; another, or a way to the Hub, accepted"
            )
        revision = f"@{self.options['revision']}" if self.options.get("revision") else ""
        raise CheckpointError(
            f"{self.source}: several models in it ({repository.listed(places)}); one of them accepted, as "
            f"{self.id}/{places[0]}{revision}"
        )

    def places(self, inside: str) -> list[str]:
        """Files and folders of models below a place: in the repository, or if nobody answers in the cache."""
        names: list[str] = []
        if not self.options.get("local_files_only"):
            api = self.hub.HfApi(token=self.options.get("token"))
            with contextlib.suppress(Exception):  # of many kinds: `fetched` has said what is to be said
                names = api.list_repo_files(self.id, revision=self.options.get("revision"))
        if not names:
            folder = self.fetched(repository.NOTHING)
            names = [path.relative_to(folder).as_posix() for path in folder.rglob("*")]
        return repository.places(names, inside)

    def fetched(self, patterns: Sequence[str]) -> Path:
        """The folder in the cache, with all files of these patterns that can be had.

        Raises:
            CheckpointError: no such repository or revision, or a file of the cache that is gone.
        """
        try:
            folder = Path(self.hub.snapshot_download(self.id, allow_patterns=list(patterns), **self.options))
        except (OSError, ValueError, self.hub.errors.HfHubHTTPError) as error:
            # Where nobody can be asked, of files of the repository that were not fetched: others may do.
            there = getattr(error, "snapshot_path", None)
            if there is None:
                raise CheckpointError(f"{self.source}: {self._reason(error)}") from error
            folder = Path(there)
        gone = repository.gone(self.hub, folder, patterns)
        if gone is not None:
            raise CheckpointError(
                f"{self.source}: {gone} in the cache is a link to a file that is gone ({folder}); a way to "
                "the Hub, by which it is fetched again, accepted"
            )
        return folder

    def _reason(self, error: Exception) -> str:
        errors = self.hub.errors
        if isinstance(error, errors.GatedRepoError):
            return "a repository that asks for consent; the token of an account that has given it accepted"
        if isinstance(error, errors.RepositoryNotFoundError):
            return "not found here or on the Hugging Face Hub; a private repository needs token="
        if isinstance(error, errors.RevisionNotFoundError):
            return "no such revision; a branch, tag or commit of the repository accepted"
        if isinstance(error, errors.LocalEntryNotFoundError):
            kept = repository.kept(self.hub, self.id, self.options.get("cache_dir"))
            other = f"of what it has of this repository, {kept}, or" if kept else "another name, or"
            return (
                "not here, and not in the cache of the Hugging Face Hub, which was not asked or not reached; "
                f"{other} a way to the Hub accepted"
            )
        return f"not fetched from the Hugging Face Hub ({fitted(str(error), 120)})"
