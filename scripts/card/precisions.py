"""What each precision takes and gives: 50 DDIM steps of the model in the box and of the CIFAR-10 network.

    python scripts/card/precisions.py OUT [--seconds N] [--tiny]

Every precision draws the same seeds. Differences are to `highest`, in images of [-1, 1]: of the trained model
what a user would see; of random weights, which amplify, for reading beside it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from watch import Watch, differences, per_step
from workload import Part, arguments, network, workload

import fastddpm
from fastddpm.plans import ddim_plan
from fastddpm.sampler import Sampler
from fastddpm.schedule import NoiseSchedule

PRECISIONS: tuple[Any, ...] = ("highest", "tf32", "bf16", "fp16")


def samplers(tiny: bool, device: torch.device, steps: int) -> list[tuple[str, Sampler, dict[str, Any]]]:
    """Names, samplers, and what they are asked for besides seeds."""
    engine: Any = "eager" if tiny else "cudagraph"
    schedule = NoiseSchedule.linear(1000)
    plan = ddim_plan(schedule, steps, clip_sample_range=1.0)
    wide = network(tiny, device).to(memory_format=torch.channels_last)
    random = Sampler.from_plan(wide, schedule, plan, shape=workload(tiny).shape, engine=engine)
    options: dict[str, Any] = {"method": "ddim", "num_inference_steps": steps, "engine": engine}
    trained = fastddpm.load(device=str(device), **options)
    return [("the model in the box", trained, {"class_labels": 3}), ("CIFAR-10, random weights", random, {})]


def main() -> None:
    """Measures, network by network."""
    args = arguments(__doc__, seconds={"type": float, "default": 60.0})
    watch = Watch(Part("precisions", args.out), args.seconds, args.device)
    steps, batches = (2, (2,)) if args.tiny else (50, (64, 1))
    chosen = [one for one in PRECISIONS if not args.tiny or one in ("highest", "bf16")]
    for name, sampler, asked in samplers(args.tiny, args.device, steps):
        for batch in batches:
            wanted: list[Tensor] = []
            for precision in chosen:

                def figures(
                    precision: Any = precision,
                    batch: int = batch,
                    wanted: Any = wanted,
                    sampler: Sampler = sampler,
                    asked: Any = asked,
                ) -> dict[str, Any]:
                    one = sampler.replace(precision=precision)

                    def call() -> Tensor:
                        return one.sample(seeds=list(range(batch)), progress=False, **asked)

                    wanted.append(call().cpu())
                    call()
                    found = per_step(watch.seconds_of(call), steps)
                    return {**found, **differences(wanted[-1], wanted[0])}

                watch.measure({"name": f"{name}, {precision}", "batch": batch}, figures)


if __name__ == "__main__":
    main()
