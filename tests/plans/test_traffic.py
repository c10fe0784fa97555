"""Bytes and operations of a call, against sums made by hand; interpreter/ counts bytes as they move."""

from __future__ import annotations

import pytest
import torch

from fastddpm_kernels.group_norm_silu import reference as norm
from fastddpm_kernels.noise_mse import reference as loss
from fastddpm_kernels.pad_sum import reference as pad_sum
from fastddpm_kernels.q_sample import reference as q_sample
from fastddpm_kernels.reverse_step import reference as step


def images(batch, channels, dtype=torch.float32):
    return torch.empty(batch, channels, 4, 5, dtype=dtype, device="meta")


# Two samples of 3 x 4 x 5: 120 elements, 480 bytes in float32.
X, SEEDS = images(2, 3), torch.empty(2, dtype=torch.int64, device="meta")
RING = torch.empty(7, 2, 3, 4, 5, device="meta")
BOUNDS = torch.empty(2, device="meta")


@pytest.mark.parametrize(
    ("m", "options", "n_bytes", "operations"),
    [
        # x, m, x_next; two products and a sum.
        (X, {}, 3 * 480, 3 * 120),
        # The noise drawn: one multiply-add; or given: one of seven slots is read.
        (X, {"noise": SEEDS}, 3 * 480, 5 * 120),
        (X, {"noise": RING}, 4 * 480, 5 * 120),
        (images(2, 3, torch.bfloat16), {}, 2 * 480 + 240, 3 * 120),
        # x0: 3, clip: 2, x_next: 5.
        (X, {"clip": True}, 3 * 480, 10 * 120),
        # A prediction read, and one written; h1*k1.
        (X, {"clip": True, "kept": X[None]}, 5 * 480, 12 * 120),
        # Three read, and one written; h1*k1 + h2*k2 + h3*k3, and i*x0 + j*x + n*m.
        (X, {"kept": torch.empty(3, *X.shape, device="meta"), "combine": True}, 7 * 480, 19 * 120),
        # Bounded on both sides and divided: 3.
        (X, {"threshold": BOUNDS, "x0": X}, 4 * 480, 11 * 120),
        (images(4, 3), {"guidance": BOUNDS}, 4 * 480, 6 * 120),
        # Without noise nobody reads v; with it f: 2, log variance: 4, sigma: 3, noise: 2.
        (images(2, 6), {}, 3 * 480, 3 * 120),
        (images(2, 6), {"noise": SEEDS}, 4 * 480, 14 * 120),
        # Of the unconditional half v is not read.
        (images(4, 6), {"noise": SEEDS, "guidance": BOUNDS}, 5 * 480, 17 * 120),
        # x0: 3 and a division, eps: 5 and a division, x_next: 3.
        (X, {"divide": True, "rederive": True}, 3 * 480, 13 * 120),
    ],
)
def test_reverse_step(m, options, n_bytes, operations):
    given = step.Arguments(X, m, torch.empty(9, 32), torch.empty(2), **options)
    assert given.traffic() == (n_bytes, operations)


@pytest.mark.parametrize(
    ("options", "tensors"),
    [
        ({"seeds": SEEDS, "ordinals": SEEDS}, 2),
        ({"seeds": SEEDS, "ordinals": SEEDS, "return_noise": True}, 3),
        ({"noise": X}, 3),
        ({"noise": X, "return_noise": True}, 3),
    ],
)
def test_q_sample(options, tensors):
    assert q_sample.Arguments(X, SEEDS, BOUNDS, BOUNDS, **options).traffic() == (tensors * 480, 3 * 120)


def test_pad_sum():
    """2 x 3 x 5 x 6 are 180 elements."""
    bias = torch.empty(3, device="meta")
    assert pad_sum.Arguments(X, None, bias, 1).traffic() == (480 + 720, 120)
    assert pad_sum.Arguments(X, X, bias, 1).traffic() == (3 * 480 + 720, 240)


def test_noise_mse():
    half = images(2, 3, torch.float16)
    # u, u**2 and a sum; u, 2u and a scale.
    assert loss.Arguments(X, SEEDS, SEEDS).traffic() == (480, 3 * 120)
    assert loss.Arguments(X, SEEDS, SEEDS).traffic(backward=True) == (2 * 480, 3 * 120)
    # Two products and a difference more; |u|, u*u/2, |u| - 1/2, or a clip.
    v = loss.Arguments(half, SEEDS, SEEDS, "huber", X, BOUNDS, BOUNDS)
    assert v.traffic() == (240 + 480, 9 * 120)
    assert v.traffic(backward=True) == (2 * 240 + 480, 7 * 120)


def test_group_norm_silu():
    x, vectors = images(2, 6, torch.bfloat16), torch.empty(2, 6, device="meta")
    assert norm.Arguments(x, 3, silu=False).traffic() == (2 * 480, 6 * 240)
    assert norm.Arguments(x, 3, pre_bias=vectors).traffic() == (2 * 480, 11 * 240)
    assert norm.Arguments(x, 3, residual=x).traffic() == (4 * 480, 11 * 240)
    # Two maps are read, y and the concatenation written.
    assert norm.Arguments(x, 3, other=x).traffic() == (2 * 3 * 480, 2 * 10 * 240)
    assert norm.Arguments(x, 3, residual=x, other=x).traffic() == (7 * 480, 21 * 240)
