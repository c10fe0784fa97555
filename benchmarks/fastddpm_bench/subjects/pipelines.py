"""Whole chains: diffusers' pipelines in every layout, a plain loop, ONNX Runtime, and ours, at one seed.

Every contestant makes the same images: the start and each step's noise are drawn from one generator, in the
pipelines' order. Images are compared as the pipelines return them, (B, H, W, C) in [0, 1].
"""

from __future__ import annotations

import copy
import dataclasses
import functools
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor

import fastddpm
from fastddpm.network import unwrapped
from fastddpm.plans import Plan, ddim_plan, ddpm_plan
from fastddpm.sampler import Sampler
from fastddpm.timing import Call
from fastddpm_bench import exported
from fastddpm_bench.contest import BenchSettings, Contest, Contestant
from fastddpm_bench.costs import OpCost, watched
from fastddpm_bench.subjects.variants import Layout, arranged, engines, in_bfloat16, layouts
from fastddpm_bench.workloads import CIFAR10, MNIST, PHOTO, PIXELS_64, PIXELS_256, Workload

SEED = 1
FULL_STEPS = 1000
BRIEF = 2
"""Steps over which rounding does not grow."""
BATCHES = (1, 4, 16, 64, 256)
"""Of the CIFAR-10 network on a GPU: the time of one image, and how many a second."""
BETA_SCHEDULES = {"linear": "linear", "cosine": "squaredcos_cap_v2"}
"""diffusers' names."""


@dataclasses.dataclass
class Chain:
    """A network, a method and a number of steps: what the contestants of a chain share."""

    workload: Workload
    method: Literal["ddim", "ddpm"]
    batch: int
    steps: int
    device: torch.device
    precision: Literal["bf16"] | None = None

    def __post_init__(self) -> None:
        self.unet = self.workload.unet(self.device)
        self.schedule = self.workload.schedule
        self.shape = (self.batch, *self.workload.shape)

    @property
    def layout(self) -> Layout:
        """Of the network that ours is given: the model in the box comes in channels_last, others as they are.

        On a GPU convolutions want channels_last.
        """
        return Layout("", self.workload is MNIST or self.device.type == "cuda")

    def network(self, module: Any, layout: Layout) -> Any:
        """A network of other people's in a layout, and in what the chain is computed in."""
        return arranged(module, layout) if self.precision is None else in_bfloat16(module, layout)

    def plan(self) -> Plan:
        """The pipelines' steps: x0 clipped to +-1, and in DDIM the network's own eps kept."""
        make = ddim_plan if self.method == "ddim" else ddpm_plan
        prediction_type = self.workload.prediction_type
        return make(self.schedule, self.steps, prediction_type=prediction_type, clip_sample_range=1.0)

    def pipeline(self, layout: Layout, *, ours: bool = False) -> Any:
        """diffusers' pipeline around the network in a layout; for ours, in float32, which casts it itself."""
        import diffusers

        kind = "DDIM" if self.method == "ddim" else "DDPM"
        scheduler = getattr(diffusers, f"{kind}Scheduler")(
            num_train_timesteps=FULL_STEPS,
            beta_start=1e-4,
            beta_end=0.02,
            beta_schedule=BETA_SCHEDULES[self.workload.schedule_name],
            prediction_type=self.workload.prediction_type,
            clip_sample=True,
        )
        unet = self.workload.unet2d(self.unet)
        pipeline = getattr(diffusers, f"{kind}Pipeline")(unet, scheduler)
        pipeline.set_progress_bar_config(disable=True)
        # Set afterwards: its own check of classes does not know compiled modules.
        pipeline.unet = arranged(unet, layout) if ours else self.network(unet, layout)
        return pipeline

    def costs(self) -> list[OpCost]:
        """Of the network's passes; the update of x could ride along with its last convolution."""
        unet = self.unet if self.precision is None else copy.deepcopy(self.unet).bfloat16()
        x, t = torch.zeros(self.shape, device=self.device), torch.zeros(self.batch, device=self.device)
        return watched(lambda: unet(x.to(unet.dtype), t.long())) * self.steps


def contests(settings: BenchSettings) -> list[Contest]:
    """The model in the box by DDIM, and each DDPM checkpoint's architecture by DDPM, a few of its steps.

    On a GPU the CIFAR-10 network comes first, by DDIM, in bfloat16 and in float32, in batches of 1 to 256.
    """
    few = 10 if settings.quick else 50
    sizes: list[tuple[Workload, str, int, int, Literal["bf16"] | None]] = []
    if settings.is_cuda:
        sizes += [(CIFAR10, "ddim", batch, few, "bf16") for batch in ((64, 1) if settings.quick else BATCHES)]
        if not settings.quick:
            sizes += [(CIFAR10, "ddim", batch, few, None) for batch in BATCHES]
            sizes += [(PIXELS_64, "ddpm", 16, 50, None), (PIXELS_256, "ddpm", 4, 50, None)]
    sizes.append((MNIST, "ddim", 64 if settings.is_cuda else 8, few, None))
    if not settings.quick and not settings.is_cuda:
        sizes += [(MNIST, "ddim", 1, few, None), (MNIST, "ddim", 32, 5, None)]
        sizes += [(CIFAR10, "ddpm", 2, 10, None), (CIFAR10, "ddpm", 1, 10, None)]
        sizes += [(PHOTO, "ddpm", 1, 10, None), (PHOTO, "ddpm", 2, 10, None)]
        sizes += [(PIXELS_64, "ddpm", 16, 50, None), (PIXELS_256, "ddpm", 4, 50, None)]
    return [
        chain_contest("pipelines", workload, method, batch, steps, settings, precision)
        for workload, method, batch, steps, precision in sizes
    ]


