"""Rows measured one by one until the time is up: one that fails, or takes too long, says so instead."""

from __future__ import annotations

import gc
import signal
import statistics
import time
import traceback
from collections.abc import Callable
from typing import Any

import torch
from workload import Part

Call = Callable[[], Any]


class TimeIsUp(BaseException):
    """No Exception, which torch.compile would wrap."""


def _ring(*_: Any) -> None:
    raise TimeIsUp


class Watch:
    """Measures rows of a part.

    Args:
        part: where rows go.
        seconds: for all.
        device: where they run; on a CPU, where the script alone is looked at, nothing is left out.
    """

    def __init__(self, part: Part, seconds: float, device: torch.device) -> None:
        self.part, self.device, self.ends = part, device, time.perf_counter() + seconds
        self.on_card = device.type == "cuda"
        signal.signal(signal.SIGALRM, _ring)

    def measure(self, row: dict[str, Any], figures: Callable[[], dict[str, Any]], most: float = 40) -> None:
        """Adds a row: figures, or why there are none after ``most`` seconds at most."""
        left = self.ends - time.perf_counter()
        if left < 8 and self.on_card:
            self.part.add({**row, "error": "no time left"})
            return
        limit = max(1, int(min(most, left))) if self.on_card else 300
        try:
            signal.alarm(limit)
            try:
                row = {**row, **figures()}
            finally:
                signal.alarm(0)  # before anything is said: it would end the part
        except TimeIsUp:
            row = {**row, "error": f"stopped after {limit} s"}
        except Exception as error:
            row = {**row, "error": f"{type(error).__name__}: {error}".splitlines()[0][:300]}
            traceback.print_exc(limit=8)
        self.part.add(row)
        if self.on_card:
            gc.collect()  # of graphs that a row made and that hold each other
            torch.cuda.empty_cache()

    def seconds_of(self, call: Call, *, least: int = 3, most: int = 20, together: float = 1.0) -> list[float]:
        """What calls take that end with their result: at least so many, then until the time together."""
        taken: list[float] = []
        while len(taken) < least or (sum(taken) < together and len(taken) < most and self.on_card):
            if self.on_card:
                torch.cuda.synchronize()
            began = time.perf_counter()
            call()
            if self.on_card:
                torch.cuda.synchronize()
            taken.append(time.perf_counter() - began)
        return taken


def per_step(seconds: list[float], steps: int) -> dict[str, Any]:
    """Milliseconds a step of calls of so many."""
    return {
        "ms_per_step": 1e3 * statistics.median(seconds) / steps,
        "least_ms": 1e3 * min(seconds) / steps,
        "most_ms": 1e3 * max(seconds) / steps,
        "calls": len(seconds),
    }


def differences(found: torch.Tensor, wanted: torch.Tensor) -> dict[str, float]:
    """The largest and the mean, as a share of what is wanted at its largest."""
    apart = (found.double() - wanted.double()).abs() / wanted.double().abs().max()
    return {"largest_difference": float(apart.max()), "mean_difference": float(apart.mean())}
