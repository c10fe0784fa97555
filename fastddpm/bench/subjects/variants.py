"""Variants that many contests have: other layouts, compiled networks, graph replays, our engines."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn

from fastddpm.bench.contest import Contestant, Settings
from fastddpm.bench.timing import Call, replayed

Layout = tuple[str, bool, bool]
"""What is added to a name, whether it is channels_last, whether it is compiled."""

AS_IT_COMES: Layout = ("", False, False)


def layouts(settings: Settings) -> list[Layout]:
    """How other people's networks are run: as they come, in channels_last, and compiled in channels_last."""
    plain: list[Layout] = [AS_IT_COMES, (", channels_last", True, False)]
    return plain if settings.quick else [*plain, (", channels_last, compiled", True, True)]


def arranged(module: nn.Module, layout: Layout) -> Any:
    """A copy of a network in a layout."""
    _, channels_last, compiled = layout
    module = copy.deepcopy(module)
    if channels_last:
        module = module.to(memory_format=torch.channels_last)
    return torch.compile(module, dynamic=False) if compiled else module


def engines(settings: Settings) -> tuple[str, ...]:
    """The engines of ours that run on the device; those that compile take minutes to begin."""
    if settings.is_cuda:
        return ("eager", "cudagraph") if settings.quick else ("eager", "compile", "cudagraph", "max")
    return ("eager",) if settings.quick else ("eager", "compile")


def replayed_too(contestant: Contestant, settings: Settings) -> list[Contestant]:
    """A contestant, and on a GPU its call as replays of one CUDA graph too: without the launches.

    Its call must change nothing in place, since warm-up calls come before its first.
    """
    if not settings.is_cuda:
        return [contestant]

    def build(shared: Any) -> Call:
        return replayed(contestant.build(shared))

    graph = Contestant(f"{contestant.name}, replayed", build, contestant.ours, contestant.expected)
    return [contestant, graph]
