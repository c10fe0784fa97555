"""Figures of a document: speed-ups with intervals, a roofline, the batch sweep, cost against steps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from fastddpm.files import replacing
from fastddpm_bench.results import Document, Result

CHAINS = ("pipelines", "lucidrains", "restated")
NETWORKS = (*CHAINS, "unet", "training")
OURS, THEIRS = "#1f6f8b", "#b0b7bd"


def draw(document: Document, folder: Path) -> list[Path]:
    """Writes the figures that the document has data for.

    Raises:
        ImportError: matplotlib is not installed.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    folder.mkdir(parents=True, exist_ok=True)
    drawn = []
    for name, plot in (
        ("speedups", speedups),
        ("roofline", roofline),
        ("batch", batch_sweep),
        ("steps", cost_of_steps),
    ):
        figure = plt.figure(figsize=(7.5, 4.5), layout="constrained")
        if plot(document, figure):
            path = folder / f"{name}.png"
            with replacing(path) as temporary:
                figure.savefig(temporary, dpi=120)
            drawn.append(path)
        plt.close(figure)
    return drawn


def speedups(document: Document, figure: Any) -> bool:
    """Baseline's time over each contestant's in whole chains, with 95 % intervals."""
    bars = []
    for result in document.results:
        if result.subject in CHAINS:
            for row in result.rows[1:]:
                ratio = result.ratio(row)
                label = f"{row.name}\n{result.workload}"
                bars.append((label, 1 / ratio.value, 1 / ratio.high, 1 / ratio.low, row.ours))
    if not bars:
        return False
    labels, values, low, high, ours = zip(*bars, strict=True)
    figure.set_size_inches(8, 1.2 + 0.42 * len(bars))
    axes = figure.subplots()
    places = np.arange(len(bars))
    errors = np.abs(np.array([np.subtract(values, low), np.subtract(high, values)]))
    axes.barh(places, values, xerr=errors, color=[OURS if mine else THEIRS for mine in ours], capsize=2)
    axes.axvline(1, color="black", linewidth=0.8)
    axes.set_yticks(places, labels, fontsize=6)
    axes.set_ylim(len(bars) - 0.4, -0.6)
    axes.set_xlabel("times as fast as the baseline as it comes (95 % interval); ours in blue")
    return True


def roofline(document: Document, figure: Any) -> bool:
    """FLOP/s of networks and chains against operations per byte, under the limits of the run."""
    limits = document.limits
    results = [r for r in document.results if r.subject in NETWORKS and r.work is not None]
    if limits is None or not results:
        return False
    axes = figure.subplots()
    points = [_intensity(result) for result in results]
    x = np.geomspace(min(points) / 4, max(points) * 8, 100)
    for size, rate in (limits.copies[0], limits.copies[-1]):
        roof = np.minimum(limits.peak, x * rate)
        axes.loglog(x, roof, color="black", linewidth=0.8)
        axes.annotate(f"copy of {size / 2**20:.3g} MiB", (x[0], roof[0]), fontsize=6)
    for i, (result, intensity) in enumerate(zip(results, points, strict=True)):
        assert result.work is not None
        label = f"{result.subject}: {result.workload.split(',')[0]}"
        for row in result.rows:
            rate = result.work["flops"] / (result.each(row).median * result.per)
            axes.loglog(intensity, rate, "o" if row.ours else "x", color=f"C{i}", label=label)
            label = "_"  # what begins so has no place in the legend
    axes.legend(fontsize=6, loc="lower right")
    axes.set_xlabel("FLOP per byte of the operators as dispatched")
    axes.set_ylabel("FLOP/s (o: ours, x: others)")
    return True


def batch_sweep(document: Document, figure: Any) -> bool:
    """Time of an image against the batch."""
    return _sweep(document, figure, "batch", "images in a batch", "seconds an image (10 DDIM steps)")


def cost_of_steps(document: Document, figure: Any) -> bool:
    """Time of an image against its steps."""
    return _sweep(document, figure, "steps", "DDIM steps", "seconds an image")


def _sweep(document: Document, figure: Any, subject: str, x_label: str, y_label: str) -> bool:
    results = sorted((r for r in document.results if r.subject == subject), key=lambda r: r.axis or 0.0)
    if not results:
        return False
    axes = figure.subplots()
    for first in results[0].rows:
        found = [(result, row) for result in results if (row := result.row(first.name)) is not None]
        x = [result.axis for result, _ in found]
        each = [result.each(row) for result, row in found]
        middle = [summary.median for summary in each]
        spread = [[s.median - s.q1 for s in each], [s.q3 - s.median for s in each]]
        style = "-o" if first.ours else "--x"
        axes.errorbar(x, middle, yerr=spread, fmt=style, capsize=2, label=first.name)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel(x_label)
    axes.set_ylabel(f"{y_label}, median and quartiles")
    axes.legend(fontsize=7)
    return True


def _intensity(result: Result) -> float:
    assert result.work is not None
    return result.work["flops"] / result.work["bytes"]
