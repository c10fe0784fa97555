"""Plans of guided-diffusion and improved-diffusion (OpenAI): float64 tables, read as float32, in its order.

Source: openai/guided-diffusion 22e0df8, gaussian_diffusion.py and respace.py, as in improved-diffusion too.
A `Process` holds what an object of theirs holds; its loops become plans here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from fastddpm.checks import BadArgument, check_choice
from fastddpm.plans.plan import Float64, Plan, PredictionType, build_table

MEAN_TYPES: dict[str, PredictionType] = {
    "EPSILON": "epsilon",
    "START_X": "sample",
    "PREVIOUS_X": "sample",
}
VARIANCE_TYPES = ("FIXED_SMALL", "FIXED_LARGE", "LEARNED", "LEARNED_RANGE")
TABLES = (
    "betas",
    "alphas_cumprod",
    "alphas_cumprod_prev",
    "sqrt_recip_alphas_cumprod",
    "sqrt_recipm1_alphas_cumprod",
    "posterior_variance",
    "posterior_log_variance_clipped",
    "posterior_mean_coef1",
    "posterior_mean_coef2",
)
ROUNDING = -1e-5
"""A difference of float32 variances above this is 0; further below 0 there is no variance left for eta."""


@dataclass(frozen=True, eq=False)
class Process:
    """A diffusion of T timesteps, spaced or not.

    Attributes:
        tables: float64 ``[T]`` each, by the names in `TABLES`.
        mean_type: ``EPSILON``, ``START_X`` or ``PREVIOUS_X``: what the network predicts.
        variance_type: ``FIXED_SMALL``, ``FIXED_LARGE``, ``LEARNED`` or ``LEARNED_RANGE``.
        rescale_timesteps: the network is told t*1000/T as a float.
        timestep_map: the timestep of the original process that each t stands for, or None.
        original_steps: timesteps of the original process.

    Raises:
        ValueError: another mean or variance type.
    """

    tables: Mapping[str, Float64]
    mean_type: str
    variance_type: str
    rescale_timesteps: bool
    timestep_map: Sequence[int] | None
    original_steps: int

    def __post_init__(self) -> None:
        check_choice("model_mean_type", self.mean_type, tuple(MEAN_TYPES))
        check_choice("model_var_type", self.variance_type, VARIANCE_TYPES)

    def __len__(self) -> int:
        return len(self.tables["betas"])

    @property
    def learns_variance(self) -> bool:
        """Whether the network returns 2C channels."""
        return self.variance_type.startswith("LEARNED")

    def log_variances(self) -> tuple[Float64, Float64]:
        """(log variance where the network says -1, where it says +1); the two are equal for fixed ones.

        FIXED_SMALL and FIXED_LARGE have posterior_variance[1] at t = 0. A LEARNED network says the log
        variance itself, which is the range from -1 to 1.
        """
        if self.variance_type == "LEARNED":
            return -np.ones(len(self)), np.ones(len(self))
        if self.variance_type == "FIXED_LARGE":
            log_large = np.log(self.fixed_variance())
            return log_large, log_large
        log_small = self.tables["posterior_log_variance_clipped"]
        return log_small, log_small if self.variance_type == "FIXED_SMALL" else np.log(self.tables["betas"])

    def fixed_variance(self) -> Float64:
        """The variance where none is learned, ``[T]``: unlike the noise's, 0 at t = 0 for FIXED_SMALL."""
        small = self.tables["posterior_variance"]
        return np.append(small[1], self.tables["betas"][1:]) if self.variance_type == "FIXED_LARGE" else small

    def gradient_weights(self, *, ancestral: bool) -> Float64 | None:
        """What `cond_fn`'s gradient is scaled by, ``[T]``.

        In ancestral sampling the variance, for the mean, or None where it is learned; in DDIM
        sqrt(1/abar - 1)*sqrt(1 - abar), for x0.
        """
        if ancestral:
            return None if self.learns_variance else self.fixed_variance()
        roots = np.sqrt(1.0 - self.tables["alphas_cumprod"])
        weights: Float64 = self.tables["sqrt_recipm1_alphas_cumprod"] * roots
        return weights

    def model_time(self) -> npt.NDArray[np.int64] | npt.NDArray[np.float32]:
        """What the network and cond_fn are told at t = T-1 .. 0."""
        times = np.arange(len(self)) if self.timestep_map is None else np.array(self.timestep_map)
        descending = torch.from_numpy(times[::-1].astype(np.int64))
        if not self.rescale_timesteps:
            return descending.numpy()
        return (descending.float() * (1000.0 / self.original_steps)).numpy()


