"""`manifest.json`: what a folder of shards holds, with checksums, and what it was drawn with.

While a job runs, every finished shard has a record of its own in `records/`, written after the shard, so that
no two processes write one file. When all shards are there the records go into the manifest.
"""

from __future__ import annotations

import json
import textwrap
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TypedDict

from fastddpm.checks import BadArgument, whole
from fastddpm.files import replacing, write_json
from fastddpm.inputs import Json, member, read_json
from fastddpm.jobs.errors import OtherSettingsError
from fastddpm.jobs.shards import digest
from fastddpm.locks import LOCK
from fastddpm.temporaries import is_temporary

MANIFEST, RECORDS = "manifest.json", "records"
LONGEST_VALUE = 60


class Record(TypedDict):
    """What is written down of a shard."""

    name: str
    images: int
    bytes: int
    sha256: str
    made_on: str


def check_place(folder: Path) -> None:
    """Refuses a folder that holds something else than a job.

    Raises:
        ValueError: naming what is there. Hidden files count.
    """
    if not folder.is_dir() or (folder / MANIFEST).exists():
        return
    names = sorted(path.name for path in folder.iterdir() if path.name != LOCK and not is_temporary(path))
    if names:
        raise BadArgument(
            "outdir",
            f"{str(folder)!r}, which holds {names[0]} and no {MANIFEST},",
            "a new folder, an empty one, or one of the same job,",
        )


def open_manifest(folder: Path, settings: Mapping[str, object]) -> None:
    """Begins a job's manifest, or finds that it is one of the same job.

    Args:
        folder: empty, or of a job.
        settings: everything that its files depend on, as JSON values.

    Raises:
        OtherSettingsError: a job with other settings; the first that differs is named.
        ValueError: a manifest that cannot be read.
        OSError: a folder that cannot be written.
    """
    if (folder / MANIFEST).exists():
        found = read_manifest(folder)["settings"]
        if found != json.loads(json.dumps(settings)):
            raise OtherSettingsError(
                "outdir",
                f"{str(folder)!r}, which holds a job with {_difference(found, settings)},",
                "the same settings or another folder",
            )
    else:
        _write(folder, {"settings": settings})
    (folder / RECORDS).mkdir(exist_ok=True)


def read_manifest(folder: Path) -> Json:
    """``settings``, and ``shards`` when all are there: name, images, bytes, sha256 and made_on of each.

    Raises:
        ValueError: no manifest, or one that cannot be read, or with a shard that is none of the folder.
    """
    path = folder / MANIFEST
    try:
        document = read_json(path)
        if not isinstance(document.get("settings"), dict):
            raise ValueError("no settings in it")
        shards = document.get("shards", [])
        if not isinstance(shards, list):
            raise BadArgument("shards", type(shards).__name__, "a list")
        for record in shards:
            _check_record(folder, record)
    except ValueError as error:
        raise BadArgument(
            "outdir",
            f"{str(path)!r}, which cannot be read as a job's manifest ({error}),",
            "one that a job wrote",
        ) from error
    return document


def add_record(folder: Path, record: Record) -> None:
    """Writes down that a shard is there."""
    with replacing(folder / RECORDS / f"{Path(record['name']).stem}.json") as temporary:
        temporary.write_text(json.dumps(record))


def read_records(folder: Path) -> dict[str, Record]:
    """The records of all shards that were finished, by name: name, images, bytes, sha256 and made_on.

    Raises:
        ValueError: a manifest or record that cannot be read; it names the file.
    """
    records = list(read_manifest(folder).get("shards", []))
    for path in _record_files(folder):
        record = read_json(path)
        try:
            _check_record(folder, record)
        except ValueError as error:
            raise ValueError(f"{path}: not a shard's record ({error})") from error
        records.append(record)
    return {record["name"]: record for record in records}


def _record_files(folder: Path) -> list[Path]:
    return sorted(path for path in (folder / RECORDS).glob("*.json") if path.stem.isdecimal())


def intact(folder: Path) -> set[str]:
    """The names of the shards whose bytes are those that were written.

    Every shard is read: one that was damaged or taken away since is as one that was never there.
    """
    return {name for name, record in read_records(folder).items() if _is_intact(folder, record)}


def close_manifest(folder: Path, records: Mapping[str, Mapping[str, object]]) -> None:
    """Puts the records of all shards into the manifest."""
    shards = [records[name] for name in sorted(records, key=lambda name: (len(name), name))]
    _write(folder, {"settings": read_manifest(folder)["settings"], "shards": shards})
    for path in _record_files(folder):
        path.unlink()
    with suppress(OSError):  # what somebody else has put there stays
        (folder / RECORDS).rmdir()


def _is_intact(folder: Path, record: Record) -> bool:
    shard = folder / record["name"]
    return shard.exists() and digest(shard) == (record["bytes"], record["sha256"])


def _check_record(folder: Path, record: object) -> None:
    """Refuses a record that names something outside of the folder, or lacks what is read of it.

    Raises:
        ValueError: naming the field, what was given and what is accepted.
    """
    if not isinstance(record, Mapping):
        raise BadArgument("a shard", type(record).__name__, "an object")
    member(folder, record.get("name"))
    for name in ("images", "bytes"):
        whole(name, record.get(name), least=0, most=2**63 - 1)
    if not isinstance(record.get("sha256"), str):
        raise BadArgument("sha256", repr(record.get("sha256")), "a string")


def _write(folder: Path, document: Mapping[str, object]) -> None:
    write_json(folder / MANIFEST, document)


def _difference(found: Mapping[str, object], given: Mapping[str, object]) -> str:
    names = [name for name in {**found, **given} if found.get(name) != given.get(name)]
    # A digest says nothing where an option that a person set says it all.
    name = next((name for name in names if name not in ("plan", "model")), names[0])
    there, here = (textwrap.shorten(str(one.get(name)), LONGEST_VALUE) for one in (found, given))
    return f"{name} {there}, not {here}"
