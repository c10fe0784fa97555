"""`ImageDataset`: uint8 images with labels, as float batches in [-1, 1]."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from fastddpm.checks import BadArgument, check_count
from fastddpm.signatures import checked, in_words

from .augmentation import Augmentation

MAX_CLASSES = 2**16
"""Labels without names stay below this: what is larger is no class number but an identifier."""


class Pixels(Protocol):
    """uint8 images ``(N, C, H, W)`` read by index: a tensor, or `decoding.LazyPixels`."""

    @property
    def shape(self) -> Sequence[int]:
        """(N, C, H, W)."""

    def __getitem__(self, indices: Tensor, /) -> Tensor:
        """Images ``(B, C, H, W)`` for int64 indices ``(B,)``."""


class ImageDataset:
    """Images with labels.

    Args:
        pixels: uint8 ``(N, C, H, W)`` with C = 1 or 3: a tensor, or anything read like one.
        labels: int64 ``(N,)`` in [0, number of class names), below 65536 without names; or None.
        class_names: a name for every label; None: "0", "1", ... up to the largest label.
        augmentation: what :meth:`batch` does to samples that come with ordinals.
        skipped: names of broken files that were left out.

    Raises:
        ValueError: no images, another type or shape, a label out of range; it names the argument.
    """

    @checked
    def __init__(
        self,
        pixels: Pixels,
        labels: Tensor | None = None,
        class_names: Sequence[str] | None = None,
        *,
        augmentation: Augmentation | None = None,
        skipped: Sequence[str] = (),
    ) -> None:
        _check_pixels(pixels)
        for name, words in (("class_names", class_names), ("skipped", skipped)):
            if words is not None or name == "skipped":
                _check_words(name, words)
        if labels is not None:
            classes = MAX_CLASSES if class_names is None else len(class_names)
            _check_labels(labels, pixels.shape[0], classes)
            if class_names is None:
                class_names = [str(i) for i in range(int(labels.max()) + 1)]
        elif class_names is not None:
            raise BadArgument("class_names", "names without labels", "both, or neither,")
        self.pixels = pixels
        self.labels = labels
        self.class_names = None if class_names is None else tuple(class_names)
        self.augmentation = augmentation or Augmentation()
        self.skipped = tuple(skipped)

    def __len__(self) -> int:
        return self.pixels.shape[0]

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of an image."""
        channels, height, width = self.pixels.shape[1:]
        return channels, height, width

    @property
    def num_classes(self) -> int | None:
        """How many class names there are; None without labels."""
        return None if self.class_names is None else len(self.class_names)

    def batch(
        self,
        indices: Tensor | Sequence[int],
        ordinals: Tensor | Sequence[int] | None = None,
        *,
        seed: int = 0,
    ) -> tuple[Tensor, Tensor | None]:
        """Images by index, as x_0 = pixel / 127.5 - 1.

        Args:
            indices: ``(B,)`` integers in [0, N), as `indices_for` gives them.
            ordinals: ``(B,)`` global ordinals of the samples in the run, in [0, 2**63): what the augmentation
                is drawn from. None: images as they are.
            seed: the run's seed, in [0, 2**63).

        Returns:
            float32 ``(B, C, H, W)`` in [-1, 1]; int64 labels ``(B,)`` or None.

        Raises:
            ValueError: an index, ordinal or seed out of range; as many ordinals as indices are wanted.
            BrokenImagesError: a file decoded on demand that cannot be read any more.
        """
        index = _integers("indices", indices)
        wrong = index[(index < 0) | (index >= len(self))]
        if len(wrong):
            raise BadArgument("indices", str(int(wrong[0])), f"integers in [0, {len(self)})")
        images = self.pixels[index]
        if ordinals is not None:
            ordinal = _integers("ordinals", ordinals)
            check_count("ordinals", len(ordinal), len(index), of="indices")
            images = self.augmentation.apply(images, ordinal, seed)
        return images.float() / 127.5 - 1.0, None if self.labels is None else self.labels[index]


def _integers(name: str, values: Tensor | Sequence[int]) -> Tensor:
    """int64 ``(B,)``."""
    try:
        given = torch.as_tensor(values)
    except (TypeError, ValueError, RuntimeError):
        given = torch.empty(())
    if given.ndim != 1 or (len(given) and (given.is_floating_point() or given.dtype == torch.bool)):
        raise BadArgument(name, in_words(values), "a flat list of integers")
    return given.to(torch.int64)


def _check_words(name: str, words: Sequence[str] | None) -> None:
    is_list = isinstance(words, Sequence) and not isinstance(words, (str, bytes))
    if not is_list or not all(isinstance(word, str) for word in words or ()):
        raise BadArgument(name, in_words(words), "a list of names")


def _check_pixels(pixels: Pixels) -> None:
    shape = tuple(pixels.shape)
    if isinstance(pixels, Tensor) and pixels.dtype != torch.uint8:
        raise BadArgument("pixels", str(pixels.dtype), "uint8")
    if len(shape) != 4 or shape[1] not in (1, 3):
        raise BadArgument("pixels", f"shape {shape}", "(N, C, H, W) with C = 1 or 3")
    if 0 in shape:
        raise BadArgument("pixels", f"shape {shape}", "at least one image of one pixel")


def _check_labels(labels: Tensor, count: int, classes: int) -> None:
    if labels.dtype != torch.int64 or tuple(labels.shape) != (count,):
        raise BadArgument("labels", f"{labels.dtype} of shape {tuple(labels.shape)}", f"int64 ({count},)")
    wrong = ((labels < 0) | (labels >= classes)).nonzero()[:, 0].tolist()
    if wrong:
        raise BadArgument(
            "labels",
            f"{int(labels[wrong[0]])} for image {wrong[0]} ({len(wrong)} out of range)",
            f"integers in [0, {classes})",
        )
