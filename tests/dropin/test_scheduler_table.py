"""The table of schedulers by pipelines in docs/dropin.md is what `optimize` says."""

import importlib.util
from pathlib import Path

import pytest

pytest.importorskip("diffusers")

# NumPy's, of how diffusers makes arrays of tensors; and diffusers', of older configurations.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")

SCRIPT = Path(__file__).parents[2] / "scripts" / "scheduler_table.py"


def test_the_table_is_what_optimize_says():
    spec = importlib.util.spec_from_file_location("scheduler_table", SCRIPT)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    written = script.DOCUMENT.read_text().split(script.BEGIN)[1].split(script.END)[0]
    found = script.lines()
    assert written.strip().splitlines() == found
    cells = [cell for line in found if line.startswith("| ") for cell in line.split(" | ")[1:]]
    assert cells.count("yes") > 50  # and not all of them refused for one reason
