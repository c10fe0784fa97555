"""Whether two pictures are the same to one uint8 level, as those of a seed are with every torch.

    python scripts/same_picture.py digits.png docs/images/digits.png

Exit code 1 where they are not.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from fastddpm.pictures import opened

LEVELS = 1
"""Convolutions may round otherwise: 1e-3 in [-1, 1], see docs/architecture.md, "One noise"."""


def main(first: str, second: str) -> int:
    """Compares two files and says how far they are apart: the exit code."""
    pictures = []
    for path in (first, second):
        with opened(Path(path)) as picture:
            pictures.append(np.asarray(picture).astype(np.int16))
    ours, theirs = pictures
    if ours.shape != theirs.shape:
        print(f"{first}: {ours.shape}, {second}: {theirs.shape}: pictures of different sizes")
        return 1
    difference = int(np.abs(ours - theirs).max())
    print(f"{first} and {second}: largest difference {difference}, up to {LEVELS} accepted")
    return int(difference > LEVELS)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
