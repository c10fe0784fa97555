"""One reverse step in ONNX: what `fastddpm_kernels.reverse_step` computes, from one row of a plan's table.

x0     = clip(p*x + q*m, -r, r)
x_next = a*x0 + b*x + e*m + h1*k1 + c*z                            `update`
x_next = ... + h2*k2 + h3*k3,  k_slot = x0, or i*x0 + j*x + n*m    `remember`

k1 is x0_prev, the x0 of the row before, in plans that keep one prediction and that as it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fastddpm.export.nodes import END, FLOAT, Graph, value
from fastddpm_kernels.table import Column


@dataclass(frozen=True)
class Update:
    """Names of what a step gives: the mean and x0, [B, ...], the noise's factor, and c, []."""

    mean: str
    x0: str
    sigma: str
    c: str


@dataclass(frozen=True)
class Output:
    """A network's output of one step, in float32.

    Attributes:
        m: name of [B, ...], guided.
        variance: name of the second half of 2C channels, or None.
    """

    m: str
    variance: str | None


def split_output(g: Graph, m: str, channels: int, has_variance: bool) -> Output:
    """The output of an unguided network, [B, C or 2C, ...]."""
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


def update(g: Graph, x: str, output: Output, row: str, x0_prev: str, *, of_each: bool = False) -> Update:
    """The step without its noise. x and x0_prev are float32 [B, ...], row its first 16 columns or all.

    With `of_each`, each sample has a row of its own: row is [32, B, 1, ...], and so are the factor and c.
    """

    def times(column: Column, tensor: str) -> str:
        return g("Mul", _coefficient(g, row, column), tensor)

    r = _coefficient(g, row, Column.X0_BOUND)
    x0 = g("Add", times(Column.X0_FROM_X, x), times(Column.X0_FROM_M, output.m))
    # Clip's bounds are numbers.
    x0 = g("Max", g("Min", x0, r), g("Neg", r)) if of_each else g("Clip", x0, g("Neg", r), r)
    # e*m is NaN where m is, so that a clip which loses it does not lose it for x_next.
    mean = g("Add", times(Column.FROM_X0, x0), times(Column.FROM_X, x))
    mean = g("Add", mean, g("Add", times(Column.FROM_M, output.m), times(Column.FROM_KEPT_1, x0_prev)))
    sigma = c = _coefficient(g, row, Column.FROM_NOISE)
    if output.variance is not None:
        # Nichol and Dhariwal 2021, equation 15
        f = g("Mul", g("Add", output.variance, g.float32(1.0)), g.float32(0.5))
        upper = times(Column.LOG_VAR_MAX, f)
        lower = times(Column.LOG_VAR_MIN, g("Sub", g.float32(1.0), f))
        log_variance = g("Add", upper, lower)
        sigma = g("Mul", c, g("Exp", g("Mul", g.float32(0.5), log_variance)))
    return Update(mean, x0, sigma, c)


@dataclass(frozen=True)
class Kept:
    """Names of predictions of earlier rows, in a Loop.

    Attributes:
        first: float32 [B, ...], the first place.
        others: float32 [2, B, ...], the second and third; [0, ...] in plans without these.
    """

    first: str
    others: str


def remember(
    g: Graph,
    after: Update,
    output: Output,
    row: str,
    kept: Kept,
    *,
    keeps: tuple[str, str],
    shape: Sequence[int],
) -> tuple[str, Kept]:
    """The mean with what comes from the second and third place, and the places with the row's own prediction.

    Where a plan keeps no more than the last x0, the two are what `update` gave.

    Args:
        g: the Loop's body, whose state is ``x``.
        after: of `update`.
        output: of the network.
        row: float32 [32], or [32, B, 1, ...].
        kept: before the row.
        keeps: names of two bools of the plan: whether it keeps more than the last x0, and whether sums; the
            latter may be of each sample, [B, 1, ...].
        shape: of one state.
    """
    remembers, combines = keeps
    more, plain = Graph(g), Graph(g)

    def times(column: Column, tensor: str) -> str:
        return more("Mul", _coefficient(more, row, column), tensor)

    k2, k3 = (more("Gather", kept.others, more.int64(place), axis=0) for place in range(2))
    mean = more("Add", after.mean, times(Column.FROM_KEPT_2, k2))
    more("Add", mean, times(Column.FROM_KEPT_3, k3), out="mean_of_more")
    total = more("Add", times(Column.KEPT_FROM_X0, after.x0), times(Column.KEPT_FROM_X, "x"))
    total = more("Add", total, times(Column.KEPT_FROM_M, output.m))
    own = more("Where", combines, total, after.x0)
    slot = _coefficient(more, row, Column.KEPT_SLOT)
    places = [
        more("Where", more("Equal", slot, more.float32(place)), own, earlier)
        for place, earlier in enumerate((kept.first, k2, k3))
    ]
    more("Identity", places[0], out="first_of_more")
    others = [more("Unsqueeze", place, more.int64([0])) for place in places[1:]]
    more("Concat", *others, axis=0, out="others_of_more")

    plain("Identity", after.mean, out="mean_of_plain")
    plain("Identity", after.x0, out="first_of_plain")
    plain("Identity", kept.others, out="others_of_plain")

    image: list[int | str] = ["batch", *shape]
    branches = {}
    for branch, graph in (("more", more), ("plain", plain)):
        outputs = [value(f"{name}_of_{branch}", FLOAT, image) for name in ("mean", "first")]
        outputs.append(value(f"others_of_{branch}", FLOAT, ["places", *image]))
        branches[branch] = graph.finished(branch, [], outputs)
    mean, first, rest = g.subgraphs(
        "If", remembers, outputs=3, then_branch=branches["more"], else_branch=branches["plain"]
    )
    return mean, Kept(first, rest)


def _coefficient(g: Graph, row: str, column: Column) -> str:
    return g("Gather", row, g.int64(int(column)))
