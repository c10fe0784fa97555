"""The options of a training run, as written to `train.json` in its folder."""

from __future__ import annotations

import dataclasses
import math
from typing import Literal, get_args

from fastddpm.checks import check_choice, check_known, check_number, whole
from fastddpm.inputs import Fields, Json
from fastddpm.randomness import MAX_SEED
from fastddpm.signatures import check_fields, checked
from fastddpm.training.objective import Objective

LearningRateSchedule = Literal["constant", "cosine", "linear"]
MixedPrecision = Literal["no", "fp16", "bf16"]

# Of steps and of samples in one: what is beyond is a slip of the finger.
LARGEST = 2**31 - 1
MOST_WORKERS = 256


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """How to train; what to train and on what are arguments of :class:`fastddpm.training.Trainer`.

    Attributes:
        steps: optimiser steps of the whole run.
        batch_size: samples per optimiser step, over all processes and accumulated micro-batches.
        gradient_accumulation: micro-batches per process and step.
        lr: peak learning rate of Adam.
        lr_schedule: after the warm-up ``constant``, or falling to 0 as a ``cosine`` or a ``linear``.
        warmup_steps: steps of linear warm-up.
        weight_decay: of AdamW; 0 is Adam.
        grad_clip: largest norm of the gradient; None for no clipping.
        ema_decay: of the exponential moving average of the weights, in [0, 1); during warm-up it is
            (1 + n) / (10 + n) where that is less.
        class_dropout: share of labels replaced by the null label, for classifier-free guidance.
        objective: the loss.
        mixed_precision: ``no``, ``fp16`` or ``bf16``; weights and optimiser stay float32.
        compile: torch.compile the network.
        seed: of everything random.
        log_every: steps per line of the log.
        checkpoint_every: steps between checkpoints, validation losses and sample grids.
        keep: checkpoints kept besides the best.
        workers: processes that make batches ahead of the training, in each of its own processes; 0: it makes
            them itself. The batches are the same for any number.

    Raises:
        ValueError: naming the field, what was given and what is accepted.
    """

    steps: int = 5000
    batch_size: int = 128
    gradient_accumulation: int = 1
    lr: float = 1e-3
    lr_schedule: LearningRateSchedule = "cosine"
    warmup_steps: int = 200
    weight_decay: float = 0.0
    grad_clip: float | None = 1.0
    ema_decay: float = 0.999
    class_dropout: float = 0.1
    objective: Objective = dataclasses.field(default_factory=Objective)
    mixed_precision: MixedPrecision = "no"
    compile: bool = False
    seed: int = 0
    log_every: int = 50
    checkpoint_every: int = 500
    keep: int = 2
    workers: int = 0

    def __post_init__(self) -> None:
        check_fields(self)
        for name in ("steps", "batch_size", "gradient_accumulation", "log_every", "checkpoint_every", "keep"):
            object.__setattr__(self, name, whole(name, getattr(self, name), least=1, most=LARGEST))
        object.__setattr__(
            self, "warmup_steps", whole("warmup_steps", self.warmup_steps, least=0, most=LARGEST)
        )
        object.__setattr__(self, "seed", whole("seed", self.seed, least=0, most=MAX_SEED))
        object.__setattr__(self, "workers", whole("workers", self.workers, least=0, most=MOST_WORKERS))
        for name in ("lr", "weight_decay"):
            check_number(name, getattr(self, name), low=0.0)
        check_number("ema_decay", self.ema_decay, low=0.0, high=1.0 - 1e-12)
        check_number("class_dropout", self.class_dropout, low=0.0, high=1.0)
        if self.grad_clip is not None:
            check_number("grad_clip", self.grad_clip, low=0.0)
        check_choice("lr_schedule", self.lr_schedule, get_args(LearningRateSchedule))
        check_choice("mixed_precision", self.mixed_precision, get_args(MixedPrecision))

    def learning_rate(self, step: int) -> float:
        """Of the optimiser step that follows ``step`` others: warm-up times the schedule."""
        warm = min(1.0, (step + 1) / self.warmup_steps) if self.warmup_steps else 1.0
        done = step / self.steps
        fall = {"constant": 1.0, "linear": 1 - done, "cosine": 0.5 * (1 + math.cos(math.pi * done))}
        return self.lr * warm * fall[self.lr_schedule]

    def to_dict(self) -> Json:
        """Fields as JSON values."""
        return dataclasses.asdict(self)

    @classmethod
    @checked
    def from_dict(cls, values: Fields) -> TrainConfig:
        """Inverse of :meth:`to_dict`; an unknown field is an error that lists the known ones."""
        known = [field.name for field in dataclasses.fields(cls)]
        check_known(values, known, of="train.json")
        objective = Objective(**values.get("objective", {}))
        return cls(**{**values, "objective": objective})
