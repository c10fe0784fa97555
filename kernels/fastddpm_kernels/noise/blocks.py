"""Noise spec v1 on a CPU by numba, in blocks that stay in its cache.

Imported where `machine_code.pays` says so. What Inductor compiles has `torch_twin.words` instead, of which it
makes one loop.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator

import torch
from torch import Tensor

from ..machine_code import operator
from .jitted import Numbers, products, uniforms
from .reference import plane_size

COUNTERS = 2**14
"""Of one block and thread: 128 KiB of radii, of angles and of cosines each."""

MOST_THREADS = 8
"""A block's radii are shared out among so many threads at most, so that its memory stays small."""
MOST_BLOCKS = 16
"""Sizes of blocks that a thread keeps; there are as many as shapes are drawn."""
CPU = torch.device("cpu")
"""Said each time, as torch's default device may be another."""


class Block:
    """Memory that a block of counters goes through: tensors, and arrays of the same numbers for numba.

    Attributes:
        radii: float32 ``(2, samples, counters)``, and likewise `angles`, `cosines`; sines take the
            angles' place.
        arrays: of these three.
    """

    def __init__(self, memory: Tensor, samples: int, counters: int) -> None:
        whole = memory[: 6 * samples * counters].view(3, 2, samples, counters)
        self.radii, self.angles, self.cosines = whole.unbind()
        self.arrays: tuple[Numbers, Numbers, Numbers] = tuple(whole.numpy())

    def transform(self) -> None:
        """Of uniforms the radii, of angles their cosines and sines: each of torch's operators, in place."""
        # (cos, sin)(2 pi u) = -(cos, sin)(2 pi (u - 1/2)): the subtraction is exact and halves the angle's
        # rounding error.
        self.radii.log_().mul_(-2.0).sqrt_().neg_()
        torch.cos(self.angles, out=self.cosines)
        self.angles.sin_()


class Scratch(threading.local):
    """The blocks of one thread, all in the same memory."""

    def __init__(self) -> None:
        self._memory = torch.empty(0, device=CPU)
        self._blocks: dict[tuple[int, int], Block] = {}

    def block(self, samples: int, counters: int) -> Block:
        """The block of this size; what another held is lost."""
        block = self._blocks.get((samples, counters))
        if block is None:
            # Not of inference mode, outside of which it could not be written to.
            with torch.inference_mode(False):
                if self._memory.numel() < 6 * samples * counters or len(self._blocks) == MOST_BLOCKS:
                    self._blocks.clear()
                    size = max(self._memory.numel(), 6 * samples * counters)
                    self._memory = torch.empty(size, dtype=torch.float32, device=CPU)
                block = self._blocks[samples, counters] = Block(self._memory, samples, counters)
        return block


scratch = Scratch()


def _normal_on_cpu(seeds: Tensor, step: Tensor, repeat: Tensor, n: int, stream: int) -> Tensor:
    """Standard normals, float32 (B, n): seeds int64 (B,), step and repeat int64 (1,) or (B,)."""
    out = _like_normals(seeds, step, repeat, n, stream)
    if out.numel():
        step, repeat = (word.expand_as(seeds).contiguous() for word in (step, repeat))
        draw(seeds.contiguous(), step, repeat, stream, out)
    return out


def draw(seeds: Tensor, steps: Tensor, repeats: Tensor, stream: int, out: Tensor) -> None:
    """The normals into `out` (B, n), one at least; seeds, steps, repeats are int64 (B,); all contiguous."""
    samples, n = out.shape
    plane, target = plane_size(n), out.numpy()
    words = (seeds.numpy(), steps.numpy(), repeats.numpy())
    for rows, first, width in rectangles(samples, plane):
        block = scratch.block(rows.stop - rows.start, width)
        radii, angles, cosines = block.arrays
        uniforms(*(word[rows] for word in words), stream, first, radii, angles)
        block.transform()
        products(radii, cosines, angles, plane, first, target[rows])


def samples_at_once(n: int) -> int:
    """Samples of n numbers that make about one block."""
    return max(1, _counters() // plane_size(n))


def rectangles(samples: int, plane: int) -> Iterator[tuple[slice, int, int]]:
    """The counters of a draw in blocks: of some samples, those from the first on, so many."""
    counters = _counters()
    if plane > counters:
        for sample in range(samples):
            for first in range(0, plane, counters):
                yield slice(sample, sample + 1), first, min(counters, plane - first)
        return
    rows = counters // plane
    for sample in range(0, samples, rows):
        yield slice(sample, min(sample + rows, samples)), 0, plane


def _counters() -> int:
    return COUNTERS * min(torch.get_num_threads(), MOST_THREADS)


def _like_normals(seeds: Tensor, step: Tensor, repeat: Tensor, n: int, stream: int) -> Tensor:
    return torch.empty(seeds.shape[0], n, dtype=torch.float32, device=CPU)


normal_on_cpu = operator(
    "normal_on_cpu(Tensor seeds, Tensor step, Tensor repeat, int n, int stream) -> Tensor",
    _normal_on_cpu,
    _like_normals,
)
