"""Hugging Face datasets by local path: a folder of `save_to_disk`, parquet or arrow files.

Nothing is downloaded and no loading script is run. Images are taken as the encoded bytes that the dataset
holds and decoded like those of an image folder.
"""

from __future__ import annotations

import importlib
from collections.abc import Collection, Sequence
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any, TypeAlias

from fastddpm.checks import BadArgument, shortened
from fastddpm.extras import needed
from fastddpm.inputs import check_regular, member, read_json

from .dataset import MAX_CLASSES
from .folder import Listing
from .gathering import ImageFile
from .soundness import check_tables
from .splits import checked_split, split_of_file, split_of_folder

SUFFIXES = (".parquet", ".arrow")
SAVED = ("dataset_dict.json", "state.json")
"""Files that `save_to_disk` leaves: of a dataset with splits, and of one without."""

Dataset: TypeAlias = Any
"""datasets.Dataset, of a package that may not be there."""


def is_huggingface(path: Path) -> bool:
    """Whether the path is a parquet or arrow file, a folder of such, or a folder of `save_to_disk`."""
    if path.is_file():
        return path.suffix in SUFFIXES
    return any((path / name).is_file() for name in SAVED) or bool(_table_files(path))


def list_huggingface(
    path: Path,
    split: str = "train",
    labels: bool = True,
    *,
    image_column: str | None = None,
    label_column: str | None = None,
) -> Listing:
    """The rows of a dataset as image files with labels.

    Args:
        path: what :func:`is_huggingface` accepts. Parquet is read into memory; saved datasets and arrow files
            are mapped.
        split: "train", "validation" or "test". A single dataset is "train" unless its name says otherwise.
        labels: False: without labels.
        image_column: None: the only column of images.
        label_column: None: the only ClassLabel column, else an integer column "label", else no labels.

    Raises:
        ImportError: the package datasets is not installed.
        ValueError: no such split or column, a column of another type, a label outside the class names, a
            file that is damaged.
    """
    checked_split(split)
    datasets = _datasets()
    dataset = _read(datasets, path, split).with_format(None)
    image_column = image_column or _image_column(datasets, dataset)
    if image_column not in dataset.column_names:
        raise _column_error("image_column", image_column, dataset)
    images = _undecoded(datasets, dataset.select_columns([image_column]), image_column)
    files = [
        ImageFile(f"{path.name} row {i}", partial(_content, images, image_column, i))
        for i in range(len(dataset))
    ]
    if not files:
        raise BadArgument("data", f"{str(path)!r}, no rows in its {split} split,", "at least one")
    label_column = (label_column or _label_column(datasets, dataset)) if labels else None
    if label_column is None:
        return Listing(files)
    if label_column not in dataset.column_names:
        raise _column_error("label_column", label_column, dataset)
    return Listing(files, *_labels(datasets, dataset, label_column))


def _datasets() -> ModuleType:
    return needed("datasets", by="data: of Hugging Face")


def _table_files(folder: Path) -> dict[str, list[Path]]:
    """Split -> the parquet and arrow files of a folder, by the name of the file or of its folder."""
    found: dict[str, list[Path]] = {}
    for pattern in ("*", "*/*"):
        for file in sorted(folder.glob(pattern)):
            if file.suffix in SUFFIXES and file.is_file():
                split = split_of_file(file.name) or split_of_folder(file.parent.name) or "train"
                found.setdefault(split, []).append(file)
    return found


def _read(datasets: ModuleType, path: Path, split: str) -> Dataset:
    if any((path / name).is_file() for name in SAVED):
        parts = _saved_parts(path)
        _check_split(path, split, parts)
        return _load(datasets, parts[split])
    files = {split_of_file(path.name) or "train": [path]} if path.is_file() else _table_files(path)
    _check_split(path, split, files)
    return datasets.concatenate_datasets([_load(datasets, file) for file in files[split]])


def _saved_parts(path: Path) -> dict[str | None, Path]:
    """Split -> folder, of what `save_to_disk` left; one without splits is what its own notes call it."""
    if (path / SAVED[0]).is_file():
        names = read_json(path / SAVED[0]).get("splits")
        if not isinstance(names, list) or not names:
            raise BadArgument(
                "data", f"{str(path)!r}, not a complete folder of save_to_disk (no splits),", "a complete one"
            )
        return {split_of_folder(folder.name): folder for folder in (member(path, name) for name in names)}
    name = read_json(path / SAVED[1]).get("_split")
    return {(split_of_folder(name) if isinstance(name, str) else None) or "train": path}


def _check_split(path: Path, split: str, splits: Collection[str | None]) -> None:
    if split not in splits:
        has = ", ".join(repr(name) for name in splits if name is not None)
        raise BadArgument("split", repr(split), f"{has or 'none'} of {str(path)!r}")


