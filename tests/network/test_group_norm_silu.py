"""`group_norm_silu` off CUDA: the operations of PyTorch, bit for bit, and the checks of its arguments."""

from __future__ import annotations

import types
from dataclasses import replace

import group_norm_cases
import numpy as np
import pytest
import torch
from group_norm_cases import ONE_PASS

from fastddpm.doctor.movements import CIFAR10_MAPS
from fastddpm_kernels import add_group_norm_silu, cat_group_norm_silu, group_norm_silu
from fastddpm_kernels.group_norm_silu import tiles
from fastddpm_kernels.launch import multiprocessors


def call(given):
    options = {"activation": "silu" if given["silu"] else "none"}
    return group_norm_silu(**{name: value for name, value in given.items() if name != "silu"}, **options)


@pytest.mark.parametrize("case", ONE_PASS, ids=lambda case: case.name)
def test_is_what_networks_write(case):
    given = group_norm_cases.arguments(case)
    y = call(given)
    assert torch.equal(y, group_norm_cases.plain(given))
    np.testing.assert_allclose(y.double().numpy(), group_norm_cases.expected(given), rtol=0, atol=1e-5)


def test_compiles_in_one_graph():
    given = group_norm_cases.arguments(ONE_PASS[4])
    compiled = torch.compile(call, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(given), call(given), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_groups": 5}, "num_groups is 5; accepted are divisors of the 12 channels"),
        ({"weight": torch.ones(3)}, r"weight has shape \(3,\); accepted is \(12,\)"),
        (
            {"pre_bias": torch.ones(3, 12)},
            r"pre_bias has shape \(3, 12\); accepted is \(2, 12\), or \(1, 12\)",
        ),
        ({"scale": None}, "shift is given alone"),
        ({"x": torch.ones(4)}, r"x has shape \(4,\)"),
        ({"shift": torch.ones(2, 12, device="meta")}, "shift is on meta; accepted is cpu"),
    ],
)
def test_errors_name_the_argument(change, message):
    given = group_norm_cases.arguments(ONE_PASS[4]) | change
    with pytest.raises(ValueError, match=message):
        call(given)


def test_an_unknown_activation_is_an_error():
    with pytest.raises(ValueError, match="activation is 'relu'; accepted: silu, mish, none"):
        group_norm_silu(torch.ones(1, 4, 2, 2), 2, activation="relu")


@pytest.mark.parametrize(
    ("shape", "num_groups", "in_one_pass"),
    [
        ((16, 128, 32, 32), 32, True),
        ((4, 128, 32, 32), 32, True),  # half of the card, but too little to split
        ((16, 384, 32, 32), 32, True),
        ((1, 384, 32, 32), 32, False),  # it fits, on a sixteenth of the card
        ((8, 512, 64, 64), 32, False),
        ((8, 512, 64, 64), 1, False),
    ],
)
@pytest.mark.parametrize("channels_last", [False, True])
def test_when_a_group_is_split(shape, num_groups, in_one_pass, channels_last):
    x = torch.empty(shape, device="meta", dtype=torch.bfloat16)
    if channels_last:
        x = x.to(memory_format=torch.channels_last)
    assert (tiles.one_pass(x, num_groups) is not None) is in_one_pass
    cut = tiles.one_pass(x, num_groups) or tiles.split(x, num_groups)
    assert cut.elements <= tiles.LARGEST_TILE
    channels, pixels = cut.channel_chunks * cut.block_channels, cut.pixel_chunks * cut.block_pixels
    assert channels >= shape[1] // num_groups
    assert pixels >= shape[2] * shape[3]


@pytest.mark.parametrize(("channels", "side"), CIFAR10_MAPS)
@pytest.mark.parametrize("channels_last", [False, True])
def test_one_image_has_a_program_for_every_multiprocessor(channels, side, channels_last):
    """In bfloat16, with 32 groups: 128 programs for 132 multiprocessors; they read whole sectors."""
    x = torch.empty(1, channels, side, side, device="meta", dtype=torch.bfloat16)
    if channels_last:
        x = x.to(memory_format=torch.channels_last)
    cut = tiles.shared(x, 32, 132) or tiles.one_pass(x, 32) or tiles.split(x, 32)
    programs = 32 // cut.groups * cut.chunks
    # In a contiguous map of 4x4 a sector is all of a channel.
    assert programs >= (128 if channels_last else 64 if side > 4 else 32)
    if channels_last:
        assert cut.groups * cut.group_channels * 2 >= 32 or 2 * cut.elements > tiles.SHARED_TILE
    assert cut.chunks * cut.block_pixels >= side**2
    assert cut.groups * cut.block_channels * cut.block_pixels >= tiles.SMALLEST_SHARE


@pytest.mark.parametrize(("multiprocessors", "batches"), [(132, (1, 2, 3)), (108, (1, 2)), (16, ())])
def test_groups_are_shared_while_multiprocessors_are_idle(multiprocessors, batches):
    for batch in range(1, 6):
        x = torch.empty(batch, 256, 16, 16, device="meta", dtype=torch.bfloat16)
        cut = tiles.shared(x, 32, multiprocessors)
        assert (cut is not None) == (batch in batches)
        if cut is not None:
            assert multiprocessors - 32 < batch * 32 * cut.chunks < 2 * multiprocessors


