"""DDIM backwards: from an image to the noise that DDIM draws it from."""

from __future__ import annotations

import numpy as np

from fastddpm.checks import BadArgument
from fastddpm.plans.formula import epsilon_columns, prediction_columns
from fastddpm.plans.plan import Plan, build_table
from fastddpm.schedule import NoiseSchedule


def inverse_plan(plan: Plan, schedule: NoiseSchedule) -> Plan:
    """The steps of a deterministic DDIM plan the other way, from the clean image up through its timesteps
    (Song et al. 2021, section 4.3; Dhariwal and Nichol 2021, appendix F).

        x_t = sqrt(abar_t) x0 + sqrt(1 - abar_t) eps,     x0 and eps of x_s and what the network says of t > s

    Timesteps are those that a step goes to, and what the network is told, as in diffusers'
    DDIMInverseScheduler. x0 is not clipped: what a clip took away does not come back.

    Args:
        plan: of ddim with eta 0.
        schedule: of its network.

    Raises:
        ValueError: another method, or noise; a network that predicts x0, which says nothing of the noise in a
            clean image.
    """
    if plan.method != "ddim" or plan.stochastic:
        kind = "ddim with noise" if plan.method == "ddim" else repr(plan.method)
        raise BadArgument("method", kind, "ddim with eta 0, such as sampler.replace(method='ddim', eta=0.0)")
    if plan.prediction_type == "sample":
        raise BadArgument("prediction_type", "'sample'", "epsilon or v_prediction")
    if plan.timesteps[-1] < 0 or plan.thresholding is not None:
        raise BadArgument("plan", "one that ends at timestep -1, or bounds by quantiles,", "another")
    ends = plan.levels(schedule)[::-1]
    begins = np.concatenate(([1.0], ends[:-1]))
    alpha, sigma, direction = np.sqrt(begins), np.sqrt(1 - begins), np.sqrt(1 - ends)
    p, q = prediction_columns(plan.prediction_type, alpha, sigma, bounded=False)
    from_x0, from_x, from_m = epsilon_columns(plan.prediction_type, alpha, sigma, rederived=False)
    table = build_table(
        len(plan),
        x0_from_x=p,
        x0_from_m=q,
        from_x0=np.sqrt(ends) + direction * from_x0,
        from_x=direction * from_x,
        from_m=direction * from_m,
    )
    return Plan(
        method="ddim",
        timesteps=plan.timesteps[::-1],
        model_time=plan.model_time[::-1],
        table=table,
        prediction_type=plan.prediction_type,
        clip=False,
        learned_range=plan.learned_range,
        rises=True,
    )
