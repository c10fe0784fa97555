"""What is measured: a module each, with ``contests(settings)``, in the order of a report."""

from __future__ import annotations

import importlib
from collections.abc import Sequence

from fastddpm.checks import check_choice
from fastddpm_bench.contest import BenchSettings, Contest

SUBJECTS = (
    "reverse_step",
    "q_sample",
    "unet",
    "pipelines",
    "precisions",
    "lucidrains",
    "restated",
    "training",
    "batch",
    "steps",
    "cold_start",
    "memory",
)


def contests(settings: BenchSettings, subjects: Sequence[str] = SUBJECTS) -> list[Contest]:
    """The contests of some subjects, none of them set up.

    Raises:
        ValueError: an unknown subject.
    """
    found = []
    for name in subjects:
        check_choice("subjects", name, SUBJECTS)
        module = importlib.import_module(f"fastddpm_bench.subjects.{name}")
        found += module.contests(settings)
    return found
