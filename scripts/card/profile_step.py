"""The kernels of a chain: how many a step launches, how long they take together, and which they are.

python scripts/card/profile_step.py OUT [--tiny]
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile
from workload import Part, arguments, network, workload

import fastddpm
from fastddpm.plans import ddim_plan
from fastddpm.schedule import NoiseSchedule
from fastddpm.timing import make_clock
from fastddpm_bench.workloads import unet2d

MOST_ROWS = 30


def profiled(name: str, call: Callable[[], Any], device: torch.device, steps: int) -> dict[str, Any]:
    """A row: milliseconds a step by events, and the profiler's kernels by what they take together."""
    call()
    call()
    milliseconds = 1e3 * make_clock(device).time(call, 1)[0] / steps
    is_cuda = device.type == "cuda"
    with profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if is_cuda else [])]) as found:
        call()
        if is_cuda:
            torch.cuda.synchronize()
    print(f"=== {name}: {milliseconds:.3f} ms a step")
    sort = "self_device_time_total" if is_cuda else "self_cpu_time_total"
    averages = found.key_averages()
    print(averages.table(sort_by=sort, row_limit=MOST_ROWS, max_name_column_width=90))
    kernels = [event for event in averages if getattr(event, sort) > 0]
    if is_cuda:
        kernels = [event for event in kernels if event.device_type == torch.autograd.DeviceType.CUDA]
    kernels.sort(key=lambda event: -getattr(event, sort))
    return {
        "name": name,
        "ms_per_step": milliseconds,
        "launches_per_step": sum(event.count for event in kernels) / steps,
        "busy_ms_per_step": sum(getattr(event, sort) for event in kernels) / 1e3 / steps,
        "kernels": [
            {
                "name": event.key[:160],
                "per_step": event.count / steps,
                "us_per_step": getattr(event, sort) / steps,
            }
            for event in kernels[:MOST_ROWS]
        ],
    }


def main() -> None:
    """Profiles our network and a drop-in."""
    args = arguments(__doc__)
    device, steps = args.device, 1 if args.tiny else 10
    part = Part("profile", args.out)
    ours = network(args.tiny, device)
    shape, schedule = workload(args.tiny).shape, NoiseSchedule.linear(1000)
    plan = ddim_plan(schedule, steps, clip_sample_range=1.0)
    engine: Any = "eager" if args.tiny else "cudagraph"
    for batch in (2,) if args.tiny else (64, 1):
        unet = ours.to(memory_format=torch.channels_last)
        options: dict[str, Any] = {"shape": shape, "engine": engine, "precision": "bf16"}
        one = fastddpm.Sampler.from_plan(unet, schedule, plan, **options)
        words = f"Sampler, bfloat16, channels_last, {engine}, batch {batch}"
        seeds = list(range(batch))
        part.add(
            profiled(
                words, lambda one=one, seeds=seeds: one.sample(seeds=seeds, progress=False), device, steps
            )
        )
    try:
        import diffusers
    except ImportError as reason:
        part.add({"name": "optimize(pipeline)", "error": str(reason)})
        return
    pipeline = diffusers.DDIMPipeline(unet2d(ours, shape), diffusers.DDIMScheduler(clip_sample=True))
    pipeline.set_progress_bar_config(disable=True)
    fast = fastddpm.optimize(pipeline, engine=engine, precision="bf16")
    batch = 2 if args.tiny else 64

    def call() -> Any:
        return fast(batch_size=batch, num_inference_steps=steps, output_type="pt")

    part.add(
        profiled(f"optimize(pipeline), bfloat16, {engine}, batch {batch}, as it comes", call, device, steps)
    )


if __name__ == "__main__":
    main()
