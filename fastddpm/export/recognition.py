"""The method of a plan, whose options an export keeps: a sampler's own, or one found for a given plan."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np

from fastddpm.checks import BadArgument
from fastddpm.onnx.walk import KEPT_IN_FILES
from fastddpm.plans import METHODS, Method, Plan
from fastddpm.plans.registry import Entry
from fastddpm.plans.spacing import SIGMA_SPACINGS
from fastddpm.plans.time_input import TIME_INPUTS, time_input_of
from fastddpm.sampler import Sampler
from fastddpm.schedule import NoiseSchedule
from fastddpm_kernels.table import FROM_KEPT, KEPT, Column

SAME_TABLE = 1e-3
"""How far a given plan may be from ours, relative to a column's largest value, to count as the same method;
peers keep theirs in float32. Verification then holds the images to the given plan's."""

SAME_TIME = 1e-5
"""The same of times, each relative to itself."""


def recognised(plan: Plan, sampler: Sampler) -> Method:
    """The method by which a sampler made its plan, or one that gives the plan that it was given.

    Raises:
        ValueError: a plan that does what no file can, or that no method gives.
    """
    if plan.thresholding is not None:
        raise BadArgument("thresholding", "dynamic thresholding", "a fixed clip or none")
    if plan.kept > KEPT_IN_FILES:
        given = f"a plan of {plan.method!r} that keeps {plan.kept} predictions"
        raise BadArgument("method", given, f"one that keeps up to {KEPT_IN_FILES}")
    if plan.timesteps[-1] < 0:
        raise BadArgument("timesteps", "a plan that ends at -1", "0 or more")
    if sampler.method is not None:
        return sampler.method
    if plan.method not in METHODS:
        raise BadArgument("method", f"a plan of {plan.method!r}", f"one of {', '.join(METHODS)}")
    if plan.alphas_cumprod is None:
        _check_times(plan, sampler.schedule)
    for options in _candidates(plan, METHODS[plan.method], sampler.schedule):
        try:
            method = Method.from_dict(options)
            ours = method.plan(sampler.schedule)
        except ValueError:
            continue
        if _same(plan, ours):
            return method
    raise BadArgument(
        "plan",
        f"a table that is not that of {plan.method} with any options",
        "a sampler made with options, or with a plan of make_plan,",
    )


def _check_times(plan: Plan, schedule: NoiseSchedule) -> None:
    """ValueError where the network is told neither timesteps nor levels."""
    if time_input_of(plan, schedule) is None:
        given, accepted = "a plan that tells the network something else", "timesteps or levels of these"
        raise BadArgument("model_time", given, accepted)


def _candidates(plan: Plan, entry: Entry, schedule: NoiseSchedule) -> Iterator[dict[str, Any]]:
    """Options that may have given the plan."""
    known = {
        "method": plan.method,
        "prediction_type": plan.prediction_type,
        "clip_sample_range": float(plan.table[0, Column.X0_BOUND]) if plan.clip else None,
        "variance_type": "learned_range" if plan.learned_range else "fixed_small",
    }
    if entry.solver is None:
        known |= {"time_input": time_input_of(plan, schedule)}
        yield from _of_formula({**known, "timesteps": plan.timesteps.tolist()}, plan, entry, schedule)
        return
    lowered = (False, True) if "lower_order_final" in entry.takes else (False,)
    # Several rows of a step are at one timestep, or between two.
    begins = plan.timesteps[np.asarray(plan.starts)].tolist()
    spacings: list[dict[str, Any]] = [{"timesteps": begins}]
    spacings += [{"timestep_spacing": one, "num_inference_steps": len(begins)} for one in SIGMA_SPACINGS]
    if plan.alphas_cumprod is not None:
        abar = plan.alphas_cumprod[np.asarray(plan.starts)]
        spacings.append({"sigmas": np.sqrt((1 - abar) / abar).tolist()})
    for spacing in spacings:
        for time_input in TIME_INPUTS:
            for order, lowers in itertools.product(entry.orders, lowered):
                told = {"time_input": time_input, "solver_order": order, "lower_order_final": lowers}
                yield {**known, **spacing, **told}


def _of_formula(
    known: dict[str, Any], plan: Plan, entry: Entry, schedule: NoiseSchedule
) -> Iterator[dict[str, Any]]:
    """The same of a formula, with the amount of noise that the plan has."""
    variances = [known["variance_type"]]
    if "fixed_large" in entry.takes and not plan.learned_range:
        variances.append("fixed_large")
    amount = next((name for name in ("sigma_scale", "eta") if name in entry.takes), None)
    for variance_type in variances:
        options = {**known, "variance_type": variance_type, "sigma_scale": 1.0, "eta": 0.0}
        if amount is not None:
            full = Method.from_dict({**options, amount: 1.0})
            noise = full.plan(schedule).table[:, Column.FROM_NOISE]
            if noise.max() > 0:
                options[amount] = float(plan.table[noise.argmax(), Column.FROM_NOISE] / noise.max())
        yield options


def _same(given: Plan, ours: Plan) -> bool:
    """Whether two plans make the same steps; without a clip, x0 is only a way of writing them."""
    if len(given) != len(ours) or not np.allclose(
        given.model_time, ours.model_time, rtol=SAME_TIME, atol=0.0
    ):
        return False
    through_x0 = given.clip or bool(given.kept)
    steps = (
        (
            Column.X0_FROM_X,
            Column.X0_FROM_M,
            Column.FROM_X0,
            Column.FROM_X,
            Column.FROM_M,
            *FROM_KEPT,
            *range(KEPT.start, KEPT.stop),
            Column.KEPT_SLOT,
        )
        if through_x0
        else (Column.LINEAR_X, Column.LINEAR_M)
    )
    columns = [*steps, Column.FROM_NOISE, Column.LOG_VAR_MIN, Column.LOG_VAR_MAX]
    largest = np.maximum(np.abs(ours.table[:, columns]).max(axis=0), 1e-6)
    difference = np.abs(given.table[:, columns] - ours.table[:, columns])
    return given.clip == ours.clip and bool(np.all(difference <= SAME_TABLE * largest))
