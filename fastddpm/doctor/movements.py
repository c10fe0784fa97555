"""The kernels as samplers, trainers and networks call them, each with the bytes that it must move.

What `bandwidth` measures. The bytes are the operators' own count (`fastddpm_kernels.traffic`).
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

import fastddpm_kernels
from fastddpm.plans import Plan, ddim_plan, ddpm_plan, dpmpp_2m_plan
from fastddpm.schedule import NoiseSchedule
from fastddpm_kernels.compat import runs_kernels
from fastddpm_kernels.group_norm_silu import reference as norm_reference
from fastddpm_kernels.noise_mse import reference as loss_reference
from fastddpm_kernels.q_sample import reference as q_sample_reference
from fastddpm_kernels.reverse_step import reference as step_reference
from fastddpm_kernels.traffic import size

Call = Callable[[], object]
Map = tuple[int, int]

CIFAR10_MAPS: tuple[Map, ...] = (
    *((128, 32), (256, 32), (384, 32)),
    *((128, 16), (256, 16), (384, 16), (512, 16)),
    *((256, 8), (512, 8), (256, 4), (512, 4)),
)
"""Channels and side of what the network of google/ddpm-cifar10-32 normalises."""

LARGE_MAPS: tuple[Map, ...] = (
    *((128, 256), (256, 256), (128, 128), (256, 128), (384, 128)),
    *((128, 64), (256, 64), (384, 64), (512, 64), (256, 32), (512, 32), (768, 32)),
    *((256, 16), (512, 16), (768, 16), (1024, 16), (512, 8), (1024, 8)),
)
"""The same of the network of google/ddpm-celebahq-256, 256x256 pixels."""

META = torch.device("meta")
"""Tensors whose bytes are counted and that nobody reads."""

NUM_GROUPS = 32
ROW = 10
STEPS: dict[str, dict[str, bool]] = {
    "ddpm": {},
    "ddim": {},
    "ddim, eta 1": {},
    "guidance": {"guided": True},
    "dpmpp_2m": {},
}
"""Kinds of steps, with what their plans do not say. Guidance is a DDPM row, on a doubled output."""


@dataclasses.dataclass(frozen=True)
class Movement:
    """An operator on tensors of a shape.

    Attributes:
        name: operator, dtype and layout, case, shape.
        n_bytes: that a call must read and write.
        footprint: bytes of the tensors that they are in; less where one is read and written.
        make: gives a call on buffers of its own, which returns what it allocates.
    """

    name: str
    n_bytes: int
    footprint: int
    make: Callable[[], Call]


def copy(n_bytes: int, device: torch.device) -> Movement:
    """A copy that reads and writes as many bytes together, to the next eight."""
    count = max(n_bytes // 8, 1)

    def make() -> Call:
        source = torch.randn(count, device=device)
        target = torch.empty_like(source)
        return lambda: target.copy_(source)

    return Movement(f"copy, {8 * count / 2**20:.4g} MiB", 8 * count, 8 * count, make)


def steps(shape: tuple[int, ...], device: torch.device) -> list[Movement]:
    """`reverse_step` with the row of every kind of plan, the output m in float32 and as networks give it."""
    kinds = ((torch.float32, torch.contiguous_format), (torch.bfloat16, torch.channels_last))
    return [_step(name, shape, dtype, layout, device) for dtype, layout in kinds for name in STEPS]


def _plan(name: str) -> Plan:
    schedule = NoiseSchedule.linear()
    if name in ("ddpm", "guidance"):
        return ddpm_plan(schedule, num_inference_steps=50, clip_sample_range=1.0)
    if name == "dpmpp_2m":
        return dpmpp_2m_plan(schedule, num_inference_steps=50, clip_sample_range=1.0)
    eta = 1.0 if "eta" in name else 0.0
    return ddim_plan(schedule, eta=eta, num_inference_steps=50, clip_sample_range=1.0)


def _step(
    name: str, shape: tuple[int, ...], dtype: torch.dtype, layout: torch.memory_format, device: torch.device
) -> Movement:
    plan, guided = _plan(name), STEPS[name].get("guided", False)
    table = torch.tensor(plan.table, device=device)
    counter = torch.tensor([[ROW, 0]], device=device).repeat(shape[0], 1)
    seeds = torch.arange(shape[0], device=device) if plan.stochastic else None
    scales = torch.ones(shape[0], device=device) if guided else None
    rows = shape[0] * (2 if guided else 1)

    def arguments(device: torch.device) -> step_reference.Arguments:
        x = _normal(shape, device)
        m = _normal((rows, *shape[1:]), device, dtype, layout)
        kept = _normal((1, *shape), device) if plan.kept else None
        return step_reference.Arguments(
            x,
            m,
            table,
            counter,
            seeds,
            guidance=scales,
            kept=kept,
            clip=plan.clip,
        )

    def make() -> Call:
        given = arguments(device)._asdict()
        return lambda: fastddpm_kernels.reverse_step(**given)

    sized = arguments(META)
    footprint = size(sized.x, sized.m, sized.kept)
    words = f"reverse_step, m {_kind(dtype, layout)}, {name}, {_words(shape)}"
    return Movement(words, sized.traffic().bytes, footprint, make)


def training(shape: tuple[int, ...], device: torch.device) -> list[Movement]:
    """`q_sample`, its noise drawn, and `noise_mse` forward and backward."""
    seeds = torch.arange(shape[0], device=device)
    t, signal = seeds % 10, torch.linspace(0.9, 0.1, 10, device=device)

    def noised() -> Call:
        x_0 = _normal(shape, device)
        return lambda: fastddpm_kernels.q_sample(x_0, t, signal, signal, seeds=seeds, ordinals=seeds)

    def loss(dtype: torch.dtype) -> Call:
        prediction = _normal(shape, device, dtype)
        return lambda: fastddpm_kernels.noise_mse(prediction, seeds, seeds)

    def gradient(dtype: torch.dtype) -> Call:
        return _gradient(_normal(shape, device, dtype), seeds)

    sized = q_sample_reference.Arguments(_normal(shape, META), t, signal, signal, None, seeds, seeds)
    n_bytes = sized.traffic().bytes
    found = [Movement(f"q_sample, noise drawn, {_words(shape)}", n_bytes, n_bytes, noised)]
    for dtype in (torch.float32, torch.bfloat16):
        loss_arguments = loss_reference.Arguments(_normal(shape, META, dtype), seeds, seeds)
        for name, backward, make in (("forward", False, loss), ("backward", True, gradient)):
            words = f"noise_mse {_kind(dtype)}, {name}, {_words(shape)}"
            n_bytes = loss_arguments.traffic(backward=backward).bytes
            found.append(Movement(words, n_bytes, n_bytes, functools.partial(make, dtype)))
    return found


def _gradient(prediction: Tensor, seeds: Tensor) -> Call:
    """The gradient alone, as autograd runs it after the loss; where no kernel runs, both."""
    if runs_kernels(prediction.device):
        from fastddpm_kernels.noise_mse.kernel import noise_mse_backward_op

        slopes = torch.full((len(prediction),), 1 / len(prediction), device=prediction.device)
        return lambda: noise_mse_backward_op(slopes, prediction, seeds, seeds, "l2", None, None, None)
    prediction.requires_grad_()

    def both() -> object:
        with torch.enable_grad():
            return torch.autograd.grad(fastddpm_kernels.noise_mse(prediction, seeds, seeds), prediction)

    return both


def norms(maps: tuple[Map, ...], batch: int, device: torch.device) -> list[Movement]:
    """`group_norm_silu` in bfloat16 with a convolution's bias before it: channels_last, as networks run on a
    card, and contiguous, as one runs that nobody arranged."""
    layouts = (torch.channels_last, torch.contiguous_format)
    return [_norm((batch, c, side, side), layout, device) for layout in layouts for c, side in maps]


def plain_norms(maps: tuple[Map, ...], batch: int, device: torch.device) -> list[Movement]:
    """torch's own two operators on channels_last maps, in the bytes that one kernel would move."""
    return [_norm((batch, c, side, side), torch.channels_last, device, plain=True) for c, side in maps]


