"""The noise of the samplers: a sample depends on its seed alone (noise spec v1, `fastddpm_kernels.noise`).

Stream 0: the start is step 0 and step k of a sampler step k + 1, as in `fastddpm.Sampler`. Stream 3:
correctors, their passes within a step in the word `repeat`. Stream 4: what a task adds to a given image, and
the probes of Hutchinson's estimate.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from fastddpm.checks import BadArgument, is_whole, quoted
from fastddpm.randomness import TASK_STREAM, checked_seeds
from fastddpm_kernels import normal

CORRECTOR_STREAM = 3


class SeededNoise:
    """Standard normals for samples of one shape, float32 ``(B, *shape)``.

    Args:
        seeds: one integer in [0, 2**63) per sample.
        shape: of a sample, usually ``(C, H, W)``.
        device: where to draw.

    Raises:
        ValueError: seeds or a shape that are not as above.
    """

    def __init__(
        self, seeds: Sequence[int] | Tensor | np.ndarray, shape: Sequence[int], device: torch.device
    ) -> None:
        self.seeds = checked_seeds(seeds).to(device)
        sizes = tuple(shape) if isinstance(shape, Sequence) and not isinstance(shape, (str, bytes)) else ()
        if not sizes or not all(is_whole(size) and size > 0 for size in sizes):
            raise BadArgument("shape", quoted(shape), "the sizes of one sample, each above 0")
        self.shape = tuple(map(int, sizes))

    def start(self) -> Tensor:
        """Where sampling starts, before it is scaled."""
        return normal(self.seeds, 0, self.shape)

    def step(self, k: int) -> Tensor:
        """Noise of sampling step k = 0, 1, ..."""
        return normal(self.seeds, k + 1, self.shape)

    def corrector(self, k: int, repeat: int) -> Tensor:
        """Noise of pass ``repeat`` of the corrector in step k."""
        return normal(self.seeds, k + 1, self.shape, stream=CORRECTOR_STREAM, repeat=repeat)

    def task(self, k: int, repeat: int = 0) -> Tensor:
        """Noise for a given image in step k."""
        return normal(self.seeds, k + 1, self.shape, stream=TASK_STREAM, repeat=repeat)
