"""Of the cases of each test as few as have every value of every parameter once: `pytest --sample K`.

For what is run in full elsewhere, as under another torch: what a version changes shows in a value, a kernel
or a scheduler, rather than in all that they are combined with. Another K is another choice.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Sequence

import pytest


def sample(items: Sequence[pytest.Item], k: int) -> tuple[list[pytest.Item], list[pytest.Item]]:
    """The items that are kept, and those that are left out, in their order; alike in every process."""
    tests = defaultdict(list)
    for item in items:
        callspec = getattr(item, "callspec", None)
        # A value is what one `parametrize` has of a case: its number says nothing, each case has its own.
        values = set(enumerate(callspec._idlist)) if callspec else set()
        tests[item.nodeid.partition("[")[0]].append((item, values))
    kept = set()
    for name, cases in tests.items():
        random.Random(f"{k} {name}").shuffle(cases)
        missing = set().union(*(values for _, values in cases))
        if not missing:
            kept.update(item for item, _ in cases)
        while missing:
            item, values = max(cases, key=lambda case: len(case[1] & missing))
            kept.add(item)
            missing -= values
    return [item for item in items if item in kept], [item for item in items if item not in kept]
