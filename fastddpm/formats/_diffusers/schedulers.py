"""A scheduler's configuration as a noise schedule and options of `Sampler`, checked before either is made.

Source: diffusers 0.42.1, schedulers/. diffusers is not imported here.
"""

from __future__ import annotations

from typing import cast

import numpy as np

from fastddpm.betas import MAX_STEPS
from fastddpm.checks import BadArgument, check_choice, check_number, shortened, whole
from fastddpm.formats._diffusers.betas import check_bool, noise_schedule, told
from fastddpm.formats.files import CheckpointError
from fastddpm.inputs import Fields, Json
from fastddpm.options import SamplerOptions
from fastddpm.plans.diffusers.config import COMMON_DEFAULTS, SchedulerConfig, read_config
from fastddpm.plans.diffusers.solver_classes import SOLVERS
from fastddpm.plans.dpmpp import SMALLEST_ALPHA_CUMPROD
from fastddpm.plans.method import Method
from fastddpm.plans.plan import PREDICTION_TYPES
from fastddpm.plans.scheduler import OTHER_PROCESS, PRECONDITIONED, SCHEDULER
from fastddpm.plans.spacing import SPACINGS

SCHEDULERS = {
    "DDPMScheduler": "ddpm",
    "DDPMParallelScheduler": "ddpm",
    "DDIMScheduler": "ddim",
    "DDIMParallelScheduler": "ddim",
    "DPMSolverMultistepScheduler": "dpmpp_2m",
    "UniPCMultistepScheduler": "unipc",
}
CLASSES = {
    "ddpm": "DDPMScheduler",
    "ddim": "DDIMScheduler",
    "dpmpp_2m": "DPMSolverMultistepScheduler",
    "unipc": "UniPCMultistepScheduler",
}
"""The class whose configuration gives a method's options."""
_STEPS = {
    "DPMSolverMultistepScheduler": 20,
    "UniPCMultistepScheduler": 20,
    "EDMDPMSolverMultistepScheduler": 20,
    "LCMScheduler": 4,
    "TCDScheduler": 4,
}
"""What DPM-Solver++ is for (Lu et al. 2022b: 15 to 20), and distilled models. DDPMPipeline takes all 1000."""
_MOST_STEPS = 50
"""Which DDIMPipeline and PNDMPipeline take."""
_ACCEPTED = "DDPM, DDIM or a solver of fastddpm.plans.diffusers.SOLVERS accepted"
_DEFAULTS: Json = {
    **COMMON_DEFAULTS,
    "clip_sample": True,
    "clip_sample_range": 1.0,
    "variance_type": "fixed_small",
    "set_alpha_to_one": True,
    "timestep_spacing": "leading",
}
_SOLVER_DEFAULTS: Json = {
    **_DEFAULTS,
    "timestep_spacing": "linspace",
    "solver_order": 2,
    "algorithm_type": "dpmsolver++",
    "solver_type": "midpoint",
    "final_sigmas_type": "zero",
    "lambda_min_clipped": -float("inf"),
}
_OF_TIMESTEPS: dict[str, tuple[object, ...]] = {
    "final_sigmas_type": ("zero",),
    **dict.fromkeys(
        (
            "use_karras_sigmas",
            "use_exponential_sigmas",
            "use_beta_sigmas",
            "use_lu_lambdas",
            "use_flow_sigmas",
        ),
        (False, None),
    ),
}
_SOLVERS: dict[str, dict[str, tuple[object, ...]]] = {
    "dpmpp_2m": {
        "algorithm_type": ("dpmsolver++",),
        "solver_order": (2,),
        "solver_type": ("midpoint", "logrho", "bh1", "bh2"),
        **_OF_TIMESTEPS,
    },
    "unipc": {
        "solver_order": (2, 1),
        "solver_type": ("bh2", "midpoint", "heun", "logrho"),
        "predict_x0": (True,),
        "disable_corrector": ([], None),
        "solver_p": (None,),
        "lower_order_final": (True,),  # else the step onto the clean image is infinite
        **_OF_TIMESTEPS,
    },
}
"""Values that mean these; ``lower_order_final`` and ``euler_at_final`` then change nothing of dpmpp_2m."""


