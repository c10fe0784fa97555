"""Timing calls side by side: every round times each of them once, in an order that changes.

On a CPU wall time and processor time are read; on a GPU, CUDA events around the calls, and calls can be made
into graph replays first. Nothing here sets a clock, a power limit or the number of threads.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Protocol

import torch

from fastddpm.streams import stream_of

if TYPE_CHECKING:
    from typing_extensions import Self

Call = Callable[[], Any]

# A sample is at least this long, by repeating short calls: far above the clock's resolution.
SHORTEST_SAMPLE = 2e-3
MOST_REPEATS = 2000


@dataclasses.dataclass(frozen=True)
class Effort:
    """How long to measure.

    Attributes:
        seconds: of one contest, rounds stop after it.
        least: rounds at least.
        most: rounds at most.
        warm_up: calls of each before the first round, the one for parity not counted. 0 where calls take
            seconds: then they are not repeated within a round either.
    """

    seconds: float
    least: int = 5
    most: int = 60
    warm_up: int = 2


@dataclasses.dataclass
class Times:
    """Seconds of one call in each round."""

    wall: list[float] = dataclasses.field(default_factory=list)
    process: list[float] = dataclasses.field(default_factory=list)


class Clock(Protocol):
    """Times a number of calls."""

    def time(self, call: Call, repeats: int) -> tuple[float, float]:
        """(wall, process) seconds of all the calls together."""


class CpuClock:
    """Wall time, and processor time of this process and the children that ended."""

    def time(self, call: Call, repeats: int) -> tuple[float, float]:
        """(wall, process) seconds of all the calls together."""
        process = processor_seconds()
        began = time.perf_counter()
        for _ in range(repeats):
            call()
        wall = time.perf_counter() - began
        return wall, processor_seconds() - process


class CudaClock:
    """CUDA events around the calls: the time between them on the device, with the gaps it waited in."""

    def time(self, call: Call, repeats: int) -> tuple[float, float]:
        """(wall, process) seconds of all the calls together."""
        process = processor_seconds()
        began, ended = (_event() for _ in range(2))
        torch.cuda.synchronize()
        began.record()
        for _ in range(repeats):
            call()
        ended.record()
        ended.synchronize()
        milliseconds = began.elapsed_time(ended)
        return milliseconds / 1000, processor_seconds() - process


class _Event(Protocol):
    """torch's, whose own types are incomplete."""

    def record(self) -> None: ...
    def synchronize(self) -> None: ...
    def elapsed_time(self, end_event: Self, /) -> float: ...


def _event() -> _Event:
    kind: Callable[..., _Event] = torch.cuda.Event
    return kind(enable_timing=True)


def make_clock(device: torch.device) -> Clock:
    """The clock of a device."""
    return CudaClock() if device.type == "cuda" else CpuClock()


def processor_seconds() -> float:
    """User and system time of this process and of its children that ended."""
    try:
        import resource
    except ImportError:  # not on Windows, where children are not counted
        return time.process_time()
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in used)


def interleaved(calls: Mapping[str, Call], clock: Clock, effort: Effort) -> dict[str, Times]:
    """Times calls in rounds, each of them once a round.

    The order is turned by one each round and reversed every other round, so that none always runs after the
    same one.

    Args:
        calls: by name.
        clock: what reads the time.
        effort: how long.

    Returns:
        For each name the seconds of one call in each round; sample i of all names is of the same round.
    """
    names = list(calls)
    repeats: dict[str, int] = {}
    for name in names:
        repeats[name] = 1
        for _ in range(effort.warm_up):
            seconds = max(clock.time(calls[name], 1)[0], 1e-9)
            repeats[name] = max(1, min(MOST_REPEATS, round(SHORTEST_SAMPLE / seconds)))
    times = {name: Times() for name in names}
    began = time.perf_counter()
    for number in range(effort.most):
        if number >= effort.least and time.perf_counter() - began > effort.seconds:
            break
        taken = {name: clock.time(calls[name], repeats[name]) for name in order(names, number)}
        # A round counts as a whole or not at all: Ctrl-C in between leaves no half of a pair.
        for name, (wall, process) in taken.items():
            times[name].wall.append(wall / repeats[name])
            times[name].process.append(process / repeats[name])
    return times


def order(names: list[str], number: int) -> list[str]:
    """The order of names in a round."""
    first = number // 2 % len(names)
    turned = names[first:] + names[:first]
    return turned[::-1] if number % 2 else turned


def replayed(call: Call, warm_up: int = 3) -> Call:
    """A call as replays of one CUDA graph.

    Args:
        call: works on the same memory each time, and returns the same tensor.
        warm_up: calls before the capture.
    """
    for _ in range(warm_up):
        call()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream_of(graph)):
        output = call()

    def replay() -> object:
        graph.replay()
        return output

    return replay
