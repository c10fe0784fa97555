"""End to end: 50 DDIM steps of the CIFAR-10 UNet (random weights), other people's and ours, at four batches.

    python scripts/card/speed.py OUT --seconds 240 [--only WORDS] [--tiny]

Every row is printed and saved as it is measured, the most telling first, so that a time limit loses only
what would have come after. Images of two steps are held to those of the first contestant of the same dtype
and batch: over fifty steps of random weights right chains come as far apart as wrong ones. In bfloat16, and
in float32 as torch is set, which on a card has TF32 in convolutions, kernels that are all right give other
roundings: `largest_difference` is for reading, the exact checks are the doctor's.
"""

from __future__ import annotations

import dataclasses
import time
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from watch import Watch, per_step
from workload import Part, arguments, network, workload

import fastddpm
from fastddpm.plans import ddim_plan
from fastddpm.schedule import NoiseSchedule
from fastddpm.unet import UNet
from fastddpm_bench.subjects.pipelines import BRIEF
from fastddpm_bench.subjects.variants import (
    AS_IT_COMES,
    CHANNELS_LAST,
    REDUCED,
    TUNED,
    Layout,
    arranged,
    in_bfloat16,
)
from fastddpm_bench.workloads import unet2d

GFLOP = 12.44  # of one evaluation for one image: scripts/roofline.py
PEAK = 989.4e12  # dense bfloat16 of an H100 SXM, NVIDIA's data sheet

Draw = Callable[..., Tensor]
"""Images, of the field's steps or of so many."""


@dataclasses.dataclass(frozen=True)
class Field:
    """What the contestants share.

    Attributes:
        unet: our network, float32, on the device.
        steps: of a chain.
        tiny: on the CPU, where nothing is captured or compiled.
    """

    unet: UNet
    shape: tuple[int, int, int]
    device: torch.device
    steps: int
    tiny: bool

    def generator(self) -> torch.Generator:
        """The same start for everybody."""
        return torch.Generator(self.device).manual_seed(1)

    def pipeline(self) -> Any:
        """diffusers' pipeline around its own network with our weights."""
        import diffusers

        diffusers.utils.logging.set_verbosity_error()
        scheduler = diffusers.DDIMScheduler(beta_start=1e-4, beta_end=0.02, clip_sample=True)
        made = diffusers.DDIMPipeline(unet2d(self.unet, self.shape).requires_grad_(False), scheduler)
        made.set_progress_bar_config(disable=True)
        return made

    def called(self, pipeline: Any, batch: int) -> Draw:
        """The pipeline's call: images as it returns them."""

        def draw(steps: int | None = None) -> Tensor:
            options = {"num_inference_steps": steps or self.steps, "output_type": "np"}
            return torch.as_tensor(pipeline(batch, generator=self.generator(), **options).images)

        return draw

    def engine(self, name: str) -> Any:
        """The engine, or eager steps where there is no card."""
        return "eager" if self.tiny else name


@dataclasses.dataclass(frozen=True)
class Contestant:
    """One way of drawing the images.

    Attributes:
        name: as tables show it.
        ours: this project's.
        make: ``(field, dtype, batch) -> draw``.
        compiles: takes a minute or so to begin.
    """

    name: str
    ours: bool
    make: Callable[[Field, torch.dtype, int], Draw]
    compiles: bool = False


def theirs(layout: Layout = AS_IT_COMES, benchmark: bool = False) -> Callable[..., Draw]:
    """diffusers' pipeline, its network eager or compiled, around a float32 state as ours.

    With ``benchmark`` cuDNN tries its kernels, as of :func:`sampler`.
    """

    def make(field: Field, dtype: torch.dtype, batch: int) -> Draw:
        torch.backends.cudnn.benchmark = benchmark
        pipeline = field.pipeline()
        chosen = layout._replace(compiled=None) if field.tiny else layout
        change = in_bfloat16 if dtype == torch.bfloat16 else arranged
        pipeline.unet = change(pipeline.unet, chosen)
        return field.called(pipeline, batch)

    return make


def optimized(engine: str) -> Callable[..., Draw]:
    """`fastddpm.optimize` of the pipeline."""

    def make(field: Field, dtype: torch.dtype, batch: int) -> Draw:
        fast = fastddpm.optimize(field.pipeline(), engine=field.engine(engine), precision=_precision(dtype))
        return field.called(fast, batch)

    return make


def sampler(
    engine: str, layout: torch.memory_format = torch.channels_last, benchmark: bool = False
) -> Callable[..., Draw]:
    """`Sampler` on our network; with ``benchmark`` cuDNN tries its kernels before the capture."""

    def make(field: Field, dtype: torch.dtype, batch: int) -> Draw:
        torch.backends.cudnn.benchmark = benchmark  # part of the loop's key
        schedule = NoiseSchedule.linear(1000)
        plan = ddim_plan(schedule, field.steps, clip_sample_range=1.0)
        unet = field.unet.to(memory_format=layout)
        options: dict[str, Any] = {"engine": field.engine(engine), "precision": _precision(dtype)}
        fast = fastddpm.Sampler.from_plan(unet, schedule, plan, shape=field.shape, **options)

        def draw(steps: int | None = None) -> Tensor:
            if steps is not None:
                fast.plan = ddim_plan(schedule, steps, clip_sample_range=1.0)
            x = fast.sample(batch, noise="torch", generator=field.generator(), progress=False)
            return (x / 2 + 0.5).clamp(0, 1).cpu().permute(0, 2, 3, 1)

        return draw

    return make


def _precision(dtype: torch.dtype) -> Any:
    return "bf16" if dtype == torch.bfloat16 else None


