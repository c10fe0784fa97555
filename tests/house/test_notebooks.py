"""The notebooks of examples/: their cells run as they stand, in order, and show what they drew."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "examples" / "notebooks"


@pytest.mark.parametrize("name", ["sample", "diffusers", "restore"])
def test_cells_run(name, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    notebook = json.loads((FOLDER / f"{name}.ipynb").read_text())
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    names: dict[str, object] = {}
    for number, cell in enumerate(cells, 1):
        assert cell["execution_count"] == number  # what it shows is of one run, from top to bottom
        exec(compile("".join(cell["source"]), f"{name}, cell {number}", "exec"), names)
    assert sum("image/png" in out.get("data", {}) for cell in cells for out in cell["outputs"]) == {
        "sample": 5,
        "diffusers": 0,
        "restore": 2,
    }.get(name)
