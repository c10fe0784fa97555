"""What stands in for a pipeline during a call: its parts and methods, with a scheduler of its own.

A pipeline's methods leave attributes at it and read its scheduler, whose timesteps a call sets. Chains here
leave the original as it was, so that both happens to a shallow copy.
"""

from __future__ import annotations

import copy

import torch

from fastddpm.dropin._diffusers.times import Times
from fastddpm.dropin.peer import Peer


def stand_in(
    pipeline: Peer, *steps: int, device: torch.device | str | None = None, times: Times | None = None
) -> Peer:
    """A shallow copy of a pipeline whose scheduler is a copy too, with its timesteps set.

    Args:
        pipeline: left as it is; its networks are shared.
        *steps: as of the scheduler's ``set_timesteps``: num_inference_steps, and what else it takes.
        device: of the timesteps.
        times: set instead of a number of steps.
    """
    stand, scheduler = copy.copy(pipeline), copy.deepcopy(pipeline.scheduler)
    if times is None:
        scheduler.set_timesteps(*steps, device=device)
    else:
        times.set(scheduler, device)
    # Not by an assignment, which diffusers' pipelines write into their configuration.
    vars(stand)["scheduler"] = scheduler
    return stand
