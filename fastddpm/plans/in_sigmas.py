"""Rows in the scale of a scheduler whose variance explodes: u = x0 + sigma eps, each operation rounded once.

    x0     = clip(p*u/d + q*m, -r, r)                    m: the network's output for u/c
    slope  = (u - x0) / w
    u_next = v + (e*(slope + g*k1) + h1*k1 + h2*k2 + h3*k3) + n*z

v is u, or what u was where a step began; k1 to k3 are slopes of earlier rows, the last first. In exact
numbers these are rows of `fastddpm_kernels.table`, of x = u/sqrt(1 + sigma^2). In float32 they are not: at
sigma = 20 000 a unit in the last place of u is 0.002, and keeps its size while sigma falls. A library that
walks in u has that in its images, and to repeat them is to repeat every rounding
(`fastddpm.plans.diffusers.written`).

A table of such rows has 32 columns, those of `Level`; plans say so by `Plan.in_sigmas`.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Any

import numpy as np
import numpy.typing as npt


class Level(IntEnum):
    """Position of each coefficient in a row, the rest is 0; what `Column` has too is in the same place."""

    INPUT_DIVISOR = 0
    """c: what u is divided by for the network."""
    X0_FROM_M = 1
    """q."""
    X0_BOUND = 2
    """r: infinity is no bound."""
    X0_FROM_U = 3
    """p: 0 or 1."""
    FROM_SLOPE = 4
    """e."""
    SLOPE_FROM_KEPT = 5
    """g: 0, or 1 where a slope is a mean of two."""
    FROM_KEPT_1 = 6
    """h1."""
    FROM_NOISE = 7
    """n."""
    FROM_KEPT_2 = 8
    """h2."""
    FROM_KEPT_3 = 9
    """h3."""
    BEGINS = 10
    """Whether v is u: 1, or 0 within a step."""
    CHURN = 11
    """Of noise that is added to u before anything else, as a caller of single steps may ask for."""
    X0_DIVISOR = 12
    """d."""
    SLOPE_DIVISOR = 15
    """w: the sigma of the row."""


FROM_KEPT = (int(Level.FROM_KEPT_1), int(Level.FROM_KEPT_2), int(Level.FROM_KEPT_3))
"""h1 to h3."""


def places(table: npt.NDArray[Any]) -> int:
    """Tensors that a chain keeps from row to row: v, then slopes; 0 where no row reads one."""
    reads = np.any(table[:, FROM_KEPT] != 0, axis=0)
    slopes = int(reads.nonzero()[0].max()) + 1 if reads.any() else 0
    slopes = max(slopes, int(np.any(table[:, Level.SLOPE_FROM_KEPT] != 0)))
    is_within = bool(np.any(table[:, Level.BEGINS] == 0))
    return 1 + slopes if slopes or is_within else 0
