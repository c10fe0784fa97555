"""Cold start: from the start of Python to the first image of the model in the box on disk."""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastddpm.model_folder import save_folder
from fastddpm.options import SamplerOptions
from fastddpm.sampler import Sampler
from fastddpm.timing import Call, Effort
from fastddpm_bench import exported, processes
from fastddpm_bench.contest import BenchSettings, Contest, Contestant
from fastddpm_bench.subjects.variants import engines
from fastddpm_bench.workloads import MNIST

SEED = 1
EFFORT = Effort(seconds=60.0, least=5, most=15, warm_up=0)
QUICK = Effort(seconds=1.0, least=5, most=5, warm_up=0)
SAMPLER: SamplerOptions = {
    "method": "ddim",
    "prediction_type": MNIST.prediction_type,
    "clip_sample_range": 1.0,
    "shape": list(MNIST.shape),
}


class Programs:
    """Model folders of the same weights, and what the programs are told."""

    def __init__(self, batch: int, steps: int, device: torch.device) -> None:
        from fastddpm.formats.writing import save_pipeline

        self.home = tempfile.TemporaryDirectory(prefix="fastddpm-bench-")
        root = Path(self.home.name)
        unet = MNIST.unet(torch.device("cpu"))
        options: SamplerOptions = {**SAMPLER, "num_inference_steps": steps}
        self.sampler = Sampler(unet, MNIST.schedule, **options)
        self.variables: dict[str, Any] = {
            "folder": str(save_folder(root / "ours", unet, MNIST.schedule, options)),
            "diffusers_folder": str(save_pipeline(root / "diffusers", unet, MNIST.schedule, options)),
            "batch": batch,
            "steps": steps,
            "seed": SEED,
            "device": str(device),
            "threads": torch.get_num_threads(),
        }
        self.out = root / "images.npy"

    def expected_of_seeds(self) -> Tensor:
        """What `Sampler` makes of the seeds that ONNX Runtime is given."""
        seeds = range(self.variables["batch"])
        return self.sampler.sample(seeds=seeds, progress=False).clamp(-1, 1)

    def run(self, program: str, **variables: Any) -> dict[str, float]:
        """Runs a program; its images are in ``out``."""
        return processes.run(program, self.out, **self.variables, **variables)


def contests(settings: BenchSettings) -> list[Contest]:
    """One image, fifty steps."""
    steps = 10 if settings.quick else 50
    return [
        Contest(
            subject="cold_start",
            # Each has run once before, for parity.
            workload=f"{MNIST.name}, ddim, {steps} steps, one image, caches of compiled code warm",
            setup=functools.partial(Programs, 1, steps, settings.device),
            contestants=entrants(settings, _timed),
            tolerance=1e-3,
            per_name="process",
            effort=QUICK if settings.quick else EFFORT,
        )
    ]


def entrants(settings: BenchSettings, measure: Any) -> list[Contestant]:
    """diffusers, ours by engine, and ONNX Runtime; ``measure(shared, program, **variables) -> call``."""
    found = [Contestant("diffusers DDIMPipeline", functools.partial(measure, "diffusers DDIMPipeline"))]
    for engine in engines(settings):
        build = functools.partial(measure, "fastddpm.load", engine=engine)
        found.append(Contestant(f"fastddpm.load, {engine}", build, ours=True))
    if not settings.quick and not settings.is_cuda:
        build = functools.partial(_exported, measure)
        found.append(Contestant("fastddpm.onnx", build, True, Programs.expected_of_seeds))
    return found


def _exported(measure: Any, shared: Programs) -> Call:
    call: Call = measure("fastddpm.onnx", shared, onnx_folder=str(exported.folder(MNIST)))
    return call


def _timed(program: str, shared: Programs, **variables: Any) -> Call:
    def call() -> Tensor:
        shared.run(program, **variables)
        return processes.image(shared.out)

    return call
