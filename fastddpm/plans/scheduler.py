"""A scheduler of diffusers as an option of a method: its configuration, checked, and its plan.

The betas are the schedule's, whatever the configuration says of them. It holds what a step does alone.
Needs no torch before a plan is made.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Final, cast

import numpy as np
import numpy.typing as npt

from fastddpm.betas import MAX_STEPS
from fastddpm.checks import BadArgument, check_choice, check_number, is_number, quoted, shortened
from fastddpm.extras import missing
from fastddpm.inputs import Fields, Json
from fastddpm.plans.ddim import ddim_plan
from fastddpm.plans.plan import PREDICTION_TYPES, Plan, PredictionType
from fastddpm.schedule import NoiseSchedule
from fastddpm_kernels.table import Column

if TYPE_CHECKING:
    from fastddpm.plans.diffusers.config import SchedulerOrConfig

SCHEDULER: Final = "diffusers"
"""The method of these: no formula or solver of this package, and so none of `fastddpm.plans.METHODS`."""
BETAS = ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas")
"""Fields that the schedule stands for. ``rescale_betas_zero_snr`` stays: it changes nothing of betas that are
rescaled, and some classes take the first level as 2**-24 by it."""
PRECONDITIONED = ("EDMEulerScheduler", "EDMDPMSolverMultistepScheduler")
"""Classes whose networks are scaled and told noise levels as by Karras et al. 2022: no other method, which
would tell them timesteps, samples by these, and the schedule is not read."""
MAX_FIELDS = 64
MAX_LENGTH = 64
"""Of a word, and of a list: the longest is of the steps that UniPC does not correct."""
X0_OF = [Column.X0_FROM_X, Column.X0_FROM_M]
OTHER_PROCESS: dict[str, tuple[object, ...]] = {
    "use_flow_sigmas": (False, None),
    "snr_shift_scale": (1.0,),
    "timestep_type": ("discrete",),
}
"""Fields by which a network was trained with other levels, times or targets; what says that it was not."""
_ACCEPTED = f"true, false, a word, a number up to {MAX_STEPS:,} or a list of these"


def scheduler_fields(scheduler: SchedulerOrConfig) -> Json:
    """The configuration of a scheduler, as JSON values and without its betas.

    Args:
        scheduler: of diffusers, or its configuration with its ``_class_name``.

    Raises:
        ValueError: neither; a field with a value that no scheduler has, or of another process than a DDPM's.
    """
    config = scheduler if isinstance(scheduler, Mapping) else getattr(scheduler, "config", None)
    if not isinstance(config, Mapping):
        raise BadArgument(
            "scheduler", shortened(repr(scheduler)), "a diffusers scheduler or its configuration"
        )
    name = config.get("_class_name") if isinstance(scheduler, Mapping) else type(scheduler).__name__
    if not isinstance(name, str) or not name.isidentifier():
        raise BadArgument("scheduler", f"_class_name={shortened(repr(name))}", "the name of a class")
    if len(config) > MAX_FIELDS:
        raise BadArgument("scheduler", f"{len(config)} fields", f"at most {MAX_FIELDS}")
    kept: Json = {"_class_name": name}
    for field, value in config.items():
        if isinstance(field, str) and not field.startswith("_") and field not in BETAS and _says(value):
            kept[field] = _checked(field, value)
    check_choice("prediction_type", prediction_type(kept), PREDICTION_TYPES)
    clip_range(kept)
    return kept


def prediction_type(fields: Fields) -> PredictionType:
    """What the network predicts, by our name for it."""
    given = fields.get("prediction_type", "epsilon")
    return cast("PredictionType", "sample" if given == "original_sample" else given)


def learns_range(fields: Fields) -> bool:
    """Whether the network has a second half, of variances."""
    return fields.get("variance_type") in ("learned", "learned_range")


def clip_range(fields: Fields) -> float | None:
    """The bound of x0 by which a method of ours samples in the scheduler's place; None for no clip."""
    clips = fields.get("clip_sample", fields["_class_name"] in ("DDPMScheduler", "DDIMScheduler"))
    if fields.get("thresholding") or not clips:
        return None
    return check_number("clip_sample_range", fields.get("clip_sample_range", 1.0), above=0)


def held(options: Fields, neutral: Fields) -> Json:
    """Of a `fastddpm.plans.Method`, the options that its scheduler says.

    Args:
        options: all of them, ``scheduler`` among them.
        neutral: their defaults.

    Raises:
        ValueError: as of `scheduler_fields`; another option than the number of steps that is not neutral, or
            not the scheduler's.
    """
    fields = scheduler_fields(options["scheduler"])
    own: Json = {
        "prediction_type": prediction_type(fields),
        "variance_type": "learned_range" if learns_range(fields) else "fixed_small",
    }
    for name, default in neutral.items():
        given = options[name]
        if name not in ("method", "num_inference_steps", "scheduler", *own) and given != default:
            raise BadArgument(name, f"{quoted(given)} with method {SCHEDULER!r}", "what its scheduler says")
        if name in own and given not in (default, own[name]):
            raise BadArgument(name, f"{quoted(given)} with a scheduler of another", repr(own[name]))
    return {**own, "scheduler": fields}


