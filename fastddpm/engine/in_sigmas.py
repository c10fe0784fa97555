"""A step in the scale of the noise, as `fastddpm.plans.in_sigmas` writes it: operations of torch, one by one.

No kernel does this: one that multiplies and adds in a single rounding is another result, and where these rows
are needed that is what the images are made of.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastddpm.plans.in_sigmas import FROM_KEPT, Level

# torch.compile cannot trace the members themselves as indices.
C, Q, R, P, E, G, N, BEGINS, D, W = (
    int(column)
    for column in (
        Level.INPUT_DIVISOR,
        Level.X0_FROM_M,
        Level.X0_BOUND,
        Level.X0_FROM_U,
        Level.FROM_SLOPE,
        Level.SLOPE_FROM_KEPT,
        Level.FROM_NOISE,
        Level.BEGINS,
        Level.X0_DIVISOR,
        Level.SLOPE_DIVISOR,
    )
)


def coefficients(table: Tensor, k: Tensor, like: Tensor) -> tuple[Tensor, ...]:
    """The columns of each sample's row, ``(B, 1, ...)`` each.

    Args:
        table: float32 ``(S, 32)``.
        k: int64 ``(B,)``.
        like: has as many dimensions.
    """
    rows = table.index_select(0, k)
    return rows.view(*rows.shape, *(1,) * (like.dim() - 1)).unbind(1)


def seen(u: Tensor, row: tuple[Tensor, ...]) -> Tensor:
    """What the network is given for states u ``(B, ...)``."""
    return u / row[C]


def following(
    u: Tensor, m: Tensor, row: tuple[Tensor, ...], z: Tensor | None, kept: Tensor | None, *, clip: bool
) -> tuple[Tensor, Tensor]:
    """(u_next, x0), new tensors in the dtype of u.

    Args:
        u: ``(B, ...)``, float32; float64 computes in that.
        m: the network's output, likewise.
        row: of `coefficients`.
        z: likewise, normal; None where the row adds none.
        kept: ``(places, B, ...)``: where the step began, then earlier slopes. Changed to what the next row
            reads.
        clip: bound x0.
    """
    x0 = row[P] * u / row[D] + row[Q] * m
    if clip:
        x0 = x0.clamp(-row[R], row[R])
    slope = own = (u - x0) / row[W]
    begun = u
    earlier = [] if kept is None else list(kept[1:])
    if kept is not None:
        begun = torch.where(row[BEGINS] != 0, u, kept[0])
    if earlier:
        slope = own + row[G] * earlier[0]
    total = row[E] * slope
    for column, value in zip(FROM_KEPT, earlier, strict=False):
        total = total + row[column] * value
    u_next = begun + total
    if z is not None:
        u_next = u_next + row[N] * z
    if kept is not None:
        for place in range(len(kept) - 1, 1, -1):
            kept[place].copy_(kept[place - 1])
        if earlier:
            kept[1].copy_(own)
        kept[0].copy_(begun)
    return u_next, x0
