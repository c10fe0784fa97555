"""Noise spec v1 in NumPy: the definition that the torch and Triton versions are held against.

Philox4x32-10 (Salmon et al., "Parallel Random Numbers: As Easy as 1, 2, 3", 2011) in counter mode:

    key     = (seed & 0xffffffff, seed >> 32)
    counter = (block, step, stream, repeat)
    element e of n (row-major C, H, W): q = 16*ceil(n/64); lane = e // q; block = e % q; it takes z_lane
    u(w)    = ((w >> 9) + 0.5) * 2**-23
    z0, z1  = sqrt(-2 ln u(w0)) * (cos, sin)(2 pi u(w1));  z2, z3 the same from w2, w3

so that a number depends on its seed, its place in the image, the step, the stream and the repeat alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
KEY_INCREMENTS = (0x9E3779B9, 0xBB67AE85)
N_ROUNDS = 10
MASK = 0xFFFFFFFF
"""The 32 low bits: what is left of a counter word, a key or a product."""


def plane_size(n_elements: int) -> int:
    """q = 16*ceil(n/64): elements per lane; a multiple of 16, so each lane starts on a 64-byte boundary."""
    return 16 * -(-n_elements // 64)


def philox(
    key: tuple[npt.ArrayLike, npt.ArrayLike], counter: Sequence[npt.ArrayLike]
) -> tuple[npt.NDArray[np.uint32], ...]:
    """Philox4x32-10: the words of `counter` (4 arrays) under `key` (2 arrays), all broadcast together."""
    k0, k1 = (np.asarray(word, dtype=np.uint64) for word in key)
    c0, c1, c2, c3 = np.broadcast_arrays(*(np.asarray(word, dtype=np.uint64) for word in counter))
    mask, half = np.uint64(MASK), np.uint64(32)
    for _ in range(N_ROUNDS):
        product0, product1 = c0 * np.uint64(MULTIPLIERS[0]), c2 * np.uint64(MULTIPLIERS[1])
        c0, c1, c2, c3 = (
            (product1 >> half) ^ c1 ^ k0,
            product1 & mask,
            (product0 >> half) ^ c3 ^ k1,
            product0 & mask,
        )
        k0, k1 = (k0 + np.uint64(KEY_INCREMENTS[0])) & mask, (k1 + np.uint64(KEY_INCREMENTS[1])) & mask
    return tuple(word.astype(np.uint32) for word in (c0, c1, c2, c3))


def words(
    seeds: npt.ArrayLike,
    step: npt.ArrayLike,
    n_elements: int,
    *,
    stream: int = 0,
    repeat: npt.ArrayLike = 0,
) -> npt.NDArray[np.uint32]:
    """The raw words, uint32 (B, 4, q): `[sample, lane, block]`.

    seeds are (B,) integers in [0, 2**63); step and repeat are one integer or (B,) of them, taken modulo
    2**32.
    """
    keys = np.asarray(seeds, dtype=np.int64).astype(np.uint64)[:, None]
    low, half = np.uint64(MASK), np.uint64(32)
    block = np.arange(plane_size(n_elements), dtype=np.uint64)[None, :]
    counter = (block, _column(step), np.uint64(stream), _column(repeat))
    lanes = philox((keys & low, keys >> half), counter)
    return np.stack(np.broadcast_arrays(*lanes), axis=1)


def normal(
    seeds: npt.ArrayLike,
    step: npt.ArrayLike,
    shape: Sequence[int],
    *,
    stream: int = 0,
    repeat: npt.ArrayLike = 0,
    dtype: npt.DTypeLike = np.float64,
) -> npt.NDArray[np.floating]:
    """Standard normals (B, *shape), computed in float64 and rounded to `dtype`; arguments as in `words`."""
    n_elements = math.prod(shape)
    w = words(seeds, step, n_elements, stream=stream, repeat=repeat)
    u = ((w >> np.uint32(9)).astype(np.float64) + 0.5) * 2.0**-23
    z = np.empty(u.shape)
    for radius_lane, angle_lane in ((0, 1), (2, 3)):
        radius = np.sqrt(-2.0 * np.log(u[:, radius_lane]))
        angle = 2.0 * np.pi * u[:, angle_lane]
        z[:, radius_lane] = radius * np.cos(angle)
        z[:, angle_lane] = radius * np.sin(angle)
    planes = z.reshape(len(z), -1)[:, :n_elements]
    return planes.reshape(len(z), *shape).astype(dtype)


def _column(word: npt.ArrayLike) -> npt.NDArray[np.uint64]:
    """One integer, or one per sample, as a (1, 1) or (B, 1) array of 32-bit words."""
    column = np.asarray(word, dtype=np.int64).astype(np.uint64).reshape(-1, 1)
    return np.asarray(column & np.uint64(MASK), dtype=np.uint64)
