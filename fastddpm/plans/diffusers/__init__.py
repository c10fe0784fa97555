"""Plans that repeat the arithmetic of diffusers' schedulers, so that a drop-in returns the same images.

A scheduler goes in, a `Plan` comes out whose coefficients were computed as diffusers computes them: float32,
in its order, with its previous timestep, its rounding of the spacing and its noise in the last step. Of DDPM
and DDIM the configuration is enough, and diffusers is not imported; of the solvers the noise levels are those
that the scheduler itself sets. For plans without those habits use `fastddpm.plans`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, TypedDict

import numpy.typing as npt

from fastddpm.checks import check_choice
from fastddpm.plans.diffusers.config import SchedulerOrConfig, read_config
from fastddpm.plans.diffusers.ddim import from_ddim_scheduler
from fastddpm.plans.diffusers.ddpm import from_ddpm_scheduler
from fastddpm.plans.diffusers.solver_classes import SOLVERS
from fastddpm.plans.diffusers.solvers import from_edm_scheduler, from_solver_scheduler
from fastddpm.plans.plan import Plan

if TYPE_CHECKING:
    from typing_extensions import Unpack

_BUILDERS: dict[str, Callable[..., Plan]] = {
    "DDPMScheduler": from_ddpm_scheduler,
    "DDIMScheduler": from_ddim_scheduler,
    **{
        name: from_edm_scheduler if solver.is_preconditioned else from_solver_scheduler
        for name, solver in SOLVERS.items()
    },
}

__all__ = [
    "from_ddim_scheduler",
    "from_ddpm_scheduler",
    "from_edm_scheduler",
    "from_scheduler",
    "from_solver_scheduler",
]


class SchedulerOptions(TypedDict, total=False):
    """What the three functions take besides a scheduler and its steps; each refuses the others'."""

    timesteps: npt.ArrayLike | None
    variance_type: str | None
    log_variance: bool
    eta: float
    use_clipped_model_output: bool
    previous_timestep: str
    start: int


def from_scheduler(
    scheduler: SchedulerOrConfig, num_inference_steps: int, **options: Unpack[SchedulerOptions]
) -> Plan:
    """The plan of a diffusers scheduler or its configuration, whichever of those that have one it is.

    A configuration says which by its "_class_name". `options` go to the function for that class.

    Raises:
        ValueError: another scheduler, or a configuration that cannot be expressed.
    """
    config = read_config(scheduler)
    name = config.get("_class_name") if isinstance(scheduler, Mapping) else type(scheduler).__name__
    check_choice("scheduler", name, tuple(_BUILDERS))
    builder = _BUILDERS[str(name)]
    given = scheduler if name in SOLVERS else config
    return builder(given, num_inference_steps, **options)
