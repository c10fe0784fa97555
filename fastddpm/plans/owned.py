"""The options of a `fastddpm.plans.Method` that do not go with every method or with each other."""

from __future__ import annotations

from collections.abc import Mapping
from numbers import Real
from typing import cast

import numpy.typing as npt

from fastddpm.checks import BadArgument, check_choice, check_number, is_whole, quoted
from fastddpm.plans.registry import METHODS, OwnOption
from fastddpm.plans.scheduler import SCHEDULER
from fastddpm.plans.spacing import SIGMA_SPACINGS, SPACINGS, check_sigmas

RATIO = 0.995
"""Of dynamic thresholding, as in diffusers."""
MAX_VALUE = 1.0

Options = Mapping[str, object]


def check_owned(options: Options) -> None:
    """ValueError for an option that belongs to another method, or to an option that is not there.

    Args:
        options: all of a method's fields, its name checked.
    """
    if options["scheduler"] is None:
        _check_solver(options)
    eta, scale = options["eta"], options["sigma_scale"]
    if not isinstance(eta, Real) or eta != 0:
        _check_takes(options, "eta", "eta", "0")
    if not isinstance(scale, Real) or scale != 1:
        _check_takes(options, "sigma_scale", "sigma_scale", "1")
    if options["variance_type"] == "fixed_large":
        _check_takes(options, "fixed_large", "variance_type", "fixed_small or learned_range")
    check_choice("lower_order_final", options["lower_order_final"], (True, False))
    if options["lower_order_final"]:
        _check_takes(options, "lower_order_final", "lower_order_final", "False")
    _check_thresholding(options)
    if options["sigmas"] is not None:
        _check_sigmas(options)


def _check_solver(options: Options) -> None:
    """ValueError for options of solvers that the method has not."""
    method = str(options["method"])
    entry = METHODS[method]
    if entry.solver is None:
        for name, is_sigmas in (
            ("timestep_spacing", options["timestep_spacing"] in SIGMA_SPACINGS),
            ("sigmas", options["sigmas"] is not None),
        ):
            if is_sigmas:
                solvers = ", ".join(name for name, other in METHODS.items() if other.solver is not None)
                given = f"{quoted(options[name])}, which belongs to {solvers}, with method {method!r}"
                raise BadArgument(name, given, "None" if name == "sigmas" else ", ".join(SPACINGS))
    order = options["solver_order"]
    if order is not None and not (is_whole(order) and order in entry.orders):
        accepted = " or ".join(map(str, entry.orders)) if entry.solver is not None else "None"
        raise BadArgument("solver_order", f"{quoted(order)} with method {method!r}", accepted)


def _check_takes(options: Options, option: OwnOption, name: str, accepted: str) -> None:
    """ValueError where the option is another method's."""
    method = str(options["method"])
    if method == SCHEDULER or option not in METHODS[method].takes:
        *others, last = (owner for owner, entry in METHODS.items() if option in entry.takes)
        owners = f"{', '.join(others)} and {last}" if others else last
        given = f"{options[name]!r}, which belongs to {owners}, with method {method!r}"
        raise BadArgument(name, given, accepted)


def _check_thresholding(options: Options) -> None:
    check_choice("thresholding", options["thresholding"], (True, False))
    check_number("dynamic_thresholding_ratio", options["dynamic_thresholding_ratio"], low=0.0, high=1.0)
    check_number("sample_max_value", options["sample_max_value"], low=1.0)
    if options["thresholding"] and options["clip_sample_range"] is not None:
        given = f"True with clip_sample_range {quoted(options['clip_sample_range'])}"
        raise BadArgument("thresholding", given, "one of the two")
    for name, neutral in (("dynamic_thresholding_ratio", RATIO), ("sample_max_value", MAX_VALUE)):
        if not options["thresholding"] and options[name] != neutral:
            given = f"{quoted(options[name])} without thresholding"
            raise BadArgument(name, given, f"{neutral:g}, or thresholding=True with it,")


def _check_sigmas(options: Options) -> None:
    levels, steps = check_sigmas(cast("npt.ArrayLike", options["sigmas"])), options["num_inference_steps"]
    if options["timesteps"] is not None:
        raise BadArgument("sigmas, timesteps", "both", "one of the two")
    if steps not in (None, len(levels)):
        accepted = f"None or the number of sigmas given, {len(levels)}"
        raise BadArgument("num_inference_steps", quoted(steps), accepted)
