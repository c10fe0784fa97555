"""What documents name is there; what the architecture calls the whole of it gives the sampler's images."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import pytest

import fastddpm

ROOT = Path(__file__).parents[2]
DOTTED = re.compile(r"(?<![\w./-])fastddpm(?:_kernels|_bench)?(?:\.[A-Za-z_]\w*)+")


def is_there(name: str) -> bool:
    """Whether a dotted name leads to a module, or to an attribute or annotated field of one."""
    parts = name.split(".")
    for length in range(len(parts), 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:length]))
        except ImportError:
            continue
        for part in parts[length:]:
            if part in getattr(found, "__annotations__", {}):
                return True
            if not hasattr(found, part):
                return False
            found = getattr(found, part)
        return True
    return False


def test_every_name_in_documents_and_docstrings_is_there():
    files = [
        ROOT / "README.md",
        ROOT / "CONTRIBUTING.md",
        *ROOT.glob("docs/**/*.md"),
        *ROOT.glob("kernels/**/*.md"),
    ]
    files += [*ROOT.glob("fastddpm/**/*.py"), *ROOT.glob("kernels/**/*.py"), *ROOT.glob("benchmarks/**/*.py")]
    named = {name for file in files for name in DOTTED.findall(file.read_text())}
    assert len(named) > 100
    assert {name for name in named if not is_there(name)} == set()
    assert not is_there("fastddpm.Trainer")


@pytest.mark.parametrize(
    "options",
    [
        {"method": "ddpm", "num_inference_steps": 8},
        {"method": "ddim", "num_inference_steps": 6, "eta": 0.5},
        {"method": "dpmpp_2m", "num_inference_steps": 6},
    ],
    ids=lambda options: options["method"],
)
def test_the_plain_loop_of_the_architecture_draws_the_samplers_images(options):
    text = (ROOT / "docs" / "architecture.md").read_text()
    (block,) = [one for one in re.findall(r"```python\n(.*?)```", text, re.S) if "def plain_sample" in one]
    names: dict[str, object] = {}
    exec(block, names)
    sampler = fastddpm.load().replace(**options)
    images = sampler.sample(seeds=[3, 4], class_labels=7, progress=False)
    plain = names["plain_sample"](sampler, [3, 4], 7)
    assert images.std() > 0.1
    assert (plain - images).abs().max() <= 1e-4