def chain_contest(
    subject: str,
    workload: Workload,
    method: Any,
    batch: int,
    steps: int,
    settings: BenchSettings,
    precision: Literal["bf16"] | None = None,
) -> Contest:
    """Everybody's chain of some steps, in float32 or with the network in bfloat16."""
    in_words = "" if precision is None else f", {precision}"
    # Of random weights that keep their own eps: by ten steps in bfloat16, and by fifty in float32, two
    # layouts on a CPU come 0.7 of 1 apart.
    grows = workload.options is not None and method == "ddim"
    brief = functools.partial(Chain, workload, method, batch, BRIEF, settings.device, precision)
    return Contest(
        subject=subject,
        workload=f"{workload.name}, {method}, {steps} steps, batch {batch}{in_words}",
        setup=functools.partial(Chain, workload, method, batch, steps, settings.device, precision),
        contestants=contestants(
            settings, with_onnx=workload in (MNIST, CIFAR10, PHOTO), in_float32=precision is None
        ),
        # Our plans are computed in float64 and theirs in float32, and layouts sum in other orders: over a
        # chain that is below what a uint8 level shows (1/255 in [0, 1]), as asked of any two backends.
        # In bfloat16 two right chains of the model in the box differ by 7e-3, and each by 4e-2 from float32;
        # those of the CIFAR-10 network's random weights by 1.4e-2 after two steps, which is what is compared.
        tolerance=1e-3 if precision is None else 0.1,
        per=steps,
        per_name="step",
        costs=Chain.costs,
        full_steps=FULL_STEPS if method == "ddpm" else 0,
        needs_gpu=workload.needs_gpu,
        isolated=True,
        brief=brief if grows else None,
    )


def contestants(
    settings: BenchSettings, *, with_onnx: bool = False, in_float32: bool = True
) -> list[Contestant]:
    """The pipelines, plain loops, ONNX Runtime on a CPU, and ours."""
    found = [
        Contestant(f"diffusers{layout.name}", functools.partial(theirs, layout=layout))
        for layout in layouts(settings)
    ]
    found += [
        Contestant(f"plain loop{layout.name}", functools.partial(plain, layout=layout))
        for layout in layouts(settings)
    ]
    if with_onnx and not settings.is_cuda:
        found.append(Contestant("plain loop, OpenVINO", plain_openvino))
    if with_onnx and not settings.is_cuda and in_float32:
        found.append(Contestant("plain loop, ONNX Runtime", plain_onnxruntime))
    if with_onnx and not settings.is_cuda and in_float32 and not settings.quick:
        for name, loop in (("whole chain", "file"), ("step by step", "steps")):
            run = functools.partial(onnx_chain, loop=loop)
            found.append(Contestant(f"fastddpm.onnx, {name}", run, ours=True, expected=of_philox))
    for engine in engines(settings, in_float32=in_float32):
        found.append(Contestant(f"fastddpm.optimize, {engine}", functools.partial(ours, engine=engine), True))
        found.append(Contestant(f"Sampler, {engine}", functools.partial(sampler, engine=engine), True))
    return found


def theirs(chain: Chain, layout: Any) -> Call:
    """The pipeline's own call."""
    return _called(chain, chain.pipeline(layout))


def ours(chain: Chain, engine: Any) -> Call:
    """The drop-in's call, which is the pipeline's."""
    pipeline = chain.pipeline(chain.layout, ours=True)
    return _called(chain, fastddpm.optimize(pipeline, engine=engine, precision=chain.precision))


def sampler(chain: Chain, engine: Any, precision: Any = None) -> Call:
    """`Sampler` on the same plan, in the chain's precision or another; noise as the pipelines draw it."""
    unet = chain.unet
    module = arranged(unet, chain.layout)
    options = {"shape": chain.shape[1:], "engine": engine, "precision": precision or chain.precision}
    fast = Sampler.from_plan(module, chain.schedule, chain.plan(), **options)
    return lambda: as_pipeline(
        fast.sample(chain.batch, noise="torch", generator=_generator(), progress=False)
    )


def plain(chain: Chain, layout: Any) -> Call:
    """What one writes with the paper open: the network, then the formulas, on tensors of the device."""
    network = chain.network(chain.unet, layout)
    return plain_loop(chain, lambda x, t: unwrapped(network(x, t)))


