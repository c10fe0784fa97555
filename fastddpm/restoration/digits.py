"""What the digit models in the box are for: they make digits of whatever they are given."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from fastddpm.checks import BadArgument
from fastddpm.restoration.picture import check_size, read_picture

DIGIT_MODELS = ("mnist", "mnist_sr", "mnist_deblur")
MOST_SIDE = 4 * 28
"""Pixels of a picture's side: a few digits beside each other, each of the 28 that the models know."""
COLOUR = 32
"""Steps of 8 bits between two channels, from which on a pixel is coloured: JPEG makes a few of grey."""


def check_digits(model: str, paths: Iterable[Path]) -> None:
    """Refuses pictures that are no digits for a model of digits, before anything is drawn.

    Args:
        model: as it was named; a folder of one's own may be for anything.
        paths: of image files.

    Raises:
        ValueError: a picture that is large or has colours.
    """
    if model not in DIGIT_MODELS or Path(model).is_dir():
        return
    for path in paths:
        height, width = check_size(path)
        what = f"{width}x{height} pixels" if max(height, width) > MOST_SIDE else ""
        if not what:
            pixels = read_picture(path).pixels.int()
            is_coloured = int((pixels.amax(0) - pixels.amin(0)).max()) >= COLOUR
            what = "coloured" if is_coloured else ""
        if what:
            raise BadArgument(
                "--model",
                f"{model}, which knows handwritten digits alone, for {path} ({what}),",
                f"a folder of a model that was trained on such pictures (fastddpm train --task ...); grey "
                f"pictures of up to {MOST_SIDE}x{MOST_SIDE} with this one; or --force, for what digits make "
                "of it,",
            )
