"""Which command goes on where a signal ended it, when it is given again. Needs no torch."""

from __future__ import annotations

import sys


def is_resumable() -> bool:
    """Whether it is the one that runs."""
    return sys.argv[1:2] == ["train"]
