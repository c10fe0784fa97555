"""One thing compared with another: what is to be compared, and what came of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Literal

Status = Literal["passed", "failed", "skipped"]


@dataclasses.dataclass(frozen=True)
class Check:
    """One comparison.

    Attributes:
        name: what was compared.
        status: ``failed`` too where it could not be run.
        error: largest absolute difference, or None where nothing was compared.
        limit: the largest difference accepted.
        note: why it failed or was skipped.
    """

    name: str
    status: Status
    error: float | None = None
    limit: float | None = None
    note: str = ""


@dataclasses.dataclass(frozen=True)
class Comparison:
    """A check to be made: ``run`` returns the largest absolute difference, which may be up to ``limit``.

    A NaN is a failure.
    """

    name: str
    limit: float
    run: Callable[[], float]


def compared(comparison: Comparison) -> Check:
    """Runs a comparison. What it raises is its failure, so that one broken part does not hide the others."""
    name, limit = comparison.name, comparison.limit
    try:
        error = comparison.run()
    except Exception as failure:
        words = str(failure).strip().splitlines() or [""]
        return Check(name, "failed", None, limit, f"{type(failure).__name__}: {words[0]}")
    if error <= limit:
        return Check(name, "passed", error, limit)
    return Check(name, "failed", error, limit, "not a number" if error != error else "")
