"""What the machine can do at most, measured in the same run: copy bandwidth, matrix products, convolutions.

Published peaks are of other clocks, other threads and other machines; these are of this process.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import torch
import torch.nn.functional as F

from fastddpm.timing import Call, Effort, interleaved, make_clock

KIB = 1024
# From what fits in the first cache to what fits in none.
COPY_BYTES = (32 * KIB, 512 * KIB, 8 * KIB**2, 256 * KIB**2)


@dataclasses.dataclass(frozen=True)
class Limits:
    """Rates of this machine.

    Attributes:
        copies: (bytes read and written, bytes a second) of tensor copies of several sizes.
        gemm: FLOP/s of a matrix product, float32 with the settings of the process.
        convolution: FLOP/s of the fastest of a few 3x3 convolutions.
        threads: of torch while they were measured.
    """

    copies: tuple[tuple[int, float], ...]
    gemm: float
    convolution: float
    threads: int

    @property
    def peak(self) -> float:
        """FLOP/s: the larger of matrix product and convolution."""
        return max(self.gemm, self.convolution)

    def bandwidth(self, n_bytes: float) -> float:
        """Bytes a second of the copy whose traffic is nearest to ``n_bytes`` in ratio.

        What fits in a cache moves at that cache's rate, so one number for all sizes would be wrong by a
        factor.
        """
        return min(self.copies, key=lambda c: abs(math.log(max(n_bytes, 1) / c[0])))[1]

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Limits:
        """From JSON values."""
        copies = tuple((int(size), float(rate)) for size, rate in values["copies"])
        return cls(copies, values["gemm"], values["convolution"], values["threads"])


def measure(device: torch.device, *, quick: bool = False) -> Limits:
    """Measures the limits of a device; seconds of work.

    Args:
        device: where.
        quick: a quarter of the time.
    """
    seconds = 0.25 if quick else 1.0
    copies = tuple((size, size / _fastest(_copy(size, device), device, seconds)) for size in COPY_BYTES)
    n = 8192 if device.type == "cuda" else 1024
    a, b, out = (torch.randn(n, n, device=device) for _ in range(3))
    with torch.no_grad():
        gemm = 2 * n**3 / _fastest(lambda: torch.mm(a, b, out=out), device, seconds)
        convolution = max(
            flops / _fastest(call, device, seconds) for call, flops in _convolutions(device, quick=quick)
        )
    return Limits(copies, gemm, convolution, torch.get_num_threads())


def _fastest(call: Call, device: torch.device, seconds: float) -> float:
    """Shortest time of a call: a limit is what the machine can do, not what it usually does."""
    effort = Effort(seconds, least=5, most=1000)
    return min(interleaved({"": call}, make_clock(device), effort)[""].wall)


def _copy(n_bytes: int, device: torch.device) -> Call:
    source = torch.ones(n_bytes // 8, device=device)
    target = torch.empty_like(source)
    return lambda: target.copy_(source)


def _convolutions(device: torch.device, *, quick: bool) -> list[tuple[Call, int]]:
    """3x3 convolutions of 64, 128 and 256 channels in both layouts, and their operations."""
    found: list[tuple[Call, int]] = []
    batch = 64 if device.type == "cuda" else 4
    for channels, side in ((128, 32),) if quick else ((64, 32), (128, 32), (256, 16)):
        for layout in (torch.contiguous_format, torch.channels_last):
            x = torch.randn(batch, channels, side, side, device=device).to(memory_format=layout)
            weight = torch.randn(channels, channels, 3, 3, device=device).to(memory_format=layout)
            flops = 2 * x.numel() * channels * 9
            found.append((_convolution(x, weight), flops))
    return found


def _convolution(x: torch.Tensor, weight: torch.Tensor) -> Call:
    return lambda: F.conv2d(x, weight, padding=1)
