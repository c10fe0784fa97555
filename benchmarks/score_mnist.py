"""The model in the box as a score model: do its samplers agree, and how many bits do test digits cost?

    python benchmarks/score_mnist.py                        # everything
    python benchmarks/score_mnist.py --only ode-rk45 bits    # parts of it; the others are kept in the results

Sample s has seed 100000 + s and is asked for digit s mod 10, as in `quality_mnist.py`, whose DDPM and DDIM
samples with the same seeds are the ones compared with. Agreement is the share that the digit classifier reads
as asked, its error one standard deviation of that share. bits/dim are means over test digits, as many of each
class, with uniform dequantisation and one probe of Hutchinson's a digit; every solver has the same u and
probe, so that differences between rows are the solvers' alone.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import fastddpm
from fastddpm.data.mnist import load_mnist
from fastddpm.evaluation import load_digit_classifier
from fastddpm.files import write_json
from fastddpm.images import grid, save_png, to_uint8
from fastddpm.score import (
    RK4,
    RK45,
    Churn,
    Denoiser,
    Heun,
    NetworkScore,
    ScheduleSDE,
    bits_per_dim,
    karras_sigmas,
    sample_karras,
    sample_ode,
    sample_pc,
    score_of,
)
from fastddpm.score.solvers import Solver

FIRST_SEED = 100_000
BATCH = 50
BITS_BATCH = 20
SHAPE = (1, 28, 28)
RESULTS = Path(__file__).parent / "results"
PLANS = ("ddpm-1000", "ddim-50-eta-1", "ddim-50")
SOLVERS: dict[str, Solver] = {
    "rk45, tolerances 1e-4": RK45(1e-4, 1e-4),
    "rk4, 40 steps": RK4(40),
    "rk45, tolerances 1e-5": RK45(1e-5, 1e-5),
}


class Counted:
    """A score that counts its calls."""

    def __init__(self, score: NetworkScore) -> None:
        self.score, self.sde, self.device, self.calls = score, score.sde, score.device, 0

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        """The score's answer."""
        self.calls += 1
        return self.score(x, t)


def karras(score: Counted, seeds: list[int], churn: Churn | None) -> Tensor:
    """18 steps of Karras et al.'s sampler, 35 calls."""
    sigmas = karras_sigmas(18, Denoiser(score).sigma_min, 80.0)
    return sample_karras(score, seeds, SHAPE, sigmas=sigmas, churn=churn)


def draws() -> dict[str, Callable[[Counted, list[int]], Tensor]]:
    """What is compared, by name: score and seeds to images in [-1, 1]."""
    pc = partial(sample_pc, shape=SHAPE, predictor="ancestral", steps=50, spacing="log_snr")
    return {
        "pc-50": lambda score, seeds: pc(score, seeds, corrector_steps=1),
        "ode-rk45": lambda score, seeds: sample_ode(score, seeds, SHAPE, solver=RK45(1e-3, 1e-3)),
        "ode-heun-25": lambda score, seeds: sample_ode(score, seeds, SHAPE, solver=Heun(25)),
        "karras-18": lambda score, seeds: karras(score, seeds, None),
        "karras-18-churn": lambda score, seeds: karras(score, seeds, Churn(20.0)),
    }


def sampled(sampler: fastddpm.Sampler, name: str, count: int) -> tuple[Tensor, float]:
    """``(count, 1, 28, 28)`` images and calls of the network an image, in batches of `BATCH`."""
    images, calls = [], []
    for first in range(0, count, BATCH):
        numbers = range(first, min(first + BATCH, count))
        score = Counted(score_of(sampler, class_labels=torch.tensor([s % 10 for s in numbers])))
        images.append(draws()[name](score, [FIRST_SEED + s for s in numbers]))
        calls.append(score.calls)
        print(f"  {name}: {numbers.stop} of {count}", flush=True)
    return torch.cat(images), sum(calls) / len(calls)


