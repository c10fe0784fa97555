"""Does a classifier's gradient steer the model in the box? Classifier guidance of its score without a class.

    python benchmarks/guidance_mnist.py [--out benchmarks/results/guidance_mnist.json]

Sample s has seed 100000 + s and is asked for digit s mod 10 by the gradient of the digit classifier alone, at
several scales. Two judges read the samples: the classifier that guided, which is flattered by construction,
and one that had no part in it: the class for which the model in the box predicts the noise of the image best
(Li et al. 2023, "Your diffusion model is secretly a zero-shot classifier"). How far each judge is to be
trusted is seen on test digits.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import fastddpm
from fastddpm.data import open_dataset
from fastddpm.evaluation import load_digit_classifier
from fastddpm.files import write_json
from fastddpm.images import grid, save_png, to_uint8
from fastddpm.score import GuidedScore, on_denoised, sample_pc, score_of

SCALES = (0.0, 1.0, 4.0)
FIRST_SEED = 100_000
BATCH = 50
STEPS = 50
SHAPE = (1, 28, 28)
DIGITS = 10
# Noise levels at which the judge looks, and how many draws of noise at each.
TIMESTEPS = (200, 350, 500, 650)
DRAWS = 2


def drawn(sampler: fastddpm.Sampler, scale: float, count: int) -> Tensor:
    """``(count, 1, 28, 28)`` guided samples in [-1, 1], as a file would hold them: 8 bits a pixel."""
    plain, classifier = score_of(sampler), load_digit_classifier()
    images = []
    for first in range(0, count, BATCH):
        numbers = torch.arange(first, min(first + BATCH, count))
        guided = GuidedScore(plain, on_denoised(plain, classifier), numbers % DIGITS, scale)
        seeds = (FIRST_SEED + numbers).tolist()
        options: dict[str, Any] = {"predictor": "ancestral", "spacing": "log_snr", "corrector_steps": 0}
        images.append(sample_pc(guided, seeds, SHAPE, steps=STEPS, **options))
    return torch.tensor(to_uint8(torch.cat(images))).movedim(-1, 1).float() / 127.5 - 1


@torch.no_grad()
def read_by_denoising(sampler: fastddpm.Sampler, images: Tensor) -> Tensor:
    """int64 ``(N,)``: for each image the class given which the network's prediction errs least."""
    network, schedule = sampler.model.eval(), sampler.schedule
    generator = torch.Generator().manual_seed(0)
    errors = torch.zeros(len(images), DIGITS)
    for t in TIMESTEPS:
        a = float(schedule.alphas_cumprod[t]) ** 0.5
        sigma = (1 - a * a) ** 0.5
        for _ in range(DRAWS):
            eps = torch.randn(SHAPE, generator=generator)
            x = a * images + sigma * eps
            v = a * eps - sigma * images  # what the model in the box predicts
            time = torch.full((len(images),), t)
            for digit in range(DIGITS):
                predicted = network(x, time, torch.full((len(images),), digit))
                errors[:, digit] += (predicted - v).square().flatten(1).mean(1)
    return errors.argmin(1)


def judged(sampler: fastddpm.Sampler, images: Tensor, labels: Tensor) -> dict[str, Any]:
    """The share that each judge reads as asked, and its standard error."""
    by_classifier, _ = load_digit_classifier().read(images)
    by_denoising = torch.cat([read_by_denoising(sampler, some) for some in images.split(BATCH)])
    found: dict[str, Any] = {"samples": len(images)}
    for name, read in (("the classifier", by_classifier), ("the model", by_denoising)):
        share = float((read == labels).double().mean())
        found[name] = {"agreement": share, "error": (share * (1 - share) / len(images)) ** 0.5}
    return found


def main() -> None:
    """Measures from the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--samples", type=int, default=100)
    parser.add_argument("--picture", type=Path, help="the first 20 samples of each scale, a block each")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/guidance_mnist.json"))
    arguments = parser.parse_args()
    sampler = fastddpm.load(engine="eager")
    data = open_dataset("mnist", split="test")
    digits, labels = data.batch(torch.arange(arguments.samples) * len(data) // arguments.samples)
    assert labels is not None
    document: dict[str, Any] = {
        "command": f"python benchmarks/guidance_mnist.py --samples {arguments.samples}",
        "test digits": judged(sampler, digits, labels),
        "scales": {},
    }
    print("test digits", document["test digits"], flush=True)
    wanted, shown = torch.arange(arguments.samples) % DIGITS, []
    for scale in SCALES:
        images = drawn(sampler, scale, arguments.samples)
        document["scales"][f"{scale:g}"] = judged(sampler, images, wanted)
        print(f"scale {scale:g}", document["scales"][f"{scale:g}"], flush=True)
        shown.append(images[:20])
    write_json(arguments.out, document)
    if arguments.picture is not None:
        save_png(arguments.picture, grid(to_uint8(torch.cat(shown)), columns=10))


if __name__ == "__main__":
    main()
