"""The training loss and its gradient, each in one pass over the prediction; the noise is drawn in registers.

    target = z   or   signal*z - sigma*x_0               z: stream 1 of the noise spec, as in q_sample
    u      = prediction - target
    loss_i = 1/n sum_e d(u_ie)                           d(u) = u**2, |u| or Huber's with delta 1
    grad   = grad_i/n d'(u)

prediction and its gradient are float32, float16 or bfloat16 (B, C, H, W), contiguous or channels_last, x_0
float32 contiguous, signal, sigma and grad_i float32 (B,), seeds and ordinals int64 (B,). Sums are float32:
one per program, added up by torch, so that a result does not depend on which program ends first.

Bytes per element: read prediction (4, or 2 in half precision): 4 or 2; the gradient reads it again and
writes as much: 8 or 4. x_0 (4) is read both times where there is one.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.library import triton_op

from ..compat import wrap_triton
from ..launch import BLOCK_SIZE, division, geometry
from ..noise.kernel import box_muller, lanes, normals, philox
from ..q_sample.reference import TRAINING_NOISE_STREAM
from .reference import Arguments

STREAM = tl.constexpr(TRAINING_NOISE_STREAM)

TILE_ELEMENTS = 4 * BLOCK_SIZE

WARPS = {"num_warps": 1}
"""32 elements to a thread: the kernel's time is its instructions, and they share those for keys and
addresses."""


@triton.jit
def training_noise(seeds_ptr, ordinals_ptr, sample, line):
    """The four normals of each counter of `line`, int32 (BLOCK,): z_i of element line + i*plane."""
    seed = tl.load(seeds_ptr + sample)
    ordinal = tl.load(ordinals_ptr + sample)
    step, repeat = ordinal.to(tl.uint32), (ordinal >> 32).to(tl.uint32)
    w0, w1, w2, w3 = philox(seed, line.to(tl.uint32), step, STREAM, repeat)
    z0, z1 = box_muller(w0, w1, FAST=True)
    z2, z3 = box_muller(w2, w3, FAST=True)
    return z0, z1, z2, z3


@triton.jit
def training_tile(seeds_ptr, ordinals_ptr, sample, block):
    """The same as a tile (BLOCK, 2, 2), of the counters `block`, int32 (BLOCK, 1, 1).

    It gets the layout of the contiguous tensors that are read with it, and moves through no shared memory.
    That of a channels_last tensor would compute the noise once per lane: there it is lines.
    """
    seed = tl.load(seeds_ptr + sample)
    ordinal = tl.load(ordinals_ptr + sample)
    return normals(seed, block, ordinal, STREAM, ordinal >> 32, FAST=True)


@triton.jit
def channels_last_address(element, channels, spatial, magic, shift):
    """Where in its sample an element (counted in C, H, W order) lies."""
    # element // spatial, see `division`.
    product = element.to(tl.uint32).to(tl.uint64) * tl.cast(magic, tl.uint32).to(tl.uint64)
    channel = ((product >> 32).to(tl.uint32) >> shift).to(tl.int32)
    return (element - channel * spatial) * channels + channel


@triton.jit
def load(ptr, mask, EXACT: tl.constexpr):
    """Elements of a tensor; EXACT: every one of them exists."""
    if EXACT:
        return tl.load(ptr)
    else:
        return tl.load(ptr, mask=mask)


@triton.jit
def store(ptr, values, mask, EXACT: tl.constexpr):
    """The counterpart of `load`."""
    if EXACT:
        tl.store(ptr, values)
    else:
        tl.store(ptr, values, mask=mask)


@triton.jit
def distance(u, mask, LOSS: tl.constexpr, EXACT: tl.constexpr):
    """d(u), 0 where there is no element."""
    if LOSS == "l2":
        d = u * u
    elif LOSS == "l1":
        d = tl.abs(u)
    else:
        d = tl.where(tl.abs(u) < 1.0, 0.5 * u * u, tl.abs(u) - 0.5)
    return d if EXACT else tl.where(mask, d, 0.0)


@triton.jit
def slope(u, LOSS: tl.constexpr):
    """d'(u)."""
    if LOSS == "l2":
        return 2.0 * u
    elif LOSS == "l1":
        # 0 at 0 and of NaN, as torch.sign is.
        return tl.where(u > 0, 1.0, 0.0) - tl.where(u < 0, 1.0, 0.0)
    else:
        return tl.clamp(u, -1.0, 1.0, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def difference(prediction, z, x_0_ptr, signal_ptr, sigma_ptr, sample, element, mask, EXACT: tl.constexpr):
    """u = prediction - target, float32; x_0_ptr is that of the sample, or None."""
    target = z
    if x_0_ptr is not None:
        x_0 = load(x_0_ptr + element, mask, EXACT)
        target = tl.load(signal_ptr + sample) * z - tl.load(sigma_ptr + sample) * x_0
    return prediction.to(tl.float32) - target


@triton.jit(do_not_specialize=["channels", "spatial", "magic", "shift"])
def loss_kernel(
    prediction_ptr,
    seeds_ptr,
    ordinals_ptr,
    x_0_ptr,
    signal_ptr,
    sigma_ptr,
    sums_ptr,
    n_elements,
    plane_16,
    channels,
    spatial,
    magic,
    shift,
    LOSS: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    EXACT: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
):
    """Grid (B, tiles of a sample); sums is (B, tiles)."""
    sample = tl.program_id(0).to(tl.int64)
    row = sample * n_elements
    if x_0_ptr is not None:
        x_0_ptr += row
    plane = plane_16 * 16
    line = tl.program_id(1) * BLOCK_SIZE + tl.arange(0, BLOCK_SIZE)
    if CHANNELS_LAST:
        z = training_noise(seeds_ptr, ordinals_ptr, sample, line)
        total = tl.zeros((BLOCK_SIZE,), tl.float32)
        for i in tl.static_range(4):
            element = line + i * plane
            mask = (line < plane) & (element < n_elements)
            place = channels_last_address(element, channels, spatial, magic, shift)
            prediction = load(prediction_ptr + row + place, mask, EXACT)
            u = difference(prediction, z[i], x_0_ptr, signal_ptr, sigma_ptr, sample, element, mask, EXACT)
            total += distance(u, mask, LOSS, EXACT)
    else:
        block = line[:, None, None]
        z = training_tile(seeds_ptr, ordinals_ptr, sample, block)
        element = block + lanes() * plane
        mask = (block < plane) & (element < n_elements)
        prediction = load(prediction_ptr + row + element, mask, EXACT)
        u = difference(prediction, z, x_0_ptr, signal_ptr, sigma_ptr, sample, element, mask, EXACT)
        total = distance(u, mask, LOSS, EXACT)
    tl.store(sums_ptr + sample * tl.num_programs(1) + tl.program_id(1), tl.sum(total))


@triton.jit(do_not_specialize=["channels", "spatial", "magic", "shift"])
def gradient_kernel(
    prediction_ptr,
    seeds_ptr,
    ordinals_ptr,
    x_0_ptr,
    signal_ptr,
    sigma_ptr,
    grad_loss_ptr,
    grad_ptr,
    n_elements,
    plane_16,
    channels,
    spatial,
    magic,
    shift,
    LOSS: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    EXACT: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
):
    """Grid (B, tiles of a sample); grad has the layout of prediction."""
    sample = tl.program_id(0).to(tl.int64)
    row = sample * n_elements
    if x_0_ptr is not None:
        x_0_ptr += row
    scale = tl.load(grad_loss_ptr + sample) / n_elements
    plane = plane_16 * 16
    line = tl.program_id(1) * BLOCK_SIZE + tl.arange(0, BLOCK_SIZE)
    if CHANNELS_LAST:
        z = training_noise(seeds_ptr, ordinals_ptr, sample, line)
        for i in tl.static_range(4):
            element = line + i * plane
            # Every lane has its own bound: the last one's alone would let small samples write into the next.
            mask = (line < plane) & (element < n_elements)
            place = channels_last_address(element, channels, spatial, magic, shift)
            prediction = load(prediction_ptr + row + place, mask, EXACT)
            u = difference(prediction, z[i], x_0_ptr, signal_ptr, sigma_ptr, sample, element, mask, EXACT)
            store(grad_ptr + row + place, scale * slope(u, LOSS), mask, EXACT)
    else:
        block = line[:, None, None]
        z = training_tile(seeds_ptr, ordinals_ptr, sample, block)
        element = block + lanes() * plane
        mask = (block < plane) & (element < n_elements)
        prediction = load(prediction_ptr + row + element, mask, EXACT)
        u = difference(prediction, z, x_0_ptr, signal_ptr, sigma_ptr, sample, element, mask, EXACT)
        store(grad_ptr + row + element, scale * slope(u, LOSS), mask, EXACT)


def configure(given: Arguments, *outputs: Tensor) -> tuple[tuple[int, int], tuple[Any, ...], dict[str, Any]]:
    """The launch for these arguments: grid, positional and keyword arguments.

    Args:
        given: the arguments.
        outputs: `sums` (B, tiles) for the loss; `grad_loss` (B,) and `grad` like prediction for its gradient.

    Raises:
        ValueError: a sample has too many elements for a grid.
    """
    prediction, seeds, ordinals, loss, *image = given
    n_elements, plane_16, grid, options = geometry("prediction", prediction)
    channels_last = not prediction.is_contiguous()
    channels = prediction.shape[1]
    spatial = n_elements // channels
    tensors = (prediction, seeds, ordinals, *image, *outputs)
    numbers = (n_elements, plane_16, channels, spatial, *division(spatial if channels_last else 2))
    cases = {"LOSS": loss, "CHANNELS_LAST": channels_last, "EXACT": n_elements == grid[1] * TILE_ELEMENTS}
    return grid, (*tensors, *numbers), options | cases | WARPS


def tiles(prediction: Tensor) -> int:
    """Programs of one sample, each with a sum of its own."""
    return geometry("prediction", prediction)[2][1]


@triton_op("fastddpm::noise_mse", mutates_args={})
def noise_mse_op(
    prediction: Tensor,
    seeds: Tensor,
    ordinals: Tensor,
    loss: str,
    x_0: Tensor | None,
    signal: Tensor | None,
    sigma: Tensor | None,
) -> Tensor:
    """The mean distance of each sample, float32 (B,); `op.noise_mse` checks the arguments."""
    given = Arguments(prediction, seeds, ordinals, loss, x_0, signal, sigma)
    shape, device = given.prediction.shape, given.prediction.device
    sums = torch.empty((shape[0], tiles(given.prediction)), dtype=torch.float32, device=device)
    grid, operands, options = configure(given, sums)
    wrap_triton(loss_kernel)[grid](*operands, **options)
    return sums.sum(dim=1) / math.prod(shape[1:])


@triton_op("fastddpm::noise_mse_backward", mutates_args={})
def noise_mse_backward_op(
    grad_loss: Tensor,
    prediction: Tensor,
    seeds: Tensor,
    ordinals: Tensor,
    loss: str,
    x_0: Tensor | None,
    signal: Tensor | None,
    sigma: Tensor | None,
) -> Tensor:
    """The gradient of prediction, in its dtype and layout, from that of the distances, float32 (B,)."""
    given = Arguments(prediction, seeds, ordinals, loss, x_0, signal, sigma)
    grad = torch.empty_like(given.prediction)
    grid, operands, options = configure(given, grad_loss, grad)
    wrap_triton(gradient_kernel)[grid](*operands, **options)
    return grad


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    prediction, seeds, ordinals, ctx.loss, x_0, signal, sigma = inputs
    ctx.save_for_backward(prediction, seeds, ordinals, x_0, signal, sigma)


def _backward(ctx: Any, grad_loss: Tensor) -> tuple[Tensor | None, ...]:
    prediction, seeds, ordinals, x_0, signal, sigma = ctx.saved_tensors
    # The gradient of a mean is one number expanded to (B,).
    grad = noise_mse_backward_op(
        grad_loss.contiguous(), prediction, seeds, ordinals, ctx.loss, x_0, signal, sigma
    )
    return grad, None, None, None, None, None, None


noise_mse_op.register_autograd(_backward, setup_context=_setup_context)
