"""Trains a regression network beside a restoration model: same network, data, steps and batch, no diffusion.

    python benchmarks/train_regression.py RUN OUT

RUN is the folder of a finished `fastddpm train --task ...`; its train.json says everything. The network gets
zeros in place of x_t and the constant time 0, and learns x_0 of the task (the residual, where it has a gain)
by its squared error: the mean of all images that fit.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastddpm import NoiseSchedule, UNetConfig
from fastddpm.data import open_dataset
from fastddpm.tasks import task_from_dict
from fastddpm.training import TrainConfig, Trainer
from fastddpm.training.objective import NoisedBatch, Noiser

DATA: dict[str, dict[str, Any]] = {"mnist": {}, "photographs": {"size": 48, "flip": True}}


class RegressionNoiser(Noiser):
    """A noiser that adds no noise: x_t is 0, the time 0, the target x_0."""

    def __call__(self, x_0: Tensor, class_labels: Tensor | None, ordinals: Tensor) -> NoisedBatch:
        """As a `Noiser`'s."""
        assert self.task is not None
        condition = self.task.condition(x_0, ordinals, self.seed)
        target = self.task.target(x_0, condition)
        time = torch.zeros(len(x_0), device=x_0.device)
        return NoisedBatch(torch.zeros_like(x_0), time, None, target, torch.ones_like(time), condition)


def main() -> None:
    """Reads the run's document and trains the twin."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, help="folder of the restoration model's run")
    parser.add_argument("out", type=Path, help="folder of the twin's run")
    parser.add_argument("--data", choices=list(DATA), required=True, help="what RUN was trained on")
    parser.add_argument("--steps", type=int, help="fewer than RUN's")
    arguments = parser.parse_args()
    document = json.loads((arguments.run / "train.json").read_text())
    options = {**document["train"], "objective": {"prediction_type": "sample"}}
    options["steps"] = arguments.steps or options["steps"]
    config = TrainConfig.from_dict(options)
    model = UNetConfig.from_dict(document["model"])
    schedule = NoiseSchedule.from_dict(document["schedule"])
    task = task_from_dict(document["task"])
    source = DATA[arguments.data]
    images = open_dataset(arguments.data, labels=False, **source)
    held_out = open_dataset(arguments.data, labels=False, split="validation", size=source.get("size"))
    sampler = {
        "method": "ddim",
        "num_inference_steps": 1,
        "prediction_type": "sample",
        "time_input": "noise_level",
        "shape": list(images.shape),
    }
    trainer = Trainer(
        config, model, schedule, images, arguments.out, validation=held_out, sampler=sampler, task=task
    )
    trainer.noiser = RegressionNoiser(schedule, config.objective, seed=config.seed, task=task)
    trainer.validation_noiser = trainer.noiser
    print(trainer.train(progress=False))


if __name__ == "__main__":
    main()