def sampler_options(scheduler: Fields, method: str | None = None) -> SamplerOptions:
    """Options of :class:`fastddpm.Sampler` from a scheduler's configuration.

    Where a method of ours takes the scheduler's steps it is that, and else "diffusers" with that.

    Args:
        scheduler: the configuration.
        method: what a caller chose. It takes the place of a class that is none of `SCHEDULERS`, or of a
            solver's options, as ``from_config`` of the method's own class would.

    Raises:
        CheckpointError: naming a field that is wrong, or that the sampler has not, and what to pass instead.
    """
    kind = _kind(scheduler, method)
    if kind == SCHEDULER:
        return _its_own(scheduler, str(scheduler["_class_name"]))
    defaults = {**_SOLVER_DEFAULTS, "solver_type": "bh2"} if kind == "unipc" else _SOLVER_DEFAULTS
    config = read_config(scheduler, defaults if kind in _SOLVERS else _DEFAULTS)
    told(_check_fields, config)
    if method is None and not _is_repeated(kind, config):
        return _its_own(cast("Fields", config), CLASSES[kind])
    _refuse_unless(config, _neutral(kind, config))
    clips = kind not in _SOLVERS and config["clip_sample"]
    options: Json = {
        "method": kind,
        "num_inference_steps": _default_steps(CLASSES[kind], config),
        "prediction_type": config["prediction_type"],
        "clip_sample_range": float(config["clip_sample_range"]) if clips else None,
        "timestep_spacing": config["timestep_spacing"],
    }
    variance = config["variance_type"]
    if kind == "ddpm":
        options["variance_type"] = _variance_type(variance)
    elif kind in _SOLVERS and variance in ("learned", "learned_range"):
        options["variance_type"] = "learned_range"  # a network of 2C channels, the second half left unused
    if kind == "unipc" and method is None and cast("Json", config)["solver_order"] == 1:
        options["solver_order"] = 1
    return cast("SamplerOptions", {name: value for name, value in options.items() if value is not None})


def _its_own(scheduler: Fields, name: str) -> SamplerOptions:
    """Those of the method "diffusers"; CheckpointError where that has no such steps."""
    schedule = noise_schedule(scheduler)
    steps = _default_steps(name, read_config(scheduler, _DEFAULTS))
    fields = {**scheduler, "_class_name": name}
    try:
        held = Method(method=SCHEDULER, scheduler=fields, num_inference_steps=steps)
        held.plan(schedule)
    except BadArgument as error:
        given = f"{error.argument}: {shortened(error.given, 150)} given, {error.accepted} accepted"
        other = 'method="ddim", or another, samples by its betas'
        raise CheckpointError(f"scheduler: {given}; {other}") from error
    options: Json = {"method": SCHEDULER, "scheduler": held.fields, "num_inference_steps": steps}
    return cast("SamplerOptions", {name: value for name, value in options.items() if value is not None})


def _default_steps(name: str, config: SchedulerConfig) -> int | None:
    """How many steps a class takes unless told otherwise; None for all."""
    # With an offset, all of them begin behind the last timestep.
    takes_all = name == "DDPMScheduler" and not (
        config["steps_offset"] and config["timestep_spacing"] == "leading"
    )
    return None if takes_all else min(_STEPS.get(name, _MOST_STEPS), config["num_train_timesteps"])


def _variance_type(name: object) -> str:
    # fixed_large_log gives NaN in diffusers, and None is what fixed_small is.
    types = {"fixed_small": "fixed_small", "fixed_small_log": "fixed_small"}
    types |= {"fixed_large": "fixed_large", "learned_range": "learned_range"}
    if name is None:
        return types["fixed_small"]
    if not isinstance(name, str) or name not in types:
        given = shortened(repr(name))
        raise CheckpointError(f"scheduler: variance_type={given} given, {', '.join(types)} accepted")
    return types[name]


