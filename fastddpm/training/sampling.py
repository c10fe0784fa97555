"""How the model that a run leaves is sampled from: options of a `fastddpm.Sampler`, held to the objective."""

from __future__ import annotations

from typing import cast

import torch

from fastddpm.checks import BadArgument
from fastddpm.options import SamplerOptions
from fastddpm.sampler import Sampler
from fastddpm.schedule import NoiseSchedule
from fastddpm.training.description import names_of
from fastddpm.training.objective import Objective
from fastddpm.training.validation import TrainingData
from fastddpm.unet import UNet


def options_of(
    given: SamplerOptions | None,
    network: UNet,
    schedule: NoiseSchedule,
    data: TrainingData,
    objective: Objective,
) -> SamplerOptions:
    """The options that are given, over what follows from the data and the objective.

    Raises:
        ValueError: options that no sampler has, or one that takes the network's output for something else
            than it is trained to be.
    """
    asked = {name: value for name, value in (given or {}).items() if value is not None}
    own: SamplerOptions = {"class_names": names_of(data, network.config)}
    if "shape" not in asked:
        own["shape"] = list(data.batch(torch.arange(1))[0].shape[1:])
    if "scheduler" not in asked:
        own["prediction_type"] = objective.prediction_type
    options = cast("SamplerOptions", {**own, **asked})
    taken = Sampler(network, schedule, **options).plan.prediction_type
    if taken != objective.prediction_type:
        trained = objective.prediction_type
        raise BadArgument("sampler", f"prediction_type {taken!r} to an objective of {trained!r}", "the same")
    return options
