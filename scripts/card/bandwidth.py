"""Bandwidth of the four kernels beside a copy of as many bytes, measured right after.

    python scripts/card/bandwidth.py OUT [--tiny]

Inputs rotate over several sets of buffers, which together are larger than a card's second-level cache. The
bytes are those that an operator must read and write, each once.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from workload import Part, arguments, median_seconds

import fastddpm_kernels as kernels

TOGETHER = 512 * 2**20
MAPS = [
    (128, 32),
    (256, 32),
    (384, 32),
    (256, 16),
    (512, 16),
    (384, 16),
    (256, 8),
    (512, 8),
    (256, 4),
    (512, 4),
]
"""Channels and side of what the CIFAR-10 network normalises."""

Make = Callable[[], Callable[[], Any]]


class Meter:
    """Measures calls on a device into a part.

    Args:
        part: where rows go.
        device: where calls run.
        tiny: small tensors.
    """

    def __init__(self, part: Part, device: torch.device, tiny: bool) -> None:
        self.part, self.device, self.tiny = part, device, tiny

    def images(self, shape: tuple[int, ...], dtype: torch.dtype, layout: torch.memory_format) -> torch.Tensor:
        """Normals in a dtype and layout."""
        return torch.randn(shape, device=self.device).to(dtype).to(memory_format=layout)

    def measure(self, name: str, make: Make, n_bytes: int) -> None:
        """``make()`` is a call on new buffers. A call that fails is a row too."""
        row: dict[str, Any] = {"name": name}
        try:
            count = 2 if self.tiny else max(2, min(16, TOGETHER // n_bytes))
            seconds = median_seconds([make() for _ in range(count)], self.device)
            source = [torch.randn(max(n_bytes // 8, 1), device=self.device) for _ in range(count)]
            target = [torch.empty_like(one) for one in source]
            copies = [lambda a=a, b=b: a.copy_(b) for a, b in zip(target, source, strict=True)]
            copied = median_seconds(copies, self.device)
            row |= {"us": seconds * 1e6, "gb_per_s": n_bytes / seconds / 1e9}
            row["percent_of_copy"] = 100 * copied / seconds
        except Exception as error:
            row["error"] = f"{type(error).__name__}: {error}".splitlines()[0][:200]
        self.part.add(row)


def steps(meter: Meter) -> None:
    """`reverse_step` as DDPM runs it: clipped, noise drawn."""
    for batch in (2,) if meter.tiny else (256, 64, 1):
        cases = [(torch.float32, torch.contiguous_format), (torch.bfloat16, torch.channels_last)]
        for dtype, layout in cases:
            _step(meter, (batch, 3, 32, 32), dtype, layout)
    if not meter.tiny:
        _step(meter, (256, 3, 256, 256), torch.float32, torch.contiguous_format)
        _step(meter, (256, 3, 256, 256), torch.bfloat16, torch.channels_last)


def _step(meter: Meter, shape: tuple[int, ...], dtype: torch.dtype, layout: torch.memory_format) -> None:
    table = torch.randn(4, kernels.N_COLUMNS, device=meter.device)
    counter = torch.zeros(2, dtype=torch.int64, device=meter.device)
    seeds = torch.arange(shape[0], device=meter.device)

    def make() -> Callable[[], Any]:
        x = meter.images(shape, torch.float32, torch.contiguous_format)
        m = meter.images(shape, dtype, layout)
        return lambda: kernels.reverse_step(x, m, table, counter, noise=seeds, clip=True)

    elements = torch.Size(shape).numel()
    words = "float32" if dtype == torch.float32 else "bfloat16 channels_last"
    meter.measure(f"reverse_step, m {words}, {_words(shape)}", make, elements * (8 + dtype.itemsize))


def training(meter: Meter) -> None:
    """`q_sample` and `noise_mse`, forward and with its gradient."""
    shape = (2, 3, 16, 16) if meter.tiny else (256, 3, 256, 256)
    seeds = torch.arange(shape[0], device=meter.device)
    signal = torch.linspace(0.9, 0.1, 10, device=meter.device)
    elements = torch.Size(shape).numel()

    def noised() -> Callable[[], Any]:
        x = meter.images(shape, torch.float32, torch.contiguous_format)
        return lambda: kernels.q_sample(x, seeds % 10, signal, signal, seeds=seeds, ordinals=seeds)

    meter.measure(f"q_sample, noise drawn, {_words(shape)}", noised, 8 * elements)
    for dtype in (torch.float32, torch.bfloat16):
        name = f"noise_mse {str(dtype).removeprefix('torch.')}"

        def loss(dtype: torch.dtype = dtype) -> Callable[[], Any]:
            p = meter.images(shape, dtype, torch.contiguous_format)
            return lambda: kernels.noise_mse(p, seeds, seeds)

        def gradient(dtype: torch.dtype = dtype) -> Callable[[], Any]:
            return _gradient(meter.images(shape, dtype, torch.contiguous_format), seeds)

        meter.measure(f"{name}, forward, {_words(shape)}", loss, elements * dtype.itemsize)
        meter.measure(f"{name}, backward, {_words(shape)}", gradient, 2 * elements * dtype.itemsize)


def _gradient(p: torch.Tensor, seeds: torch.Tensor) -> Callable[[], Any]:
    """The gradient alone, as autograd runs it after the loss; on a CPU both, to check the script."""
    if p.device.type == "cuda":
        from fastddpm_kernels.noise_mse.op import noise_mse_backward_op

        slopes = torch.full((len(p),), 1 / len(p), device=p.device)
        return lambda: noise_mse_backward_op(slopes, p, seeds, seeds, "l2", None, None, None)

    def both() -> Any:
        given = p.detach().requires_grad_()
        with torch.enable_grad():
            return torch.autograd.grad(kernels.noise_mse(given, seeds, seeds), given)

    return both


def norms(meter: Meter) -> None:
    """`group_norm_silu` on every map of the network, at three batches, and on one that is split."""
    cases = [(batch, *one) for batch in (64, 1, 256) for one in MAPS] + [(4, 128, 256)]
    for batch, channels, side in [(2, 64, 8)] if meter.tiny else cases:
        shape = (batch, channels, side, side)
        weight, bias = (torch.randn(channels, device=meter.device).to(torch.bfloat16) for _ in range(2))
        pre_bias = torch.randn(1, channels, device=meter.device).to(torch.bfloat16)

        def ours(shape: Any = shape, weight: Any = weight, bias: Any = bias, pre: Any = pre_bias) -> Any:
            x = meter.images(shape, torch.bfloat16, torch.channels_last)
            return lambda: kernels.group_norm_silu(x, 32, weight, bias, 1e-6, pre_bias=pre)

        def theirs(shape: Any = shape, weight: Any = weight, bias: Any = bias) -> Any:
            x = meter.images(shape, torch.bfloat16, torch.channels_last)
            return lambda: F.silu(F.group_norm(x, 32, weight, bias, 1e-6))

        n_bytes = 4 * torch.Size(shape).numel()
        meter.measure(f"group_norm_silu bfloat16 channels_last, {_words(shape)}", ours, n_bytes)
        if batch in (2, 64) and channels <= 256:
            meter.measure(f"torch's group_norm, then silu, {_words(shape)}", theirs, n_bytes)


def _words(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))


def main() -> None:
    """Measures the kernels."""
    args = arguments(__doc__)
    meter = Meter(Part("bandwidth", args.out), args.device, args.tiny)
    with torch.no_grad():
        steps(meter)
        norms(meter)
        training(meter)


if __name__ == "__main__":
    main()
