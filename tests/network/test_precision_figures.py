"""benchmarks/precision_mnist.py: what it measured is what the documents say and what the limits come from."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from networks import make_unet
from tolerances import BF16_PASS, FP16_PASS, TF32_PASS

import precision_mnist
from fastddpm.doctor import chains
from fastddpm_bench.emulation import InDtype

ROOT = Path(__file__).parents[2]
FILE = ROOT / "benchmarks" / "results" / "precision_mnist.json"


@pytest.fixture(scope="module")
def document():
    return json.loads(FILE.read_text())


@pytest.mark.parametrize("page", ["docs/gpu.md", "fastddpm/assets/mnist/README.md"])
def test_the_images_table_is_the_file_s(document, page):
    assert "\n".join(precision_mnist.image_table(document)) in (ROOT / page).read_text()


def test_the_chains_table_is_the_file_s(document):
    assert "\n".join(precision_mnist.chain_table(document)) in (ROOT / "docs" / "gpu.md").read_text()


def test_everything_was_measured(document):
    found = document["images"]["precisions"]
    assert set(found) == set(precision_mnist.PRECISIONS)
    assert {row["samples"] for row in found.values()} == {500}
    assert found["float32"]["largest_difference"] == 0
    assert set(document["chains"]) == set(precision_mnist.cases())


@pytest.mark.parametrize("name", chains.PRECISIONS)
def test_the_doctor_s_limits_are_twice_what_was_measured(document, name):
    row = document["chains"]["model in the box, one pass"]
    measured = max(value for key, value in row.items() if key.startswith(name))
    assert 1.9 * measured <= chains.PRECISIONS[name] <= 3 * measured


@pytest.mark.parametrize(("name", "limit"), [("tf32", TF32_PASS), ("bf16", BF16_PASS), ("fp16", FP16_PASS)])
def test_the_tests_limits_are_twice_what_was_measured(document, name, limit):
    row = document["chains"]["CIFAR-10 UNet, one pass"]
    measured = max(value for key, value in row.items() if key.startswith(name))
    assert 1.5 * measured <= limit <= 3 * measured


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_network_s_dtype_emulated_errs_as_the_dtype_itself_does(dtype):
    unet = make_unet()
    x = torch.randn(8, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    given = (torch.arange(0, 800, 100), torch.arange(8) % 4)
    with torch.no_grad():
        expected = unet(x, *given)
        emulated = InDtype(unet, dtype)(x, *given)
        real = make_unet().to(dtype)(x.to(dtype), *given).float()
    errors = [(found - expected).abs().mean() for found in (emulated, real)]
    assert emulated.dtype == torch.float32
    assert 0.8 < errors[0] / errors[1] < 1.25
