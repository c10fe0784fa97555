"""A reverse step compiled by numba: one pass over memory, with the roundings of torch's operators on a CPU.

Imported where `machine_code.pays` says so. Which arguments are None costs nothing in the loop: numba compiles
each combination of them by itself, without what it has no use for.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ..machine_code import fused_multiply_add, jit
from ..table import Column

Numbers = npt.NDArray[np.float32]
Integers = npt.NDArray[np.int64]

fma = fused_multiply_add()
P, Q, R, A, B, E, C = (int(column) for column in [*list(Column)[:6], Column.FROM_NOISE])
LINEAR_X, LINEAR_M = int(Column.LINEAR_X), int(Column.LINEAR_M)
D, F, G, W = (int(column) for column in list(Column)[Column.X0_DIVISOR : Column.EPS_DIVISOR + 1])


@jit
def check_rows(counter: Integers, rows: int) -> None:
    """IndexError where the row of some sample is not in a table of so many."""
    for sample in range(len(counter)):
        if counter[sample, 0] < 0 or counter[sample, 0] >= rows:
            raise IndexError("counter holds a row that is not in the table")


@jit
def update(
    table: Numbers,
    ring: Numbers | None,
    x: Numbers,
    m: Numbers,
    m_conditional: Numbers | None,
    guidance: Numbers | None,
    counter: Integers,
    base: Integers | None,
    threshold: Numbers | None,
    x0: Numbers | None,
    linear: bool | None,
    clip: bool | None,
    divide: bool | None,
    rederive: bool | None,
) -> None:
    """What `reference.reverse_step` does, where nothing is kept and the variance is not learned.

    x, m, m_conditional and x0 are (B, n), the noise's ring (K, B, n); a case is True or None. The samples'
    rows are in the table, which `check_rows` looks after.
    """
    for sample in range(len(x)):
        k = counter[sample, 0]
        row = table[k]
        p, q, r, a, b, e, c = row[P], row[Q], row[R], row[A], row[B], row[E], row[C]
        linear_x, linear_m, d, f, g, w = row[LINEAR_X], row[LINEAR_M], row[D], row[F], row[G], row[W]
        state, output = x[sample], m[sample]
        if m_conditional is not None and guidance is not None:
            conditional, scale = m_conditional[sample], guidance[sample]
        if threshold is not None:
            r = threshold[sample]
        if x0 is not None:
            clean = x0[sample]
        if ring is not None:
            if base is not None:
                k -= base[sample]
            z = ring[k % len(ring), sample]
        for i in range(len(state)):
            x_i, m_i = state[i], output[i]
            if m_conditional is not None:
                m_i = m_i + scale * (conditional[i] - m_i)
            if linear is not None:
                x_next = fma(linear_m, m_i, linear_x * x_i)
            else:
                if divide is not None or rederive is not None:
                    x0_i = p * x_i + q * m_i
                else:
                    x0_i = fma(q, m_i, p * x_i)
                if divide is not None:
                    x0_i = x0_i / d
                if threshold is not None or clip is not None:
                    # NaN is neither and stays one.
                    if x0_i < -r:
                        x0_i = -r
                    if x0_i > r:
                        x0_i = r
                if threshold is not None:
                    x0_i = x0_i / r
                if rederive is not None:
                    x_next = a * x0_i + e * ((b * x_i + f * x0_i + g * m_i) / w)
                elif divide is not None:
                    x_next = a * x0_i + b * x_i + e * m_i
                else:
                    x_next = fma(e, m_i, fma(b, x_i, a * x0_i))
                if x0 is not None:
                    clean[i] = x0_i
            if ring is not None:
                if divide is not None or rederive is not None:
                    x_next = x_next + c * z[i]
                else:
                    x_next = fma(c, z[i], x_next)
            state[i] = x_next
