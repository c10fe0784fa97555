"""scripts/roofline.py: its network is the one it names, and its sums are those of known figures."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch

from fastddpm import UNet
from fastddpm.unet import diffusers


@pytest.fixture(scope="module")
def roofline():
    path = Path(__file__).parents[2] / "scripts" / "roofline.py"
    spec = importlib.util.spec_from_file_location("roofline", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_network_is_that_of_the_ddpm_paper(roofline):
    """35.7 M parameters (Ho et al. 2020, appendix B)."""
    with torch.device("meta"):
        unet = UNet(diffusers.config(roofline.CONFIG))
    assert round(sum(p.numel() for p in unet.parameters()) / 1e6, 1) == 35.7


def test_operations_and_bytes(roofline):
    """12.2 GFLOP an image by torch's flop counter on diffusers' network, its time path left out here."""
    kinds = roofline.by_kind(roofline.step_costs(1))
    products = sum(op.flops for name in kinds if name != "attention" for op in kinds[name])
    assert products / 1e9 == pytest.approx(12.1, abs=0.1)
    # Two products each: five attentions over 16x16 pixels of 256 channels, that of the middle over 4x4.
    attention = 5 * 2 * 2 * 256 * 256 * 256 + 2 * 2 * 16 * 16 * 256
    assert sum(op.flops for op in kinds["attention"]) == attention
    assert sum(op.bytes for op in kinds["reverse_step"]) == 3 * 32 * 32 * (4 + 2 + 4)
    # 22 residual blocks with two norms, six attentions, the last norm: each reads a map and writes one.
    assert len(kinds["group_norm_silu"]) == 22 * 2 + 6 + 1


def test_an_operator_takes_the_longer_of_its_two_times(roofline):
    peak, bandwidth = roofline.CARDS["H100"]
    costs = [roofline.OpCost("a", int(peak), 1), roofline.OpCost("b", 0, int(2 * bandwidth))]
    assert roofline.least(costs, "H100") == pytest.approx(3.0)
