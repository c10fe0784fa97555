"""A method's formula: the columns of a plan's table from what a chain passes, written once.

A formula is a function of `Passed` and `FormulaOptions` in NumPy's operations. On float64 arrays it gives a
plan (`formula_plan`); on vectors that stand for tensors of an ONNX graph (`fastddpm.export.vector`) it gives
the nodes by which a file computes the plan itself. So nothing in it is assigned or looked at: it is made of
Python's operators, slices and the functions of NumPy that a vector knows.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from fastddpm.checks import BadArgument, check_number
from fastddpm.plans.plan import Float64, Plan, PredictionType, build_table
from fastddpm.schedule import NoiseSchedule

VarianceType = Literal["fixed_small", "fixed_large", "learned_range"]
VARIANCE_TYPES: tuple[VarianceType, ...] = ("fixed_small", "fixed_large", "learned_range")

LARGEST_RECIPROCAL = 2.0**60
"""Stands for 1/sqrt(alphas_cumprod) at alphas_cumprod = 0: any x0 it touches lands on the clip's bound."""

Bool = npt.NDArray[np.bool_]
# By the names of `fastddpm_kernels.table.Column` in lower case, each [S] or one number for all.
Columns = dict[str, Float64 | float]


@dataclass(frozen=True)
class Passed:
    """What a chain of S steps passes.

    Attributes:
        abar: float64 [S], alphas_cumprod where each step begins.
        abar_next: float64 [S], where it ends.
        is_first: bool [S].
        is_last: bool [S].
    """

    abar: Float64
    abar_next: Float64
    is_first: Bool
    is_last: Bool

    @classmethod
    def by(
        cls, schedule: NoiseSchedule, timesteps: npt.NDArray[np.int64], final_alpha_cumprod: float = 1.0
    ) -> Passed:
        """By a chain through timesteps of a schedule, to ``final_alpha_cumprod`` after the last of them."""
        abar = schedule.alphas_cumprod[timesteps]
        check_number("final_alpha_cumprod", final_alpha_cumprod, low=float(abar[-1]), high=1.0)
        index = np.arange(len(timesteps))
        ends = np.append(abar[1:], final_alpha_cumprod)
        return cls(abar, ends, is_first=index == 0, is_last=index == len(timesteps) - 1)


@dataclass(frozen=True)
class FormulaOptions:
    """What of a method's options its formula depends on; values as in `fastddpm.plans.Method`.

    Attributes:
        prediction_type: what the network predicts.
        bounded: whether x0 is clipped.
        variance_type: of ddpm.
        sigma_scale: of ddpm.
        eta: of ddim.
    """

    prediction_type: PredictionType
    bounded: bool
    variance_type: VarianceType = "fixed_small"
    sigma_scale: float = 1.0
    eta: float = 0.0


Formula = Callable[[Passed, FormulaOptions], Columns]


def formula_plan(
    method: str,
    formula: Formula,
    schedule: NoiseSchedule,
    timesteps: npt.NDArray[np.int64],
    options: FormulaOptions,
    *,
    bound: float = math.inf,
    final_alpha_cumprod: float = 1.0,
) -> Plan:
    """The plan of a formula.

    Args:
        method: the method's name.
        formula: gives the columns.
        schedule: the T training timesteps.
        timesteps: int64 [S], those visited.
        options: of the method.
        bound: of |x0|; infinity for none.
        final_alpha_cumprod: abar after the last step.

    Raises:
        ValueError: x0 would be infinite (epsilon, no clip, abar = 0), or a row is not finite.
    """
    passed = Passed.by(schedule, timesteps, final_alpha_cumprod)
    with np.errstate(divide="ignore", invalid="ignore"):  # a Plan refuses what is not finite
        columns = formula(passed, options)
    check_recoverable(columns["x0_from_x"])
    return Plan(
        method=method,
        timesteps=timesteps,
        model_time=timesteps,
        table=build_table(len(timesteps), x0_bound=bound, **columns),
        prediction_type=options.prediction_type,
        clip=bound != math.inf,
        learned_range=options.variance_type == "learned_range",
    )


def check_recoverable(p: Float64 | float) -> None:
    """ValueError where x0 = p*x + q*m has an infinite p: epsilon, no bound, abar = 0."""
    if np.isinf(p).any():
        raise BadArgument(
            "clip_sample_range",
            "None, by which x0 cannot be recovered from epsilon where alphas_cumprod is 0 (zero "
            "terminal SNR),",
            "a number above 0, or a network that predicts v_prediction or sample,",
        )


def prediction_columns(
    prediction_type: PredictionType, alpha: Float64, sigma: Float64, *, bounded: bool
) -> tuple[Float64 | float, Float64 | float]:
    """p and q with x0 = p*x + q*m, from x = alpha*x0 + sigma*eps and v = alpha*eps - sigma*x0.

    alpha = sqrt(abar_t) and sigma = sqrt(1 - abar_t), [S]. `bounded` says that x0 is clipped or
    thresholded afterwards: then alpha = 0 is allowed for epsilon, with 2**60 for its reciprocal.
    """
    if prediction_type == "sample":
        return 0.0, 1.0
    if prediction_type == "v_prediction":
        return alpha, -sigma
    with np.errstate(divide="ignore"):
        p = 1.0 / alpha
    if bounded:
        p = np.minimum(p, LARGEST_RECIPROCAL)
    return p, -sigma * p


def epsilon_columns(
    prediction_type: PredictionType, alpha: Float64, sigma: Float64, *, rederived: bool
) -> tuple[Float64 | float, Float64 | float, Float64 | float]:
    """eps as a weighted sum of the (clipped) x0, of x and of the network's output m: the three weights, [S].

    eps = m, (x - alpha m)/sigma or alpha m + sigma x for epsilon, sample and v_prediction; `rederived`, it is
    (x - alpha x0)/sigma whatever m is.
    """
    if rederived:
        return -alpha / sigma, 1.0 / sigma, 0.0
    if prediction_type == "epsilon":
        return 0.0, 0.0, 1.0
    if prediction_type == "sample":
        return 0.0, 1.0 / sigma, -alpha / sigma
    return 0.0, sigma, alpha
