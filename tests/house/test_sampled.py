"""What `pytest --sample` keeps."""

from __future__ import annotations

import os

import pytest
from sampled import sample

TESTS = """
import pytest

@pytest.fixture(params=["x", "y"])
def fixed(request):
    pass

@pytest.mark.parametrize("a", [1, {}, len, 2.5, ()])
@pytest.mark.parametrize(("b", "c"), [(1, 2), (2, 1), (1, 1)], ids=["p", "q", "r"])
def test_many(a, b, c, fixed):
    pass

@pytest.mark.parametrize("a", [0, 1])
def test_two(a):
    pass

def test_alone():
    pass
"""


class Collected:
    """The items of a run that collects."""

    def pytest_collection_finish(self, session):
        self.items = list(session.items)


def test_every_value_is_kept_and_few_are_twice(tmp_path):
    (tmp_path / "test_a.py").write_text(TESTS)
    collected = Collected()
    options = ["--collect-only", "-p", "no:cacheprovider", "-p", "no:xdist", "-c", os.devnull]
    assert pytest.main([*options, "--rootdir", str(tmp_path), str(tmp_path)], plugins=[collected]) == 0
    assert len(collected.items) == 30 + 2 + 1
    choices = set()
    for k in range(20):
        kept, left_out = sample(collected.items, k)
        names = [item.name for item in kept]
        assert {item.name for item in collected.items} == {*names, *(item.name for item in left_out)}
        assert names[-3:] == ["test_two[0]", "test_two[1]", "test_alone"]
        many = [name.partition("[")[2].rstrip("]") for name in names[:-3]]
        assert len(many) == 5
        parts = [set(column) for column in zip(*(name.split("-") for name in many), strict=True)]
        assert sorted(map(len, parts)) == [2, 3, 5]
        assert sample(collected.items, k)[0] == kept
        choices.add(tuple(names))
    assert len(choices) > 10
