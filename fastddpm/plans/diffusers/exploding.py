"""diffusers' schedulers whose variance explodes, KarrasVe and ScoreSdeVe, as plans.

Their state is image + sigma*noise, not scaled back; their sigmas are read off a copy of the scheduler that
has set them, so that they are the original's to the last bit. Neither has betas.

Source: diffusers 0.42.1, scheduling_karras_ve.py, scheduling_sde_ve.py, and the pipelines of these names.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from fastddpm.checks import BadArgument, whole
from fastddpm.inputs import Fields
from fastddpm.plans.diffusers.chain import with_timesteps
from fastddpm.plans.diffusers.config import Scheduler
from fastddpm.plans.plan import Float64, Plan, build_table

MOST_CHURN = 2**0.5 - 1
"""Of gamma: Karras et al. 2022, algorithm 2."""


def from_karras_ve_scheduler(scheduler: Scheduler, num_inference_steps: int) -> Plan:
    """The steps of a KarrasVePipeline, of a network that returns the slope d = (y - x0)/sigma.

    Two rows a step, Euler's and the correction by the slope at its end, and one in the last, which ends at 0
    (Karras et al. 2022, algorithm 2):

        y' = y + (t - s) d1                                s = sigma_hat, t the next sigma
        y  = y' + (t - s)/2 (d2 - d1) + churn z

    The noise that takes a step to its sigma_hat is added by the row before it; the first step's is not in the
    plan (`first_churn`). Every step draws it, also where it is multiplied by 0. The network is told sigma/2.

    Args:
        scheduler: a KarrasVeScheduler; left as it is.
        num_inference_steps: S, 2 or more; the plan has 2S - 1 rows.

    Raises:
        ValueError: one step, or a sigma of 0, where the original's images are NaN.
    """
    steps = whole("num_inference_steps", num_inference_steps, least=2)
    config = scheduler.config
    sigmas = with_timesteps(scheduler, steps).schedule.cpu().numpy()[::-1]
    if not (np.isfinite(sigmas).all() and (sigmas > 0).all()):
        given = f"{config['sigma_min']!r} and {config['sigma_max']!r}"
        raise BadArgument("sigma_min, sigma_max", given, "finite numbers above 0")
    churn = [_churn(config, sigma, steps) for sigma in sigmas]
    s = np.array([raised for raised, _ in churn])
    t = np.append(sigmas[1:], 0.0).astype(np.float64)
    rows = 2 * steps - 1
    euler, corrects = np.arange(0, rows, 2), np.arange(1, rows, 2)
    sigma, from_m, from_first, from_noise = np.zeros((4, rows))
    sigma[euler], sigma[corrects] = s, t[:-1]
    from_m[euler], from_m[corrects] = t - s, (t - s)[:-1] / 2
    from_first[corrects] = -(t - s)[:-1] / 2
    from_noise[corrects] = [added * float(config["s_noise"]) for _, added in churn[1:]]
    is_euler = np.arange(rows) % 2 == 0
    table = build_table(
        rows,
        x0_from_x=1.0,
        x0_from_m=-sigma,
        x0_divisor=1.0,  # products are rounded before they are added, as there
        from_x=1.0,
        from_m=from_m,
        from_kept_1=from_first,
        kept_from_m=1.0,
        from_noise=from_noise,
    )
    return Plan(
        method="karras_ve",
        timesteps=(np.arange(rows)[::-1] + 1) // 2,
        model_time=(sigma / 2).astype(np.float32),
        table=table,
        prediction_type="epsilon",
        clip=False,
        draws=~is_euler,
        starts=is_euler,
    )


def first_churn(scheduler: Scheduler, num_inference_steps: int) -> float:
    """What takes the start of a KarrasVePipeline to its first sigma_hat, over s_noise times a normal."""
    highest = np.float32(scheduler.config["sigma_max"] ** 2)  # where sigma stands: so it is there
    return _churn(scheduler.config, highest, num_inference_steps)[1]


def _churn(config: Fields, sigma: np.float32, steps: int) -> tuple[float, float]:
    """sigma_hat, in float32 as there, and the deviation of the noise up to it, without s_noise."""
    sigma = np.float32(sigma)
    gamma = np.float32(0)
    if config["s_min"] <= sigma <= config["s_max"]:
        gamma = np.float32(min(config["s_churn"] / steps, MOST_CHURN))
    raised = sigma + gamma * sigma
    between = np.sqrt(np.maximum(raised**2 - sigma**2, np.float32(0)))
    return float(raised), float(between)


def from_score_sde_ve_scheduler(scheduler: Scheduler, num_inference_steps: int) -> Plan:
    """The steps of a ScoreSdeVePipeline: Langevin's and the predictor's (Song et al. 2021, algorithm 4).

        x <- x + eps m + sqrt(2 eps) z      ``correct_steps`` rows: `Plan.langevin`
        x <- x + g^2 m + g z                g^2 = sigma_i^2 - sigma_(i-1)^2

    m is the score itself. The last row draws and adds nothing, since the mean is what the pipeline returns.

    Args:
        scheduler: a ScoreSdeVeScheduler; left as it is.
        num_inference_steps: S; the plan has S (1 + correct_steps) rows.

    Raises:
        ValueError: sigmas that fall below each other, where the original's images are NaN.
    """
    steps = whole("num_inference_steps", num_inference_steps, least=1)
    config = scheduler.config
    passes = whole("correct_steps", config["correct_steps"], least=0)
    ready = with_timesteps(scheduler, steps)
    ready.set_sigmas(steps)
    places, diffusion = _diffusion(ready)
    rows = steps * (passes + 1)
    predicts = np.arange(rows) % (passes + 1) == passes
    from_m, from_noise = np.ones(rows), np.ones(rows)
    from_m[predicts], from_noise[predicts] = diffusion.astype(np.float32) ** 2, diffusion
    from_noise[-1] = 0.0
    sigmas = ready.sigmas.cpu().numpy()
    return Plan(
        method="score_sde_ve",
        timesteps=np.repeat(places, passes + 1),
        model_time=np.repeat(sigmas, passes + 1),
        table=build_table(
            rows,
            x0_from_x=1.0,
            x0_from_m=np.repeat(sigmas.astype(np.float64) ** 2, passes + 1),
            from_x=1.0,
            from_m=from_m,
            from_noise=from_noise,
        ),
        prediction_type="epsilon",
        clip=False,
        draws=np.ones(rows, dtype=bool),
        starts=np.arange(rows) % (passes + 1) == 0,
        langevin=(float(config["snr"]), passes) if passes else None,
    )


def _diffusion(scheduler: Any) -> tuple[Float64, Float64]:
    """Of each timestep, its place among ``discrete_sigmas`` and g, in the order of `step_pred`."""
    times = scheduler.timesteps.cpu()
    places = (times * (len(times) - 1)).long()
    levels = scheduler.discrete_sigmas.cpu()
    below = torch.where(places == 0, torch.zeros_like(times), levels[places - 1])
    diffusion = (levels[places] ** 2 - below**2) ** 0.5
    if not bool(diffusion.isfinite().all()):
        config = scheduler.config
        given = f"{config['sigma_min']!r} and {config['sigma_max']!r}"
        raise BadArgument("sigma_min, sigma_max", given, "rising numbers above 0")
    return places.numpy(), diffusion.double().numpy()
