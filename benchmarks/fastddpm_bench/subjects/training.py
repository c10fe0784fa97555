"""One optimiser step on a batch: noise it, predict, mean squared error, backward, AdamW."""

from __future__ import annotations

import copy
import functools
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fastddpm.timing import Call
from fastddpm.training.objective import Noiser, Objective
from fastddpm_bench.contest import BenchSettings, Contest, Contestant
from fastddpm_bench.costs import OpCost, Watch
from fastddpm_bench.subjects.variants import Layout, arranged, layouts
from fastddpm_bench.workloads import CIFAR10, MNIST, Workload, noise, schedule
from fastddpm_kernels.noise.reference import normal

SEED = 1
LEARNING_RATE = 2e-4
TRAINING_STREAM = 1


class TrainingBatch:
    """A network with its weights before training, and clean images."""

    def __init__(self, workload: Workload, size: int, device: torch.device) -> None:
        self.workload, self.device, self.size = workload, device, size
        self.unet = workload.unet(device)
        self.schedule = schedule("linear")
        self.x_0 = noise((size, *workload.shape), device).clamp(-1, 1)
        names = ("sqrt_alphas_cumprod", "sqrt_one_minus_alphas_cumprod")
        self.tables = [self.schedule.tensor(name, device=device) for name in names]
        self.ordinals = torch.arange(size, device=device)

    def noised(self, t: Tensor, z: Tensor) -> Tensor:
        """Ho et al. 2020, eq. 4."""
        a, s = (table[t][:, None, None, None] for table in self.tables)
        return a * self.x_0 + s * z

    def noiser(self) -> Noiser:
        """Ours: t and noise from the samples' ordinals."""
        return Noiser(self.schedule, Objective(), seed=SEED, device=self.device)

    def loss_of_seeds(self) -> Tensor:
        """The first loss of ours, by the formula on the noise that the specification gives."""
        t = self.noiser()(self.x_0, None, self.ordinals).t
        shape = self.workload.shape
        rows = [normal([SEED], i, shape, stream=TRAINING_STREAM) for i in range(self.size)]
        z = torch.stack([torch.as_tensor(row, dtype=torch.float32).reshape(shape) for row in rows])
        z = z.to(self.device)
        with torch.no_grad():
            return F.mse_loss(self.unet(self.noised(t, z), t), z)

    def costs(self) -> list[OpCost]:
        """Of the forward and backward passes."""
        module = copy.deepcopy(self.unet)
        t = torch.zeros(self.size, dtype=torch.int64, device=self.device)
        with torch.enable_grad(), Watch() as watch:
            module(self.x_0, t).square().mean().backward()
        costs: list[OpCost] = watch.costs
        return costs


def contests(settings: BenchSettings) -> list[Contest]:
    """The model in the box, and on a GPU the CIFAR-10 network."""
    small = 128 if settings.is_cuda else 4 if settings.quick else 32
    sizes = [(MNIST, small, False), (CIFAR10, 128, True)]
    return [
        Contest(
            subject="training",
            workload=f"{workload.name}, batch {size}",
            setup=functools.partial(TrainingBatch, workload, size, settings.device),
            contestants=_contestants(settings),
            tolerance=1e-4,
            per_name="optimiser step",
            costs=TrainingBatch.costs,
            needs_gpu=needs_gpu,
        )
        for workload, size, needs_gpu in sizes
    ]


def _contestants(settings: BenchSettings) -> list[Contestant]:
    found = [
        Contestant(f"plain{layout.name}", functools.partial(_plain, layout=layout))
        for layout in layouts(settings)
    ]
    found.append(Contestant("diffusers", _diffusers))
    for layout in layouts(settings)[1:]:
        build = functools.partial(_ours, layout=layout)
        found.append(Contestant(f"fastddpm{layout.name}", build, True, TrainingBatch.loss_of_seeds))
    return found


def _optimised(network: Any) -> Any:
    """``(loss) -> loss``: backward and a step of AdamW on the network's parameters."""
    optimizer = torch.optim.AdamW(network.parameters(), lr=LEARNING_RATE)

    def step(loss: Tensor) -> Tensor:
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad()
        return loss.detach()

    return step


def _drawn(batch: TrainingBatch, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Random timesteps and noise as plain training code draws them."""
    device = batch.device
    t = torch.randint(0, len(batch.schedule), (batch.size,), generator=generator, device=device)
    return t, torch.randn(batch.x_0.shape, generator=generator, device=device)


def _plain(batch: TrainingBatch, layout: Layout) -> Call:
    network = arranged(batch.unet, layout).train()
    step = _optimised(network)
    generator = torch.Generator(batch.device).manual_seed(SEED)

    def call() -> Tensor:
        t, z = _drawn(batch, generator)
        loss: Tensor = step(F.mse_loss(network(batch.noised(t, z), t), z))
        return loss

    return call


def _diffusers(batch: TrainingBatch) -> Call:
    from diffusers.schedulers.scheduling_ddpm import DDPMScheduler

    scheduler = DDPMScheduler(len(batch.schedule), beta_start=1e-4, beta_end=0.02)
    network = batch.workload.unet2d(batch.unet).train()
    step = _optimised(network)
    generator = torch.Generator(batch.device).manual_seed(SEED)

    def call() -> Tensor:
        t, z = _drawn(batch, generator)
        loss: Tensor = step(F.mse_loss(network(scheduler.add_noise(batch.x_0, z, t), t).sample, z))
        return loss

    return call


def _ours(batch: TrainingBatch, layout: Layout) -> Call:
    network = arranged(batch.unet, layout).train()
    step = _optimised(network)
    noiser = batch.noiser()
    first = 0

    def call() -> Tensor:
        nonlocal first
        noised = noiser(batch.x_0, None, batch.ordinals + first)
        first += batch.size
        loss: Tensor = step(noiser.loss(network(noised.x_t, noised.t), noised))
        return loss

    return call