def _kind(scheduler: Fields, method: str | None) -> str:
    """The method that a configuration is read as."""
    name = scheduler.get("_class_name")
    known = SCHEDULERS.get(name) if isinstance(name, str) else None
    if known in ("ddpm", "ddim") or (known is not None and method is None):
        return str(known)
    given = f"scheduler: _class_name={shortened(repr(name), 50)} given"
    if name in PRECONDITIONED:
        if method is not None and method != SCHEDULER:
            raise CheckpointError(
                f"{given}, whose network is told no timesteps; method={SCHEDULER!r} accepted"
            )
        return SCHEDULER
    if scheduler.get("trained_betas") is None and not _has_betas(scheduler):
        raise CheckpointError(f"{given}, which has no betas, as a DDPM has; {_ACCEPTED}")
    if method is None and isinstance(name, str) and name in SOLVERS:
        return SCHEDULER
    if method is None:
        raise CheckpointError(
            f'{given}, {_ACCEPTED}; method="ddim", or another, samples by its betas, and so does '
            'config={"scheduler": {"_class_name": "DDIMScheduler"}}'
        )
    for field, neutral in OTHER_PROCESS.items():
        if field in scheduler and scheduler[field] not in neutral:
            value = shortened(repr(scheduler[field]))
            raise CheckpointError(f"{given} with {field}={value}, another process than a DDPM's; {_ACCEPTED}")
    return method if method in CLASSES else "ddim"


def _has_betas(scheduler: Fields) -> bool:
    needed = {"beta_schedule"}
    if scheduler.get("beta_schedule") != "squaredcos_cap_v2":
        needed |= {"beta_start", "beta_end"}
    return needed <= set(scheduler)


def _neutral(kind: str, config: SchedulerConfig) -> dict[str, tuple[object, ...]]:
    """What `Sampler` repeats of the fields that every class has."""
    neutral: dict[str, tuple[object, ...]] = {"thresholding": (False,)}
    if config["timestep_spacing"] == "leading":
        neutral["steps_offset"] = (0,)
    if kind == "ddim":
        neutral["set_alpha_to_one"] = (True,)
    return neutral


def _is_repeated(kind: str, config: SchedulerConfig) -> bool:
    """Whether a method of ours takes the very steps of a configuration."""
    values = {**_neutral(kind, config), **_SOLVERS.get(kind, {})}
    same = all(cast("Json", config).get(name, one[0]) in one for name, one in values.items())
    return same and (kind != "dpmpp_2m" or _is_unclipped(config))


def _refuse_unless(config: SchedulerConfig, accepted: dict[str, tuple[object, ...]]) -> None:
    """CheckpointError for the first field with another value, and what to pass."""
    for name, values in accepted.items():
        value = cast("Json", config).get(name, values[0])
        if value not in values:
            given = f"scheduler: {name}={shortened(repr(value))} is no option of the method"
            raise CheckpointError(
                f'{given}; config={{"scheduler": {{"{name}": {values[0]!r}}}}} leaves it out'
            )


def _is_unclipped(config: SchedulerConfig) -> bool:
    """Whether `lambda_min_clipped` leaves out no timestep: the spacings of ours have them all."""
    least = config["lambda_min_clipped"]
    if least is None or least == -float("inf"):
        return True
    abar = noise_schedule(cast("Fields", config)).alphas_cumprod
    abar = np.where(abar == 0, SMALLEST_ALPHA_CUMPROD, abar)
    return float((np.log(abar / (1 - abar)) / 2).min()) >= least


def _check_fields(config: SchedulerConfig) -> None:
    """BadArgument for a field that is not of its type, whichever class it is of."""
    fields = cast("Json", config)
    check_choice("prediction_type", fields["prediction_type"], PREDICTION_TYPES)
    check_choice("timestep_spacing", fields["timestep_spacing"], SPACINGS)
    whole("num_train_timesteps", fields["num_train_timesteps"], least=1, most=MAX_STEPS)
    whole("steps_offset", fields["steps_offset"], least=0, most=MAX_STEPS)
    for name in ("clip_sample", "thresholding", "set_alpha_to_one"):
        check_bool(name, fields[name])
    if fields["clip_sample"]:
        check_number("clip_sample_range", fields["clip_sample_range"], above=0)
    least = fields.get("lambda_min_clipped")
    if least is not None and least != -float("inf"):
        check_number("lambda_min_clipped", least, otherwise="None or -inf")
