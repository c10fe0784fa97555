"""Timesteps or sigmas that a call of Stable Diffusion's pipelines gives in the place of a number of steps."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch

from fastddpm.checks import BadArgument, quoted
from fastddpm.dropin.peer import Peer

_NAMES = ("timesteps", "sigmas")


@dataclasses.dataclass(frozen=True)
class Times:
    """What a scheduler is to set; the schedulers say which of the two they take, and of what values.

    Attributes:
        values: of the timesteps and of the sigmas, None of those that were not given.
        given: the two as they were: some schedulers take tensors alone.
    """

    values: tuple[tuple[float, ...] | None, ...]
    given: Mapping[str, Any] = dataclasses.field(compare=False)

    @classmethod
    def of(cls, asked: Mapping[str, Any]) -> Times | None:
        """Those of a call's arguments; None where it has a number of steps.

        Raises:
            ValueError: one of the two that is no list of numbers, or an empty one.
        """
        given = {name: asked[name] for name in _NAMES}
        if all(value is None for value in given.values()):
            return None
        return cls(tuple(_numbers(name, value) for name, value in given.items()), given)

    @property
    def names(self) -> str:
        """Of what was given."""
        return " and ".join(name for name, value in self.given.items() if value is not None)

    def set(self, scheduler: Peer, device: torch.device | str | None = None) -> None:
        """Sets them at a scheduler, as the original does.

        Raises:
            ValueError: diffusers', of a scheduler that takes none, or not these.
        """
        from diffusers.pipelines.stable_diffusion import pipeline_stable_diffusion as theirs

        try:
            theirs.retrieve_timesteps(scheduler, None, device, **self.given)
        except (AttributeError, TypeError, IndexError) as error:
            given = f"values at which {type(scheduler).__name__} says: {error},"
            raise BadArgument(self.names, given, "those that it takes") from error


def _numbers(name: str, given: Any) -> tuple[float, ...] | None:
    if given is None:
        return None
    values: tuple[float, ...] = ()
    try:
        listed = given.tolist() if hasattr(given, "tolist") else given
        values = tuple(value.item() if hasattr(value, "item") else value for value in listed)
    except (TypeError, ValueError, RuntimeError):
        pass
    if not values or not all(isinstance(one, (int, float)) and not isinstance(one, bool) for one in values):
        raise BadArgument(name, quoted(given), "a list of numbers, one or more,")
    return values
