"""`reverse_step` in plain torch: what runs on every device but CUDA, and what the kernel is held against.

It works in place, reads nothing on the host and traces in one graph, so that Inductor fuses it into one loop.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..noise import normal
from ..traffic import Traffic, size


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
    clip: bool = False
    multistep: bool = False
    divide: bool = False
    rederive: bool = False

    def traffic(self) -> Traffic:
        """x is read and written, m read, x0 written and in a multistep read, given noise read."""
        n = self.x.numel()
        noise, learned = self.noise, self.m.shape[1] != self.x.shape[1]
        m_elements = 2 * n if self.guidance is not None else n
        if learned and noise is not None:
            m_elements += n  # v, of the conditional half
        states = 2 + (0 if self.x0 is None else 1 + self.multistep)
        states += noise is not None and noise.is_floating_point()

        if self.x0 is None and self.threshold is None and not (self.clip or self.divide or self.rederive):
            operations = 3
        else:
            bound = 3 if self.threshold is not None else 2 * self.clip
            operations = 3 + self.divide + bound + (9 if self.rederive else 5) + 2 * self.multistep
        if self.guidance is not None:
            operations += 3
        if noise is not None:
            operations += 11 if learned else 2
        return Traffic(states * size(self.x) + m_elements * self.m.element_size(), operations * n)


def reverse_step(arguments: Arguments) -> None:
    """One reverse step in float32, in place on x and x0."""
    x, m, table, counter, noise, x0, guidance, threshold, clip, multistep, divide, rederive = arguments
    row = table.index_select(0, counter[:1]).squeeze(0)
    # In the order of `Column` (whose members torch.compile cannot trace as indices).
    p, q, r, a, b, e, h, c, log_var_min, log_var_max, linear_x, linear_m, d, f, g, w = row.unbind()
    m, variance = split_output(m, x.shape[1], guidance)

    rounds = divide or rederive
    if not (clip or rounds) and threshold is None and x0 is None:
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
        if x0 is not None:
            if multistep:
                x_next = _plus(x_next, h, x0, rounds)
            x0.copy_(pred_x0)

    if noise is not None:
        sigma = c
        if variance is not None:
            fraction = (variance + 1.0) * 0.5
            log_variance = fraction * log_var_max + (1.0 - fraction) * log_var_min
            sigma = sigma * torch.exp(0.5 * log_variance)
        x_next = _plus(x_next, sigma, _noise(noise, counter, x), rounds)
    x.copy_(x_next)


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


def _noise(noise: Tensor, counter: Tensor, x: Tensor) -> Tensor:
    """z of this row: drawn when `noise` holds seeds, else its slot of the ring."""
    k, repeat = counter[:1], counter[1:]
    if noise.dtype == torch.int64:
        return normal(noise, k + 1, x.shape[1:], repeat=repeat)
    if noise.shape[0] == 1:
        return noise[0]
    return noise.index_select(0, k % noise.shape[0]).squeeze(0)


def _plus(total: Tensor, factor: Tensor, values: Tensor, rounds: bool) -> Tensor:
    """total + factor*values: the product rounded first, or in place of total in one pass over memory."""
    return total + factor * values if rounds else total.addcmul_(factor, values)


def _per_sample(values: Tensor, like: Tensor) -> Tensor:
    return values.reshape(-1, *(1,) * (like.dim() - 1))
