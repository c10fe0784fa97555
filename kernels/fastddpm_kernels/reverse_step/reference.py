"""`reverse_step` in plain torch: what runs on every device but CUDA, and what the kernel is held against.

It works in place, reads nothing on the host and traces in one graph, so that Inductor fuses it into one loop.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..noise import normal
from ..table import Column
from ..traffic import Traffic, size

USED = len(Column)
"""Columns that mean something: each is a view of its own, and a view costs the host most of a microsecond."""


class Arguments(NamedTuple):
    """Of one call, in the order of the operator's schema; what each is says `op.reverse_step`."""

    x: Tensor
    m: Tensor
    table: Tensor
    counter: Tensor
    noise: Tensor | None = None
    x0: Tensor | None = None
    guidance: Tensor | None = None
    threshold: Tensor | None = None
    kept: Tensor | None = None
    base: Tensor | None = None
    clip: bool = False
    combine: bool = False
    divide: bool = False
    rederive: bool = False

    def traffic(self) -> Traffic:
        """x is read and written, m and the kept predictions read, one of these and x0 written, given noise
        read."""
        n = self.x.numel()
        noise, learned = self.noise, self.m.shape[1] != self.x.shape[1]
        m_elements = 2 * n if self.guidance is not None else n
        if learned and noise is not None:
            m_elements += n  # v, of the conditional half
        places = 0 if self.kept is None else len(self.kept)
        states = 2 + (self.x0 is not None) + (places + 1 if places else 0)
        states += noise is not None and noise.is_floating_point()

        if is_linear(self):
            operations = 3
        else:
            bound = 3 if self.threshold is not None else 2 * self.clip
            operations = 3 + self.divide + bound + (9 if self.rederive else 5) + 2 * places + 5 * self.combine
        if self.guidance is not None:
            operations += 3
        if noise is not None:
            operations += 11 if learned else 2
        return Traffic(states * size(self.x) + m_elements * self.m.element_size(), operations * n)


def is_linear(given: Arguments) -> bool:
    """Whether nothing bends, reads or keeps x0, so that x_next is a sum of x and m."""
    bends = given.clip or given.divide or given.rederive or given.threshold is not None
    return not bends and given.x0 is None and given.kept is None


def reverse_step(arguments: Arguments) -> None:
    """One reverse step in float32, in place on x, x0 and kept."""
    x, m, table, counter, noise, x0, guidance, threshold, kept, _, clip, combine, divide, rederive = arguments
    row = coefficients(table, counter, x)
    # In the order of `Column` (whose members torch.compile cannot trace as indices).
    p, q, r, a, b, e, h, c, log_var_min, log_var_max, linear_x, linear_m, d, f, g, w = row[:16]
    h2, h3, i, j, n, slot, h4, h5 = row[16:24]
    m, variance = split_output(m, x.shape[1], guidance)

    rounds = divide or rederive
    if is_linear(arguments):
        x_next = _plus(linear_x * x, linear_m, m, rounds)
    else:
        pred_x0 = _plus(p * x, q, m, rounds)
        if divide:
            pred_x0 = pred_x0 / d
        if threshold is not None:
            bound = _per_sample(threshold, x)
            pred_x0 = pred_x0.clamp_(-bound, bound).div_(bound)
        elif clip:
            pred_x0 = pred_x0.clamp_(-r, r)
        if rederive:
            x_next = a * pred_x0 + e * ((b * x + f * pred_x0 + g * m) / w)
        else:
            x_next = _plus(_plus(a * pred_x0, b, x, rounds), e, m, rounds)
        if kept is not None:
            for weight, earlier in zip((h, h2, h3, h4, h5), kept, strict=False):
                x_next = _plus(x_next, weight, earlier, rounds)
            own = i * pred_x0 + j * x + n * m if combine else pred_x0
            _keep(kept, own, slot.flatten())
        if x0 is not None:
            x0.copy_(pred_x0)

    if noise is not None:
        sigma = c
        if variance is not None:
            fraction = (variance + 1.0) * 0.5
            log_variance = fraction * log_var_max + (1.0 - fraction) * log_var_min
            sigma = sigma * torch.exp(0.5 * log_variance)
        x_next = _plus(x_next, sigma, _noise(arguments, noise), rounds)
    x.copy_(x_next)


def coefficients(table: Tensor, counter: Tensor, x: Tensor) -> tuple[Tensor, ...]:
    """The columns of each sample's row, ``(B, 1, ...)`` each, as many dimensions as x has."""
    rows = table.index_select(0, counter[:, 0])[:, :USED]
    return rows.view(*rows.shape, *(1,) * (x.dim() - 1)).unbind(1)


def _keep(kept: Tensor, own: Tensor, slot: Tensor) -> None:
    """Puts each sample's prediction into its place; the numbers of the places are read on the device."""
    if len(kept) == 1:
        kept[0].copy_(own)
    else:
        kept.flatten(0, 1).index_copy_(0, _of_samples(slot.to(torch.int64)), own)


def split_output(m: Tensor, channels: int, guidance: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """The network's output as (m, v) in float32: guided, and v None unless there are 2C channels.

    m_u + w*(m_c - m_u) is taken of m alone; v comes from the conditional half.
    """
    m = m.to(torch.float32)
    unconditional, conditional = m.chunk(2, dim=0) if guidance is not None else (m, m)
    variance = conditional[:, channels:] if m.shape[1] != channels else None
    unconditional, conditional = unconditional[:, :channels], conditional[:, :channels]
    if guidance is None:
        return conditional, variance
    return unconditional + _per_sample(guidance, m) * (conditional - unconditional), variance


def _noise(arguments: Arguments, noise: Tensor) -> Tensor:
    """z of each sample's row: drawn when `noise` holds seeds, else its slot of the ring."""
    if noise.shape[0] == 1 and noise.is_floating_point():
        return noise[0]
    k, repeat = arguments.counter.unbind(1)
    if arguments.base is not None:
        k = k - arguments.base
    if noise.dtype == torch.int64:
        return normal(noise, k + 1, arguments.x.shape[1:], repeat=repeat)
    return noise.flatten(0, 1).index_select(0, _of_samples(k % noise.shape[0]))


def _of_samples(places: Tensor) -> Tensor:
    """Of places ``(B,)`` along the K of ``(K, B, ...)``: those of the B samples once that is flat."""
    batch = places.shape[0]
    return places * batch + torch.arange(batch, device=places.device)


def _plus(total: Tensor, factor: Tensor, values: Tensor, rounds: bool) -> Tensor:
    """total + factor*values: the product rounded first, or in place of total in one pass over memory."""
    return total + factor * values if rounds else total.addcmul_(factor, values)


def _per_sample(values: Tensor, like: Tensor) -> Tensor:
    return values.reshape(-1, *(1,) * (like.dim() - 1))
