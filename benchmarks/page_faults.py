"""What freed memory that goes back to the system costs a step on a CPU: the figures of docs/architecture.md.

    taskset -c 0,1 python benchmarks/page_faults.py [--out benchmarks/results/page_faults.json]

Each network runs in processes of its own, with glibc as it comes and with its limits raised as the engine
does (`fastddpm/engine/heap.py`), in turn. A process takes 5 steps to warm up; of the next ones it counts page
faults and times them. A fresh process's heap grows in an order of its own, so counts differ from those in a
program that did other things before; medians and ranges of the processes are kept.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

from fastddpm.files import write_json
from fastddpm_bench import machine
from fastddpm_bench.workloads import CIFAR10, MNIST, Workload

CASES: dict[str, tuple[Workload, int]] = {"mnist": (MNIST, 8), "cifar10": (CIFAR10, 2)}
LIMITS = {"MALLOC_MMAP_THRESHOLD_": str(64 * 2**20), "MALLOC_TRIM_THRESHOLD_": str(256 * 2**20)}
WARM_UP = 5
STEPS = 20


@torch.no_grad()
def step_costs(case: str) -> dict[str, float]:
    """Faults and seconds a forward pass of diffusers' network, in this process."""
    workload, batch = CASES[case]
    network = workload.unet2d(workload.unet(torch.device("cpu")))
    x, t = torch.randn(batch, *workload.shape), torch.zeros(batch, dtype=torch.long)
    for _ in range(WARM_UP):
        network(x, t)
    faults, began = _faults(), time.perf_counter()
    for _ in range(STEPS):
        network(x, t)
    seconds = (time.perf_counter() - began) / STEPS
    return {"faults": (_faults() - faults) / STEPS, "seconds": seconds}


def _faults() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


def in_a_process(case: str, threads: int, limits: dict[str, str]) -> dict[str, float]:
    """The costs in a fresh process with some of glibc's limits set."""
    words = [sys.executable, __file__, "--case", case, "--threads", str(threads)]
    done = subprocess.run(words, env={**os.environ, **limits}, capture_output=True, text=True, check=True)
    costs: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return costs


def measure(threads: int, processes: int) -> dict[str, Any]:
    """Both settings of each network, in turn."""
    found: dict[str, Any] = {}
    for case, (workload, batch) in CASES.items():
        runs: dict[str, list[dict[str, float]]] = {"as it comes": [], "limits raised": []}
        for _ in range(processes):
            for setting, limits in (("as it comes", {}), ("limits raised", LIMITS)):
                runs[setting].append(in_a_process(case, threads, limits))
        found[f"{workload.name}, batch {batch}"] = {
            setting: {
                measure: {
                    "median": statistics.median(run[measure] for run in some),
                    "all": [run[measure] for run in some],
                }
                for measure in ("faults", "seconds")
            }
            for setting, some in runs.items()
        }
    return found


def main() -> None:
    """Measures from the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--processes", type=int, default=5, help="of each setting")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/page_faults.json"))
    parser.add_argument("--case", choices=list(CASES), help="one process's share; printed, not kept")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.case is not None:
        print(json.dumps(step_costs(arguments.case)))
        return
    document = {
        "command": f"python benchmarks/page_faults.py --threads {arguments.threads}",
        "machine": machine.describe(torch.device("cpu")),
        "networks": measure(arguments.threads, arguments.processes),
    }
    write_json(arguments.out, document)
    print(json.dumps(document["networks"], indent=1))


if __name__ == "__main__":
    main()