def _load(datasets: ModuleType, path: Path) -> Dataset:
    """A folder of `save_to_disk`, or one arrow or parquet file; looked through first."""
    try:
        if path.is_dir():
            check_tables(_arrow_files(path))
            return datasets.load_from_disk(str(path))
        check_regular(path)
        check_tables([path])
        if path.suffix == ".arrow":
            return datasets.Dataset.from_file(str(path))
        # Dataset.from_parquet would write a copy of it all into the user's cache folder.
        parquet = importlib.import_module("pyarrow.parquet")
        return datasets.Dataset(datasets.table.InMemoryTable(parquet.read_table(str(path))))
    except MemoryError:
        raise
    except Exception as error:  # datasets raises whatever its notes in the file trip it over
        kind = "folder of save_to_disk" if path.is_dir() else f"{path.suffix[1:]} file"
        reason = shortened(str(error), 160) or type(error).__name__
        raise BadArgument(
            "data", f"{str(path)!r}, not a complete {kind} ({reason}),", "a complete one"
        ) from error


def _arrow_files(folder: Path) -> list[Path]:
    """The files that the notes of a saved dataset list, all in its folder."""
    read_json(folder / "dataset_info.json")
    files = read_json(folder / SAVED[1]).get("_data_files")
    if not isinstance(files, list) or not files:
        raise ValueError(f"{folder / SAVED[1]}: lists no files")
    paths = [member(folder, file.get("filename") if isinstance(file, dict) else None) for file in files]
    for path in paths:
        check_regular(path)
    return paths


def _image_column(datasets: ModuleType, dataset: Dataset) -> str:
    found = [name for name, kind in dataset.features.items() if isinstance(kind, datasets.Image)]
    found = found or [name for name in ("image", "img") if name in dataset.column_names]
    if len(found) != 1:
        raise _column_error("image_column", None, dataset)
    return str(found[0])


def _label_column(datasets: ModuleType, dataset: Dataset) -> str | None:
    found = [name for name, kind in dataset.features.items() if isinstance(kind, datasets.ClassLabel)]
    if len(found) > 1:
        raise _column_error("label_column", None, dataset)
    return str(found[0]) if found else "label" if "label" in dataset.column_names else None


def _column_error(argument: str, column: str | None, dataset: Dataset) -> BadArgument:
    listed = ", ".join(f"{name} ({_kind(kind)})" for name, kind in dataset.features.items())
    return BadArgument(argument, repr(column), f"one column of {listed}")


def _kind(feature: object) -> str:
    return (
        str(getattr(feature, "dtype", type(feature).__name__))
        if _is_value(feature)
        else type(feature).__name__
    )


def _is_value(feature: object) -> bool:
    return type(feature).__name__ == "Value"


def _undecoded(datasets: ModuleType, dataset: Dataset, column: str) -> Dataset:
    """The image column alone is decoded here, so that every source treats an image in the same way."""
    kind = dataset.features[column]
    if isinstance(kind, datasets.Image):
        return dataset.cast_column(column, datasets.Image(decode=False))
    encoded = isinstance(kind, dict) and {"bytes", "path"} <= set(kind)
    if not encoded and not (_is_value(kind) and kind.dtype in ("binary", "large_binary")):
        raise BadArgument(
            "image_column", f"{column!r}, which holds {_kind(kind)},", "images or the bytes of image files"
        )
    return dataset


def _content(dataset: Dataset, column: str, row: int) -> Path | bytes:
    cell = dataset[row][column]
    content = cell["bytes"] or cell["path"] if isinstance(cell, dict) else cell
    if content is None:
        raise ValueError("no image in this row")
    return content if isinstance(content, bytes) else Path(content)


def _labels(datasets: ModuleType, dataset: Dataset, column: str) -> tuple[list[int], tuple[str, ...] | None]:
    kind = dataset.features[column]
    named = isinstance(kind, datasets.ClassLabel)
    if not named and not (_is_value(kind) and kind.dtype.startswith(("int", "uint"))):
        raise BadArgument(
            "label_column",
            f"{column!r}, which holds {_kind(kind)},",
            "integers or ClassLabel (dataset.class_encode_column makes one of names)",
        )
    values: Sequence[int | None] = dataset[column][:]
    classes = len(kind.names) if named else MAX_CLASSES
    wrong = [row for row, value in enumerate(values) if value is None or not 0 <= value < classes]
    if wrong:
        raise BadArgument(
            "label_column",
            f"{values[wrong[0]]} in row {wrong[0]} of {column!r} ({len(wrong)} out of range)",
            f"integers in [0, {classes})",
        )
    return [int(value) for value in values if value is not None], tuple(kind.names) if named else None