def _norm(
    shape: tuple[int, ...], layout: torch.memory_format, device: torch.device, *, plain: bool = False
) -> Movement:
    dtype = torch.bfloat16
    weight, bias = (_normal(shape[1:2], device, dtype) for _ in range(2))
    pre_bias = _normal((1, shape[1]), device, dtype)
    affine = (NUM_GROUPS, weight, bias, 1e-6)

    def make() -> Call:
        x = _normal(shape, device, dtype, layout)
        if plain:
            return lambda: F.silu(F.group_norm(x, *affine))
        return lambda: fastddpm_kernels.group_norm_silu(x, *affine, pre_bias=pre_bias)

    n_bytes = norm_reference.Arguments(_normal(shape, META, dtype), *affine).traffic().bytes
    name = "torch's group_norm, then silu," if plain else "group_norm_silu"
    return Movement(f"{name} {_kind(dtype, layout)}, {_words(shape)}", n_bytes, n_bytes, make)


def _normal(
    shape: tuple[int, ...],
    device: torch.device,
    dtype: torch.dtype = torch.float32,
    layout: torch.memory_format = torch.contiguous_format,
) -> Tensor:
    drawn = torch.randn(shape, device=device, dtype=dtype)
    return drawn if layout is torch.contiguous_format else drawn.to(memory_format=layout)


def _kind(dtype: torch.dtype, layout: torch.memory_format = torch.contiguous_format) -> str:
    name = str(dtype).removeprefix("torch.")
    return name if layout is torch.contiguous_format else f"{name} channels_last"


def _words(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))
