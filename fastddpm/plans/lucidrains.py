"""Plans of denoising-diffusion-pytorch (lucidrains): its float32 buffers, in its order.

Source: denoising-diffusion-pytorch 2.3.4, denoising_diffusion_pytorch.py, classifier_free_guidance.py,
learned_gaussian_diffusion.py and denoising_diffusion_pytorch_1d.py; and of jannerm/diffuser, whose models/
diffusion.py grew out of that. Tables go in as the mapping that a diffusion object's buffers are.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fastddpm.checks import BadArgument, check_choice, whole
from fastddpm.plans.plan import Float64, Plan, PredictionType, build_table
from fastddpm.plans.spacing import Int64
from fastddpm_kernels.table import Column

OBJECTIVES: dict[str, PredictionType] = {
    "pred_noise": "epsilon",
    "pred_x0": "sample",
    "pred_v": "v_prediction",
}
BUFFERS = (
    "betas",
    "alphas_cumprod",
    "sqrt_alphas_cumprod",
    "sqrt_one_minus_alphas_cumprod",
    "sqrt_recip_alphas_cumprod",
    "sqrt_recipm1_alphas_cumprod",
    "posterior_log_variance_clipped",
    "posterior_mean_coef1",
    "posterior_mean_coef2",
)
ROUNDING = -1e-5
"""A difference of float32 variances above this is 0; further below 0 there is no variance left for eta."""


@dataclass(frozen=True)
class Habits:
    """What a diffusion class does beyond the formulas.

    Attributes:
        objective: ``pred_noise``, ``pred_x0`` or ``pred_v``.
        rederives: DDIM's eps comes from the clipped x0 also under pred_noise (the main class; those for
            classifier-free guidance and sequences, and versions before 1.3, keep the network's).
        learned: the network returns 2C channels, the second half a variance (LearnedGaussianDiffusion); eps
            is then never taken from the clipped x0, and ancestral sampling reads the output as eps.
        draws_last: ancestral sampling draws noise in the last step too, where it is multiplied by 0.
    """

    objective: str
    rederives: bool
    learned: bool = False
    draws_last: bool = False


def ancestral_plan(buffers: Mapping[str, Tensor], habits: Habits, *, clip: bool = True) -> Plan:
    """`p_sample_loop`: all T timesteps, x0 clipped to [-1, 1], noise wherever t > 0.

        x_next = posterior_mean_coef1*x0 + posterior_mean_coef2*x + exp(posterior_log_variance_clipped/2)*z

    With a learned variance the log variance lies between posterior_log_variance_clipped and log(betas).

    Args:
        buffers: float32 ``[T]`` each, by the names in `BUFFERS`.
        habits: of the class.
        clip: whether x0 is clipped.

    Raises:
        ValueError: an objective that is not one of the three.
    """
    tables = _on_cpu(buffers)
    log_variance = tables["posterior_log_variance_clipped"]
    visited = np.arange(len(log_variance) - 1, -1, -1, dtype=np.int64)
    order = torch.from_numpy(visited)
    objective = "pred_noise" if habits.learned else habits.objective
    sigma = torch.ones_like(log_variance) if habits.learned else (0.5 * log_variance).exp()
    columns = _x0_columns(tables, order, objective)
    if habits.learned:
        columns["log_var_min"] = _float64(log_variance[order])
        columns["log_var_max"] = _float64(torch.log(tables["betas"])[order])
    table = build_table(
        len(visited),
        **columns,
        x0_bound=1.0 if clip else np.inf,
        from_x0=_float64(tables["posterior_mean_coef1"][order]),
        from_x=_float64(tables["posterior_mean_coef2"][order]),
        from_noise=np.where(visited > 0, _float64(sigma[order]), 0.0),
    )
    return Plan(
        method="ddpm",
        timesteps=visited,
        model_time=visited,
        table=table,
        prediction_type=OBJECTIVES[objective],
        clip=clip,
        learned_range=habits.learned,
        draws=visited > (-1 if habits.draws_last else 0),
    )


def ddim_plan(
    buffers: Mapping[str, Tensor], habits: Habits, *, steps: int, eta: float, clip: bool = True
) -> Plan:
    """`ddim_sample`: S of T timesteps, x0 clipped to [-1, 1]; the last step returns x0.

        sigma  = eta*sqrt((1 - abar/abar_next)*(1 - abar_next)/(1 - abar))
        x_next = sqrt(abar_next)*x0 + sqrt(1 - abar_next - sigma^2)*eps + sigma*z

    Every step but the last draws noise, at eta = 0 too.

    Args:
        buffers: float32 ``[T]`` each, by the names in `BUFFERS`.
        habits: of the class.
        steps: S, in 1 .. T.
        eta: amount of noise; 0 is deterministic, 1 has DDPM's posterior variance.
        clip: whether x0 is clipped.

    Raises:
        ValueError: bad steps or objective, or an eta that leaves less than no variance (NaN in the original).
    """
    tables = _on_cpu(buffers)
    visited = ddim_timesteps(len(tables["betas"]), steps)
    order = torch.from_numpy(visited)
    objective = habits.objective
    if habits.learned and objective == "pred_v":
        raise BadArgument("objective", "'pred_v' for DDIM with a learned variance", "pred_noise or pred_x0")
    columns = _x0_columns(tables, order, objective)

    alpha = tables["alphas_cumprod"][order[:-1]]
    alpha_next = tables["alphas_cumprod"][order[1:]]
    sigma = eta * ((1 - alpha / alpha_next) * (1 - alpha_next) / (1 - alpha)).sqrt()
    left = 1 - alpha_next - sigma**2
    if bool((left < ROUNDING).any()):
        raise BadArgument(
            "ddim_sampling_eta", f"{eta!r}, which leaves less than no variance for eps,", "a smaller one"
        )
    # In the last step there is x0 alone.
    direction = np.append(_float64(left.clamp(min=0).sqrt()), 0.0)
    from_x0 = np.append(_float64(alpha_next.sqrt()), 1.0)
    noise = np.append(_float64(sigma), 0.0)

    # eps = (recip*x - x0)/recipm1, of the clipped x0, of the network's own, or the network's output.
    if objective != "pred_noise" or (habits.rederives and not habits.learned):
        columns["from_x"] = _float64(tables["sqrt_recip_alphas_cumprod"][order])
        columns["eps_from_m" if habits.learned else "eps_from_x0"] = np.full(len(order), -1.0)
        columns["eps_divisor"] = _float64(tables["sqrt_recipm1_alphas_cumprod"][order])
    return Plan(
        method="ddim",
        timesteps=visited,
        model_time=visited,
        table=build_table(
            len(visited),
            **columns,
            x0_bound=1.0 if clip else np.inf,
            from_x0=from_x0,
            from_m=direction,
            from_noise=noise,
        ),
        prediction_type=OBJECTIVES[objective],
        clip=clip,
        learned_range=habits.learned,
        draws=np.arange(len(visited)) < len(visited) - 1,
    )


CFG_PLUS_PLUS_COLUMNS = ("p", "q", "from_x0", "direction", "recip", "recipm1")


def cfg_plus_plus_rows(buffers: Mapping[str, Tensor], plan: Plan) -> npt.NDArray[np.float32]:
    """What a step of `ddim_plan` is made of where its eps comes from another prediction than its x0.

        x_next = from_x0*x0 + direction*eps + sigma*z,    eps = (recip*x - x0_of_eps)/recipm1

    Args:
        buffers: as of `ddim_plan`.
        plan: a plan of `ddim_plan` on them.

    Returns:
        float32 ``[S, 6]``, columns as in `CFG_PLUS_PLUS_COLUMNS`.
    """
    tables = _on_cpu(buffers)
    order = torch.from_numpy(plan.timesteps.copy())
    alpha_next = tables["alphas_cumprod"][order[1:]]
    sigma = torch.from_numpy(plan.table[:-1, Column.FROM_NOISE].copy())
    direction = (1 - alpha_next - sigma**2).clamp(min=0).sqrt()
    columns = [
        torch.from_numpy(plan.table[:, Column.X0_FROM_X].copy()),
        torch.from_numpy(plan.table[:, Column.X0_FROM_M].copy()),
        torch.cat([alpha_next.sqrt(), torch.ones(1)]),
        torch.cat([direction, torch.zeros(1)]),
        tables["sqrt_recip_alphas_cumprod"][order],
        tables["sqrt_recipm1_alphas_cumprod"][order],
    ]
    rows: npt.NDArray[np.float32] = torch.stack(columns, dim=1).numpy()
    return rows


def ddim_timesteps(total: int, steps: int) -> Int64:
    """The S timesteps visited: linspace(-1, T-1, S+1) in float32, truncated, descending, without the -1."""
    whole("sampling_timesteps", steps, least=1, most=total)
    times = torch.linspace(-1, total - 1, steps=steps + 1).int()
    return np.array(times.tolist()[:0:-1], dtype=np.int64)


def _x0_columns(tables: Mapping[str, Tensor], order: Tensor, objective: str) -> dict[str, Float64]:
    """p and q of x0 = p*x + q*m."""
    check_choice("objective", objective, tuple(OBJECTIVES))
    if objective == "pred_x0":
        return {"x0_from_x": np.zeros(len(order)), "x0_from_m": np.ones(len(order))}
    names = ("sqrt_alphas_cumprod", "sqrt_one_minus_alphas_cumprod")
    if objective == "pred_noise":
        names = ("sqrt_recip_alphas_cumprod", "sqrt_recipm1_alphas_cumprod")
    p, q = (_float64(tables[name][order]) for name in names)
    return {"x0_from_x": p, "x0_from_m": -q}


def _on_cpu(buffers: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: buffers[name].detach().cpu() for name in BUFFERS}


def _float64(values: Tensor) -> Float64:
    return values.double().numpy()