def scheduler_plan(fields: Fields, schedule: NoiseSchedule, num_inference_steps: int) -> Plan:
    """The plan of `fastddpm.plans.diffusers.from_scheduler` for such fields, on a schedule.

    Raises:
        ValueError: as there; what diffusers says of a field; no diffusers, for a scheduler that needs it.
    """
    if _is_plain_ddim(fields):
        plan = ddim_plan(
            schedule,
            num_inference_steps,
            prediction_type=prediction_type(fields),
            clip_sample_range=clip_range(fields),
        )
        return dataclasses.replace(plan, method=SCHEDULER)
    try:
        from fastddpm.plans.diffusers import from_scheduler
    except ImportError as error:  # what needs no torch has come here without it
        raise missing("torch", by=f"method {SCHEDULER!r}", why=error) from error

    config = {**fields, "num_train_timesteps": len(schedule)}
    if fields["_class_name"] not in PRECONDITIONED:
        config["trained_betas"] = np.asarray(schedule.betas, dtype=np.float64).tolist()
    try:
        plan = from_scheduler(config, num_inference_steps)
    except BadArgument:
        raise
    except Exception as error:  # diffusers checks little: a wrong field ends in any error
        reason = shortened(str(error) or type(error).__name__, 120)
        given = f"{fields['_class_name']}, which says: {reason};"
        raise BadArgument("scheduler", given, "another configuration") from error
    return dataclasses.replace(plan, method=SCHEDULER, table=_undivided(plan.table))


def _is_plain_ddim(fields: Fields) -> bool:
    """Whether a configuration is DDIM as published, with the network's eps: for this no torch is needed."""
    plain = {
        "timestep_spacing": ("leading",),
        "steps_offset": (0,),
        "set_alpha_to_one": (True,),
        "thresholding": (False,),
        "rescale_betas_zero_snr": (False,),
    }
    same = all(fields.get(name, values[0]) in values for name, values in plain.items())
    return fields["_class_name"] == "DDIMScheduler" and same and not learns_range(fields)


def _undivided(table: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Rows that multiply where these divide, as the rows of all our methods do, and those in exported files.

    x0 = (p*x + q*m)/d, and eps = (b*x + f*x0 + g*m)/w of x_next = a*x0 + e*eps.
    """
    rows = table.astype(np.float64)
    d, w = rows[:, Column.X0_DIVISOR], rows[:, Column.EPS_DIVISOR]
    rows[:, X0_OF] /= np.where(d == 0, 1.0, d)[:, None]
    e = np.where(w == 0, 0.0, rows[:, Column.FROM_M] / np.where(w == 0, 1.0, w))
    rows[:, Column.FROM_X0] += e * rows[:, Column.EPS_FROM_X0]
    rows[:, Column.FROM_X] *= np.where(w == 0, 1.0, e)
    rows[:, Column.FROM_M] = np.where(w == 0, rows[:, Column.FROM_M], e * rows[:, Column.EPS_FROM_M])
    rows[:, [Column.X0_DIVISOR, Column.EPS_FROM_X0, Column.EPS_FROM_M, Column.EPS_DIVISOR]] = 0.0
    return rows.astype(np.float32)


def _says(value: object) -> bool:
    """Whether a value is not left open; ``lambda_min_clipped`` is -infinity then, which JSON has not."""
    return value is not None and not (isinstance(value, float) and math.isinf(value))


def _checked(field: str, value: object) -> object:
    """A field's value; BadArgument for one that no scheduler has."""
    if value not in OTHER_PROCESS.get(field, (value,)):
        given = f"{shortened(repr(value))}, another process than a DDPM's,"
        raise BadArgument(field, given, repr(OTHER_PROCESS[field][0]))
    is_list = isinstance(value, Sequence) and not isinstance(value, str)
    values = list(cast("Sequence[object]", value))[: MAX_LENGTH + 1] if is_list else [value]
    if len(values) > MAX_LENGTH or not all(_is_sound(one) for one in values):
        raise BadArgument(field, shortened(repr(value)), _ACCEPTED)
    return values if is_list else value


def _is_sound(value: object) -> bool:
    if isinstance(value, str):
        return len(value) <= MAX_LENGTH
    return isinstance(value, bool) or (is_number(value) and abs(value) <= MAX_STEPS)
