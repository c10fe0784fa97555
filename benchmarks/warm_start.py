"""What a second process saves by the first one's compiled code: engine `compile` with cold and warm caches.

    python benchmarks/warm_start.py [--rounds 3] [--out benchmarks/results/warm_start.json]

From the start of Python to the first image of the model in the box, 50 DDIM steps, on a CPU. Each round has a
folder for Inductor's and Triton's caches of its own: the first process finds it empty, the others as that one
left it. Engine `eager` for comparison. Seconds of the clock, and of the processor in all processes.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from fastddpm.files import write_json
from fastddpm_bench.machine import describe

PROGRAM = """
import sys, torch, fastddpm
sampler = fastddpm.load("mnist", engine=sys.argv[1])
sampler.replace(method="ddim", num_inference_steps=50).sample(seeds=[1], class_labels=3, progress=False)
"""


def once(engine: str, caches: Path) -> dict[str, float]:
    """One process: its seconds."""
    environment = {
        **os.environ,
        "TORCHINDUCTOR_CACHE_DIR": str(caches / "inductor"),
        "TRITON_CACHE_DIR": str(caches / "triton"),
    }
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run([sys.executable, "-c", PROGRAM, engine], env=environment, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"seconds": time.perf_counter() - began, "processor_seconds": used}


def main() -> None:
    """Measures, prints, and writes."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/warm_start.json"))
    options = parser.parse_args()
    taken: dict[str, list[dict[str, float]]] = {"compile, cold": [], "compile, warm": [], "eager": []}
    for _ in range(options.rounds):
        with tempfile.TemporaryDirectory() as folder:
            for name in taken:
                taken[name].append(once(name.split(",")[0], Path(folder)))
                print(name, json.dumps(taken[name][-1]), flush=True)
    rows = {
        name: {key: round(statistics.median(one[key] for one in found), 2) for key in found[0]}
        for name, found in taken.items()
    }
    machine = describe(torch.device("cpu"))
    facts = {"rounds": options.rounds, "python": platform.python_version(), "machine": machine}
    write_json(options.out, {**facts, "rows": rows})
    print(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
