"""Noise spec v1 (see reference.py) compiled by numba: a number's words stay in registers from round to round.

Imported where `machine_code.pays` says so. Logarithm, root, cosine and sine are torch's, from which those of
other libraries differ in a bit: `uniforms` makes what they take, `products` goes on with what they give.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from ..machine_code import jit
from .reference import KEY_INCREMENTS, MULTIPLIERS, N_ROUNDS

Integers = npt.NDArray[np.int64]
Numbers = npt.NDArray[np.float32]

# Of the width that each is used in: numba makes 64 bits of a sum or product of other kinds.
Word, Product, Real = np.uint32, np.uint64, np.float32
MULTIPLIER_0, MULTIPLIER_1 = Product(MULTIPLIERS[0]), Product(MULTIPLIERS[1])
INCREMENT_0, INCREMENT_1 = Word(KEY_INCREMENTS[0]), Word(KEY_INCREMENTS[1])
WORD_BITS, UNUSED_BITS = Product(32), Word(9)
HALF, UNIT, TURN = Real(0.5), Real(2.0**-23), Real(2.0 * math.pi)


@jit
def uniform(word: Any) -> Any:
    """((word >> 9) + 0.5) * 2**-23, exactly, float32; word is uint32."""
    return (Real(np.int32(word >> UNUSED_BITS)) + HALF) * UNIT


@jit
def angle(word: Any) -> Any:
    """2 pi (u - 1/2) of such a uniform, rounded once."""
    return (uniform(word) - HALF) * TURN


@jit
def uniforms(
    seeds: Integers,
    steps: Integers,
    repeats: Integers,
    stream: int,
    first: int,
    radii: Numbers,
    angles: Numbers,
) -> None:
    """Uniforms of words 0 and 2 into `radii`, angles of 1 and 3 into `angles`, both (2, samples, blocks).

    seeds, steps and repeats are (samples,); the blocks are those from `first` on.
    """
    for sample in range(len(seeds)):
        seed = Product(seeds[sample])
        key_0, key_1 = Word(seed), Word(seed >> WORD_BITS)
        step, repeat = Word(steps[sample]), Word(repeats[sample])
        # Views, whose places cannot be negative: only then are the loops over them made of vectors.
        radius_0, radius_1 = radii[0, sample], radii[1, sample]
        angle_0, angle_1 = angles[0, sample], angles[1, sample]
        for i in range(len(radius_0)):
            c0, c1, c2, c3 = Word(first + i), step, Word(stream), repeat
            k0, k1 = key_0, key_1
            for _ in range(N_ROUNDS):
                product_0, product_1 = Product(c0) * MULTIPLIER_0, Product(c2) * MULTIPLIER_1
                c0, c1, c2, c3 = (
                    Word(product_1 >> WORD_BITS) ^ c1 ^ k0,
                    Word(product_1),
                    Word(product_0 >> WORD_BITS) ^ c3 ^ k1,
                    Word(product_0),
                )
                k0, k1 = Word(k0 + INCREMENT_0), Word(k1 + INCREMENT_1)
            radius_0[i], radius_1[i] = uniform(c0), uniform(c2)
            angle_0[i], angle_1[i] = angle(c1), angle(c3)


@jit
def products(radii: Numbers, cosines: Numbers, sines: Numbers, plane: int, first: int, out: Numbers) -> None:
    """The normals radius * (cosine, sine) of the blocks from `first` on, (2, samples, blocks) each, into
    their places of `out` (samples, n), whose lanes have `plane` elements."""
    width = radii.shape[2]
    for sample in range(len(out)):
        for pair in range(2):
            radius = radii[pair, sample]
            start = 2 * pair * plane + first
            for factors in (cosines, sines):
                factor = factors[pair, sample]
                target = out[sample, start : start + width]
                for i in range(len(target)):
                    target[i] = radius[i] * factor[i]
                start += plane
