"""Which scheduler of diffusers an object is, by what it holds and how it is called.

Neither its class's name nor its module is looked at, and diffusers is not imported.
"""

from __future__ import annotations

import functools
import inspect
import types
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fastddpm.dropin.peer import Peer

_STEP = "model_output timestep sample return_dict"
_CHURN = "s_churn s_tmin s_tmax s_noise generator"
# Parameters of step() beyond these four; attributes; keys of the configuration.
_WORDS: dict[str, tuple[str, str, str]] = {
    "DDPMScheduler": (
        "generator",
        "alphas_cumprod one variance_type custom_timesteps previous_timestep",
        "variance_type clip_sample timestep_spacing steps_offset",
    ),
    "DDIMScheduler": (
        "eta use_clipped_model_output generator variance_noise",
        "alphas_cumprod final_alpha_cumprod",
        "set_alpha_to_one clip_sample timestep_spacing steps_offset",
    ),
    "DDIMInverseScheduler": (
        "",
        "alphas_cumprod initial_alpha_cumprod",
        "set_alpha_to_one clip_sample timestep_spacing steps_offset",
    ),
    "PNDMScheduler": ("", "alphas_cumprod final_alpha_cumprod ets step_plms", "skip_prk_steps steps_offset"),
    "LCMScheduler": (
        "generator",
        "alphas_cumprod final_alpha_cumprod get_scalings_for_boundary_condition_discrete",
        "original_inference_steps timestep_scaling clip_sample",
    ),
    "TCDScheduler": (
        "eta generator",
        "alphas_cumprod final_alpha_cumprod",
        "original_inference_steps timestep_scaling",
    ),
    "DPMSolverMultistepScheduler": (
        "generator variance_noise",
        "lambda_t model_outputs lower_order_nums set_begin_index",
        "solver_order algorithm_type euler_at_final final_sigmas_type",
    ),
    # Behind the one above, whose configuration it may have been made from.
    "DPMSolverMultistepInverseScheduler": (
        "generator variance_noise",
        "lambda_t model_outputs lower_order_nums",
        "solver_order algorithm_type euler_at_final lambda_min_clipped",
    ),
    "DPMSolverSinglestepScheduler": (
        "generator",
        "lambda_t model_outputs order_list get_order_list",
        "solver_order algorithm_type lower_order_final final_sigmas_type",
    ),
    "DEISMultistepScheduler": (
        "",
        "lambda_t model_outputs lower_order_nums multistep_deis_second_order_update",
        "solver_order algorithm_type lower_order_final",
    ),
    "UniPCMultistepScheduler": (
        "",
        "lambda_t model_outputs predict_x0 disable_corrector solver_p multistep_uni_c_bh_update",
        "solver_order solver_type lower_order_final final_sigmas_type",
    ),
    "SASolverScheduler": (
        "generator",
        "lambda_t model_outputs tau_func stochastic_adams_bashforth_update",
        "predictor_order corrector_order algorithm_type lower_order_final",
    ),
    "EulerDiscreteScheduler": (
        _CHURN,
        "sigmas alphas_cumprod is_scale_input_called init_noise_sigma",
        "interpolation_type timestep_type timestep_spacing final_sigmas_type",
    ),
    "EulerAncestralDiscreteScheduler": (
        "generator",
        "sigmas alphas_cumprod is_scale_input_called init_noise_sigma",
        "timestep_spacing steps_offset rescale_betas_zero_snr",
    ),
    "HeunDiscreteScheduler": (
        "",
        "sigmas alphas_cumprod prev_derivative state_in_first_order init_noise_sigma",
        "clip_sample timestep_spacing steps_offset",
    ),
    "LMSDiscreteScheduler": (
        "order",
        "sigmas alphas_cumprod derivatives get_lms_coefficient init_noise_sigma",
        "timestep_spacing steps_offset",
    ),
    # Before the other, which has no sigmas_up: a step that someone counts tells the two apart no more.
    "KDPM2AncestralDiscreteScheduler": (
        "generator",
        "sigmas alphas_cumprod sigmas_interpol sigmas_up sigmas_down state_in_first_order",
        "timestep_spacing steps_offset",
    ),
    "KDPM2DiscreteScheduler": (
        "",
        "sigmas alphas_cumprod sigmas_interpol state_in_first_order init_noise_sigma",
        "timestep_spacing steps_offset",
    ),
    "EDMEulerScheduler": (
        f"{_CHURN} pred_original_sample",
        "sigmas is_scale_input_called init_noise_sigma precondition_inputs precondition_outputs",
        "sigma_min sigma_max sigma_data sigma_schedule rho final_sigmas_type",
    ),
    "EDMDPMSolverMultistepScheduler": (
        "generator",
        "sigmas model_outputs lower_order_nums init_noise_sigma precondition_inputs precondition_outputs",
        "sigma_data sigma_schedule rho solver_order algorithm_type euler_at_final final_sigmas_type",
    ),
}
# Of schedulers that look like one of these and compute something else: parameters of their making.
_FOREIGN = {
    "snr_shift_scale": "",  # CogVideoX
    "original_inference_steps": "LCMScheduler TCDScheduler",
    "sigma_data": "EDMEulerScheduler EDMDPMSolverMultistepScheduler",  # or consistency models
}
# Of those whose variance explodes, which are no step alone: parameters of their methods; attributes; keys.
_EXPLODING: dict[str, tuple[dict[str, str], str, str]] = {
    "ScoreSdeVeScheduler": (
        {
            "step_pred": "model_output timestep sample generator return_dict",
            "step_correct": "model_output sample generator return_dict",
        },
        "discrete_sigmas timesteps set_sigmas get_adjacent_sigma",
        "snr sigma_min sigma_max sampling_eps correct_steps",
    ),
    "KarrasVeScheduler": (
        {
            "step": "model_output sigma_hat sigma_prev sample_hat return_dict",
            "step_correct": "model_output sigma_hat sigma_prev sample_hat sample_prev derivative return_dict",
            "add_noise_to_input": "sample sigma generator",
        },
        "schedule timesteps num_inference_steps",
        "sigma_min sigma_max s_noise s_churn s_min s_max",
    ),
}
INVERSE = "DDIMInverseScheduler"
KINDS = tuple(kind for kind in _WORDS if "Inverse" not in kind)
"""Those that draw."""
# Of each kind: the parameters of step(), its attributes, its keys.
_KINDS = {
    kind: (frozenset((*_STEP.split(), *extra.split())), attributes.split(), keys.split())
    for kind, (extra, attributes, keys) in _WORDS.items()
}
STEPS = (
    "step",
    "set_timesteps",
    "scale_model_input",
    "previous_timestep",
    "_get_variance",
    "_threshold_sample",
    "convert_model_output",
    "_get_prev_sample",
    "step_prk",
    "step_plms",
    "dpm_solver_first_order_update",
    "multistep_dpm_solver_second_order_update",
    "multistep_dpm_solver_third_order_update",
    "singlestep_dpm_solver_second_order_update",
    "singlestep_dpm_solver_third_order_update",
    "deis_first_order_update",
    "multistep_deis_second_order_update",
    "multistep_deis_third_order_update",
    "multistep_uni_p_bh_update",
    "multistep_uni_c_bh_update",
    "get_lms_coefficient",
    "stochastic_adams_bashforth_update",
    "stochastic_adams_moulton_update",
    "get_coefficients_fn",
    "get_scalings_for_boundary_condition_discrete",
    "precondition_inputs",
    "precondition_noise",
    "precondition_outputs",
    "step_pred",
    "step_correct",
    "get_adjacent_sigma",
    "set_sigmas",
    "add_noise_to_input",
)
"""Methods of schedulers that make their steps."""


