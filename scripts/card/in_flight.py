"""Requests that come at random, one at a time, in static batches, in flight: benchmarks/serving.py, short.

python scripts/card/in_flight.py OUT [--seconds N] [--tiny]
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from watch import Watch
from workload import Part, arguments

import fastddpm
import serving

LOAD = 0.8
TINY: dict[int, Any] = {steps: {"method": "ddim", "num_inference_steps": steps} for steps in (2, 3)}
"""In the place of the kinds of requests, where the script alone is looked at."""


def main() -> None:
    """Measures the three ways with the same arrivals."""
    args = arguments(__doc__, seconds={"type": float, "default": 60.0})
    watch = Watch(Part("in_flight", args.out, load=LOAD), args.seconds, args.device)
    sampler = fastddpm.load(device=str(args.device), engine="eager" if args.tiny else "auto")
    most, arriving = 16, args.seconds / 6
    if args.tiny:
        serving.KINDS.clear()
        serving.KINDS.update(TINY)
        serving.SHARES = (0.5, 0.5)
        most, arriving, rate = 2, 1.0, 2.0
    else:
        rate = LOAD * serving.capacity(sampler)
    requests = serving.arrivals(arriving, rate)
    ways: dict[str, Callable[[], Any]] = {
        "in flight": lambda: serving.InFlight(sampler, most),
        "static batches": lambda: serving.Queued(sampler, most, together=True),
        "one at a time": lambda: serving.Queued(sampler, most, together=False),
    }
    for name, make in ways.items():

        def figures(make: Callable[[], Any] = make) -> dict[str, Any]:
            return serving.measured(make, [dataclasses.replace(request) for request in requests])

        row = {"name": name, "ours": name == "in flight", "requests": len(requests), "a_second": rate}
        watch.measure(row, figures, most=args.seconds)


if __name__ == "__main__":
    main()
