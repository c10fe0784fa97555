"""Which solver for how many passes of the network? For the model in the box.

    python benchmarks/quality_solvers.py                                      # measures, and draws the figure
    python benchmarks/quality_solvers.py --from benchmarks/results/quality_solvers.json       # draws it again

Of every method and spacing, from the same noises and for the same digits (sample s has seed 100000 + s and is
asked for digit s mod 10; no guidance): the distance of 50 samples from what the probability-flow ODE leads
to, root of the mean square over pixels in [-1, 1], for methods that solve it. That is Heun's method in 200
steps. A Runge-Kutta method runs the network twice in all but its last step, so it has about half the steps
for as many passes. Of the methods named in `FULL` also agreement and Frechet distance of 250 samples, as
quality_steps.py. Samples are kept in OUT, so a run that was stopped goes on.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import fastddpm
import quality_mnist
from fastddpm.files import replacing, write_json
from fastddpm.plans.registry import METHODS

PASSES = (4, 6, 8, 10, 15, 20, 50)
SAMPLES = 50
FULL_SAMPLES = 250
RANDOM = {"ddpm", "euler_ancestral", "dpm2_ancestral", "dpmpp_2m_sde", "dpmpp_3m_sde"}
TWICE = {"heun", "dpm2", "dpm2_ancestral", "dpmpp_2s"}
SPACINGS = ("trailing", "linspace", "karras", "exponential", "beta")
FULL = (
    ("ddim", "trailing"),
    ("dpmpp_2m", "trailing"),
    ("unipc", "trailing"),
    ("unipc", "exponential"),
    ("dpmpp_3m", "exponential"),
)
REFERENCE = {"method": "heun", "timestep_spacing": "exponential", "num_inference_steps": 200}


def setting(method: str, spacing: str, passes: int) -> dict[str, Any]:
    """Options of a sampler that runs the network at most so many times."""
    steps = (passes + 1) // 2 if method in TWICE else passes
    if method == "pndm":
        steps = passes - 1  # its first step has two
    return {"method": method, "timestep_spacing": spacing, "num_inference_steps": steps}


def drawn(sampler: fastddpm.Sampler, options: dict[str, Any], count: int, out: Path) -> Any:
    """``(count, 1, 28, 28)``; files that are there are not drawn again."""
    name = f"{options['method']}-{options['timestep_spacing']}-{options['num_inference_steps']}"
    return quality_mnist.draw(sampler, {**options, "guidance_scale": 1.0}, count, out / name, 1)


def measure(out: Path, path: Path) -> dict[str, Any]:
    """The document, written after each point."""
    sampler = fastddpm.load("mnist")
    quality_mnist.BATCH = SAMPLES
    exact = drawn(sampler, REFERENCE, SAMPLES, out)
    reference = quality_mnist.Reference()
    document: dict[str, Any] = {
        "command": "python benchmarks/quality_solvers.py",
        "real": reference.real(),
        "points": [],
    }
    for passes in PASSES:
        for method, entry in METHODS.items():
            for spacing in SPACINGS:
                is_full = (method, spacing) in FULL
                if entry.solver is None and spacing not in ("trailing", "linspace"):
                    continue
                if method in RANDOM:
                    continue
                options = setting(method, spacing, passes)
                images = drawn(sampler, options, FULL_SAMPLES if is_full else SAMPLES, out)
                distance = float(((images[:SAMPLES] - exact) ** 2).mean() ** 0.5)
                point: dict[str, Any] = {
                    "method": method,
                    "spacing": spacing,
                    "passes": passes,
                    "steps": options["num_inference_steps"],
                    "distance": distance,
                }
                if is_full:
                    figures = reference.figures(images)
                    point |= {key: figures[key] for key in ("agreement", "frechet")}
                document["points"].append(point)
                print(json.dumps(point), flush=True)
        write_json(path, document)
    return document


BEST = 8
"""Methods in the figure."""


def draw(document: dict[str, Any], path: Path) -> None:
    """Distance against passes: the best methods, each in its best spacing."""
    from matplotlib import pyplot

    figure, axis = pyplot.subplots(figsize=(8, 5), layout="constrained")
    for method, spacing in _best(document)[:BEST]:
        points = [p for p in document["points"] if (p["method"], p["spacing"]) == (method, spacing)]
        axis.plot(
            [p["passes"] for p in points],
            [p["distance"] for p in points],
            marker="o",
            markersize=3,
            label=f"{method}, {spacing}",
        )
    axis.set(
        xscale="log", yscale="log", xlabel="passes of the network", title="distance from the ODE's images"
    )
    lengths = _lengths(document)
    axis.set_xticks(lengths, [str(passes) for passes in lengths])
    axis.minorticks_off()
    axis.legend(fontsize=8)
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=110, format="png")
    pyplot.close(figure)


def _lengths(document: dict[str, Any]) -> list[int]:
    """The numbers of passes that were measured."""
    return sorted({point["passes"] for point in document["points"]})


def _best(document: dict[str, Any]) -> list[tuple[str, str]]:
    """Of each method the spacing with the smallest distances, best method first."""
    totals: dict[tuple[str, str], float] = {}
    for point in document["points"]:
        key = point["method"], point["spacing"]
        totals[key] = totals.get(key, 0.0) + float(np.log(point["distance"]))
    best = {
        method: min((key for key in totals if key[0] == method), key=totals.__getitem__)
        for method in {method for method, _ in totals}
    }
    return sorted(best.values(), key=totals.__getitem__)


def table(document: dict[str, Any]) -> str:
    """Distances as a Markdown table, every method in its best spacing."""
    return _rows(document, _best(document), lambda point: f"{point['distance']:.3f}")


def full_table(document: dict[str, Any]) -> str:
    """Agreement / Frechet distance over that of real halves, of the methods in `FULL`."""
    halves = document["real"]["frechet"]
    return _rows(document, FULL, lambda p: f"{p['agreement']:.1%} / {p['frechet'] / halves:.2f}")


def _rows(
    document: dict[str, Any], methods: Sequence[tuple[str, str]], cell: Callable[[dict[str, Any]], str]
) -> str:
    lengths = _lengths(document)
    rows = [["method", "spacing", *map(str, lengths)], ["---"] * (len(lengths) + 2)]
    for method, spacing in methods:
        points = (p for p in document["points"] if (p["method"], p["spacing"]) == (method, spacing))
        found = {point["passes"]: cell(point) for point in points}
        rows.append([f"`{method}`", spacing, *(found.get(n, "") for n in lengths)])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def main() -> None:
    """Measures or draws from the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("runs/quality-solvers"))
    parser.add_argument("--json", type=Path, default=Path("benchmarks/results/quality_solvers.json"))
    parser.add_argument("--figure", type=Path, default=Path("docs/images/quality_solvers.png"))
    parser.add_argument("--from", dest="rendered", type=Path)
    args = parser.parse_args()
    if args.rendered is None:
        document = measure(args.out, args.json)
    else:
        document = json.loads(args.rendered.read_text())
    draw(document, args.figure)
    print(table(document))
    print(full_table(document))


if __name__ == "__main__":
    main()
