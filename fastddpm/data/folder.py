"""Image folders, with or without class folders and split folders, as a list of files with labels.

    folder/a.png folder/b.jpg                         no labels
    folder/CLASS/a.png folder/CLASS/deep/b.jpg        the class folders, sorted by name, are labels 0, 1, ...
    folder/train/... folder/val/... folder/test/...   split folders, each as above

Files are sorted by their path, so that an index means the same image on every file system.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fastddpm.checks import BadArgument

from .gathering import ImageFile
from .splits import checked_split, split_of_folder

SUFFIXES = (
    ".png .jpg .jpeg .jfif .webp .bmp .gif .tif .tiff .ppm .pgm .pbm .pnm .tga .avif .jp2".split()  # noqa: SIM905
)


@dataclass(frozen=True)
class Listing:
    """Image files of a dataset, and where there are classes a label for each and the names of the labels."""

    files: list[ImageFile]
    labels: list[int] | None = None
    class_names: tuple[str, ...] | None = None


def list_folder(folder: Path, split: str = "train", labels: bool = True) -> Listing:
    """The image files in a folder and all folders in it, known by their suffix; hidden ones are left out.

    Args:
        folder: the folder.
        split: "train", "validation" or "test". If the folder holds nothing but split folders (train, and
            val, valid, validation, dev or test), one of them is read; a folder without them is all "train".
        labels: False: no classes, whatever the folders are called.

    Raises:
        OSError: a folder that cannot be read.
        ValueError: no such folder or split; no images; a link in a circle; images both beside class folders
            and in them; a class folder without images, or one that the train split does not have.
    """
    checked_split(split)
    if not folder.is_dir():
        raise BadArgument("data", f"{str(folder)!r}, which is not a folder,", "a folder of images")
    roots = _split_folders(folder)
    if split not in roots:
        raise BadArgument("split", repr(split), f"{', '.join(map(repr, sorted(roots)))} of {str(folder)!r}")
    root = roots[split]
    paths = _images_in(root)
    files = [ImageFile(path.relative_to(folder).as_posix(), path.absolute) for path in paths]
    if not labels or not _has_classes(root, paths):
        return Listing(files)
    train = roots["train"]
    train_paths = paths if split == "train" else _images_in(train)
    names = _class_names(train, train_paths) if _has_classes(train, train_paths) else ()
    return Listing(files, _labels(root, paths, names), names)


def _split_folders(folder: Path) -> dict[str, Path]:
    """Split -> folder; the folder itself as "train" unless all that it holds are split folders."""
    entries = [entry for entry in sorted(folder.iterdir()) if not entry.name.startswith(".")]
    roots = {split_of_folder(entry.name): entry for entry in entries if entry.is_dir()}
    images = any(entry.suffix.lower() in SUFFIXES for entry in entries)
    if "train" not in roots or None in roots or images:  # a class may well be called "train"
        return {"train": folder}
    return {split: root for split, root in roots.items() if split is not None}


def _images_in(root: Path) -> list[Path]:
    found: list[Path] = []
    others = 0
    for parent, folders, names in os.walk(root, onerror=_raise, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in folders:
            if Path(parent, name).is_symlink() and Path(parent, name).resolve() in _and_parents(parent):
                raise BadArgument(
                    "data",
                    f"{str(root)!r}, where {Path(parent, name)} links to a folder that it lies in,",
                    "folders without such links",
                )
        visible = [name for name in names if not name.startswith(".")]
        images = [name for name in visible if Path(name).suffix.lower() in SUFFIXES]
        others += len(visible) - len(images)
        found += [Path(parent, name) for name in images]
    if not found:
        raise BadArgument(
            "data",
            f"{str(root)!r}, no images in this folder ({others} other files),",
            f"at least one file that ends in {', '.join(SUFFIXES)}",
        )
    return sorted(found, key=lambda path: path.relative_to(root).parts)


def _and_parents(folder: str) -> list[Path]:
    path = Path(folder).resolve()
    return [path, *path.parents]


def _raise(error: OSError) -> None:
    raise error  # os.walk would go on without a folder that it may not read


def _has_classes(root: Path, paths: Sequence[Path]) -> bool:
    """Whether all images lie in folders under the root; some here and some there is an error."""
    direct = [path for path in paths if path.parent == root]
    if direct and len(direct) < len(paths):
        nested = next(path for path in paths if path.parent != root)
        raise BadArgument(
            "data",
            f"{str(root)!r}, images directly in it ({len(direct)}, such as {direct[0].name}) and in "
            f"folders ({len(paths) - len(direct)}, such as {nested.relative_to(root).as_posix()}),",
            "one or the other, or labels=False to read all without classes,",
        )
    return not direct


def _class_names(root: Path, paths: Sequence[Path]) -> tuple[str, ...]:
    """The sorted names of the root's folders: all of them, since a missing class would move the labels."""
    used = {path.relative_to(root).parts[0] for path in paths}
    there = {entry.name for entry in root.iterdir() if entry.is_dir() and not entry.name.startswith(".")}
    if there - used:
        raise BadArgument(
            "data",
            f"{str(root)!r}, no images in class folder {', '.join(sorted(there - used))},",
            "at least one in each",
        )
    return tuple(sorted(used))


def _labels(root: Path, paths: Sequence[Path], names: tuple[str, ...]) -> list[int]:
    label_of = {name: label for label, name in enumerate(names)}
    classes = [path.relative_to(root).parts[0] for path in paths]
    unknown = sorted(set(classes) - set(names))
    if unknown:
        raise BadArgument(
            "data",
            f"{str(root)!r} with class folder {', '.join(unknown)}",
            f"those of the train split ({', '.join(names) or 'none'})",
        )
    return [label_of[name] for name in classes]
