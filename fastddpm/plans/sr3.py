"""The reverse process of Janspiry's SR3 repository as a plan, from its GaussianDiffusion's buffers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fastddpm.checks import BadArgument
from fastddpm.plans.method import make_plan
from fastddpm.plans.method_options import MethodName
from fastddpm.plans.plan import Plan, build_table
from fastddpm.plans.spacing import TimestepSpacing, warn_if_late
from fastddpm.schedule import NoiseSchedule

STORED = (
    "betas",
    "sqrt_recip_alphas_cumprod",
    "sqrt_recipm1_alphas_cumprod",
    "posterior_mean_coef1",
    "posterior_mean_coef2",
    "posterior_log_variance_clipped",
)
CLIP = 1.0


def from_sr3(
    stored: Mapping[str, Tensor],
    levels: Tensor | npt.NDArray[np.float64] | None = None,
    *,
    method: MethodName = "ddpm",
    num_inference_steps: int | None = None,
    eta: float = 0.0,
    timestep_spacing: TimestepSpacing = "leading",
) -> Plan:
    """The steps of ``p_sample_loop``, or another method or number of steps on the same schedule.

    All T steps of "ddpm" repeat ``p_sample`` with the float32 buffers:

        x0 = clip(sqrt_recip_alphas_cumprod[t] * x - sqrt_recipm1_alphas_cumprod[t] * eps, -1, 1)
        x <- posterior_mean_coef1[t] * x0 + posterior_mean_coef2[t] * x
             + exp(posterior_log_variance_clipped[t] / 2) * z,  without noise at t = 0

    The `sr3` variant draws z where t > 0. The `ddpm` variant draws it at t = 0 too, and multiplies it by 0.
    Everything else is `fastddpm.plans.make_plan` on the stored betas, clipped to +-1.

    Args:
        stored: the buffers named in `STORED`, [T] each.
        levels: ``sqrt_alphas_cumprod_prev``, [T + 1], of the `sr3` variant, whose network is told
            ``levels[t + 1]`` = sqrt(abar_t) as float32, whatever the number of steps; None for the `ddpm`
            variant, whose network is told t.
        method: "ddpm", "ddim" or "dpmpp_2m".
        num_inference_steps: S in 1 .. T; None is T.
        eta: of ddim, in [0, 1]: 0 deterministic, 1 as noisy as ddpm.
        timestep_spacing: of fewer steps: "leading", "linspace" or "trailing".

    Raises:
        ValueError: an argument is not as above, or all T steps of "ddpm" on a schedule that ends at zero SNR
            ("jsd"), where the repository's own images are NaN.

    Source: model/sr3_modules/diffusion.py and model/ddpm_modules/diffusion.py.
    """
    columns = {name: stored[name].detach().cpu() for name in STORED}
    total = len(columns["betas"])
    schedule = NoiseSchedule.from_betas(columns["betas"].double().numpy())
    plan = make_plan(
        schedule,
        method=method,
        num_inference_steps=num_inference_steps,
        clip_sample_range=CLIP,
        eta=eta,
        timestep_spacing=timestep_spacing,
    )
    if timestep_spacing == "leading":
        warn_if_late(schedule, plan.timesteps)
    if levels is not None:
        plan = replace(plan, model_time=np.asarray(levels)[plan.timesteps + 1].astype(np.float32))
    if method != "ddpm" or len(plan) != total:
        return plan
    if not torch.isfinite(columns["sqrt_recip_alphas_cumprod"]).all():
        raise BadArgument(
            "num_inference_steps",
            "all steps of a schedule that ends at alphas_cumprod = 0 (jsd), where SR3's own images are NaN,",
            f"up to {total - 1} steps, or method ddim or dpmpp_2m,",
        )
    visited = torch.from_numpy(plan.timesteps.copy())
    down = {name: column[visited] for name, column in columns.items()}
    sigma = (0.5 * down["posterior_log_variance_clipped"]).exp()
    table = build_table(
        total,
        x0_from_x=down["sqrt_recip_alphas_cumprod"],
        x0_from_m=-down["sqrt_recipm1_alphas_cumprod"],
        x0_bound=CLIP,
        from_x0=down["posterior_mean_coef1"],
        from_x=down["posterior_mean_coef2"],
        from_noise=torch.where(visited > 0, sigma, 0.0),
    )
    draws = np.ones(total, np.bool_) if levels is None else plan.timesteps > 0
    return replace(plan, table=table, draws=draws)
