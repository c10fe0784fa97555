"""One step of the reverse process on static buffers: predict, update in place, advance the counter.

This is the only place where a step is written down; every engine runs this function, as it is, compiled or
captured. It reads and writes device memory alone.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from fastddpm.checks import BadArgument
from fastddpm.engine import in_sigmas
from fastddpm.engine.ahead import DrawnAhead
from fastddpm.engine.langevin import langevin
from fastddpm_kernels import N_COLUMNS, Column, reverse_step
from fastddpm_kernels.reverse_step.reference import coefficients, split_output

Predict = Callable[[Tensor, Tensor], Tensor]
NoiseKind = Literal["none", "philox", "torch"]
# torch.compile cannot trace the members themselves as indices.
FROM_X, FROM_M, DIVISOR = (int(column) for column in (Column.X0_FROM_X, Column.X0_FROM_M, Column.X0_DIVISOR))


@dataclasses.dataclass(frozen=True)
class StepCase:
    """What is fixed when a step is compiled or captured.

    Attributes:
        shape: ``(B, ...)`` of the state, with its channels in the second place: ``(B, C, H, W)``.
        noise: where z comes from: nowhere, per-sample seeds (the noise spec), or torch's generators.
        ring: steps that the noise ring holds: with ``torch``, and with ``philox`` where it is drawn ahead; 0
            for noise drawn in the kernel.
        guided: classifier-free guidance; the network runs on the doubled batch.
        clip: predicted x0 is clipped to the row's radius.
        kept: predictions of earlier rows that a row uses, at most.
        combine: what is kept is a sum of x0, x and the model's output, instead of x0.
        keep_x0: the predicted x0 is written out.
        self_condition: the network is given the last predicted x0, as ``x_self_cond`` (Chen et al. 2023).
        thresholding: ``(quantile, largest bound)`` of dynamic thresholding, or None.
        learned_range: the noise is scaled by the model's own variance, so it has 2C channels.
        divide: the row divides x0 by a number of its own.
        rederive: the row takes eps from x, x0 and the model's output, divided by a number of its own.
        arena: the table holds the rows of several plans; each sample walks one of them, or none.
        mixed: of an arena, some chains are guided: the network runs such a chain's half without its condition
            in the place of another sample.
        known: part of the state is given, and stands in it whenever the network sees it.
        langevin: as of `Plan`, or None; the noise is torch's.
        in_sigmas: as of `Plan`; the noise is torch's.
    """

    shape: tuple[int, ...]
    noise: NoiseKind = "philox"
    ring: int = 0
    guided: bool = False
    clip: bool = False
    kept: int = 0
    combine: bool = False
    keep_x0: bool = False
    self_condition: bool = False
    thresholding: tuple[float, float] | None = None
    learned_range: bool = False
    divide: bool = False
    rederive: bool = False
    arena: bool = False
    mixed: bool = False
    known: bool = False
    langevin: tuple[float, int] | None = None
    in_sigmas: bool = False


class StepBuffers:
    """The tensors that a step reads and writes; their addresses never change.

    Attributes:
        x: float32 ``(B, ...)``, the state.
        counter: int64 ``(B, 2)``, of each sample the table's row and the repeat.
        base: int64 ``(B,)``, the row where each sample's plan begins in an arena; None: at 0.
        advance: int64 ``(B,)``, 1 for samples that go on to the next row of an arena and 0 for those that
            stay where they are; None: all go on.
        source: int64 ``(B,)``, whose state and row the network sees in each sample's place; None: its own.
        halves: int64 ``(2B,)``, the place of each sample's output without its condition, which is its own
            where it is not guided; then of that with it. None: where the network's doubled batch has them.
        table: float32 ``(capacity, 32)``, the plan, or an arena of several.
        noise: int64 seeds ``(B,)``, or float32 ring ``(K, B, ...)``, or None.
        x0: float32 like x, the last predicted clean image, or None.
        kept: float32 ``(1 to 5, B, ...)``, predictions of earlier rows, or None.
        guidance: float32 ``(B,)`` scales, or None.
        known: float32 like x, what is given of the state, or None.
        known_mask: bool like x, where it is given, or None.
    """

    def __init__(self, case: StepCase, capacity: int, device: torch.device) -> None:
        batch = case.shape[0]
        # The state is float32 whatever torch's default dtype is.
        zeros = functools.partial(torch.zeros, dtype=torch.float32, device=device)
        self.x = zeros(case.shape)
        integers = functools.partial(torch.zeros, dtype=torch.int64, device=device)
        self.counter = integers(batch, 2)
        self.base = integers(batch) if case.arena else None
        self.advance = integers(batch) if case.arena else None
        self.source = integers(batch) if case.mixed else None
        self.halves = integers(2 * batch) if case.mixed else None
        self.table = zeros((capacity, N_COLUMNS))
        self.noise: Tensor | None = None
        if case.ring:
            self.noise = zeros((case.ring, *case.shape))
        elif case.noise == "philox":
            self.noise = integers(batch)
        self.x0 = zeros(case.shape) if case.keep_x0 or case.self_condition else None
        self.kept = zeros((case.kept, *case.shape)) if case.kept else None
        self.guidance = zeros(batch) if case.guided or case.mixed else None
        self.known = zeros(case.shape) if case.known else None
        self.known_mask = torch.zeros(case.shape, dtype=torch.bool, device=device) if case.known else None

    def put_known(self) -> None:
        """The part of the state that is given, into the state."""
        if self.known is not None and self.known_mask is not None:
            self.x.copy_(torch.where(self.known_mask, self.known, self.x))

    def of_samples(self) -> dict[str, Tensor]:
        """Numbers of each sample, those that there are, by name."""
        names = ("base", "advance", "source", "halves", "guidance")
        numbers = {name: getattr(self, name) for name in names}
        return {name: value for name, value in numbers.items() if value is not None}

    def tensors(self) -> list[Tensor]:
        """All buffers there are."""
        return [value for value in vars(self).values() if isinstance(value, Tensor)]


def step(predict: Predict, buffers: StepBuffers, case: StepCase, ahead: DrawnAhead | None = None) -> None:
    """Takes the state of each sample from its row k to the next, where k stands in ``buffers.counter``.

    Args:
        predict: ``(x, k) -> m``, a :class:`fastddpm.network.Network` or one compiled.
        buffers: what the step reads and writes.
        case: what is fixed.
        ahead: what fills the buffers' ring, of noise by the spec; None where there is none.
    """
    noise = buffers.noise if ahead is None else ahead.noise_of(buffers.counter, buffers.base)
    k = buffers.counter[:, 0]
    if case.in_sigmas:
        _step_in_sigmas(predict, buffers, case, noise)
        k.add_(1)
        return
    # m = model(x_k, t_k)
    if buffers.source is None or buffers.halves is None:
        m = predict(buffers.x, k)
    else:
        seen, rows = buffers.x.index_select(0, buffers.source), k.index_select(0, buffers.source)
        m = predict(seen, rows).index_select(0, buffers.halves)
    if case.learned_range and m.shape[1] != 2 * case.shape[1]:
        raise BadArgument(
            "variance_type",
            f"learned_range with a model that returns {m.shape[1]} channels for an image of {case.shape[1]}",
            "fixed_small or fixed_large",
        )
    if case.langevin is not None and noise is not None:
        m, noise = langevin(m, noise, k, *case.langevin)
    threshold = None
    if case.thresholding is not None:
        threshold = dynamic_threshold(m, buffers, case.thresholding, divide=case.divide)
    # x_{k+1} = a*x0 + b*x + e*m + h1*k1 + ... + h5*k5 + c*z,  x0 = clip(p*x + q*m)
    reverse_step(
        buffers.x,
        m,
        buffers.table,
        buffers.counter,
        noise=noise,
        x0=buffers.x0,
        guidance=buffers.guidance,
        threshold=threshold,
        kept=buffers.kept,
        base=buffers.base,
        clip=case.clip,
        combine=case.combine,
        divide=case.divide,
        rederive=case.rederive,
    )
    if case.known:
        buffers.put_known()
    k.add_(1 if buffers.advance is None else buffers.advance)


def _step_in_sigmas(predict: Predict, buffers: StepBuffers, case: StepCase, ring: Tensor | None) -> None:
    """The same of a plan in sigmas, but for the counter; ``ring`` has the noise of K rows."""
    k = buffers.counter[:, 0]
    row = in_sigmas.coefficients(buffers.table, k, buffers.x)
    m = predict(in_sigmas.seen(buffers.x, row), k)
    m, _ = split_output(m, case.shape[1], buffers.guidance)
    z = None if ring is None else ring.index_select(0, k[:1] % len(ring))[0]
    u_next, x0 = in_sigmas.following(buffers.x, m, row, z, buffers.kept, clip=case.clip)
    if buffers.x0 is not None:
        buffers.x0.copy_(x0)
    buffers.x.copy_(u_next)


def dynamic_threshold(
    m: Tensor, buffers: StepBuffers, thresholding: tuple[float, float], *, divide: bool = False
) -> Tensor:
    """Per-sample bound of Imagen's dynamic thresholding (Saharia et al. 2022, section 2.3).

    Args:
        m: the network's output.
        buffers: the step's buffers.
        thresholding: ``(ratio, maximum)``: the bound is the ratio-quantile of |x0|, within [1, maximum].
        divide: x0 has the row's divisor.

    Returns:
        float32 ``(B,)``.
    """
    ratio, maximum = thresholding
    m, _ = split_output(m, buffers.x.shape[1], buffers.guidance)
    x0 = predicted_x0(buffers.x, m, buffers.table, buffers.counter, divide=divide)
    bound: Tensor = x0.abs().flatten(1).quantile(ratio, dim=1).clamp(1.0, maximum)
    return bound


def predicted_x0(x: Tensor, m: Tensor, table: Tensor, counter: Tensor, *, divide: bool) -> Tensor:
    """x0 before any bound, float32 like x: p*x + q*m, over d where rows divide; rows: ``counter[:, 0]``."""
    row = coefficients(table, counter, x)
    x0 = row[FROM_X] * x + row[FROM_M] * m
    return x0 / row[DIVISOR] if divide else x0
