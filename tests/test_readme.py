"""What the README shows runs as it stands there, and what it points at is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parent.parent
DOCUMENTS = ["README.md", "CONTRIBUTING.md", "docs/architecture.md", "docs/math.md", "kernels/README.md"]


def test_the_python_of_the_readme_runs():
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S)
    names: dict = {}
    exec(code, names)
    assert names["images"].shape == (3, 3, 32, 32)
    assert names["frames"].shape == (8, 1, 1, 28, 28)
    assert names["nearby"].shape == (10, 1, 28, 28)
    for name in ("images", "frames", "nearby"):
        assert torch.isfinite(names[name]).all()


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_point_at_files(document):
    path = ROOT / document
    links = [link for link in re.findall(r"\]\(([^)#]+)", path.read_text()) if "://" not in link]
    missing = [link for link in links if not (path.parent / link).exists()]
    assert missing == []


def test_the_readme_says_that_no_gpu_has_run_it():
    assert "No GPU has run this yet" in (ROOT / "README.md").read_text()
