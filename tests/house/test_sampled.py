"""What `pytest --sample` keeps."""

from __future__ import annotations

from itertools import product
from types import SimpleNamespace

from sampled import sample


class Item(SimpleNamespace):
    """A case of a test, as far as it is looked at."""

    __eq__, __hash__ = object.__eq__, object.__hash__


def test_every_value_is_kept_and_few_are_twice():
    names = {"one": product(range(5), range(3), range(2)), "other": product(range(2), range(1), range(2))}
    items = [
        Item(nodeid=f"tests/a.py::{name}[{a}-{b}-{c}]", callspec=SimpleNamespace(indices=dict(a=a, b=b, c=c)))
        for name, places in names.items()
        for a, b, c in places
    ]
    alone = [Item(nodeid="tests/a.py::alone"), Item(nodeid="tests/b.py::alone")]
    choices = set()
    for k in range(20):
        kept, left_out = sample([*alone, *items], k)
        assert kept[:2] == alone
        assert sorted(kept + left_out, key=id) == sorted([*alone, *items], key=id)
        for name in names:
            mine = [item for item in items if f"::{name}[" in item.nodeid]
            found = [item for item in mine if item in kept]
            values = {value for item in mine for value in item.callspec.indices.items()}
            assert {value for item in found for value in item.callspec.indices.items()} == values
            assert len(found) <= {"one": 5, "other": 2}[name]
        assert sample([*alone, *items], k)[0] == kept
        choices.add(tuple(map(id, kept)))
    assert len(choices) > 10
