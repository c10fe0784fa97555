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
    """Baseline's time over each contestant's in whole chains, with 95 % intervals: a panel a contest."""
    results = [result for result in document.results if result.subject in CHAINS and len(result.rows) > 1]
    if not results:
        return False
    columns = min(3, len(results))
    lines = -(-len(results) // columns)
    most = max(len(result.rows) for result in results)
    figure.set_size_inches(4.5 * columns, (0.6 + 0.17 * most) * lines)
    grid = figure.subplots(lines, columns, squeeze=False, sharex=True)
    for axes in grid.flat[len(results) :]:
        axes.set_axis_off()
    for axes, result in zip(grid.flat, results, strict=False):
        _bars(result, axes)
    figure.supxlabel("times as fast as the baseline as it comes (95 % interval); ours in blue", fontsize=9)
    return True


def _bars(result: Result, axes: Any) -> None:
    rows, places = result.rows[1:], np.arange(len(result.rows) - 1)
    ratios = [result.ratio(row) for row in rows]
    values = np.array([1 / ratio.value for ratio in ratios])
    errors = np.array(
        [values - [1 / ratio.high for ratio in ratios], [1 / ratio.low for ratio in ratios] - values]
    )
    colours = [OURS if row.ours else THEIRS for row in rows]
    axes.barh(places, values, xerr=np.abs(errors), color=colours, capsize=2, error_kw={"linewidth": 0.8})
    axes.axvline(1, color="black", linewidth=0.8)
    axes.set_yticks(places, [row.name for row in rows], fontsize=6)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.tick_params(axis="x", labelsize=7)
    axes.set_title(f"{result.workload}\nbaseline: {result.baseline.name}", fontsize=7)


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