def scheduler_kind(obj: Peer) -> str | None:
    """Which of the schedulers that have a plan an object is, or None. Never raises."""
    try:
        if isinstance(obj, type) or not isinstance(getattr(obj, "config", None), Mapping):
            return None
        step, is_wrapped = parameters_of(obj.step)
        made_with = parameters_of(type(obj).__init__)[0]
        for kind, (parameters, attributes, keys) in _KINDS.items():
            # A step that someone counts or logs may take (*args, **kwargs).
            has_step = step <= parameters if is_wrapped else step == parameters
            if not has_step:
                continue
            if any(name in made_with and kind not in of for name, of in _FOREIGN.items()):
                continue
            if all(hasattr(obj, name) for name in attributes) and all(key in obj.config for key in keys):
                return kind
    except Exception:  # an unknown object's properties may raise anything
        pass
    return None


def exploding_kind(obj: Peer) -> str | None:
    """Which of ScoreSdeVe and KarrasVe an object is, which no pipeline but their own takes; or None."""
    try:
        if isinstance(obj, type) or not isinstance(getattr(obj, "config", None), Mapping):
            return None
        for kind, (methods, attributes, keys) in _EXPLODING.items():
            if not all(hasattr(obj, name) for name in (*methods, *attributes.split())):
                continue
            takes = {name: parameters_of(getattr(obj, name)) for name in methods}
            has_steps = all(_fits(*takes[name], frozenset(told.split())) for name, told in methods.items())
            if has_steps and all(key in obj.config for key in keys.split()):
                return kind
    except Exception:  # likewise
        pass
    return None


def _fits(found: frozenset[str], is_wrapped: bool, parameters: frozenset[str]) -> bool:
    """Whether a function has these parameters; a wrapped one may take (*args, **kwargs)."""
    return found <= parameters if is_wrapped else found == parameters


def parameters_of(function: Callable[..., object]) -> tuple[frozenset[str], bool]:
    """Names of a function's parameters, without self and the starred ones; and whether there are starred.

    Chains ask before each call, and `inspect` takes a tenth of a millisecond.
    """
    if inspect.ismethod(function):
        return _parameters_of(function.__func__, is_method=True)
    return _parameters_of(function, is_method=False)


@functools.lru_cache(maxsize=256)
def _parameters_of(function: Callable[..., object], *, is_method: bool) -> tuple[frozenset[str], bool]:
    starred = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    called: Callable[..., object] = types.MethodType(function, object()) if is_method else function
    parameters = inspect.signature(called).parameters.values()
    named = frozenset(p.name for p in parameters if p.kind not in starred and p.name != "self")
    return named, any(p.kind in starred for p in parameters)
