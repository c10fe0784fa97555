"""What `fastddpm train` begins with: a network of its own, or that of a model (``--init-from``)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import cast

from fastddpm.checkpoint import load
from fastddpm.checks import BadArgument, check_choice
from fastddpm.cli.arguments import naming
from fastddpm.cli.ranges import parse_ranges
from fastddpm.plans.time_input import TimeInput
from fastddpm.sampler import Sampler
from fastddpm.schedule import NoiseSchedule
from fastddpm.tasks import Task
from fastddpm.training.initial import fine_tuned
from fastddpm.unet import UNet, UNetConfig

SCHEDULES = ("linear", "scaled_linear", "cosine", "sigmoid")
DEFAULTS: Mapping[str, object] = {
    "prediction": "v_prediction",
    "schedule": "cosine",
    "time_input": "timestep",
    "base_channels": 32,
    "mults": "1,2,2",
    "blocks": 1,
    "mid_attention": True,
}
"""Of a network of its own; a model that is there has its own instead of each."""
# Of the sinusoidal embedding of a noise level in [0, 1]: as many steps as a schedule has.
LEVEL_SCALE = 1000.0


@dataclass(frozen=True)
class Base:
    """What a network is, and what it is told and predicts.

    Attributes:
        model: that it begins with, if any.
        given: the options in `DEFAULTS`, as typed or by default; those of ``model`` are not read.
    """

    model: Sampler | None
    given: Mapping[str, object]

    @property
    def prediction(self) -> str:
        """What the network predicts."""
        if self.model is not None and self.model.method is not None:
            return self.model.method.prediction_type
        return str(self.given["prediction"])

    @property
    def time_input(self) -> TimeInput:
        """What it is told of time."""
        if self.model is not None and self.model.method is not None:
            return self.model.method.time_input
        return cast("TimeInput", self.given["time_input"])  # as typed; the trainer checks it

    @property
    def schedule(self) -> NoiseSchedule:
        """The noise schedule."""
        if self.model is not None:
            return self.model.schedule
        name = self.given["schedule"]
        check_choice("schedule", name, SCHEDULES)
        schedule: NoiseSchedule = getattr(NoiseSchedule, str(name))(1000)
        return schedule

    @property
    def initial(self) -> UNet | None:
        """Whose weights it begins with."""
        # A UNet, as `network` has checked.
        return None if self.model is None else cast("UNet", self.model.model)

    def network(
        self, channels: int, num_classes: int | None, task: Task | None, dropout: float
    ) -> UNetConfig:
        """The architecture for images of so many channels.

        Raises:
            ValueError: an option out of range, or a model that does not fit.
        """
        if self.model is not None:
            return fine_tuned(self.model, channels, num_classes, task, dropout)
        levels = parse_ranges(str(self.given["mults"]), "--mults")
        base_channels, attends = cast("int", self.given["base_channels"]), self.given["mid_attention"]
        return UNetConfig(
            in_channels=channels + (0 if task is None else task.channels(channels)),
            out_channels=None if task is None else channels,
            base_channels=base_channels,
            channel_mults=tuple(levels),
            num_res_blocks=cast("int", self.given["blocks"]),
            time_dim=4 * base_channels,
            time_scale=1.0 if self.time_input == "timestep" else LEVEL_SCALE,
            num_classes=num_classes,
            null_class=num_classes is not None,
            attention_levels=(len(levels) - 1,) if attends else (),
            mid_attention="norm" if attends else "none",
            dropout=dropout,
        )


def base_of(init_from: str | None, **given: object) -> Base:
    """What is begun with, of the options in `DEFAULTS`; None is left out.

    Raises:
        ValueError: one of them together with a model, which has its own; a model that cannot be read.
    """
    typed = {name: value for name, value in given.items() if value is not None}
    if init_from is None:
        return Base(None, {**DEFAULTS, **typed})
    if typed:
        name = next(iter(typed))
        raise BadArgument(
            f"--{name.replace('_', '-')}",
            f"{typed[name]!r} with --init-from, whose model has its own,",
            "no value",
        )
    with naming("--init-from"):
        return Base(load(init_from), {})
