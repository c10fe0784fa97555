"""Which images share a step, for each batch size that a lane has."""

from __future__ import annotations

from collections.abc import Sequence

from fastddpm.serving.line import ImageT
from fastddpm.serving.pace import Pace


def buckets(most: int) -> list[int]:
    """Batch sizes: powers of 2, the number of chains, and twice that, which as many with guidance need."""
    powers = (2**power for power in range((2 * most).bit_length()))
    return sorted({*powers, most, 2 * most})


def seated(images: Sequence[ImageT], most: int, pace: Pace) -> tuple[list[ImageT], int]:
    """The images of the next step and its batch size.

    Args:
        images: of one kind, one or more, the first to be drawn in front; that one is among them.
        most: images of a step.
        pace: what steps of them take.
    """
    choices: dict[int, list[ImageT]] = {}
    for size in buckets(most):
        if size >= images[0].slots:
            choices[size] = _filled(images, most, size)
            if len(choices[size]) in (len(images), most):
                break
    size = pace.best({size: sum(one.slots for one in chosen) for size, chosen in choices.items()})
    return choices[size], size


def _filled(images: Sequence[ImageT], most: int, size: int) -> list[ImageT]:
    """As many as fit, from the front."""
    chosen: list[ImageT] = []
    for image in images:
        if image.slots <= size:
            chosen.append(image)
            size -= image.slots
        if not size or len(chosen) == most:
            break
    return chosen