def quality(images: Tensor, calls: float) -> dict[str, Any]:
    """Agreement of samples, sample s being digit s mod 10, as a file would hold them: 8 bits a pixel."""
    pixels = torch.tensor(to_uint8(images)).movedim(-1, 1).float() / 127.5 - 1
    read, _ = load_digit_classifier().read(pixels)
    misread = (read != torch.arange(len(images)) % 10).nonzero().flatten().tolist()
    return {"calls": calls, **agreement(misread, len(images))}


def agreement(misread: list[int], count: int) -> dict[str, Any]:
    """The share of the first ``count`` samples that are not misread, and its standard error."""
    here = [s for s in misread if s < count]
    share = 1 - len(here) / count
    error = (share * (1 - share) / count) ** 0.5
    return {"samples": count, "agreement": share, "error": error, "misread": here}


def bits(sampler: fastddpm.Sampler, count: int, name: str) -> dict[str, Any]:
    """bits/dim of ``count`` test digits, every class alike, by one solver."""
    pixels, labels = load_mnist("test")
    chosen = torch.cat([(labels == c).nonzero().flatten()[: count // 10] for c in range(10)])
    values, calls = [], []
    for rows in chosen.split(BITS_BATCH):
        score = Counted(score_of(sampler, class_labels=labels[rows]))
        values.append(bits_per_dim(score, pixels[rows], rows.tolist(), solver=SOLVERS[name]))
        calls.append(score.calls)
        print(f"  bits, {name}: {len(torch.cat(values))} of {len(chosen)}", flush=True)
    all_bits = torch.cat(values)
    return {
        "digits": len(all_bits),
        "calls": sum(calls) / len(calls),
        "bits_per_dim": float(all_bits.mean()),
        "error": float(all_bits.std() / len(all_bits) ** 0.5),
        "each": [round(float(value), 5) for value in all_bits],
    }


def main() -> None:
    """Measures from the command line; results are kept after each part."""
    everything = [*draws(), "bits"]
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", choices=everything, default=everything)
    parser.add_argument("--samples", type=int, default=300)
    parser.add_argument("--digits", type=int, default=60)
    parser.add_argument("--pictures", type=Path, help="folder for the first 20 samples of each")
    parser.add_argument("--out", type=Path, default=RESULTS / "score_mnist.json")
    args = parser.parse_args()
    sampler = fastddpm.load(engine="eager")
    ScheduleSDE(sampler.schedule)  # scipy is missed before work is done
    document = json.loads(args.out.read_text()) if args.out.exists() else {"samplers": {}, "bits": {}}
    settings = json.loads((RESULTS / "quality_mnist.json").read_text())["settings"]
    document["plans"] = {name: agreement(settings[name]["misread"], args.samples) for name in PLANS}
    for part in args.only:
        if part == "bits":
            for name in SOLVERS:
                document["bits"][name] = bits(sampler, args.digits, name)
                save(document, args)
            continue
        images, calls = sampled(sampler, part, args.samples)
        document["samplers"][part] = quality(images, calls)
        save(document, args)
        if args.pictures is not None:
            save_png(args.pictures / f"{part}.png", grid(to_uint8(images[:20]), 10))
    for name, row in {**document["plans"], **document["samplers"]}.items():
        print(f"{name:20} {row['agreement']:.1%} +- {row['error']:.1%}")
    for name, row in document["bits"].items():
        print(f"{name:24} {row['bits_per_dim']:.4f} bits/dim, {row['calls']:.0f} calls")


def save(document: dict[str, Any], args: argparse.Namespace) -> None:
    """Writes the results, with the command that makes them."""
    parts = [*document["samplers"], *(["bits"] if document["bits"] else [])]
    document["command"] = (
        f"python benchmarks/score_mnist.py --only {' '.join(parts)} "
        f"--samples {args.samples} --digits {args.digits}"
    )
    write_json(args.out, document)


if __name__ == "__main__":
    main()
