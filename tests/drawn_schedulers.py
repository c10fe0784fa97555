"""Random configurations of diffusers' schedulers, and of their timesteps: for `scripts/fuzz_*.py`."""

from __future__ import annotations

import copy
import inspect
from random import Random
from typing import Any

import diffusers
import numpy as np

KINDS = (
    "DDPM",
    "DDIM",
    "PNDM",
    "LCM",
    "TCD",
    "DPMSolverMultistep",
    "DPMSolverSinglestep",
    "DEISMultistep",
    "UniPCMultistep",
    "SASolver",
    "EulerDiscrete",
    "EulerAncestralDiscrete",
    "HeunDiscrete",
    "LMSDiscrete",
    "KDPM2Discrete",
    "KDPM2AncestralDiscrete",
    "EDMEuler",
    "EDMDPMSolverMultistep",
)
_CONSISTENCY = ("LCM", "TCD")
# Of each parameter the values, and how often it is given at all.
_OPTIONS: dict[str, tuple[float, list[Any]]] = {
    "prediction_type": (0.6, ["epsilon", "sample", "v_prediction"]),
    "timestep_spacing": (0.7, ["linspace", "leading", "trailing"]),
    "steps_offset": (0.4, [0, 1, 1, 2, 5]),
    "clip_sample": (0.5, [True, False]),
    "clip_sample_range": (0.3, [1.0, 2.0, 0.5, 3]),
    "set_alpha_to_one": (0.5, [True, False]),
    "skip_prk_steps": (0.5, [True, False]),
    "thresholding": (0.2, [True]),
    "dynamic_thresholding_ratio": (0.3, [0.9, 0.995, 0.5, 0.0, 1.0]),
    "sample_max_value": (0.3, [1.0, 2.0, 1.5, 0.5]),
    "rescale_betas_zero_snr": (0.15, [True]),
    "original_inference_steps": (0.3, [50, 20, 100, 10]),
    "timestep_scaling": (0.3, [10.0, 1.0, 5]),
    "solver_order": (0.7, [1, 2, 3]),
    "lower_order_final": (0.5, [True, False]),
    "euler_at_final": (0.3, [True]),
    "final_sigmas_type": (0.5, ["zero", "sigma_min"]),
    "lambda_min_clipped": (0.1, [-5.1, -3.0]),
    "predict_x0": (0.4, [True, False]),
    "disable_corrector": (0.2, [[0], [0, 1], [2]]),
    "predictor_order": (0.5, [1, 2, 3, 4]),
    "corrector_order": (0.5, [1, 2, 3, 4, 0]),
    "interpolation_type": (0.3, ["linear", "log_linear"]),
    "timestep_type": (0.2, ["discrete", "continuous"]),
    "sigma_min": (0.1, [0.01, 0.05]),
    "use_flow_sigmas": (0.03, [True]),
    "flow_shift": (0.05, [1.0, 3.0]),
    "sigma_data": (0.3, [1.0, 0.3]),
    "sigma_schedule": (0.4, ["karras", "exponential"]),
    "rho": (0.2, [3.0, 7.0]),
}
_ALGORITHMS = {
    "DPMSolverMultistep": ["dpmsolver", "dpmsolver++", "sde-dpmsolver", "sde-dpmsolver++"],
    "DPMSolverSinglestep": ["dpmsolver", "dpmsolver++", "sde-dpmsolver++"],
    "EDMDPMSolverMultistep": ["dpmsolver++", "sde-dpmsolver++"],
    "SASolver": ["data_prediction", "noise_prediction"],
}
_SOLVER_TYPES = {"UniPCMultistep": ["bh1", "bh2"], "DEISMultistep": ["logrho"]}
_SPACED = ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas", "use_lu_lambdas")


def made(kind: str, config: dict[str, Any]) -> Any:
    """The scheduler; whatever its class raises."""
    return getattr(diffusers, f"{kind}Scheduler")(**copy.deepcopy(config))


def parameters(kind: str, method: str) -> set[str]:
    """Names of a method's parameters."""
    return set(inspect.signature(getattr(getattr(diffusers, f"{kind}Scheduler"), method)).parameters)


def configuration(random: Random, kind: str) -> dict[str, Any]:
    """Arguments of a scheduler's making."""
    names, config = parameters(kind, "__init__"), dict[str, Any]()
    put: dict[str, tuple[float, list[Any]]] = {
        "num_train_timesteps": (0.6, [1000, 1000, 100, 50, 20, 10, 500, 1100, 4000, 7]),
        "beta_schedule": (0.6, ["linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid"]),
        "variance_type": (0.4, [None, "learned", "learned_range"]),
        **_OPTIONS,
        "algorithm_type": (0.7, _ALGORITHMS.get(kind, ["deis"])),
        "solver_type": (0.5, _SOLVER_TYPES.get(kind, ["midpoint", "heun"])),
        "sigma_max": (0.1, [True] if kind == "UniPCMultistep" else [10.0, 50.0, 900.0]),
    }
    if kind == "DDPM":
        fixed = ["fixed_small", "fixed_small_log", "fixed_large"]
        put["variance_type"] = (0.4, [*fixed, "learned", "learned_range"])
        put["beta_schedule"] = (0.6, [*put["beta_schedule"][1], "laplace"])
    for name, (often, values) in put.items():
        if name in names and random.random() < often:
            config[name] = random.choice(values)
    total = config.get("num_train_timesteps", 1000)
    if "beta_start" in names:
        ends: list[tuple[float, float] | None] = [
            None,
            (1e-4, 0.02),
            (0.00085, 0.012),
            (1e-5, 2e-4),
            (5e-4, 0.03),
        ]
        chosen = random.choice(ends + ([(0.01, 0.5), (0.001, 0.2)] if total <= 100 else []))
        if chosen:
            config["beta_start"], config["beta_end"] = chosen
        if random.random() < 0.1:
            betas = [
                np.linspace(1e-4, 0.03, total),
                np.linspace(1e-3, 0.1, total),
                np.geomspace(1e-4, 0.1, total),
            ]
            config["trained_betas"] = random.choice(betas).astype(np.float32)
    spaced = random.choice([None] * 4 + list(_SPACED))
    if spaced in names:
        config[spaced] = True
    return config


def steps(random: Random, kind: str, config: dict[str, Any]) -> dict[str, Any]:
    """Arguments of its `set_timesteps`."""
    total = config.get("num_train_timesteps", 1000)
    names = parameters(kind, "set_timesteps")
    few = [1, 2, 3, 4, 5, 7, 10, 10, 13, 20, 25, 50]
    count = random.choice(few + ([total, total - 1, total // 2] if total <= 100 else []))
    given: dict[str, Any] = {"num_inference_steps": count}
    if "timesteps" in names and random.random() < 0.15:
        given = {"timesteps": sorted(random.sample(range(total), min(count, total)), reverse=True)}
    elif "sigmas" in names and random.random() < 0.12:
        sigmas = np.geomspace(random.choice([5.0, 14.0, 0.9, 900.0]), 0.05, count).tolist()
        given = {"sigmas": [*sigmas, 0.0] if kind == "EulerDiscrete" and random.random() < 0.5 else sigmas}
    elif kind in _CONSISTENCY and random.random() < 0.4:
        given |= random.choice([{"strength": 0.5}, {"strength": 0.8}, {"original_inference_steps": 20}])
    return given
