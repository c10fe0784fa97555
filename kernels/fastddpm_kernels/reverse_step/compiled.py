"""`reverse_step` on a CPU by numba.

Imported where `machine_code.pays` says so, for the steps that most methods make; others are the reference's.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

from ..machine_code import operator
from ..noise.blocks import CPU, draw, samples_at_once
from .jitted import Numbers, check_rows, update
from .reference import Arguments, is_linear


@functools.cache
def torch_fuses() -> bool:
    """Whether torch's `addcmul` rounds once, as `jitted.update` does: so its build for this CPU has it."""
    factor = torch.full((3, 1), 1 + 2.0**-12, dtype=torch.float32, device=CPU)
    values = factor.expand(3, 33).contiguous()
    total = torch.full_like(values, -(1 + 2.0**-11))
    results = (torch.addcmul(total, each, values) for each in (factor, values))
    return all(bool((result == 2.0**-24).all()) for result in results)


def reverse_step(given: Arguments) -> None:
    """One reverse step in float32, in place on x and x0: nothing is kept, and the variance is not learned.

    Raises:
        IndexError: a sample's row is not in the table.
    """
    given = given._replace(m=given.m.to(torch.float32).contiguous(), counter=given.counter.contiguous())
    reverse_step_on_cpu(*given[:8], *given[9:11], *given[12:])


def _reverse_step(
    x: Tensor,
    m: Tensor,
    table: Tensor,
    counter: Tensor,
    noise: Tensor | None,
    x0: Tensor | None,
    guidance: Tensor | None,
    threshold: Tensor | None,
    base: Tensor | None,
    clip: bool,
    divide: bool,
    rederive: bool,
) -> None:
    bounds = (guidance, threshold)
    given = Arguments(x, m, table, counter, noise, x0, *bounds, None, base, clip, False, divide, rederive)
    step = Step(given)
    if noise is None or noise.is_floating_point():
        step.update(slice(0, len(x)), None if noise is None else noise.flatten(2).numpy())
        return
    steps = counter[:, 0] + 1 if base is None else counter[:, 0] - base + 1
    repeats = counter[:, 1].contiguous()
    samples, n = step.x.shape
    at_once = samples_at_once(n)
    z = torch.empty(min(samples, at_once), n, dtype=torch.float32, device=CPU)
    ring = z[None].numpy()
    for first in range(0, samples, at_once):
        rows = slice(first, min(first + at_once, samples))
        here = rows.stop - first
        draw(noise[rows], steps[rows], repeats[rows], 0, z[:here])
        step.update(rows, ring[:, :here])


class Step:
    """The arguments of a step as arrays, a sample a row.

    Raises:
        IndexError: a sample's row is not in the table.
    """

    def __init__(self, given: Arguments) -> None:
        x, m = given.x.flatten(1).numpy(), given.m.flatten(1).numpy()
        self.x, self.table = x, given.table.numpy()
        self._of_samples = (
            x,
            m[: len(x)],
            None if given.guidance is None else m[len(x) :],
            *(_array(tensor) for tensor in (given.guidance, given.counter, given.base, given.threshold)),
            None if given.x0 is None else given.x0.flatten(1).numpy(),
        )
        cases = (is_linear(given), given.clip, given.divide, given.rederive)
        self._cases = tuple(case or None for case in cases)
        check_rows(given.counter.numpy(), len(self.table))

    def update(self, rows: slice, ring: Numbers | None) -> None:
        """Some of the samples, with the noise of these, (K, samples, n)."""
        arrays = (array if array is None else array[rows] for array in self._of_samples)
        update(self.table, ring, *arrays, *self._cases)


def _array(tensor: Tensor | None) -> Any:
    return None if tensor is None else tensor.numpy()


reverse_step_on_cpu = operator(
    "reverse_step_on_cpu(Tensor(a!) x, Tensor m, Tensor table, Tensor counter, Tensor? noise, "
    "Tensor(b!)? x0, Tensor? guidance, Tensor? threshold, Tensor? base, bool clip, bool divide, "
    "bool rederive) -> ()",
    _reverse_step,
    lambda *arguments: None,
)