REDUCE_OVERHEAD = "diffusers, reduce-overhead, channels_last"
CONTESTANTS = [
    Contestant("diffusers, eager", False, theirs()),
    Contestant("diffusers, eager, channels_last", False, theirs(CHANNELS_LAST)),
    Contestant("diffusers, eager, channels_last, cudnn.benchmark", False, theirs(CHANNELS_LAST, True)),
    Contestant("optimize(pipeline), cudagraph", True, optimized("cudagraph")),
    Contestant("Sampler, cudagraph", True, sampler("cudagraph")),
    Contestant("Sampler, cudagraph, cudnn.benchmark", True, sampler("cudagraph", benchmark=True)),
    Contestant(REDUCE_OVERHEAD, False, theirs(REDUCED), compiles=True),
    Contestant("Sampler, compile", True, sampler("compile"), compiles=True),
    Contestant("optimize(pipeline), compile", True, optimized("compile"), compiles=True),
    Contestant("Sampler, max", True, sampler("max"), compiles=True),
    Contestant(f"{REDUCE_OVERHEAD}, cudnn.benchmark", False, theirs(REDUCED, True), compiles=True),
    Contestant(f"{REDUCE_OVERHEAD}, max-autotune", False, theirs(TUNED), compiles=True),
]
CONTIGUOUS = Contestant(
    "Sampler, cudagraph, contiguous weights", True, sampler("cudagraph", torch.contiguous_format)
)


def heats(tiny: bool) -> list[tuple[Contestant, torch.dtype, int]]:
    """Who runs in what at which batch, the most telling first."""
    bf16, fp32 = torch.bfloat16, torch.float32
    quick = [one for one in CONTESTANTS if not one.compiles]
    slow = [one for one in CONTESTANTS if one.compiles]
    if tiny:
        few = [CONTESTANTS[0], *(one for one in quick if one.ours)][:3]
        return [(one, fp32, 2) for one in few] + [(one, bf16, 2) for one in (few[0], few[2])]
    # What takes seconds, then the two that everything else is held to, then what else takes a minute.
    telling, others = slow[:2], slow[2:]
    found = [(one, bf16, batch) for batch in (64, 1) for one in quick]
    found += [(one, bf16, batch) for batch in (64, 1) for one in telling]
    found += [(one, bf16, 256) for one in (*quick, *telling)] + [(CONTIGUOUS, bf16, 64)]
    found += [(one, bf16, batch) for batch in (64, 1, 256) for one in others]
    found += [(one, bf16, 16) for one in quick]
    found += [(one, fp32, batch) for batch in (64, 1, 256, 16) for one in quick]
    return found + [(one, bf16, 16) for one in slow] + [(one, fp32, 64) for one in slow]


class Stopwatch:
    """Measures heats until the time is up.

    Args:
        field: what they share.
        part: where rows go.
        seconds: for all.
    """

    def __init__(self, field: Field, part: Part, seconds: float) -> None:
        self.field, self.watch = field, Watch(part, seconds, field.device)
        self.references: dict[tuple[torch.dtype, int], Tensor] = {}

    def measure(self, contestant: Contestant, dtype: torch.dtype, batch: int) -> None:
        """Adds a row: figures, or why there are none."""
        row: dict[str, Any] = {"name": contestant.name, "ours": contestant.ours, "batch": batch}
        row |= {"dtype": str(dtype).removeprefix("torch."), "steps": self.field.steps}
        try:
            self.watch.measure(
                row, lambda: self._figures(contestant, dtype, batch), 70 if contestant.compiles else 40
            )
        finally:
            torch.backends.cudnn.benchmark = False
            if contestant.compiles and not self.field.tiny:
                # What a time limit cut short of one is no part of the next.
                torch.compiler.reset()

    def _figures(self, contestant: Contestant, dtype: torch.dtype, batch: int) -> dict[str, Any]:
        began = time.perf_counter()
        draw = contestant.make(self.field, dtype, batch)
        draw()
        first = time.perf_counter() - began
        draw()
        # Its images come to the host, so that it has ended.
        taken, steps = self.watch.seconds_of(draw), self.field.steps
        # At last: graphs are as long as what is asked for first.
        image = draw(BRIEF)
        reference = self.references.setdefault((dtype, batch), image)
        figures = per_step(taken, steps)
        rate = GFLOP * 1e12 * batch / figures["ms_per_step"]
        reserved = torch.cuda.memory_reserved() if self.field.device.type == "cuda" else 0
        return {
            **figures,
            "images_per_s": 1e3 * batch / (figures["ms_per_step"] * steps),
            "percent_of_peak": None if self.field.tiny else 100 * rate / PEAK,
            "first_s": first,
            "largest_difference": float((image - reference).abs().max()),
            "mean_difference": float((image - reference).abs().mean()),
            "reserved_gib": reserved / 2**30,
        }


def main() -> None:
    """Measures from the command line."""
    seconds, only = {"type": float, "default": 240.0}, {"default": ""}
    args = arguments(__doc__, seconds=seconds, only=only)
    warnings.filterwarnings("ignore", message=".*float32.*")
    shape = workload(args.tiny).shape
    field = Field(network(args.tiny, args.device), shape, args.device, 2 if args.tiny else 50, args.tiny)
    part = Part("speed", args.out, gflop_of_an_evaluation=GFLOP, peak_flop_per_s=PEAK)
    watch = Stopwatch(field, part, args.seconds)
    for contestant, dtype, batch in heats(args.tiny):
        if args.only in contestant.name:
            watch.measure(contestant, dtype, batch)


if __name__ == "__main__":
    main()
