"""A small model, data and options for the tests of training."""

from __future__ import annotations

import torch

from fastddpm import NoiseSchedule, UNetConfig
from fastddpm.data.augmentation import Augmentation
from fastddpm.data.dataset import ImageDataset
from fastddpm.training import TrainConfig, Trainer

MODEL = UNetConfig(
    base_channels=8,
    channel_mults=(1, 2),
    num_groups=4,
    time_dim=16,
    num_classes=2,
    null_class=True,
    dropout=0.1,
)
SCHEDULE = NoiseSchedule.linear(100)
SAMPLER = {"method": "ddim", "num_inference_steps": 5, "clip_sample_range": 1.0, "shape": [1, 8, 8]}


class Bars:
    """Vertical bars are class 0, horizontal ones class 1."""

    def __len__(self):
        return 16

    def batch(self, indices, ordinals=None, *, seed=0):
        place, labels = indices % 8, indices // 8
        images = -torch.ones(len(indices), 1, 8, 8)
        for i in range(len(indices)):
            (images[i, 0] if labels[i] == 0 else images[i, 0].T)[:, place[i]] = 1.0
        return images, labels


class Broken(Bars):
    """NaN in the 21st batch of 8."""

    def batch(self, indices, ordinals=None, *, seed=0):
        images, labels = super().batch(indices)
        if ordinals is not None:
            images[ordinals == 163] = float("nan")
        return images, labels


def config(**changes):
    options = {
        "steps": 20,
        "batch_size": 8,
        "warmup_steps": 5,
        "log_every": 5,
        "checkpoint_every": 10,
        "weight_decay": 0.01,
    }
    return TrainConfig(**{**options, **changes})


def trainer(run, data=None, model=MODEL, initial=None, **changes):
    options = {"validation": Bars(), "sampler": SAMPLER, "initial": initial}
    return Trainer(config(**changes), model, SCHEDULE, data or Bars(), run, **options)


def without_dropout():
    """MODEL, but nothing in it is random: dropout follows the process, as it may."""
    return UNetConfig(**{**MODEL.to_dict(), "dropout": 0.0})


class Recorder:
    """In front of a trainer's noiser: what came in by ordinal, and what went to the network."""

    def __init__(self, noiser):
        self.noiser, self.loss, self.rows = noiser, noiser.loss, []

    def __call__(self, x_0, labels, ordinals):
        batch = self.noiser(x_0, labels, ordinals)
        columns = {"ordinal": ordinals, "x_0": x_0, "x_t": batch.x_t, "t": batch.t, "target": batch.target}
        self.rows.append({**columns, "label": batch.class_labels})
        return batch

    def seen(self):
        """Everything seen, in the order of the ordinals."""
        columns = {name: torch.cat([row[name] for row in self.rows]) for name in self.rows[0]}
        order = columns["ordinal"].argsort()
        return {name: values[order].contiguous() for name, values in columns.items()}


def recorded(run, **changes):
    """A trainer without dropout on pictures that are mirrored and moved at random, and what it sees."""
    random = torch.Generator().manual_seed(3)
    pixels = torch.randint(0, 256, (12, 1, 8, 8), generator=random).to(torch.uint8)
    data = ImageDataset(pixels, torch.arange(12) % 2, augmentation=Augmentation(flip=True, shift=2))
    one = trainer(run, data, model=without_dropout(), class_dropout=0.3, **changes)
    one.noiser = Recorder(one.noiser)
    return one, one.noiser.seen
