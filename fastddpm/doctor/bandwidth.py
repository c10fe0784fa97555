"""How fast the kernels move memory on a card, beside a copy of the same card in the same minute."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

import fastddpm_kernels
from fastddpm.timing import Effort, interleaved, make_clock

SHAPE = (256, 3, 128, 128)
"""48 MiB in float32 to a tensor: larger together than the caches of today's cards."""

ROW = {"p": 1.1, "q": -0.5, "r": 1.0, "a": 0.4, "b": 0.6, "c": 0.1, "linear_x": 1.0, "linear_m": -0.2}


def measure(device: torch.device) -> list[tuple[str, float, float]]:
    """(name, bytes a second, share of the copy's) of each kernel; the copy is first.

    The bytes are those that an operator must read and write, each once.
    """
    calls = _calls(device)
    times = interleaved(
        {name: call for name, (call, _) in calls.items()}, make_clock(device), Effort(3.0, least=10, most=200)
    )
    rates = {name: calls[name][1] / sorted(each.wall)[len(each.wall) // 2] for name, each in times.items()}
    copy = rates["copy"]
    return [(name, rate, rate / copy) for name, rate in rates.items()]


def _calls(device: torch.device) -> dict[str, tuple[Callable[[], Any], int]]:
    """What is timed, with the bytes that it moves."""
    batch = SHAPE[0]
    x, m, target = (torch.randn(SHAPE, device=device) for _ in range(3))
    n_bytes = x.numel() * x.element_size()
    table = torch.zeros(1, fastddpm_kernels.N_COLUMNS)
    for name, value in ROW.items():
        table[0, fastddpm_kernels.Column[name.upper()]] = value
    table = table.to(device)
    counter = torch.zeros(2, dtype=torch.int64, device=device)
    seeds = torch.arange(batch, device=device)
    half = m.bfloat16()
    pixels = half.to(memory_format=torch.channels_last)
    pair = torch.cat((m, m))
    scales = torch.ones(batch, device=device)
    signal = torch.linspace(0.9, 0.1, 10, device=device)

    def step(output: torch.Tensor, **options: Any) -> Callable[[], Any]:
        return lambda: fastddpm_kernels.reverse_step(x, output, table, counter, **options)

    return {
        "copy": (lambda: target.copy_(m), 2 * n_bytes),
        "reverse_step": (step(m, noise=seeds, clip=True), 3 * n_bytes),
        "reverse_step, bfloat16 m": (step(half, noise=seeds, clip=True), n_bytes * 5 // 2),
        "reverse_step, bfloat16 channels_last m": (step(pixels, noise=seeds, clip=True), n_bytes * 5 // 2),
        "reverse_step, guidance": (step(pair, noise=seeds, clip=True, guidance=scales), 4 * n_bytes),
        "reverse_step, 2M": (step(m, x0=target, clip=True, multistep=True), 5 * n_bytes),
        "q_sample": (
            lambda: fastddpm_kernels.q_sample(m, seeds % 10, signal, signal, seeds=seeds, ordinals=seeds),
            2 * n_bytes,
        ),
    }
