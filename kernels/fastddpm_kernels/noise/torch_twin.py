"""Noise spec v1 (see reference.py) in plain torch: any device, eager or compiled, no host read.

The words are computed in int64 tensors that hold unsigned 32-bit values. Products wrap modulo 2**64, which
keeps both their halves right; what lies above bit 31 is masked away before a word is multiplied again.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from .. import machine_code
from .reference import KEY_INCREMENTS, MASK, MULTIPLIERS, N_ROUNDS, plane_size


def words(
    seeds: Tensor,
    step: int | Tensor,
    n_elements: int,
    *,
    stream: int = 0,
    repeat: int | Tensor = 0,
    blocks: tuple[int, int] | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The raw words of lanes 0 to 3: four int64 tensors (B, q) with values in [0, 2**32).

    seeds is int64 (B,); step and repeat are an int, a tensor of one element (a counter on the device) or
    int64 (B,). Of the blocks [first, last) alone where ``blocks`` says so.
    """
    first, last = blocks or (0, plane_size(n_elements))
    k0 = (seeds & MASK).unsqueeze(1)
    k1 = ((seeds >> 32) & MASK).unsqueeze(1)
    block = torch.arange(first, last, dtype=torch.int64, device=seeds.device).unsqueeze(0)

    # Round 1 by hand: stream is a Python number, and step and repeat are the same for a whole row.
    product0 = block * MULTIPLIERS[0]
    stream_product = stream * MULTIPLIERS[1]
    c0 = ((stream_product >> 32) ^ k0 ^ _column(step)) & MASK
    c2 = ((product0 >> 32) ^ k1 ^ _column(repeat)) & MASK
    c1 = torch.full_like(k0, stream_product)
    c3 = product0
    for _ in range(N_ROUNDS - 1):
        k0 = k0 + KEY_INCREMENTS[0]
        k1 = k1 + KEY_INCREMENTS[1]
        product0 = c0 * MULTIPLIERS[0]
        product1 = c2 * MULTIPLIERS[1]
        # c1, c3 and the keys carry bits above 31 here; one mask removes them all.
        c0 = ((product1 >> 32) ^ (c1 ^ k0)) & MASK
        c2 = ((product0 >> 32) ^ (c3 ^ k1)) & MASK
        c1, c3 = product1, product0
    return c0, c1 & MASK, c2, c3 & MASK


def normal(
    seeds: Tensor,
    step: int | Tensor,
    shape: Sequence[int],
    *,
    stream: int = 0,
    repeat: int | Tensor = 0,
) -> Tensor:
    """Standard normals, float32 (B, *shape), on the device of `seeds`.

    Args:
        seeds: int64 (B,), each in [0, 2**63); sample i depends on seeds[i] alone.
        step: counter word 1, modulo 2**32: 0 for x_T, k+1 for plan row k. An int, a tensor of one element
            (read on its device) or int64 (B,), one per sample.
        shape: of one sample, usually (C, H, W).
        stream: counter word 2: 0 sampling, 1 training noise, 2 training t and dropout, 3 correctors, 4 tasks.
        repeat: counter word 3, modulo 2**32, given like `step`: revisits of the same step.

    Equal to the NumPy reference: its words bit for bit, its normals to 2e-6.
    """
    n_elements = math.prod(shape)
    on_cpu = seeds.device.type == "cpu" and not torch.compiler.is_compiling()
    if on_cpu and machine_code.pays(machine_code.DRAWN * seeds.shape[0] * n_elements):
        from .blocks import normal_on_cpu

        drawn: Tensor = normal_on_cpu(seeds, _flat(step), _flat(repeat), n_elements, stream)
        return drawn.view(seeds.shape[0], *shape)
    w0, w1, w2, w3 = words(seeds, step, n_elements, stream=stream, repeat=repeat)
    planes = torch.cat((*_box_muller(w0, w1), *_box_muller(w2, w3)), dim=1)
    return planes[:, :n_elements].reshape(seeds.shape[0], *shape)


def normal_part(
    seeds: Tensor, step: int, n_elements: int, first: int, last: int, *, stream: int = 0, repeat: int = 0
) -> Tensor:
    """Elements [first, last) of `normal` of a sample of ``n_elements``, float32 (B, last - first).

    Nothing is drawn of the others but what shares their words: three normals for each one asked for.
    """
    plane, parts = plane_size(n_elements), []
    while first < last:
        lane, block = divmod(first, plane)
        end = min(last, (lane + 1) * plane)
        found = words(
            seeds, step, n_elements, stream=stream, repeat=repeat, blocks=(block, block + end - first)
        )
        radius, angle = found[lane // 2 * 2 : lane // 2 * 2 + 2]
        parts.append(_box_muller(radius, angle)[lane % 2])
        first = end
    return torch.cat(parts, dim=1)


def _uniform(word: Tensor) -> Tensor:
    """((w >> 9) + 0.5) * 2**-23: exact in float32 and strictly inside (0, 1)."""
    return (word >> 9).to(torch.float32).add_(0.5).mul_(2.0**-23)


def _box_muller(radius_word: Tensor, angle_word: Tensor) -> tuple[Tensor, Tensor]:
    # (cos, sin)(2 pi u) = -(cos, sin)(2 pi (u - 1/2)): the subtraction is exact and halves the angle's
    # rounding error.
    minus_radius = _uniform(radius_word).log_().mul_(-2.0).sqrt_().neg_()
    angle = _uniform(angle_word).sub_(0.5).mul_(2.0 * math.pi)
    return angle.cos().mul_(minus_radius), angle.sin_().mul_(minus_radius)


def _flat(word: int | Tensor) -> Tensor:
    """A counter word as int64 (1,) or (B,)."""
    return (
        word.reshape(-1).to(torch.int64) if isinstance(word, Tensor) else torch.tensor([word], device="cpu")
    )


def _column(word: int | Tensor) -> int | Tensor:
    """A counter word that broadcasts against (B, q)."""
    return word.reshape(-1, 1) if isinstance(word, Tensor) else word
