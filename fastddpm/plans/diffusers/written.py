"""diffusers' schedulers in sigma as their steps are written, for levels at which their rounding is seen.

Source: diffusers 0.42.1, the steps of the six classes of `WRITTEN`, whose numbers are float32 tensors without
dimensions: so are these, computed from the scheduler's own.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fastddpm.plans.diffusers.chain import Chain
from fastddpm.plans.diffusers.churn import Churn
from fastddpm.plans.in_sigmas import FROM_KEPT, Level
from fastddpm.plans.plan import Plan
from fastddpm_kernels.table import N_COLUMNS, Column

HIGHEST = 400.0
"""Level up to which rows of x give the same images: half a unit in the last place of u is sigma 2^-24, which
is 2e-5 there. A slope taken of such a state has that over its own level, and hands it on times its length."""


@dataclass(frozen=True)
class Step:
    """A row: at which level, and how far along its slope.

    Attributes:
        level: of the network's input and of the slope, a tensor without dimensions, as are the next.
        length: of the step in sigma, the weight of the slope.
        noise: behind the step.
        begins: whether it goes on from the state, not from an earlier one.
        is_mean: whether its slope is a sum with the last one.
        earlier: weights of earlier slopes, the last first.
        raised: the level that churn raises the state to; None without.
    """

    level: Tensor
    length: Tensor
    noise: Tensor | float = 0.0
    begins: bool = True
    is_mean: bool = False
    earlier: tuple[float, ...] = ()
    raised: Tensor | None = None


def written(plan: Plan, chain: Chain, name: str, churn: Churn | None) -> Plan | None:
    """The plan in u, whose chain is the original's to the last bit on a CPU; None where one in x will do.

    Args:
        plan: of x.
        chain: its points.
        name: the scheduler's class.
        churn: of Euler's steps.
    """
    if name not in WRITTEN or not _is_coarse(name, chain):
        return None
    table = np.zeros((len(plan), N_COLUMNS), np.float32)
    table[:, Level.X0_BOUND] = plan.table[:, Column.X0_BOUND]
    for row, step in zip(table, WRITTEN[name](chain, churn), strict=True):
        _fill(row, step, plan.prediction_type)
    return dataclasses.replace(plan, table=table, in_sigmas=True)


def _fill(row: npt.NDArray[np.float32], step: Step, prediction_type: str) -> None:
    s = step.level
    raised = s if step.raised is None else step.raised
    from_u, divisor, from_m = _FROM[prediction_type](s, raised)
    row[Level.INPUT_DIVISOR] = (s**2 + 1) ** 0.5
    row[Level.X0_FROM_U], row[Level.X0_DIVISOR], row[Level.X0_FROM_M] = from_u, divisor, from_m
    row[Level.SLOPE_DIVISOR], row[Level.FROM_SLOPE] = raised, step.length
    row[Level.FROM_NOISE], row[Level.BEGINS] = step.noise, step.begins
    row[Level.SLOPE_FROM_KEPT] = step.is_mean
    row[list(FROM_KEPT[: len(step.earlier)])] = step.earlier
    if step.raised is not None:
        row[Level.CHURN] = (raised**2 - s**2) ** 0.5


# p, d and q of a prediction at a level, and at that raised by churn.
_FROM: dict[str, Callable[[Tensor, Tensor], tuple[float, Any, Any]]] = {
    "epsilon": lambda s, raised: (1.0, 1.0, -raised),
    "v_prediction": lambda s, raised: (1.0, s**2 + 1, -s / (s**2 + 1) ** 0.5),
    "sample": lambda s, raised: (0.0, 1.0, 1.0),
}


def _is_coarse(name: str, chain: Chain) -> bool:
    """Whether rounding in u is seen, wherever a chain begins: how far rows hand on that of a step's start."""
    reach = float(_sigmas(chain).max())
    if name not in _TWICE or reach > HIGHEST:
        return reach > HIGHEST
    began = 0.0
    for step in WRITTEN[name](dataclasses.replace(chain, start=0), None):
        level = float(step.level)
        began = level if step.begins else began
        reach = max(reach, began * max(1.0, abs(float(step.length)) / level))
    return reach > HIGHEST


def _euler(chain: Chain, churn: Churn | None) -> Iterator[Step]:
    sigmas = _sigmas(chain)
    for row in chain.rows:
        s = sigmas[row]
        gamma = 0.0 if churn is None else churn.gamma(float(s), len(sigmas) - 1)
        raised = s * (gamma + 1)
        yield Step(s, sigmas[row + 1] - raised, raised=raised if gamma > 0 else None)


def _euler_ancestral(chain: Chain, churn: Churn | None) -> Iterator[Step]:
    sigmas = _sigmas(chain)
    for row in chain.rows:
        s, t = sigmas[row], sigmas[row + 1]
        up = (t**2 * (s**2 - t**2) / s**2) ** 0.5
        yield Step(s, (t**2 - up**2) ** 0.5 - s, noise=up)


def _lms(chain: Chain, churn: Churn | None) -> Iterator[Step]:
    sigmas, scheduler = _sigmas(chain), chain.scheduler
    for count, row in enumerate(chain.rows):
        order = min(row + 1, 4)
        own, *earlier = (float(scheduler.get_lms_coefficient(order, row, one)) for one in range(order))
        yield Step(sigmas[row], torch.tensor(own, dtype=torch.float32), earlier=tuple(earlier[:count]))


def _heun(chain: Chain, churn: Churn | None) -> Iterator[Step]:
    sigmas = _sigmas(chain)
    for count, row in enumerate(chain.rows):
        if count % 2 == 0:
            yield Step(sigmas[row], sigmas[row + 1] - sigmas[row])
        else:
            yield Step(sigmas[row], (sigmas[row] - sigmas[row - 1]) / 2, begins=False, is_mean=True)


def _kdpm2(chain: Chain, churn: Churn | None) -> Iterator[Step]:
    sigmas, between = _sigmas(chain), _sigmas(chain, "sigmas_interpol")
    for count, row in enumerate(chain.rows):
        if count % 2 == 0:
            yield Step(sigmas[row], between[row + 1] - sigmas[row])
        else:
            yield Step(between[row], sigmas[row] - sigmas[row - 1], begins=False)


def _kdpm2_ancestral(chain: Chain, churn: Churn | None) -> Iterator[Step]:
    sigmas, between = _sigmas(chain), _sigmas(chain, "sigmas_interpol")
    down, up = _sigmas(chain, "sigmas_down"), _sigmas(chain, "sigmas_up")
    for count, row in enumerate(chain.rows):
        if count % 2 == 0:
            yield Step(sigmas[row], between[row] - sigmas[row])
        else:
            length = down[row - 1] - sigmas[row - 1]
            yield Step(between[row - 1], length, noise=up[row - 1], begins=False)


def _sigmas(chain: Chain, name: str = "sigmas") -> Tensor:
    values: Tensor = getattr(chain.scheduler, name).detach().cpu().to(torch.float32)
    return values


_TWICE = (
    "HeunDiscreteScheduler",
    "KDPM2DiscreteScheduler",
    "KDPM2AncestralDiscreteScheduler",
)
WRITTEN: dict[str, Callable[[Chain, Churn | None], Iterator[Step]]] = {
    "EulerDiscreteScheduler": _euler,
    "EulerAncestralDiscreteScheduler": _euler_ancestral,
    "LMSDiscreteScheduler": _lms,
    "HeunDiscreteScheduler": _heun,
    "KDPM2DiscreteScheduler": _kdpm2,
    "KDPM2AncestralDiscreteScheduler": _kdpm2_ancestral,
}
"""Each class's steps."""
