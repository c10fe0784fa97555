"""The Triton device functions of the noise spec against the NumPy reference."""

import numpy as np
import pytest
import torch
import triton
import triton.language as tl

from fastddpm_kernels.noise import kernel, reference
from fastddpm_kernels.noise.kernel import box_muller, lanes, normals, philox

SIZES = (1, 2, 5, 33, 784, 3072)
SEEDS = (0, 2**32 + 5, 2**63 - 1)

BOX_MULLER_TOLERANCE = 1.4e-6
"""Absolute, of normals up to 5.8. The interpreter rounds products that a GPU fuses: there it is 1e-6."""


@triton.jit
def words_kernel(seed_ptr, counter_ptr, out_ptr, BLOCK_SIZE: tl.constexpr):
    """Words of counters 0 .. BLOCK_SIZE-1; counter_ptr holds (step, stream, repeat)."""
    block = tl.arange(0, BLOCK_SIZE)
    step = tl.load(counter_ptr).to(tl.uint32)
    stream = tl.load(counter_ptr + 1).to(tl.uint32)
    repeat = tl.load(counter_ptr + 2).to(tl.uint32)
    w0, w1, w2, w3 = philox(tl.load(seed_ptr), block.to(tl.uint32), step, stream, repeat)
    tl.store(out_ptr + block, w0.to(tl.int64))
    tl.store(out_ptr + BLOCK_SIZE + block, w1.to(tl.int64))
    tl.store(out_ptr + 2 * BLOCK_SIZE + block, w2.to(tl.int64))
    tl.store(out_ptr + 3 * BLOCK_SIZE + block, w3.to(tl.int64))


@triton.jit
def normals_kernel(seed_ptr, counter_ptr, out_ptr, plane, BLOCK_SIZE: tl.constexpr):
    block = tl.arange(0, BLOCK_SIZE)[:, None, None]
    z = normals(tl.load(seed_ptr), block, tl.load(counter_ptr), 1, tl.load(counter_ptr + 2))
    tl.store(out_ptr + block + lanes() * plane, z, mask=block < plane)


@triton.jit
def box_muller_kernel(
    radius_ptr, angle_ptr, cosine_ptr, sine_ptr, BLOCK_SIZE: tl.constexpr, FAST: tl.constexpr = False
):
    i = tl.program_id(0) * BLOCK_SIZE + tl.arange(0, BLOCK_SIZE)
    radius_word, angle_word = tl.load(radius_ptr + i).to(tl.uint32), tl.load(angle_ptr + i).to(tl.uint32)
    cosine, sine = box_muller(radius_word, angle_word, FAST)
    tl.store(cosine_ptr + i, cosine)
    tl.store(sine_ptr + i, sine)


@triton.jit
def hardware_log2(x):
    """The logarithm as far off as `lg2.approx` may be (PTX ISA)."""
    off = 2.0**-22
    return tl.where(x > 0.5, tl.log2(x) + off, tl.log2(x) * (1.0 + off))


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("n", SIZES)
def test_words_agree_bit_for_bit(seed, n):
    plane = reference.plane_size(n)
    size = triton.next_power_of_2(plane)
    counter = (3, 4, 2**32 - 1)
    out = torch.empty(4, size, dtype=torch.int64)
    words_kernel[(1,)](torch.tensor([seed]), torch.tensor(counter), out, BLOCK_SIZE=size)
    expected = reference.words([seed], counter[0], n, stream=counter[1], repeat=counter[2])
    np.testing.assert_array_equal(out[:, :plane].numpy(), expected[0])


@pytest.mark.parametrize("n", SIZES)
def test_normals_agree_with_the_reference(n):
    plane = reference.plane_size(n)
    out = torch.empty(4 * plane)
    for seed in SEEDS:
        counter = torch.tensor([3, 0, 5])
        normals_kernel[(1,)](
            torch.tensor([seed]), counter, out, plane, BLOCK_SIZE=triton.next_power_of_2(plane)
        )
        expected = reference.normal([seed], 3, (n,), stream=1, repeat=5)
        np.testing.assert_allclose(out[:n].numpy(), expected[0], rtol=0, atol=2e-6)


@pytest.mark.parametrize("varied", ["radius", "angle"])
def test_box_muller_over_every_uniform_there_is(varied):
    """All 2**23 of them: the radius at an angle near 0, every angle at the largest radius."""
    every = torch.arange(2**23) << 9 | 0x155
    fixed = torch.zeros_like(every)
    radius_word, angle_word = (every, fixed) if varied == "radius" else (fixed, every)
    cosine, sine = torch.empty(2**23), torch.empty(2**23)
    box_muller_kernel[(8,)](radius_word, angle_word, cosine, sine, BLOCK_SIZE=2**20)
    radius = (-2 * uniform(radius_word).log()).sqrt()
    angle = 2 * torch.pi * uniform(angle_word)
    torch.testing.assert_close(cosine.double(), radius * angle.cos(), rtol=0, atol=BOX_MULLER_TOLERANCE)
    torch.testing.assert_close(sine.double(), radius * angle.sin(), rtol=0, atol=BOX_MULLER_TOLERANCE)


def test_the_fast_radius_with_the_hardware_s_logarithm(monkeypatch):
    """Within what normals may be off by; near 1, where every uniform is tried, the radius would be lost."""
    monkeypatch.setattr(kernel, "log2", hardware_log2)
    uniforms = torch.cat((torch.arange(0, 2**23, 64), torch.arange(2**23 - 2**17, 2**23)))
    radius_word = uniforms << 9 | 0x155
    angle_word = torch.zeros_like(radius_word)
    radius, sine = torch.empty(2**18), torch.empty(2**18)
    box_muller_kernel[(1,)](radius_word, angle_word, radius, sine, BLOCK_SIZE=2**18, FAST=True)
    expected = (-2 * uniform(radius_word).log()).sqrt()
    assert (radius - expected).abs().max() > 3e-7  # it is off, so the logarithm was this one
    torch.testing.assert_close(radius.double(), expected, rtol=0, atol=BOX_MULLER_TOLERANCE)


def uniform(word):
    return ((word >> 9).double() + 0.5) / 2**23
