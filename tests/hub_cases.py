"""A cache that is laid out as huggingface_hub lays out its own."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path


def add(cache: Path, repository: str, source: Path, commit: str, branch: str | None = "main") -> None:
    """Puts a folder into a cache as one commit: blobs by their hash, links to them, and refs."""
    place = cache / f"models--{repository.replace('/', '--')}"
    for file in (path for path in source.rglob("*") if path.is_file()):
        blob = place / "blobs" / hashlib.sha256(file.read_bytes()).hexdigest()
        blob.parent.mkdir(parents=True, exist_ok=True)
        blob.write_bytes(file.read_bytes())
        link = place / "snapshots" / commit / file.relative_to(source)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(os.path.relpath(blob, link.parent))
    if branch is not None:
        (place / "refs" / branch).parent.mkdir(parents=True, exist_ok=True)
        (place / "refs" / branch).write_text(commit)
