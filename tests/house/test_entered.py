"""How much of the package one call runs through, counted in a process of its own: `scripts/entered.py`."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
# Functions and modules, as counted; a change that needs more says here why.
# `weights.hooks`: hooks are part of a loop's key. `unet.blocks.attended`: attention, which two forms share.
# `interruption.raise_again`: a signal that Python dropped ends a chain all the same.
CEILINGS = {
    "sample(), the first": (118, 28),
    "sample(), again": (87, 25),
    "optimize(pipeline), a call": (172, 43),
}


@pytest.fixture(scope="module")
def counted():
    done = subprocess.run(
        [sys.executable, ROOT / "scripts" / "entered.py"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    found = re.findall(r"^(.+): (\d+) functions in (\d+) modules$", done.stdout, re.MULTILINE)
    return {name: (int(functions), int(modules)) for name, functions, modules in found}


@pytest.mark.parametrize("name", CEILINGS)
def test_a_call_enters_no_more_functions_and_modules(counted, name):
    functions, modules = counted[name]
    # A count that is far lower counts something else, or nothing.
    assert CEILINGS[name][0] // 2 < functions <= CEILINGS[name][0]
    assert CEILINGS[name][1] // 2 < modules <= CEILINGS[name][1]
