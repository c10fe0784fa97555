"""The columns of a plan's table: one row of float32 numbers per step of the reverse process.

    x0     = clip(p*x + q*m, -r, r)
    x_next = a*x0 + b*x + e*m + h1*k1 + ... + h5*k5 + c*z            z ~ N(0, 1)

m is the network's output, k1 to k5 are up to five predictions of earlier rows: what a linear multistep or
Runge-Kutta method remembers. Each row puts its own into one of these places, after it has read them:

    k_slot = x0, or i*x0 + j*x + n*m                     COMBINE

A sampling method is a table of such rows; the `reverse_step` operator applies one of them. Some tables keep a
division that a library makes, so that every rounding is the library's:

    x0     = clip((p*x + q*m) / d, -r, r)                DIVIDE
    x_next = a*x0 + e*eps + h1*k1 + ... + c*z            REDERIVE
    eps    = (b*x + f*x0 + g*m) / w

`Column` says which column each letter is; code outside formulas names columns in full.
"""

from enum import IntEnum

N_COLUMNS = 32
"""Width of a row: 128 bytes, one aligned line."""

MOST_KEPT = 5
"""Places for predictions of earlier rows."""


class Column(IntEnum):
    """Position of each coefficient in a row; 12 to 15 are 0 in tables without divisions, 24 to 31 always."""

    X0_FROM_X = 0
    """p: x0 from x."""
    X0_FROM_M = 1
    """q: x0 from m."""
    X0_BOUND = 2
    """r: bound of the clip, > 0; infinity is no bound."""
    FROM_X0 = 3
    """a: x_next from x0."""
    FROM_X = 4
    """b: x_next from x; with a divisor of eps, eps from x."""
    FROM_M = 5
    """e: x_next from m; with a divisor of eps, x_next from eps."""
    FROM_KEPT_1 = 6
    """h1: x_next from the first kept prediction; 0 while nothing was put there."""
    FROM_NOISE = 7
    """c: x_next from the noise: the standard deviation, or its factor (`sigma_scale`) with learned range."""
    LOG_VAR_MIN = 8
    """Log variance where the network's second half says -1 (learned range)."""
    LOG_VAR_MAX = 9
    """Log variance where it says +1."""
    LINEAR_X = 10
    """a*p + b, computed in float64: x_next from x when nothing bends x0."""
    LINEAR_M = 11
    """a*q + e, computed in float64: x_next from m when nothing bends x0."""
    X0_DIVISOR = 12
    """d: divisor of x0; 0 in every row: none."""
    EPS_FROM_X0 = 13
    """f: eps from x0, where it has a divisor."""
    EPS_FROM_M = 14
    """g: eps from m, where it has a divisor."""
    EPS_DIVISOR = 15
    """w: divisor of eps; 0 in every row: x_next is made of m itself."""
    FROM_KEPT_2 = 16
    """h2: x_next from the second kept prediction."""
    FROM_KEPT_3 = 17
    """h3: x_next from the third."""
    KEPT_FROM_X0 = 18
    """i: the prediction to keep from x0, where it is a sum."""
    KEPT_FROM_X = 19
    """j: the same from x."""
    KEPT_FROM_M = 20
    """n: the same from m."""
    KEPT_SLOT = 21
    """Where the row's prediction goes: 0 to 4."""
    FROM_KEPT_4 = 22
    """h4: x_next from the fourth kept prediction."""
    FROM_KEPT_5 = 23
    """h5: x_next from the fifth."""


# Neighbours in a row that one formula reads; of integers, since torch.compile cannot trace the members.
X0 = slice(int(Column.X0_FROM_X), int(Column.X0_BOUND) + 1)
"""p, q, r."""
X_NEXT = slice(int(Column.FROM_X0), int(Column.FROM_M) + 1)
"""a, b, e."""
EPS = slice(int(Column.EPS_FROM_X0), int(Column.EPS_DIVISOR) + 1)
"""f, g, w."""
KEPT = slice(int(Column.KEPT_FROM_X0), int(Column.KEPT_FROM_M) + 1)
"""i, j, n."""
FROM_KEPT = tuple(int(Column[f"FROM_KEPT_{place + 1}"]) for place in range(MOST_KEPT))
"""h1 to h5, which are no neighbours."""
