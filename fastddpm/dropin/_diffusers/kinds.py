"""Which scheduler or pipeline of diffusers an object is, by what it holds and how it is called.

Neither its class's name nor its module is looked at, and diffusers is not imported.
"""

from __future__ import annotations

import functools
import inspect
import types
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from fastddpm.dropin.peer import Peer

SchedulerKind = Literal["DDPMScheduler", "DDIMScheduler", "DPMSolverMultistepScheduler"]
PipelineKind = Literal["DDPMPipeline", "DDIMPipeline"]

_STEP = {"model_output", "timestep", "sample", "return_dict"}
# Parameters of step(), attributes, and keys of the configuration.
_SCHEDULERS: dict[SchedulerKind, tuple[set[str], tuple[str, ...], tuple[str, ...]]] = {
    "DDPMScheduler": (
        _STEP | {"generator"},
        ("alphas_cumprod", "one", "variance_type", "custom_timesteps", "previous_timestep"),
        ("variance_type", "clip_sample", "timestep_spacing", "steps_offset"),
    ),
    "DDIMScheduler": (
        _STEP | {"eta", "use_clipped_model_output", "generator", "variance_noise"},
        ("alphas_cumprod", "final_alpha_cumprod"),
        ("set_alpha_to_one", "clip_sample", "timestep_spacing", "steps_offset"),
    ),
    "DPMSolverMultistepScheduler": (
        _STEP | {"generator", "variance_noise"},
        ("lambda_t", "model_outputs", "lower_order_nums"),
        ("solver_order", "algorithm_type", "euler_at_final", "final_sigmas_type"),
    ),
}
STEPS = (
    "step",
    "set_timesteps",
    "scale_model_input",
    "previous_timestep",
    "_get_variance",
    "_threshold_sample",
    "convert_model_output",
    "dpm_solver_first_order_update",
    "multistep_dpm_solver_second_order_update",
    "multistep_dpm_solver_third_order_update",
)
"""Methods of schedulers that make their steps."""
# Of schedulers that look like one of these and compute something else (CogVideoX, consistency models).
_FOREIGN = {"snr_shift_scale", "original_inference_steps"}

_CALL = {"batch_size", "generator", "num_inference_steps", "output_type", "return_dict"}
_PIPELINES: dict[PipelineKind, set[str]] = {
    "DDPMPipeline": _CALL,
    "DDIMPipeline": _CALL | {"eta", "use_clipped_model_output"},
}


def scheduler_kind(obj: Peer) -> SchedulerKind | None:
    """Which of the schedulers that have a plan an object is, or None. Never raises."""
    try:
        if isinstance(obj, type) or not isinstance(getattr(obj, "config", None), Mapping):
            return None
        step, is_wrapped = _parameters(obj.step)
        is_foreign = bool(_FOREIGN & _parameters(type(obj).__init__)[0])
        for kind, (parameters, attributes, keys) in _SCHEDULERS.items():
            # A step that someone counts or logs may take (*args, **kwargs).
            has_step = step <= parameters if is_wrapped else step == parameters
            if not has_step or is_foreign:
                continue
            if all(hasattr(obj, name) for name in attributes) and all(key in obj.config for key in keys):
                return kind
    except Exception:  # an unknown object's properties may raise anything
        pass
    return None


def pipeline_kind(obj: Peer) -> PipelineKind | None:
    """Which of the pipelines an object is, whatever its scheduler; or None. Never raises."""
    try:
        if isinstance(obj, type) or not callable(obj):
            return None
        if not all(hasattr(obj, name) for name in ("unet", "scheduler", "numpy_to_pil")):
            return None
        call, _ = _parameters(obj.__call__)
        for kind, parameters in _PIPELINES.items():
            if call == parameters and callable(obj.unet) and hasattr(obj.scheduler, "step"):
                return kind
    except Exception:
        pass
    return None


def _parameters(function: Callable[..., object]) -> tuple[frozenset[str], bool]:
    """Names of a function's parameters, without self and the starred ones; and whether there are starred.

    Chains ask before each call, and `inspect` takes a tenth of a millisecond.
    """
    if inspect.ismethod(function):
        return _parameters_of(function.__func__, is_method=True)
    return _parameters_of(function, is_method=False)


@functools.lru_cache(maxsize=64)
def _parameters_of(function: Callable[..., object], *, is_method: bool) -> tuple[frozenset[str], bool]:
    starred = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    called: Callable[..., object] = types.MethodType(function, object()) if is_method else function
    parameters = inspect.signature(called).parameters.values()
    named = frozenset(p.name for p in parameters if p.kind not in starred and p.name != "self")
    return named, any(p.kind in starred for p in parameters)
