"""Bandwidth of the four kernels beside a copy of as many bytes (`fastddpm.doctor.bandwidth` says how).

python scripts/card/bandwidth.py OUT [--tiny]
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from workload import Part, arguments

from fastddpm.doctor import movements
from fastddpm.doctor.bandwidth import EFFORT, measure, working_set
from fastddpm.doctor.movements import CIFAR10_MAPS, LARGE_MAPS, Movement
from fastddpm.timing import Effort


def measured(device: torch.device, *, is_tiny: bool) -> Iterator[Movement]:
    """Every kernel, in the order in which a time limit may cut them off."""
    if is_tiny:
        yield from movements.steps((2, 3, 8, 8), device)
        yield from movements.training((2, 3, 8, 8), device)
        yield from movements.norms(((64, 8),), 2, device)
        yield from movements.plain_norms(((64, 8),), 2, device)
        return
    large = (256, 3, 256, 256)
    yield from movements.steps(large, device)
    yield from movements.training(large, device)
    yield from movements.norms(CIFAR10_MAPS, 64, device)
    yield from movements.plain_norms(CIFAR10_MAPS, 64, device)
    yield from movements.norms(LARGE_MAPS, 4, device)
    for batch in (256, 1):
        yield from movements.norms(CIFAR10_MAPS, batch, device)
        yield from movements.steps((batch, 3, 32, 32), device)


def row(movement: Movement, device: torch.device, together: int, effort: Effort) -> dict[str, Any]:
    """What was measured; a movement that fails is a row too."""
    try:
        rate = measure(movement, device, together, effort)
    except Exception as error:
        return {"name": movement.name, "error": f"{type(error).__name__}: {error}".splitlines()[0][:200]}
    return {
        "name": rate.name,
        "us": rate.seconds * 1e6,
        "gb_per_s": rate.bytes_per_second / 1e9,
        "percent_of_copy": 100 * rate.share,
    }


def main() -> None:
    """Measures the kernels."""
    args = arguments(__doc__)
    together, effort = (2**16, Effort(0, least=1)) if args.tiny else (working_set(args.device), EFFORT)
    part = Part("bandwidth", args.out, working_set=together)
    for movement in measured(args.device, is_tiny=args.tiny):
        part.add(row(movement, args.device, together, effort))


if __name__ == "__main__":
    main()
