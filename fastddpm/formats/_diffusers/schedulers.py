"""A scheduler's configuration as a noise schedule and options of `Sampler`, checked before either is made.

Source: diffusers 0.42.1, schedulers/. diffusers is not imported here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar, cast

import numpy as np

from fastddpm.betas import MAX_STEPS
from fastddpm.checks import BadArgument, check_choice, check_number, is_number, shortened, whole
from fastddpm.formats.files import CheckpointError
from fastddpm.inputs import Fields, Json
from fastddpm.options import SamplerOptions
from fastddpm.plans.diffusers.config import COMMON_DEFAULTS, SchedulerConfig, float32_betas, read_config
from fastddpm.plans.dpmpp import SMALLEST_ALPHA_CUMPROD
from fastddpm.plans.plan import PREDICTION_TYPES
from fastddpm.plans.spacing import SPACINGS
from fastddpm.schedule import NoiseSchedule

T = TypeVar("T")
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
_STEPS = {"ddim": 50, "dpmpp_2m": 20, "unipc": 20}
"""Those that DDIMPipeline takes unless told otherwise, and those that DPM-Solver++ is for (Lu et al. 2022b:
15 to 20). DDPMPipeline takes all 1000."""
_BETAS = ("linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid", "laplace")
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
_REPEATED = {"solver_order": 1, "solver_type": "heun", "final_sigmas_type": "sigma_min"}
"""Other values of these that `fastddpm.optimize` repeats."""
_OTHER_PROCESS = {"snr_shift_scale": (1.0,), "timestep_type": ("discrete",), "use_flow_sigmas": (False, None)}
"""Fields by which a network was trained with other betas, times or targets, and what says that it was not."""


def sampler_options(scheduler: Fields, method: str | None = None) -> SamplerOptions:
    """Options of :class:`fastddpm.Sampler` from a scheduler's configuration.

    Args:
        scheduler: the configuration.
        method: what a caller chose. It takes the place of a class that is none of `SCHEDULERS`, or of a
            solver's options, as ``from_config`` of the method's own class would.

    Raises:
        CheckpointError: naming a field that is wrong, or that the sampler has not, and what to pass instead.
    """
    kind = _kind(scheduler, method)
    defaults = {**_SOLVER_DEFAULTS, "solver_type": "bh2"} if kind == "unipc" else _SOLVER_DEFAULTS
    config = read_config(scheduler, defaults if kind in _SOLVERS else _DEFAULTS)
    _checked(_check_fields, config)
    _refuse_unless(config, _neutral(kind, config), kind)
    if kind in _SOLVERS and method is None:
        _refuse_unless(config, _SOLVERS[kind], kind)
        if kind == "dpmpp_2m":
            _check_unclipped(config)
    clips = kind not in _SOLVERS and config["clip_sample"]
    steps = _STEPS.get(kind)
    options: Json = {
        "method": kind,
        "num_inference_steps": None if steps is None else min(steps, config["num_train_timesteps"]),
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


def noise_schedule(scheduler: Fields) -> NoiseSchedule:
    """The schedule of a scheduler's configuration.

    Raises:
        CheckpointError: naming a field that is wrong.
    """
    config = read_config(scheduler, _DEFAULTS)
    _checked(_check_betas, config)
    name, steps = config["beta_schedule"], config["num_train_timesteps"]
    ends = (config["beta_start"], config["beta_end"])
    if config["trained_betas"] is None and name in ("linear", "scaled_linear"):
        schedule: NoiseSchedule = getattr(NoiseSchedule, name)(steps, *ends)
    elif config["trained_betas"] is None and name == "squaredcos_cap_v2":
        schedule = NoiseSchedule.cosine(steps)
    else:
        schedule = _checked(_schedule_of_betas, config)
    return schedule.rescaled_zero_terminal_snr() if config["rescale_betas_zero_snr"] else schedule


def _schedule_of_betas(config: SchedulerConfig) -> NoiseSchedule:
    return NoiseSchedule.from_betas(float32_betas(config, _BETAS).numpy().astype(np.float64))


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
    accepted = f"{' or '.join(CLASSES.values())} accepted"
    given = f"scheduler: _class_name={shortened(repr(name), 50)} given"
    if scheduler.get("trained_betas") is None and not _has_betas(scheduler):
        raise CheckpointError(f"{given}, which has no betas, as a DDPM has; {accepted}")
    if method is None:
        raise CheckpointError(
            f'{given}, {accepted}; method="ddim", or another, samples by its betas, and so does '
            'config={"scheduler": {"_class_name": "DDIMScheduler"}}'
        )
    for field, neutral in _OTHER_PROCESS.items():
        if field in scheduler and scheduler[field] not in neutral:
            value = shortened(repr(scheduler[field]))
            raise CheckpointError(f"{given} with {field}={value}, another process than a DDPM's; {accepted}")
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


def _refuse_unless(config: SchedulerConfig, accepted: dict[str, tuple[object, ...]], kind: str) -> None:
    """CheckpointError for the first field with another value, and what to pass."""
    solver = _SOLVERS.get(kind, {})
    for name, values in accepted.items():
        value = cast("Json", config).get(name, values[0])
        if value in values:
            continue
        ways = [f'config={{"scheduler": {{"{name}": {values[0]!r}}}}} leaves it out']
        if name in solver:
            ways.append(f'so does method="{kind}"')
        if kind != "unipc" and (name not in solver or value == _REPEATED.get(name)):
            ways.insert(0, "fastddpm.optimize(pipeline) repeats it")
        given = f"scheduler: {name}={shortened(repr(value))} is no option of Sampler"
        raise CheckpointError(f"{given}; {', '.join(ways)}")


def _check_unclipped(config: SchedulerConfig) -> None:
    """CheckpointError where `lambda_min_clipped` leaves out timesteps: the spacings here have them all."""
    least = config["lambda_min_clipped"]
    if least is None or least == -float("inf"):
        return
    abar = noise_schedule(cast("Fields", config)).alphas_cumprod
    abar = np.where(abar == 0, SMALLEST_ALPHA_CUMPROD, abar)
    smallest = float((np.log(abar / (1 - abar)) / 2).min())
    if smallest < least:
        raise CheckpointError(
            f"scheduler: lambda_min_clipped={least!r} leaves out timesteps, down to {smallest:.2f}; "
            'fastddpm.optimize(pipeline) repeats it, method="dpmpp_2m" visits them'
        )


def _check_betas(config: SchedulerConfig) -> None:
    """BadArgument for a field of the betas that is wrong, before any is made."""
    count = whole("num_train_timesteps", config["num_train_timesteps"], least=1, most=MAX_STEPS)
    _check_bool("rescale_betas_zero_snr", config["rescale_betas_zero_snr"])
    trained: object = config["trained_betas"]
    if trained is not None:
        trained = trained.tolist() if hasattr(trained, "tolist") else trained
        if not isinstance(trained, (list, tuple)) or not all(is_number(beta) for beta in trained):
            raise BadArgument("trained_betas", repr(trained), "None or a list of numbers")
        if len(trained) != count:
            raise BadArgument("trained_betas", f"{len(trained)} numbers", f"{count} of them")
        return
    check_choice("beta_schedule", config["beta_schedule"], _BETAS)
    for name in ("beta_start", "beta_end"):
        check_number(name, cast("Json", config)[name], above=0, high=1)


def _check_fields(config: SchedulerConfig) -> None:
    """BadArgument for a field that is not of its type, whichever class it is of."""
    fields = cast("Json", config)
    check_choice("prediction_type", fields["prediction_type"], PREDICTION_TYPES)
    check_choice("timestep_spacing", fields["timestep_spacing"], SPACINGS)
    whole("num_train_timesteps", fields["num_train_timesteps"], least=1, most=MAX_STEPS)
    whole("steps_offset", fields["steps_offset"], least=0, most=MAX_STEPS)
    for name in ("clip_sample", "thresholding", "set_alpha_to_one"):
        _check_bool(name, fields[name])
    if fields["clip_sample"]:
        check_number("clip_sample_range", fields["clip_sample_range"], above=0)
    least = fields.get("lambda_min_clipped")
    if least is not None and least != -float("inf"):
        check_number("lambda_min_clipped", least, otherwise="None or -inf")


def _check_bool(name: str, value: object) -> None:
    if not isinstance(value, bool):
        raise BadArgument(name, repr(value), "true or false")


def _checked(check: Callable[[SchedulerConfig], T], config: SchedulerConfig) -> T:
    """What a check gives, its error told as one of the scheduler's, on one line."""
    try:
        return check(config)
    except BadArgument as error:
        given = f"{error.argument}: {shortened(error.given)} given, {error.accepted} accepted"
        raise CheckpointError(f"scheduler: {given}") from error
