"""Is it worth convolving a condition once a chain? One step's first convolution, both ways, on this machine.

    taskset -c 0,1 python benchmarks/condition_convolution.py [--out FILE]

* together: condition and x concatenated, one convolution, as SR3 writes it.
* apart: the condition's part kept from the start of the chain, x convolved alone and added to it.

With and without the norm that comes next, which a compiler may fuse with the sum. Outputs are compared (1e-5)
before anything is timed. A ratio above 1: apart is slower.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fastddpm.files import write_json
from fastddpm.timing import CpuClock, Effort, interleaved
from fastddpm_bench import machine
from fastddpm_bench.statistics import ratio_of_medians, summary

Step = Callable[[Tensor], Tensor]
EFFORT = Effort(seconds=5.0, least=15, most=60)
GROUPS = 8


@dataclasses.dataclass(frozen=True)
class Case:
    """A network's first convolution: images of a batch, channels of an image and of the features, size."""

    batch: int
    channels: int
    features: int
    size: int


CASES = {
    "SR3, 16 to 128": Case(1, 3, 64, 128),
    "photo_sr, one tile": Case(1, 3, 16, 128),
    "mnist_sr, batch 8": Case(8, 1, 16, 28),
}


@torch.no_grad()
def ways(case: Case, channels_last: bool, norm: bool) -> tuple[dict[str, Step], Tensor]:
    """Both ways by name, and an x for them."""
    layout = torch.channels_last if channels_last else torch.contiguous_format
    weight = torch.randn(case.features, 2 * case.channels, 3, 3).to(memory_format=layout)
    bias = torch.randn(case.features)
    of_condition, of_x = (part.contiguous(memory_format=layout) for part in weight.chunk(2, dim=1))
    condition, x = (torch.randn(case.batch, case.channels, case.size, case.size) for _ in range(2))
    kept = F.conv2d(condition.contiguous(memory_format=layout), of_condition, bias, padding=1)

    def ended(features: Tensor) -> Tensor:
        return F.silu(F.group_norm(features, GROUPS)) if norm else features

    def together(x: Tensor) -> Tensor:
        return ended(F.conv2d(torch.cat((condition, x), dim=1), weight, bias, padding=1))

    def apart(x: Tensor) -> Tensor:
        return ended(F.conv2d(x, of_x, padding=1) + kept)

    return {"together": together, "apart": apart}, x


@torch.no_grad()
def measure(case: Case, *, channels_last: bool, compiled: bool, norm: bool) -> dict[str, Any]:
    """Medians of both ways and the ratio apart / together with its 95 % interval."""
    found, x = ways(case, channels_last, norm)
    if compiled:
        found = {name: torch.compile(way, dynamic=False) for name, way in found.items()}
    outputs = [way(x) for way in found.values()]
    difference = float((outputs[0] - outputs[1]).abs().max() / outputs[0].abs().max())
    if not difference < 1e-5:
        raise SystemExit(f"{case}: outputs differ by {difference:.1e} of the largest")
    calls = {name: lambda way=way: way(x) for name, way in found.items()}
    times = interleaved(calls, CpuClock(), EFFORT)
    torch.compiler.reset()
    ratio = ratio_of_medians(times["apart"].wall, times["together"].wall)
    medians = {name: summary(taken.wall).median for name, taken in times.items()}
    return {"seconds": medians, "apart / together": dataclasses.asdict(ratio)}


def main() -> None:
    """Measures from the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/condition_convolution.json"))
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    rows = {}
    for name, case in CASES.items():
        for form, options in (
            ("contiguous", {"channels_last": False, "compiled": False}),
            ("channels_last", {"channels_last": True, "compiled": False}),
            ("channels_last, compiled", {"channels_last": True, "compiled": True}),
        ):
            for norm in (False, True):
                key = f"{name}, {form}{', with the norm' if norm else ''}"
                rows[key] = measure(case, norm=norm, **options)
                ratio = rows[key]["apart / together"]
                print(f"{key}: {ratio['value']:.2f} ({ratio['low']:.2f} to {ratio['high']:.2f})", flush=True)
    document = {
        "command": f"python benchmarks/condition_convolution.py --threads {arguments.threads}",
        "machine": machine.describe(torch.device("cpu")),
        "rows": rows,
    }
    write_json(arguments.out, document)


if __name__ == "__main__":
    main()
