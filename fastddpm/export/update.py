"""One reverse step in ONNX: what `fastddpm_kernels.reverse_step` computes, from one row of a plan's table.

x0     = clip(p*x + q*m, -r, r)
x_next = a*x0 + b*x + e*m + h*x0_prev + c*z
"""

from __future__ import annotations

from dataclasses import dataclass

from fastddpm.export.nodes import END, Graph
from fastddpm_kernels.table import Column


@dataclass(frozen=True)
class Update:
    """Names of what a step gives: the mean and x0, [B, C, H, W], the noise's factor, and c, []."""

    mean: str
    x0: str
    sigma: str
    c: str


@dataclass(frozen=True)
class Output:
    """A network's output of one step, in float32.

    Attributes:
        m: name of [B, C, H, W], guided.
        variance: name of the second half of 2C channels, or None.
    """

    m: str
    variance: str | None


def split_output(g: Graph, m: str, channels: int, has_variance: bool) -> Output:
    """The output of an unguided network, [B, C or 2C, H, W]."""
    if not has_variance:
        return Output(m, None)
    return Output(g.slice(m, 0, channels, 1), g.slice(m, channels, END, 1))


def guided_output(g: Graph, m: str, channels: int, has_variance: bool, *, scale: str, batch: str) -> Output:
    """m_u + w*(m_c - m_u) (Ho and Salimans 2022) of the first and the last ``batch`` rows of m.

    Args:
        g: where to compute it.
        m: [B, ...] or [2B, ...], unconditional half first.
        channels: C.
        has_variance: whether m has 2C; the variance then comes from the conditional half.
        scale: float32 [], w.
        batch: int64 [1], B.
    """
    unconditional = split_output(g, g.slice(m, 0, batch, 0), channels, has_variance)
    conditional = split_output(g, g.slice(m, g("Neg", batch), END, 0), channels, has_variance)
    difference = g("Sub", conditional.m, unconditional.m)
    return Output(g("Add", unconditional.m, g("Mul", scale, difference)), conditional.variance)


def update(g: Graph, x: str, output: Output, row: str, x0_prev: str) -> Update:
    """The step without its noise. x and x0_prev are float32 [B, C, H, W], row its first 16 columns."""

    def times(column: Column, tensor: str) -> str:
        return g("Mul", coefficient(column), tensor)

    def coefficient(column: Column) -> str:
        return g("Gather", row, g.int64(int(column)))

    r = coefficient(Column.X0_BOUND)
    x0 = g("Add", times(Column.X0_FROM_X, x), times(Column.X0_FROM_M, output.m))
    x0 = g("Clip", x0, g("Neg", r), r)
    # e*m is NaN where m is, so that a clip which loses it does not lose it for x_next.
    mean = g("Add", times(Column.FROM_X0, x0), times(Column.FROM_X, x))
    mean = g("Add", mean, g("Add", times(Column.FROM_M, output.m), times(Column.FROM_KEPT_1, x0_prev)))
    sigma = c = coefficient(Column.FROM_NOISE)
    if output.variance is not None:
        # Nichol and Dhariwal 2021, equation 15
        f = g("Mul", g("Add", output.variance, g.float32(1.0)), g.float32(0.5))
        upper = times(Column.LOG_VAR_MAX, f)
        lower = times(Column.LOG_VAR_MIN, g("Sub", g.float32(1.0), f))
        log_variance = g("Add", upper, lower)
        sigma = g("Mul", c, g("Exp", g("Mul", g.float32(0.5), log_variance)))
    return Update(mean, x0, sigma, c)
