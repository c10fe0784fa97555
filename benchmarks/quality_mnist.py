"""How good are the digits that a model draws? 1,000 samples of each committed setting against the test split.

    python benchmarks/quality_mnist.py                       # the model in the box, all settings, hours
    python benchmarks/quality_mnist.py --settings ddim-50    # one setting, minutes
    python benchmarks/quality_mnist.py --model runs/mnist/model --out runs/mnist/quality

Sample s has seed 100000 + s and is asked for digit s mod 10. Samples are kept in OUT/SETTING, so a run that
was stopped goes on; the figures go to OUT/quality.json, and OUT/neighbours.png shows samples above their
nearest training digits.

* agreement: share read as asked by the digit classifier, which knows the train split only.
* frechet, precision, recall: in the classifier's 64 features, 250 samples against 250 test digits, averaged
  over 20 draws, beside the two halves of the test split against each other at the same size.
* neighbour ratio: median Euclidean distance of the samples to their nearest training digit over that of the
  test digits. A model that remembers its training digits is far below 1.
* diversity: mean distance between two samples of a class over that between two test digits of the class.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import fastddpm
from fastddpm.data import open_dataset
from fastddpm.evaluation import (
    frechet_distance,
    load_digit_classifier,
    mean_pairwise_distance,
    nearest_distances,
    precision_recall,
)
from fastddpm.files import replacing, write_json
from fastddpm.images import grid, save_png, to_uint8

FIRST_SEED = 100_000
BATCH = 50
HALF = 250
DRAWS = 20
DDIM_50 = {"method": "ddim", "num_inference_steps": 50, "timestep_spacing": "trailing"}
DPMPP_20 = {"method": "dpmpp_2m", "num_inference_steps": 20, "timestep_spacing": "trailing"}
SETTINGS: dict[str, dict[str, Any]] = {
    "ddim-50-eta-1": {**DDIM_50, "eta": 1.0, "guidance_scale": 1.0},
    "ddim-50": {**DDIM_50, "guidance_scale": 1.0},
    "ddim-50-guided": {**DDIM_50, "guidance_scale": 1.5},
    "dpmpp-20": {**DPMPP_20, "guidance_scale": 1.0},
    "ddpm-1000": {"method": "ddpm", "num_inference_steps": 1000, "guidance_scale": 1.0},
}


def draw(sampler: fastddpm.Sampler, setting: dict[str, Any], count: int, folder: Path, way: int) -> Tensor:
    """``(count, 1, 28, 28)`` samples of a setting, in files of `BATCH`; those there are not drawn again.

    ``way`` is 1 or -1: two processes, one from each end, meet in the middle.
    """
    options = {k: v for k, v in setting.items() if k != "guidance_scale"}
    sampler = sampler.replace(**options)
    folder.mkdir(parents=True, exist_ok=True)
    paths = {first: folder / f"{first:06d}.npy" for first in range(0, count, BATCH)}
    for first, path in list(paths.items())[::way]:
        if path.exists():
            continue
        numbers = range(first, first + BATCH)
        images = sampler.sample(
            seeds=[FIRST_SEED + s for s in numbers],
            class_labels=[s % 10 for s in numbers],
            guidance_scale=setting["guidance_scale"],
        )
        with replacing(path) as temporary, temporary.open("wb") as file:
            np.save(file, images.cpu().numpy())
        print(f"  {sum(path.exists() for path in paths.values()) * BATCH} of {count}", flush=True)
    return torch.tensor(np.concatenate([np.load(path) for path in paths.values()])[:count])


class Reference:
    """The real digits and what the classifier makes of them."""

    def __init__(self) -> None:
        self.classifier = load_digit_classifier()
        self.train, _ = _split("train")
        self.test, self.test_labels = _split("test")
        read, features = self.classifier.read(self.test)
        self.accuracy = float((read == self.test_labels).float().mean())
        self.features = features.numpy()
        self.to_train = nearest_distances(self.test.numpy(), self.train.numpy())[0]

    def halves(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """Features of the two halves of the test split, for each draw."""
        orders = (np.random.default_rng(i).permutation(len(self.features)) for i in range(DRAWS))
        return [(self.features[order[:HALF]], self.features[order[HALF : 2 * HALF]]) for order in orders]

    def figures(self, images: Tensor) -> dict[str, Any]:
        """All measures of a set of samples, sample s being digit s mod 10."""
        labels = torch.arange(len(images)) % 10
        # What a file would hold: 8 bits a pixel, as the digits themselves.
        images = torch.tensor(to_uint8(images)).movedim(-1, 1).float() / 127.5 - 1
        read, features = self.classifier.read(images)
        agrees = (read == labels).float()
        drawn = features.numpy()
        pairs = []
        for i, (half, _) in enumerate(self.halves()):
            chosen = np.random.default_rng(1000 + i).permutation(len(drawn))[:HALF]
            pairs.append((drawn[chosen], half))
        distances = nearest_distances(images.numpy(), self.train.numpy())[0]
        diversity = [
            mean_pairwise_distance(images[labels == c].numpy())
            / mean_pairwise_distance(self.test[self.test_labels == c].numpy())
            for c in range(10)
        ]
        return {
            "samples": len(images),
            "agreement": float(agrees.mean()),
            "misread": (agrees == 0).nonzero().flatten().tolist(),
            "agreement_by_class": [round(float(agrees[labels == c].mean()), 4) for c in range(10)],
            **_distances(pairs),
            "frechet_all": frechet_distance(drawn, self.features),
            "neighbour_ratio": float(np.median(distances) / np.median(self.to_train)),
            "diversity_by_class": [round(value, 3) for value in diversity],
        }

    def real(self) -> dict[str, Any]:
        """The same measures between the halves of the test split."""
        figures = _distances(self.halves())
        return {"classifier_accuracy": self.accuracy, "test_digits": len(self.test), **figures}


def _distances(pairs: list[tuple[np.ndarray, np.ndarray]]) -> dict[str, float]:
    both = [precision_recall(a, b) for a, b in pairs]
    return {
        "frechet": float(np.mean([frechet_distance(a, b) for a, b in pairs])),
        "precision": float(np.mean([precision for precision, _ in both])),
        "recall": float(np.mean([recall for _, recall in both])),
    }


def _split(name: str) -> tuple[Tensor, Tensor]:
    data = open_dataset("mnist", split=name)
    images, labels = data.batch(torch.arange(len(data)))
    assert labels is not None
    return images, labels


def draw_neighbours(images: Tensor, train: Tensor, path: Path, columns: int = 20) -> None:
    """Samples in one row, their nearest training digits below."""
    _, nearest = nearest_distances(images[:columns].numpy(), train.numpy())
    save_png(path, grid(to_uint8(torch.cat([images[:columns], train[torch.tensor(nearest)]])), columns))


def table(document: dict[str, Any]) -> str:
    """The figures as a Markdown table."""
    head = [
        "setting",
        "agreement",
        "frechet",
        "x-halves",
        "precision",
        "recall",
        "neighbour-ratio",
        "diversity",
    ]
    real = document["real"]
    rows: list[list[str]] = [head, ["---"] * len(head)]
    same = {"agreement": real["classifier_accuracy"], "neighbour_ratio": 1.0, "diversity_by_class": [1.0]}
    rows += [_row("halves of the test split", {**real, **same}, real["frechet"])]
    rows += [_row(name, row, real["frechet"]) for name, row in document["settings"].items()]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _row(name: str, figures: dict[str, Any], frechet: float) -> list[str]:
    diversity = figures["diversity_by_class"]
    return [
        name,
        f"{figures['agreement']:.1%}",
        f"{figures['frechet']:.3f}",
        f"{figures['frechet'] / frechet:.2f}",
        f"{figures['precision']:.3f}",
        f"{figures['recall']:.3f}",
        f"{figures['neighbour_ratio']:.2f}",
        f"{min(diversity):.2f} to {max(diversity):.2f}",
    ]


def main() -> None:
    """Measures from the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="mnist", help="mnist or a model folder")
    parser.add_argument("--settings", nargs="+", choices=list(SETTINGS), default=list(SETTINGS))
    parser.add_argument("--samples", type=int, default=1000)
    parser.add_argument("--engine", default="auto", help="compile is faster where it works")
    parser.add_argument("--backwards", action="store_true", help="last samples first")
    parser.add_argument("--out", type=Path, default=Path("runs/quality"))
    args = parser.parse_args()
    if args.samples < 2 * HALF:
        parser.error(f"--samples: {args.samples} given, {2 * HALF} or more accepted")
    args.out.mkdir(parents=True, exist_ok=True)
    sampler = fastddpm.load(args.model, engine=args.engine)
    reference = Reference()
    path = args.out / "quality.json"
    document = json.loads(path.read_text()) if path.exists() else {"settings": {}}
    document["real"] = reference.real()
    for name in args.settings:
        began = time.perf_counter()
        print(f"{name}: {SETTINGS[name]}", flush=True)
        images = draw(sampler, SETTINGS[name], args.samples, args.out / name, -1 if args.backwards else 1)
        document["settings"][name] = reference.figures(images)
        if name == args.settings[0]:
            draw_neighbours(images, reference.train, args.out / "neighbours.png")
        write_json(path, document)
        print(f"  {time.perf_counter() - began:.0f} s", flush=True)
    print(table(document))


if __name__ == "__main__":
    main()
