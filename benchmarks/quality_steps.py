"""How many steps are enough? Class agreement and Frechet distance against steps, for the model in the box.

    python benchmarks/quality_steps.py                                        # measures, and draws the figure
    python benchmarks/quality_steps.py --from benchmarks/results/quality_steps.json    # draws it again

250 samples of each method and number of steps, measured as in quality_mnist.py (sample s has seed 100000 + s
and is asked for digit s mod 10; no guidance). Samples are kept in OUT, so a run that was stopped goes on. A
step costs the same whatever the method: one pass of the network, so steps are cost. DDIM with eta 1 is DDPM.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import fastddpm
import quality_mnist
from fastddpm.files import replacing, write_json

SAMPLES = 250
STEPS = (10, 20, 50, 100, 250)
TRAILING = {"timestep_spacing": "trailing", "guidance_scale": 1.0}
METHODS: dict[str, dict[str, Any]] = {
    "DDPM": {"method": "ddpm", **TRAILING},
    "DDIM": {"method": "ddim", **TRAILING},
    "DPM-Solver++(2M)": {"method": "dpmpp_2m", **TRAILING},
}
LENGTHS = {name: STEPS for name in METHODS} | {"DDPM": (*STEPS, 1000), "DPM-Solver++(2M)": (10, 20, 50)}


def measure(out: Path) -> dict[str, Any]:
    """The document: command, real digits' figures, and a list of points; the short chains first."""
    sampler = fastddpm.load("mnist")
    reference = quality_mnist.Reference()
    document: dict[str, Any] = {
        "command": "python benchmarks/quality_steps.py",
        "real": reference.real(),
        "points": [],
    }
    for steps in sorted({steps for lengths in LENGTHS.values() for steps in lengths}):
        for method, options in METHODS.items():
            if steps not in LENGTHS[method]:
                continue
            setting = {**options, "num_inference_steps": steps}
            folder = out / f"{options['method']}-{steps}"
            print(f"{method}, {steps} steps", flush=True)
            images = quality_mnist.draw(sampler, setting, SAMPLES, folder, 1)
            figures = reference.figures(images)
            kept = ("samples", "agreement", "frechet", "precision", "recall", "neighbour_ratio")
            document["points"].append({"method": method, "steps": steps, **{k: figures[k] for k in kept}})
    return document


def draw(document: dict[str, Any], path: Path) -> None:
    """Both measures against steps, the real digits as a line."""
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(10, 4), layout="constrained")
    real = document["real"]
    for axis, key, title, line in (
        (axes[0], "agreement", "read as the digit asked for", real["classifier_accuracy"]),
        (axes[1], "frechet", "Frechet distance in the classifier's features", real["frechet"]),
    ):
        for method in METHODS:
            points = [point for point in document["points"] if point["method"] == method]
            axis.plot([p["steps"] for p in points], [p[key] for p in points], marker="o", label=method)
        axis.axhline(line, color="grey", linestyle=":", label="test digits")
        axis.set(xscale="log", xlabel="steps (passes of the network)", title=title)
        axis.set_xticks([*STEPS, 1000], [str(steps) for steps in (*STEPS, 1000)])
    axes[1].set_yscale("log")
    axes[0].legend()
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=110, format="png")
    pyplot.close(figure)


def table(document: dict[str, Any]) -> str:
    """The points as a Markdown table: agreement / Frechet distance over that of real halves."""
    lengths = [*STEPS, 1000]
    rows = [["steps", *map(str, lengths)], ["---"] * (len(lengths) + 1)]
    for method in METHODS:
        found = {p["steps"]: p for p in document["points"] if p["method"] == method}
        cells = [
            f"{found[n]['agreement']:.1%} / {found[n]['frechet'] / document['real']['frechet']:.2f}"
            if n in found
            else ""
            for n in lengths
        ]
        rows.append([method, *cells])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def main() -> None:
    """Measures or draws from the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("runs/quality-steps"))
    parser.add_argument("--json", type=Path, default=Path("benchmarks/results/quality_steps.json"))
    parser.add_argument("--figure", type=Path, default=Path("docs/images/quality_steps.png"))
    parser.add_argument("--from", dest="rendered", type=Path)
    args = parser.parse_args()
    if args.rendered is None:
        document = measure(args.out)
        write_json(args.json, document)
    else:
        document = json.loads(args.rendered.read_text())
    draw(document, args.figure)
    print(table(document))


if __name__ == "__main__":
    main()
