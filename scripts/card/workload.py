"""What the parts of scripts/card.sh share: arguments, the network, timing, and a file that grows."""

from __future__ import annotations

import argparse
import dataclasses
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from fastddpm.files import write_json
from fastddpm.timing import make_clock, replayed
from fastddpm.unet import UNet
from fastddpm_bench.workloads import CIFAR10, Workload

SMALL = {
    "sample_size": 8,
    "block_out_channels": (32, 32),
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D"],
    "up_block_types": ["AttnUpBlock2D", "UpBlock2D"],
}
"""In the place of the CIFAR-10 network's, where the script alone is looked at."""


def arguments(words: str | None, **more: dict[str, Any]) -> argparse.Namespace:
    """OUT, --tiny and what is added; ``device`` is where there is something to measure."""
    parser = argparse.ArgumentParser(description=words)
    parser.add_argument("out", type=Path)
    parser.add_argument("--tiny", action="store_true", help="small, on the CPU")
    for name, options in more.items():
        parser.add_argument(f"--{name}", **options)
    args = parser.parse_args()
    args.device = torch.device("cpu" if args.tiny else "cuda")
    return args


def workload(tiny: bool) -> Workload:
    """The CIFAR-10 network of the DDPM paper (random weights), or a small one."""
    if not tiny:
        return CIFAR10
    assert CIFAR10.options is not None
    return dataclasses.replace(CIFAR10, name="tiny", shape=(3, 8, 8), options={**CIFAR10.options, **SMALL})


def network(tiny: bool, device: torch.device) -> UNet:
    """Our network of the workload, float32, without gradients."""
    return workload(tiny).unet(device).requires_grad_(False)


class Part:
    """The rows of a part, printed and saved one by one.

    Args:
        name: of the part: OUT/NAME.json.
        out: the folder.
        facts: what belongs to all rows.
    """

    def __init__(self, name: str, out: Path, **facts: Any) -> None:
        self.path, self.document = out / f"{name}.json", {**facts, "rows": []}

    def add(self, row: dict[str, Any]) -> None:
        """Prints a row and saves it with those before it."""
        self.document["rows"].append(row)
        write_json(self.path, self.document)
        print("  ".join(f"{key} {_shown(value)}" for key, value in row.items()), flush=True)


def _shown(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def median_seconds(calls: Sequence[Callable[[], Any]], device: torch.device, rounds: int = 20) -> float:
    """Median seconds of one of several calls that run one after the other; on a card as one graph's replays.

    Calls on buffers of their own keep a card's cache from holding what the next one reads.
    """

    def run() -> None:
        for call in calls:
            call()

    together = run
    if device.type == "cuda":
        together = replayed(run)
    clock = make_clock(device)
    clock.time(together, 2)
    taken = [clock.time(together, 1)[0] for _ in range(rounds if device.type == "cuda" else 3)]
    return statistics.median(taken) / len(calls)
