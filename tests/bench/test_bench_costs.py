"""What operators ask of a machine: by hand, and against torch's own counter."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from networks import make_unet
from torch.utils.flop_counter import FlopCounterMode

from fastddpm_bench.costs import OpCost, Watch, watched
from fastddpm_bench.light import speed_of_light
from fastddpm_bench.limits import Limits

LIMITS = Limits(copies=((1000, 1e9), (1_000_000, 1e8)), gemm=2e9, convolution=1e9, threads=1)


def only(function):
    (found,) = watched(function)
    return found


def test_matrix_product_by_hand():
    a, b, c = torch.ones(3, 5), torch.ones(5, 7), torch.ones(3, 7)
    found = only(lambda: a @ b)
    assert (found.flops, found.bytes) == (2 * 3 * 5 * 7, 4 * (15 + 35 + 21))
    found = only(lambda: torch.addmm(c, a, b))
    assert (found.flops, found.bytes) == (2 * 3 * 5 * 7, 4 * (15 + 35 + 21 + 21))


def test_convolution_by_hand():
    x, weight = torch.ones(2, 6, 8, 8), torch.ones(4, 3, 3, 3)
    found = only(lambda: F.conv2d(x, weight, padding=1, stride=2, groups=2))
    out = 2 * 4 * 4 * 4
    assert found.flops == 2 * out * 3 * 9
    assert found.bytes == 4 * (x.numel() + weight.numel() + out)


def test_traffic_by_hand():
    x, y = torch.ones(100), torch.ones(100)
    assert only(lambda: x + y).bytes == 1200
    assert only(lambda: x.add_(y)).bytes == 1200
    assert only(lambda: x.copy_(y)).bytes == 800
    assert only(lambda: x.zero_()).bytes == 400
    assert only(lambda: x * x).bytes == 800  # read once
    row = torch.ones(1, 100)
    assert only(lambda: row.expand(10, 100) * 2).bytes == 4 * (100 + 1000)


def test_views_and_allocations_cost_nothing():
    x = torch.ones(4, 6)
    assert watched(lambda: x.view(6, 4).t()[1:].expand(4, 3, 6).unsqueeze(0)) == []
    assert watched(lambda: torch.empty_like(x)) == []


def test_network_has_the_flops_that_torch_counts():
    unet = make_unet()
    x, t, y = torch.randn(2, 3, 16, 16), torch.tensor([3, 5]), torch.tensor([0, 1])
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        unet(x, t, y)
    assert sum(op.flops for op in watched(lambda: unet(x, t, y))) == counter.get_total_flops()


def test_training_step_has_the_flops_that_torch_counts():
    unet = make_unet()
    x, t, y = torch.randn(2, 3, 16, 16), torch.tensor([3, 5]), torch.tensor([0, 1])
    counter = FlopCounterMode(display=False)
    with counter:
        unet(x, t, y).square().mean().backward()
    with Watch() as watch:
        unet(x, t, y).square().mean().backward()
    assert sum(op.flops for op in watch.costs) == counter.get_total_flops()


@pytest.mark.parametrize("transposed", [False, True])
def test_flops_of_convolutions_are_torchs(transposed):
    x = torch.randn(2, 4, 9, 9)
    weight = torch.randn(4, 3, 3, 3) if transposed else torch.randn(6, 4, 3, 3)
    function = F.conv_transpose2d if transposed else F.conv2d
    counter = FlopCounterMode(display=False)
    with counter:
        function(x, weight, stride=2)
    assert only(lambda: function(x, weight, stride=2)).flops == counter.get_total_flops()


def test_attention_has_two_products():
    q, k, v = torch.randn(2, 3, 10, 8), torch.randn(2, 3, 12, 8), torch.randn(2, 3, 12, 8)
    found = watched(lambda: F.scaled_dot_product_attention(q, k, v))
    assert sum(op.flops for op in found) == 2 * (2 * 2 * 3 * 10 * 12 * 8)


def test_least_time_is_the_larger_of_moving_and_computing():
    bound_by_flops = OpCost("mm", flops=4_000_000, bytes=1000)  # 2 ms against 1 us
    bound_by_bytes = OpCost("mm", flops=2000, bytes=1_000_000)  # 1 us against 10 ms
    silu = OpCost("silu", flops=0, bytes=1000)  # 1 us
    found = speed_of_light([bound_by_flops, bound_by_bytes, silu], LIMITS)
    assert math.isclose(found.fused, 2e-3 + 10e-3)
    assert math.isclose(found.dispatched, 2e-3 + 10e-3 + 1e-6)
    assert (found.flops, found.bytes) == (4_002_000, 1_002_000)
    # Work that computes nothing is its traffic.
    assert math.isclose(speed_of_light([silu], LIMITS).fused, 1e-6)


def test_bandwidth_is_that_of_the_nearest_size():
    assert LIMITS.bandwidth(1) == LIMITS.bandwidth(20_000) == 1e9
    assert LIMITS.bandwidth(50_000) == LIMITS.bandwidth(1e12) == 1e8
    assert LIMITS.peak == 2e9
