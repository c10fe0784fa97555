"""Noise spec v1 (fastddpm_kernels/noise/reference.py) in ONNX's integer operators.

Words are 32-bit values in uint64 tensors: the product of two fits, and BitShift and BitwiseAnd part it.
ONNX's own random operators give no image its own seed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from fastddpm.export.nodes import FLOAT, UINT64, Graph
from fastddpm_kernels.noise.reference import KEY_INCREMENTS, MASK, MULTIPLIERS, N_ROUNDS, plane_size


@dataclass(frozen=True)
class Keys:
    """What a batch of seeds gives once for all steps: names of uint64 tensors.

    Attributes:
        rounds: per round the two key words, [B, 1] each.
        high: high word of block times the first multiplier, [1, q].
        low: its low word.
    """

    rounds: list[tuple[str, str]]
    high: str
    low: str


def keys(g: Graph, seeds: str, n_elements: int) -> Keys:
    """Prepares seeds, int64 [B] in [0, 2**63), for images of n_elements numbers."""
    seed = g("Cast", g("Unsqueeze", seeds, g.int64([1])), to=UINT64)
    k0, k1 = _low(g, seed), _high(g, seed)
    rounds = [(k0, k1)]
    for _ in range(N_ROUNDS - 1):
        k0 = _low(g, g("Add", k0, _word(g, KEY_INCREMENTS[0])))
        k1 = _low(g, g("Add", k1, _word(g, KEY_INCREMENTS[1])))
        rounds.append((k0, k1))
    block = g("Range", g.int64(0), g.int64(plane_size(n_elements)), g.int64(1))
    block = g("Cast", g("Unsqueeze", block, g.int64([0])), to=UINT64)
    product = g("Mul", block, _word(g, MULTIPLIERS[0]))
    return Keys(rounds, _high(g, product), _low(g, product))


def words(g: Graph, prepared: Keys, step: str) -> tuple[str, str, str, str]:
    """The words of lanes 0 to 3, uint64 [B, q] each, at counter (block, step, 0, 0); step is int64 []."""
    (k0, k1), *rounds = prepared.rounds
    # The first round by hand: stream and repeat are 0, so only block and step enter it.
    c0, c1 = g("BitwiseXor", g("Cast", step, to=UINT64), k0), _word(g, 0)
    c2, c3 = g("BitwiseXor", prepared.high, k1), prepared.low
    for k0, k1 in rounds:
        product0, product1 = g("Mul", c0, _word(g, MULTIPLIERS[0])), g("Mul", c2, _word(g, MULTIPLIERS[1]))
        c0, c1, c2, c3 = (
            g("BitwiseXor", g("BitwiseXor", _high(g, product1), c1), k0),
            _low(g, product1),
            g("BitwiseXor", g("BitwiseXor", _high(g, product0), c3), k1),
            _low(g, product0),
        )
    return c0, c1, c2, c3


def normal(g: Graph, prepared: Keys, step: str, shape: tuple[int, ...]) -> str:
    """Standard normals, float32 [B, *shape]: step 0 is x_T, step k + 1 the noise of plan row k."""
    w0, w1, w2, w3 = words(g, prepared, step)
    planes = g("Concat", *_box_muller(g, w0, w1), *_box_muller(g, w2, w3), axis=1)
    planes = g.slice(planes, 0, math.prod(shape), 1)
    return g("Reshape", planes, g.int64([-1, *shape]))


def _box_muller(g: Graph, radius_word: str, angle_word: str) -> tuple[str, str]:
    # (cos, sin)(2 pi u) = -(cos, sin)(2 pi (u - 1/2)): the subtraction is exact and halves the rounding.
    radius = g("Sqrt", g("Mul", g("Log", _uniform(g, radius_word)), g.float32(-2.0)))
    minus_radius = g("Neg", radius)
    angle = g("Mul", g("Sub", _uniform(g, angle_word), g.float32(0.5)), g.float32(2.0 * math.pi))
    return g("Mul", g("Cos", angle), minus_radius), g("Mul", g("Sin", angle), minus_radius)


def _uniform(g: Graph, word: str) -> str:
    shifted = g("BitShift", word, _word(g, 9), direction="RIGHT")
    return g("Mul", g("Add", g("Cast", shifted, to=FLOAT), g.float32(0.5)), g.float32(2.0**-23))


def _word(g: Graph, number: int) -> str:
    return g.constant(number, np.uint64)


def _low(g: Graph, number: str) -> str:
    return g("BitwiseAnd", number, _word(g, MASK))


def _high(g: Graph, number: str) -> str:
    return g("BitShift", number, _word(g, 32), direction="RIGHT")
