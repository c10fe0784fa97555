"""Draws the pictures of docs/score.md with the model in the box: python scripts/score_pictures.py"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

import fastddpm
from fastddpm.data.mnist import load_mnist
from fastddpm.images import grid, save_png, to_uint8
from fastddpm.score import RK45, Heun, inpaint, interpolate, sample_ode, sample_pc, score_of

FOLDER = Path(__file__).parent.parent / "docs" / "images" / "score"
SHAPE = (1, 28, 28)
SEEDS = range(100_000, 100_010)


def digit(label: int, place: int) -> Tensor:
    """A test digit ``(1, 28, 28)`` in [-1, 1]."""
    pixels, labels = load_mnist("test")
    return pixels[labels == label][place].float() / 127.5 - 1


def samples(sampler: fastddpm.Sampler) -> Tensor:
    """The same seeds and labels 0 to 9 by predictor-corrector, by the ODE and by DDIM."""
    labels = torch.arange(10)
    score = score_of(sampler, class_labels=labels)
    pc = sample_pc(score, SEEDS, SHAPE, steps=50, predictor="ancestral", spacing="log_snr")
    ode = sample_ode(score, SEEDS, SHAPE, solver=Heun(25))
    return torch.cat((pc, ode, sampler.sample(seeds=SEEDS, class_labels=labels, progress=False)))


def between(sampler: fastddpm.Sampler) -> Tensor:
    """From one test digit to another of its class through the middle of their latents."""
    rows = []
    for label in (3, 7):
        score = score_of(sampler, class_labels=label)
        rows.append(interpolate(score, digit(label, 0), digit(label, 5), images=10, solver=RK45(1e-4, 1e-4)))
    return torch.cat(rows)


def filled(sampler: fastddpm.Sampler) -> Tensor:
    """The upper half of a test digit, and nine ways to go on without a class."""
    image, rows = digit(8, 2), torch.arange(28).reshape(28, 1)
    known = rows < 14
    ways = inpaint(
        score_of(sampler),
        image[None],
        known,
        range(9),
        steps=40,
        corrector_steps=2,
        predictor="ancestral",
        spacing="log_snr",
    )
    return torch.cat((torch.where(known, image, 0.0)[None], ways))


def main() -> None:
    """Draws all."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    sampler = fastddpm.load(engine="eager")
    for name, draw in {"inpainting": filled, "samples": samples, "interpolation": between}.items():
        save_png(FOLDER / f"{name}.png", grid(to_uint8(draw(sampler)), 10))
        print(name, flush=True)


if __name__ == "__main__":
    main()