def plain_onnxruntime(chain: Chain) -> Call:
    """The same loop around the network in ONNX Runtime."""
    return plain_loop(chain, exported.by_onnxruntime(chain.workload, chain.batch))


def plain_openvino(chain: Chain) -> Call:
    """The same loop around the network in OpenVINO, in the chain's precision."""
    precision: Literal["f32", "bf16"] = "f32" if chain.precision is None else "bf16"
    return plain_loop(chain, exported.by_openvino(chain.workload, chain.batch, precision))


def plain_loop(chain: Chain, network: Callable[[Tensor, Tensor], Tensor]) -> Call:
    """The loop of the paper around ``network(x, t)``."""
    abar = chain.schedule.tensor("alphas_cumprod", device=chain.device)
    one = torch.ones_like(abar[0])
    timesteps = [int(t) for t in chain.plan().timesteps]
    step = ddim_step if chain.method == "ddim" else ddpm_step

    @torch.no_grad()
    def call() -> Tensor:
        generator = _generator()
        x = torch.randn(chain.shape, generator=generator).to(chain.device)
        for t, s in zip(timesteps, [*timesteps[1:], None], strict=True):
            m = network(x, torch.full((chain.batch,), t, device=chain.device))
            x_0, eps = predicted(x, m, abar[t], chain.workload.prediction_type)
            a_s = one if s is None else abar[s]
            x = step(x, x_0.clamp(-1, 1), eps, abar[t], a_s, None if s is None else generator)
        return as_pipeline(x)

    return call


def predicted(x: Tensor, m: Tensor, a_t: Tensor, prediction_type: str) -> tuple[Tensor, Tensor]:
    """x0 and eps from what the network predicts, eps or v (Salimans and Ho 2022)."""
    if prediction_type == "epsilon":
        return (x - (1 - a_t).sqrt() * m) / a_t.sqrt(), m
    return a_t.sqrt() * x - (1 - a_t).sqrt() * m, a_t.sqrt() * m + (1 - a_t).sqrt() * x


def ddim_step(x: Tensor, x_0: Tensor, eps: Tensor, a_t: Tensor, a_s: Tensor, generator: Any) -> Tensor:
    """Song et al. 2021, eq. 12 with sigma = 0."""
    return a_s.sqrt() * x_0 + (1 - a_s).sqrt() * eps


def ddpm_step(x: Tensor, x_0: Tensor, eps: Tensor, a_t: Tensor, a_s: Tensor, generator: Any) -> Tensor:
    """Ho et al. 2020, eq. 7, between the timesteps of a shorter chain; without a generator no noise."""
    alpha = a_t / a_s
    beta = 1 - alpha
    x = a_s.sqrt() * beta / (1 - a_t) * x_0 + alpha.sqrt() * (1 - a_s) / (1 - a_t) * x
    if generator is None:
        return x
    z = torch.randn(x.shape, generator=generator).to(x.device)
    return x + (beta * (1 - a_s) / (1 - a_t)).sqrt() * z


def onnx_chain(chain: Chain, loop: Any) -> Call:
    """`fastddpm.onnx.OnnxSampler`, the whole chain in one run or a run a step; noise from seeds alone."""
    run = exported.chain(chain.workload, chain.method, chain.steps, loop)
    return lambda: as_pipeline(run(list(range(chain.batch))))


def of_philox(chain: Chain) -> Tensor:
    """What `Sampler` makes of the seeds that ONNX Runtime is given."""
    return as_pipeline(_native(chain, "eager").sample(seeds=range(chain.batch), progress=False))


def _native(chain: Chain, engine: Any) -> Sampler:
    options: dict[str, Any] = {
        "method": chain.method,
        "prediction_type": chain.workload.prediction_type,
        "num_inference_steps": chain.steps,
        "clip_sample_range": 1.0,
    }
    return Sampler(chain.unet, chain.schedule, shape=chain.shape[1:], engine=engine, **options)


def as_pipeline(x: Tensor) -> Tensor:
    """(B, C, H, W) in [-1, 1] as pipelines return it: (B, H, W, C) in [0, 1], on the CPU."""
    return (x / 2 + 0.5).clamp(0, 1).cpu().permute(0, 2, 3, 1)


def _called(chain: Chain, pipeline: Any) -> Call:
    def call() -> Tensor:
        output = pipeline(
            batch_size=chain.batch,
            generator=_generator(),
            num_inference_steps=chain.steps,
            output_type="np",
        )
        return torch.as_tensor(output.images)

    return call


def _generator() -> torch.Generator:
    return torch.Generator().manual_seed(SEED)


def few_contestants(settings: BenchSettings) -> list[Contestant]:
    """The pipeline and the plain loop, as they come and at their fastest, and `Sampler`: for sweeps."""
    fastest = layouts(settings)[-1].name
    theirs = [f"{who}{how}" for who in ("diffusers", "plain loop") for how in ("", fastest)]
    return [
        found for found in contestants(settings) if found.name in theirs or found.name.startswith("Sampler")
    ]
