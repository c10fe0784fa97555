"""What a card should reach, written down before one ran: held beside what it does reach.

For an H100 SXM with 80 GB; nothing here was measured when it was set. Bounds are those of
`scripts/roofline.py`, from published peaks (989.4 TFLOP/s dense bfloat16, 3.35 TB/s). The network is the
CIFAR-10 UNet, by 50 DDIM steps.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

Rows = list[dict[str, Any]]
BOUNDS_MS = {1: 0.037, 16: 0.371, 64: 1.468, 256: 5.867}
"""Least time of a step, bfloat16, by batch: docs/gpu.md."""


def fastest(
    rows: Rows, batch: int, *, ours: bool, words: str = "", without: Sequence[str] = ()
) -> float | None:
    """The fastest bfloat16 row of a batch, ms a step, of those whose names have the words and no other."""
    found = [
        row["ms_per_step"]
        for row in rows
        if row.get("ms_per_step") and row["batch"] == batch and row["dtype"] == "bfloat16"
        if row["ours"] == ours and words in row["name"]
        if not any(word in row["name"] for word in without)
    ]
    return min(found, default=None)


def times(batch: int) -> Callable[[Any], float | None]:
    """Ours, ms a step."""
    return lambda document: fastest(speed(document), batch, ours=True)


def over(words: str, batch: int) -> Callable[[Any], float | None]:
    """How many times faster ours is than theirs of that name: what is tuned of ours counts where theirs was
    measured so too. Beside eager code any engine of ours does."""

    def ratio(document: Any) -> float | None:
        rows = speed(document)
        without = []
        for tuning in TUNINGS[:1] if words == EAGER else TUNINGS:
            tuned = [row for row in rows if tuning in row["name"]]
            if fastest(tuned, batch, ours=False, words=words) is None:
                without.append(tuning)
        theirs = fastest(rows, batch, ours=False, words=words)
        ours = fastest(rows, batch, ours=True, without=without)
        return None if theirs is None or ours is None else theirs / ours

    return ratio


def share(words: str) -> Callable[[Any], float | None]:
    """Per cent of a copy's bandwidth: the best row that begins so."""

    def best(document: Any) -> float | None:
        rows = (document.get("bandwidth") or {}).get("rows", [])
        found = [
            row["percent_of_copy"]
            for row in rows
            if row["name"].startswith(words) and "percent_of_copy" in row
        ]
        return max(found, default=None)

    return best


def speed(document: Any) -> Rows:
    """The rows of part `speed`."""
    return list((document.get("speed") or {}).get("rows", []))


TUNINGS = ("cudnn.benchmark", ", max")
"""In names: cuDNN tries its kernels, Inductor times its own."""
EAGER = "diffusers, eager"
REDUCED = "diffusers, reduce-overhead, channels_last"
# What, its unit, whether less is better, must / goal / stretch, and how it is found.
GOALS: list[tuple[str, str, bool, tuple[float, float, float], Callable[[Any], float | None]]] = [
    ("a step at batch 256 (bound 5.87 ms)", "ms", True, (9.5, 8.5, 7.0), times(256)),
    ("a step at batch 1 (bound 0.037 ms)", "ms", True, (0.9, 0.6, 0.35), times(1)),
    ("over diffusers eager, batch 1", "x", False, (5, 8, 15), over(EAGER, 1)),
    ("over diffusers eager, batch 256", "x", False, (1.3, 1.5, 1.8), over(EAGER, 256)),
    ("over diffusers reduce-overhead, batch 1", "x", False, (1.2, 1.5, 2), over(REDUCED, 1)),
    ("over diffusers reduce-overhead, batch 256", "x", False, (1.0, 1.15, 1.3), over(REDUCED, 256)),
    ("reverse_step, m float32", "% of a copy", False, (80, 90, 95), share("reverse_step, m float32, ddpm,")),
    (
        "reverse_step, m bfloat16 channels_last",
        "% of a copy",
        False,
        (70, 80, 90),
        share("reverse_step, m bfloat16 channels_last, ddpm,"),
    ),
    ("q_sample, noise drawn", "% of a copy", False, (80, 90, 95), share("q_sample, noise drawn")),
    (
        "group_norm_silu bfloat16",
        "% of a copy",
        False,
        (55, 70, 85),
        share("group_norm_silu bfloat16 channels_last"),
    ),
    ("noise_mse float32, forward", "% of a copy", False, (50, 60, 75), share("noise_mse float32, forward")),
    ("noise_mse float32, backward", "% of a copy", False, (75, 85, 90), share("noise_mse float32, backward")),
]


def held(document: Any) -> list[dict[str, Any]]:
    """Every goal with what was measured, and the best of must, goal and stretch that it reaches."""
    found = []
    for what, unit, less, levels, measure in GOALS:
        value = measure(document)
        reached = None
        for name, level in zip(("must", "goal", "stretch"), levels, strict=True):
            if value is not None and (value <= level if less else value >= level):
                reached = name
        goal = dict(zip(("must", "goal", "stretch"), levels, strict=True))
        found.append({"what": what, "unit": unit, **goal, "measured": value, "reached": reached})
    return found
