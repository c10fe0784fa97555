"""What a network is told of where a step is: the timestep, or a level of its noise."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from fastddpm.plans.plan import Float64, Plan
    from fastddpm.schedule import NoiseSchedule

LevelInput = Literal["noise_level", "alphas_cumprod"]
LEVEL_INPUTS: tuple[LevelInput, ...] = ("noise_level", "alphas_cumprod")
TimeInput = Literal["timestep", LevelInput]
TIME_INPUTS: tuple[TimeInput, ...] = ("timestep", *LEVEL_INPUTS)
SAME_LEVEL = 1e-5
"""How far what a plan tells may be from a level, relative to it, to be that; peers keep theirs in float32."""


def level_told(time_input: LevelInput, alphas_cumprod: Float64) -> npt.NDArray[np.float32]:
    """What a network that is told a level is told at these alphas_cumprod."""
    level = np.sqrt(alphas_cumprod) if time_input == "noise_level" else alphas_cumprod
    return level.astype(np.float32)


def time_input_of(plan: Plan, schedule: NoiseSchedule) -> TimeInput | None:
    """What a plan tells the network, from the numbers alone; None where it is something else."""
    told = plan.model_time
    if told.dtype.kind == "i":
        return "timestep" if np.array_equal(told, plan.timesteps) else None
    if plan.alphas_cumprod is not None and np.all(np.abs(told - plan.timesteps) <= 0.5):
        return "timestep"  # between two of training
    off: dict[TimeInput, float] = {}
    for name in LEVEL_INPUTS:
        level = level_told(name, plan.levels(schedule))
        if np.allclose(told, level, rtol=SAME_LEVEL, atol=0.0):
            off[name] = float(np.abs(told - level).max())
    return min(off, key=lambda name: off[name], default=None)
