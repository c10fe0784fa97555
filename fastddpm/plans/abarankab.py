"""abarankab/DDPM's reverse process as a plan, from the buffers that its GaussianDiffusion stores."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
from torch import Tensor

from fastddpm.checks import BadArgument
from fastddpm.plans.formula import prediction_columns
from fastddpm.plans.method import make_plan
from fastddpm.plans.method_options import MethodName
from fastddpm.plans.plan import Float64, Plan, build_table
from fastddpm.plans.spacing import TimestepSpacing, warn_if_late
from fastddpm.schedule import NoiseSchedule

STORED = ("betas", "alphas_cumprod", "reciprocal_sqrt_alphas", "remove_noise_coeff", "sigma")


def from_abarankab(
    stored: Mapping[str, Tensor],
    *,
    method: MethodName = "ddpm",
    num_inference_steps: int | None = None,
    eta: float = 0.0,
    timestep_spacing: TimestepSpacing = "leading",
) -> Plan:
    """The steps of ``GaussianDiffusion.sample``, or another method or number of steps on its schedule.

    All T steps of "ddpm" repeat ``remove_noise`` with the float32 buffers, then add noise wherever t > 0:

        x <- (x - remove_noise_coeff[t] * eps) * reciprocal_sqrt_alphas[t] + sigma[t] * z

    x0 is never clipped, and sigma^2 is beta. Everything else is `fastddpm.plans.make_plan` on the stored
    betas, with variance_type "fixed_large" in "ddpm", as there.

    Args:
        stored: the buffers named in `STORED`, [T] each.
        method: "ddpm", "ddim" or "dpmpp_2m".
        num_inference_steps: S in 1 .. T; None is T.
        eta: of ddim, in [0, 1]: 0 deterministic, 1 as noisy as ddpm.
        timestep_spacing: of fewer steps: "leading", "linspace" or "trailing".

    Raises:
        ValueError: an argument is not as above, or a beta is 1, where the repository's images are NaN.

    Source: abarankab/DDPM, ddpm/diffusion.py.
    """
    values = {name: _float64(stored[name]) for name in STORED}
    if not np.isfinite(values["reciprocal_sqrt_alphas"]).all():
        raise BadArgument(
            "betas", "1 among them, where the images of abarankab/DDPM are not finite,", "numbers below 1"
        )
    total = len(values["betas"])
    schedule = NoiseSchedule.from_betas(values["betas"])
    plan = make_plan(
        schedule,
        method=method,
        num_inference_steps=num_inference_steps,
        variance_type="fixed_large" if method == "ddpm" else "fixed_small",
        eta=eta,
        timestep_spacing=timestep_spacing,
    )
    if timestep_spacing == "leading":
        warn_if_late(schedule, plan.timesteps)
    if method != "ddpm" or len(plan) != total:
        return plan
    down = {name: column[::-1] for name, column in values.items()}
    # p and q only tell a reader of x0 what it is: the step itself does not go through it (a = 0).
    abar = down["alphas_cumprod"]
    p, q = prediction_columns("epsilon", np.sqrt(abar), np.sqrt(1 - abar), bounded=True)
    reciprocal = down["reciprocal_sqrt_alphas"]
    table = build_table(
        total,
        x0_from_x=p,
        x0_from_m=q,
        from_x=reciprocal,
        from_m=-reciprocal * down["remove_noise_coeff"],
        from_noise=np.where(plan.timesteps > 0, down["sigma"], 0.0),
    )
    return replace(plan, table=table, draws=plan.timesteps > 0)


def _float64(values: Tensor) -> Float64:
    array: Float64 = values.detach().cpu().double().numpy()
    return array