def ancestral_plan(process: Process, *, clip_denoised: bool) -> Plan:
    """`p_sample_loop`: noise wherever t > 0, but drawn in every step.

    Args:
        process: the diffusion.
        clip_denoised: bound x0 to [-1, 1].
    """
    low, high = process.log_variances()
    if process.learns_variance:
        sigma = np.ones_like(low)
    else:
        sigma = _float64((0.5 * _float32(low)).exp())
        low = high = np.zeros_like(low)
    # PREVIOUS_X: the output is the mean itself, whatever x0 is clipped to.
    mean = {"from_m": np.ones(len(process))}
    if process.mean_type != "PREVIOUS_X":
        mean = {
            "from_x0": _rounded(process.tables["posterior_mean_coef1"]),
            "from_x": _rounded(process.tables["posterior_mean_coef2"]),
        }
    columns = {
        **_x0_columns(process),
        **mean,
        "from_noise": np.where(np.arange(len(process)) > 0, sigma, 0.0),
        "log_var_min": low,
        "log_var_max": high,
    }
    return _plan(process, "ddpm", columns, clip_denoised)


def ddim_plan(process: Process, *, eta: float, clip_denoised: bool) -> Plan:
    """`ddim_sample_loop`: eps computed anew from the (clipped) x0; noise drawn in every step, at eta = 0 too.

    Args:
        process: the diffusion.
        eta: amount of noise; 0 is deterministic.
        clip_denoised: bound x0 to [-1, 1].

    Raises:
        ValueError: an eta that leaves less than no variance (NaN in the original).
    """
    abar = _float32(process.tables["alphas_cumprod"])
    before = _float32(process.tables["alphas_cumprod_prev"])
    sigma = eta * torch.sqrt((1 - before) / (1 - abar)) * torch.sqrt(1 - abar / before)
    left = 1 - before - sigma**2
    if bool((left < ROUNDING).any()):
        raise BadArgument("eta", f"{eta!r}, which leaves less than no variance for eps,", "a smaller one")
    # eps = (recip*x - x0)/recipm1
    columns = {
        **_x0_columns(process),
        "from_x0": _float64(before.sqrt()),
        "from_x": process.tables["sqrt_recip_alphas_cumprod"],
        "from_m": _float64(left.clamp(min=0).sqrt()),
        "eps_from_x0": -np.ones(len(process)),
        "eps_divisor": process.tables["sqrt_recipm1_alphas_cumprod"],
        "from_noise": np.where(np.arange(len(abar)) > 0, _float64(sigma), 0.0),
    }
    return _plan(process, "ddim", columns, clip_denoised)


def _plan(process: Process, method: str, columns: dict[str, Float64], clip_denoised: bool) -> Plan:
    """The plan of columns by t, ascending."""
    total = len(process)
    rows = {name: values[::-1] for name, values in columns.items()}
    if not clip_denoised:
        rows["x0_divisor"] = np.ones(total)  # x0 is a sum of its own there, and not multiplied out of the row
    return Plan(
        method=method,
        timesteps=np.arange(total - 1, -1, -1, dtype=np.int64),
        model_time=process.model_time(),
        table=build_table(total, **rows, x0_bound=1.0 if clip_denoised else np.inf),
        prediction_type=MEAN_TYPES[process.mean_type],
        clip=clip_denoised,
        learned_range=process.learns_variance,
        draws=np.ones(total, dtype=np.bool_),
    )


def _x0_columns(process: Process) -> dict[str, Float64]:
    """p and q of x0 = p*x + q*m, by t."""
    tables = process.tables
    if process.mean_type == "START_X":
        return {"x0_from_x": np.zeros(len(process)), "x0_from_m": np.ones(len(process))}
    if process.mean_type == "PREVIOUS_X":
        coef1, coef2 = tables["posterior_mean_coef1"], tables["posterior_mean_coef2"]
        return {"x0_from_x": -coef2 / coef1, "x0_from_m": 1.0 / coef1}
    return {
        "x0_from_x": tables["sqrt_recip_alphas_cumprod"],
        "x0_from_m": -tables["sqrt_recipm1_alphas_cumprod"],
    }


def _rounded(values: Float64) -> Float64:
    """float64 numbers as float32 has them, so that what is computed from them is of what the peer reads."""
    return _float64(_float32(values))


def _float32(values: Float64) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(values)).float()


def _float64(values: torch.Tensor) -> Float64:
    return values.double().numpy()
