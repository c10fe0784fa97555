"""The columns of a plan's table: one row of float32 numbers per step of the reverse process.

    x0     = clip(p*x + q*m, -r, r)
    x_next = a*x0 + b*x + e*m + h*x0_prev + c*z          z ~ N(0, 1)

m is the network's output, x0_prev the x0 of the row before. A sampling method is a table of such rows; the
`reverse_step` operator applies one of them. Some tables keep a division that a library makes, so that every
rounding is the library's:

    x0     = clip((p*x + q*m) / d, -r, r)                DIVIDE
    x_next = a*x0 + e*eps + h*x0_prev + c*z              REDERIVE
    eps    = (b*x + f*x0 + g*m) / w
"""

from enum import IntEnum

N_COLUMNS = 16
"""Width of a row: 64 bytes, so that a row is one aligned read."""


class Column(IntEnum):
    """Position of each coefficient in a row; 12 to 15 hold 0 in tables without divisions."""

    P = 0
    """x0 from x."""
    Q = 1
    """x0 from m."""
    R = 2
    """Bound of the clip, > 0; infinity is no bound."""
    A = 3
    """x_next from x0."""
    B = 4
    """x_next from x."""
    E = 5
    """x_next from m."""
    H = 6
    """x_next from x0_prev; 0 in a first row."""
    C = 7
    """x_next from the noise: the standard deviation, or its factor (`sigma_scale`) with learned range."""
    LOG_VAR_MIN = 8
    """Log variance where the network's second half says -1 (learned range)."""
    LOG_VAR_MAX = 9
    """Log variance where it says +1."""
    LINEAR_X = 10
    """a*p + b, computed in float64: x_next from x when nothing bends x0."""
    LINEAR_M = 11
    """a*q + e, computed in float64: x_next from m when nothing bends x0."""
    D = 12
    """Divisor of x0; 0 in every row: none."""
    F = 13
    """eps from x0, with W; B is then eps from x, and E x_next from eps."""
    G = 14
    """eps from m, with W."""
    W = 15
    """Divisor of eps; 0 in every row: E takes m itself."""
