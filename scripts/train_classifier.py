"""Trains the digit classifier (`fastddpm.evaluation.DigitClassifier`) on the train split.

    python scripts/train_classifier.py [--epochs 30] [--out model.safetensors]

AdamW, one-cycle learning rate, batches of 64, every picture turned, scaled and moved a little; no picture of
the validation or test split is seen. Prints the accuracy on all three splits.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from fastddpm.data import open_dataset
from fastddpm.evaluation.classifier import WEIGHTS, DigitClassifier
from fastddpm.files import replacing


def moved(images: Tensor, generator: torch.Generator) -> Tensor:
    """Each image turned by up to 15 degrees, scaled by up to 12 % and moved by up to 2 pixels."""

    def uniform(limit: float) -> Tensor:
        return (torch.rand(len(images), generator=generator) * 2 - 1) * limit

    angle, scale, shear = uniform(math.radians(15)), 1 + uniform(0.12), uniform(0.15)
    rows = [
        scale * angle.cos(),
        -scale * angle.sin() + shear,
        uniform(2 / 14),
        scale * angle.sin(),
        scale * angle.cos(),
        uniform(2 / 14),
    ]
    theta = torch.stack(rows, dim=1).reshape(-1, 2, 3)
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    return F.grid_sample(images + 1, grid, align_corners=False) - 1


def main() -> None:
    """Trains from the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=WEIGHTS)
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    torch.set_num_threads(1)  # sums do not depend on the machine's number of cores
    generator = torch.Generator().manual_seed(args.seed)
    splits = {}
    for name in ("train", "validation", "test"):
        data = open_dataset("mnist", split=name)
        splits[name] = data.batch(torch.arange(len(data)))
    images, labels = splits["train"]

    classifier = DigitClassifier().to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(classifier.parameters(), weight_decay=0.01)
    steps = args.epochs * (len(images) // 64)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps)
    for epoch in range(args.epochs):
        order = torch.randperm(len(images), generator=generator)
        for chosen in order.split(64)[: len(images) // 64]:
            logits = classifier(moved(images[chosen], generator))
            loss = F.cross_entropy(logits, labels[chosen], label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        print(f"epoch {epoch + 1} of {args.epochs}: loss {loss.item():.4f}", flush=True)

    classifier.eval()
    for name, (pictures, truth) in splits.items():
        right = classifier.read(pictures)[0] == truth
        print(f"{name}: {right.float().mean():.2%} of {len(truth)} right")
    args.out.parent.mkdir(parents=True, exist_ok=True)
    with replacing(args.out) as path:
        save_file({k: v.contiguous() for k, v in classifier.state_dict().items()}, path)
    print(f"wrote {args.out}")


if __name__ == "__main__":
    main()
