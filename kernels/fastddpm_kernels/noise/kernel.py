"""Noise spec v1 (see reference.py) as Triton device functions, for the kernels that draw their noise.

A program holds a tile (BLOCK, 2, 2): BLOCK counters by their four lanes, lane = 2*i + j. The lanes are planes
of the image: neighbouring counters are neighbouring elements, so that a tile moves in wide accesses.

Philox is written out rather than taken from `tl.philox`: one 32x32 -> 64-bit product gives both halves in one
instruction, and the counter cannot become 64 bits wide, which would make it another generator.

The Box-Muller transform needs no slow path, because every argument's range is known: the logarithm is of a
normal number in (0, 1), and the angle is reduced exactly, on the word itself, to within a quarter turn of 0.
The polynomials are minimax fits, off by at most 5e-8 in the radius and 5.3e-8 in the sine and cosine, less
than the rounding of float32. The training loss, whose time is its instructions, has a faster logarithm.
"""

import triton
import triton.language as tl

from ..fast_math import log2
from .reference import KEY_INCREMENTS, MULTIPLIERS, N_ROUNDS

MULTIPLIER_0 = tl.constexpr(MULTIPLIERS[0])
MULTIPLIER_1 = tl.constexpr(MULTIPLIERS[1])
INCREMENT_0 = tl.constexpr(KEY_INCREMENTS[0])
INCREMENT_1 = tl.constexpr(KEY_INCREMENTS[1])
ROUNDS = tl.constexpr(N_ROUNDS)


@triton.jit
def philox(seed, block, step, stream, repeat):
    """The four words, uint32 like `block`; seed is an int64 scalar, the counter words are uint32."""
    tl.static_assert(block.dtype == tl.uint32, "a counter word has 32 bits")
    tl.static_assert(step.dtype == tl.uint32, "a counter word has 32 bits")
    tl.static_assert(repeat.dtype == tl.uint32, "a counter word has 32 bits")
    k0 = seed.to(tl.uint32)
    k1 = (seed >> 32).to(tl.uint32)
    c0 = block
    c1 = step
    c2 = tl.zeros_like(block) + stream
    c3 = repeat
    for _ in tl.static_range(ROUNDS):
        product0 = c0.to(tl.uint64) * MULTIPLIER_0
        product1 = c2.to(tl.uint64) * MULTIPLIER_1
        c0 = (product1 >> 32).to(tl.uint32) ^ c1 ^ k0
        c1 = product1.to(tl.uint32)
        c2 = (product0 >> 32).to(tl.uint32) ^ c3 ^ k1
        c3 = product0.to(tl.uint32)
        k0 = k0 + INCREMENT_0
        k1 = k1 + INCREMENT_1
    return c0, c1, c2, c3


@triton.jit
def lanes():
    """(1, 2, 2) int32: lane = 2*i + j, each a constant once compiled."""
    return 2 * tl.arange(0, 2)[None, :, None] + tl.arange(0, 2)[None, None, :]


@triton.jit
def normals(seed, block, step, stream, repeat, FAST: tl.constexpr = False):
    """(BLOCK, 2, 2) float32 standard normals of the counters `block`, int32 (BLOCK, 1, 1): z_{2i+j} at i, j.

    seed is an int64 scalar, step and repeat are integer scalars taken modulo 2**32. FAST: see `box_muller`.
    """
    lane = lanes()
    # lane // 4 is 0. Adding it gives every value below the shape of the tile, so that Triton lays noise and
    # image out alike instead of moving one of them through shared memory. The lanes of a counter are
    # registers of one thread: LLVM sees four equal Philox computations there and keeps one, and of each
    # `where` only the side that is taken.
    block = (block + lane // 4).to(tl.uint32)
    w0, w1, w2, w3 = philox(seed, block, step.to(tl.uint32), stream, repeat.to(tl.uint32))
    first_pair = lane < 2
    cosine, sine = box_muller(tl.where(first_pair, w0, w2), tl.where(first_pair, w1, w3), FAST)
    return tl.where(lane % 2 == 0, cosine, sine)


@triton.jit
def box_muller(radius_word, angle_word, FAST: tl.constexpr = False):
    """sqrt(-2 ln u(radius_word)) * (cos, sin)(2 pi u(angle_word)).

    FAST: with the hardware's logarithm, which puts the radius up to 7e-7 off.
    """
    if FAST:
        radius = tl.sqrt(fast_minus_two_log_uniform(radius_word))
    else:
        radius = tl.sqrt(minus_two_log_uniform(radius_word))
    # In half turns the angle is h = 2u = k + x with k its nearest integer, and
    # (cos, sin)(pi h) = (-1)**k * (cos, sin)(pi x). Bits 31 and 30 of the word are the integer and the first
    # fractional bit of h: k is odd where bit 31 of their sum is set.
    sign = (angle_word + 0x40000000) & 0x80000000
    radius = (radius.to(tl.uint32, bitcast=True) ^ sign).to(tl.float32, bitcast=True)
    # x + 3/2 as a float: the other fractional bits, half of their last (the 0.5 in u), the first one flipped.
    x = (((angle_word >> 8) & 0x7FFFFE) ^ 0x3FC00001).to(tl.float32, bitcast=True) - 1.5
    square = x * x
    cosine = 0.2200806587934494 * square - 1.332095742225647
    cosine = cosine * square + 4.058451175689697
    cosine = cosine * square - 4.934795379638672
    cosine = cosine * square + 1.0
    sine = 0.07722125202417374 * square - 0.5980405211448669
    sine = sine * square + 2.550032138824463
    sine = sine * square - 5.1677069664001465
    sine = sine * square + 3.141592502593994
    return radius * cosine, (radius * x) * sine


@triton.jit
def uniform(word):
    """((word >> 9) + 0.5) * 2**-23, exactly."""
    # 1 + (word >> 9) * 2**-23, assembled; subtracting 1 - 2**-24 is exact.
    return ((word >> 9) + 0x3F800000).to(tl.float32, bitcast=True) - 0.999999940395355224609375


@triton.jit
def fast_minus_two_log_uniform(word):
    """`minus_two_log_uniform` in ten instructions for fourteen, for kernels that are bound by them.

    `lg2.approx` is off by 2**-22, relative to the logarithm below 1/2 and absolutely above (PTX ISA): the
    radius by 7e-7 at most, where it is largest. Near 1, where that is all of it, a polynomial of u - 1.
    """
    u = uniform(word)
    f = u - 1.0
    p = -0.5258973836898804 * f + 0.48538222908973694
    p = p * f - 0.6673382520675659
    p = p * f + 0.9999893307685852
    p = p * f - 2.0
    return tl.where(f > -0.125, p * f, log2(u) * -1.3862943611198906)


@triton.jit
def minus_two_log_uniform(word):
    """-2 ln(((word >> 9) + 0.5) * 2**-23), in (1e-7, 33.3)."""
    u = uniform(word)
    # u = 2**k * (1 + f) with 1 + f in [2/3, 4/3); `exponent` is k * 2**23.
    bits = u.to(tl.int32, bitcast=True)
    exponent = (bits - 0x3F2AAAAB) & -0x800000
    f = (bits - exponent).to(tl.float32, bitcast=True) - 1.0
    p = 0.3253309726715088 * f - 0.34342581033706665
    p = p * f + 0.3244055509567261
    p = p * f - 0.39576584100723267
    p = p * f + 0.5004246234893799
    p = p * f - 0.6667576432228088
    p = p * f + 0.9999932646751404
    p = p * f - 2.0
    # -2 ln 2 / 2**23
    return exponent.to(tl.float32) * -1.6525917e-07 + p * f