def test_multiprocessors_are_asked_of_the_card(monkeypatch):
    card = types.SimpleNamespace(multi_processor_count=108)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: card)
    assert multiprocessors(torch.device("cuda", 0)) == 108
    assert multiprocessors(torch.device("cpu")) == 132


def test_groups_that_no_program_could_combine_take_the_plain_path():
    assert tiles.fits(torch.empty(1, 128, 256, 256, device="meta"), 1)
    assert not tiles.fits(torch.empty(1, 512, 256, 256, device="meta"), 1)
    # Places in a sample are int32, however small its groups are.
    assert tiles.fits(torch.empty(1, 128, 4096, 4095, device="meta"), 128)
    for channels in (128, 256):
        shape = torch.Size((1, channels, 4096, 4096))
        assert not tiles.fits(torch.empty(shape, device="meta"), channels)
        assert not tiles.surely_fits(shape, channels)


@pytest.mark.parametrize("size", [1, 4, 12, 65, 1000])
@pytest.mark.parametrize("pixels", [1, 1025, 4097, 70000, 524288])
def test_what_surely_fits_does_in_either_layout(size, pixels):
    for dtype, num_groups in ((torch.bfloat16, 32), (torch.float32, 1)):
        channels = size * num_groups
        contiguous = torch.empty(1, channels, pixels, device="meta", dtype=dtype)
        last = torch.empty(1, pixels, channels, device="meta", dtype=dtype).movedim(-1, 1)
        if tiles.surely_fits(contiguous.shape, num_groups):
            assert tiles.fits(contiguous, num_groups)
            assert tiles.fits(last, num_groups)
    assert tiles.surely_fits(torch.Size((1, 512, 256, 256)), 32)


def test_half_precision_keeps_its_dtype():
    given = group_norm_cases.arguments(replace(ONE_PASS[4], dtype=torch.bfloat16))
    assert call(given).dtype == torch.bfloat16


def test_a_sum_and_its_norm():
    """On a CPU, and with gradients, two operations: float64 of the formula."""
    generator = torch.Generator().manual_seed(0)
    x, residual, pre_bias = (
        torch.randn(*size, generator=generator, dtype=torch.float64, requires_grad=True)
        for size in ((2, 6, 3, 4), (2, 6, 3, 4), (1, 6))
    )
    y, total = add_group_norm_silu(x, residual, 3, pre_bias=pre_bias)
    assert torch.equal(total, x + residual)
    h = (total + pre_bias[..., None, None]).reshape(2, 3, -1)
    h = (h - h.mean(-1, keepdim=True)) / (h.var(-1, correction=0, keepdim=True) + 1e-5).sqrt()
    torch.testing.assert_close(y, (h * torch.sigmoid(h)).reshape(x.shape), rtol=1e-10, atol=1e-12)
    (y.square().sum() + total.sum()).backward()
    torch.testing.assert_close(x.grad, residual.grad)
    assert x.grad.abs().min() > 0


@pytest.mark.parametrize("with_residual", [False, True])
def test_a_concatenation_and_its_norm(with_residual):
    """On a CPU, and with gradients, operation by operation: float64 of the formula, a group of both maps."""
    generator = torch.Generator().manual_seed(0)
    x, residual, other, pre_bias = (
        torch.randn(*size, generator=generator, dtype=torch.float64, requires_grad=True)
        for size in ((2, 4, 3, 4), (2, 4, 3, 4), (2, 2, 3, 4), (1, 6))
    )
    y, whole = cat_group_norm_silu(
        x, other, 2, residual=residual if with_residual else None, pre_bias=pre_bias, activation="none"
    )
    assert torch.equal(whole[:, :4], x + residual if with_residual else x)
    assert torch.equal(whole[:, 4:], other)
    h = (whole + pre_bias[..., None, None]).reshape(2, 2, -1)
    h = (h - h.mean(-1, keepdim=True)) / (h.var(-1, correction=0, keepdim=True) + 1e-5).sqrt()
    torch.testing.assert_close(y, h.reshape(whole.shape), rtol=1e-10, atol=1e-12)
    (y.square().sum() + whole.sum()).backward()
    assert x.grad.abs().min() > 0
    assert other.grad.abs().min() > 0


@pytest.mark.parametrize(
    "other", [torch.ones(1, 3, 2, 3), torch.ones(1, 3, 2, 2).half(), torch.ones(1, 3, 2, 2, device="meta")]
)
def test_another_map_that_does_not_fit_is_an_error(other):
    words = r"other: .* given; accepted is \(1, 5, 2, 2\), torch.float32 on cpu, as x is, with any channels"
    with pytest.raises(ValueError, match=words):
        cat_group_norm_silu(torch.ones(1, 5, 2, 2), other, 2)
    with pytest.raises(ValueError, match="num_groups is 3; accepted are divisors of the 8 channels"):
        cat_group_norm_silu(torch.ones(1, 5, 2, 2), torch.ones(1, 3, 2, 2), 3)


@pytest.mark.parametrize(
    "residual", [torch.ones(1, 4, 2, 3), torch.ones(1, 4, 2, 2).half(), torch.ones(1, 4, 2, 2, device="meta")]
)
def test_another_residual_is_an_error(residual):
    with pytest.raises(
        ValueError, match=r"residual: .* given; accepted is \(1, 4, 2, 2\), torch.float32 on cpu"
    ):
        add_group_norm_silu(torch.ones(1, 4, 2, 2), residual, 2)
