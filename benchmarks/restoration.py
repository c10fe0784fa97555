"""How well do the bundled restoration models restore images that they were never trained on?

    python benchmarks/restoration.py mnist_sr mnist_deblur photo_sr --twins RUNS --out RESULTS.json

Digits are those of the test split, photographs crops of scikit-learn's china and flower. The degraded image
is made as in training, with noise that no training sample has. Beside the model stand the degraded image
(bicubic, or blurred), and a regression network of the same size (`train_regression.py`, in
RUNS/NAME_regression/model).

* psnr: of the mean squared error over all images, in dB, the range being -1 to 1; ssim: scikit-image's, mean.
* accuracy: share that the digit classifier reads as their label. distance: between the classifier's features
  of the restored and of the true digit, in units of the mean distance between two test digits.
* settings: one sample per image, and where it says so the mean of 8 samples. Seconds are not measured.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from skimage.metrics import structural_similarity
from torch import Tensor

from fastddpm.checkpoint import load
from fastddpm.data import open_dataset
from fastddpm.data.photographs import load_photographs
from fastddpm.evaluation import load_digit_classifier, mean_pairwise_distance
from fastddpm.files import write_json
from fastddpm.images import grid, save_png, to_uint8
from fastddpm.repaint import repaint
from fastddpm.restoration import Restorer, load_restorer

# Noise of the degradation: ordinals that no run reaches.
FIRST_ORDINAL = 2**50
MEAN_OF = 8
CROP = 128
SHORT = [(method, steps) for steps in (5, 10, 20, 50) for method in ("ddim", "dpmpp_2m")]
FEWEST = [("ddim", 1), ("ddim", 2)]
LONG = [("ddpm", 1000)]
BATCH = 20


def digits(count: int) -> tuple[Tensor, Tensor]:
    """Evenly spread test digits float32 ``(count, 1, 28, 28)`` and their labels."""
    data = open_dataset("mnist", split="test")
    images, labels = data.batch(torch.arange(count) * len(data) // count)
    assert labels is not None
    return images, labels


def crops(count: int) -> Tensor:
    """Crops of 128x128, evenly spread over each of the two test photographs: ``(2 * count, 3, 128, 128)``."""
    cut = []
    for pixels in load_photographs("test").values():
        _, height, width = pixels.shape
        for i in range(count):
            top = (height - CROP) * (i % 2)
            left = (width - CROP) * i // max(1, count - 1)
            cut.append(pixels[:, top : top + CROP, left : left + CROP].float() / 127.5 - 1)
    return torch.stack(cut)


def measures(restored: Tensor, truth: Tensor, labels: Tensor | None) -> dict[str, float]:
    """The figures of restored images beside the true ones, both ``(N, C, H, W)`` in [-1, 1]."""
    error = ((restored - truth) / 2).square().mean()
    ssim = [
        structural_similarity(a.numpy(), b.numpy(), data_range=2.0, channel_axis=0)
        for a, b in zip(restored, truth, strict=True)
    ]
    figures = {"psnr": float(-10 * error.log10()), "ssim": float(sum(ssim)) / len(ssim)}
    if error == 0:
        del figures["psnr"]  # infinite, which JSON has no word for
    if labels is not None:
        classifier = load_digit_classifier()
        read, features = classifier.read(restored)
        _, real = classifier.read(truth)
        figures["accuracy"] = float((read == labels).float().mean())
        scale = mean_pairwise_distance(real.numpy())
        figures["distance"] = float((features - real).norm(dim=1).mean()) / scale
    return {name: round(value, 4) for name, value in figures.items()}


def drawn(restorer: Restorer, conditions: Tensor, first_seed: int) -> Tensor:
    """One sample for each condition, ``(N, C, H, W)`` in [-1, 1]; image i has seed ``first_seed + i``."""
    rows = [next(restorer.draws(conditions[i : i + 1], [first_seed + i])) for i in range(len(conditions))]
    return torch.cat(rows)


def drawn_together(restorer: Restorer, conditions: Tensor, first_seed: int) -> Tensor:
    """The same for conditions of the size of a tile, in batches."""
    pieces = []
    for start in range(0, len(conditions), BATCH):
        some = conditions[start : start + BATCH]
        seeds = range(first_seed + start, first_seed + start + len(some))
        predicted = restorer.sampler.sample(seeds=seeds, condition=some, progress=False)
        pieces.append(restorer.task.restored(predicted, some).clamp(-1, 1))
    return torch.cat(pieces)


@torch.no_grad()
def regressed(folder: Path, restorer: Restorer, conditions: Tensor) -> Tensor:
    """What a regression network makes of conditions."""
    network = load(folder).model
    shape = (len(conditions), restorer.channels, *conditions.shape[2:])
    inputs = torch.cat((conditions, torch.zeros(shape)), dim=1)
    outputs = [network(piece, torch.zeros(len(piece))) for piece in inputs.split(BATCH)]
    return restorer.task.restored(torch.cat(outputs), conditions).clamp(-1, 1)


def measure(name: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """All figures of one bundled model."""
    restorer = load_restorer(name)
    is_digits = name.startswith("mnist")
    truth, labels = digits(arguments.digits) if is_digits else (crops(arguments.crops), None)
    ordinals = torch.arange(len(truth)) + FIRST_ORDINAL
    conditions = restorer.task.condition(truth, ordinals, 0)
    draw: Callable[[Restorer, Tensor, int], Tensor] = drawn_together if is_digits else drawn
    base = restorer.task.base(conditions, restorer.channels)
    rows = {"truth": measures(truth, truth, labels), "degraded": measures(base, truth, labels)}
    twin = None if arguments.twins is None else arguments.twins / f"{name}_regression" / "model"
    if twin is not None and twin.is_dir():
        rows["regression"] = measures(regressed(twin, restorer, conditions), truth, labels)
    chosen = (restorer.sampler.options["method"], restorer.sampler.options["num_inference_steps"])
    short = [chosen] if arguments.chosen else [*([] if is_digits else FEWEST), *SHORT]
    for method, steps in [*short, *(LONG if arguments.long else [])]:
        sampler = restorer.sampler.replace(method=method, num_inference_steps=steps, eta=0.0)
        images = draw(Restorer(sampler, restorer.task), conditions, 0)
        rows[f"{method}-{steps}"] = measures(images, truth, labels)
        print(name, method, steps, rows[f"{method}-{steps}"], flush=True)
    samples = [draw(restorer, conditions, 1000 * k) for k in range(MEAN_OF)]
    mean = torch.stack(samples).mean(0)
    rows[f"mean of {MEAN_OF}, {chosen[0]}-{chosen[1]}"] = measures(mean, truth, labels)
    if not is_digits:
        half = len(truth) // 2
        for photograph, part in (("china", slice(0, half)), ("flower", slice(half, None))):
            rows[f"{photograph}: degraded"] = measures(base[part], truth[part], None)
            rows[f"{photograph}: one sample"] = measures(samples[0][part], truth[part], None)
            rows[f"{photograph}: mean of {MEAN_OF}"] = measures(mean[part], truth[part], None)
        if arguments.whole:
            rows |= measure_whole(restorer)
    if arguments.pictures is not None:
        draw_pictures(arguments.pictures / f"{name}.png", base, samples, mean, truth)
    spread = torch.stack(samples).std(0).mean()
    return {"images": len(truth), "rows": rows, "deviation_between_samples": round(float(spread), 4)}


def measure_repaint(arguments: argparse.Namespace) -> dict[str, Any]:
    """Zero-shot inpainting of the lower half of test digits by the class-conditional model in the box."""
    truth, labels = digits(arguments.repaint_digits)
    unknown = torch.zeros(1, 1, 28, 28)
    unknown[:, :, 14:] = 1
    sampler = load("mnist", method="ddim", eta=1.0, num_inference_steps=50)
    seeds = range(len(truth))
    rows = {"truth": measures(truth, truth, labels)}
    rows["half hidden"] = measures(torch.where(unknown > 0, -1.0, truth), truth, labels)
    shown = [torch.where(unknown > 0, 0.0, truth)]
    for resample in (1, 4):
        for name, asked in (("its class", labels), ("no class", None)):
            options = {"class_labels": asked, "jump": 5, "resample": resample, "progress": False}
            images = repaint(sampler, truth, unknown, seeds=seeds, **options).clamp(-1, 1)
            rows[f"resample {resample}, {name}"] = measures(images, truth, labels)
            shown.append(images)
            print("repaint", resample, name, flush=True)
    if arguments.pictures is not None:
        columns = torch.cat([images[:10] for images in (*shown, truth)])
        save_png(arguments.pictures / "repaint.png", grid(to_uint8(columns), columns=10))
    return {"images": len(truth), "rows": rows}


def measure_steps() -> dict[str, Any]:
    """On how many steps `photo_sr` takes: one sample and the mean of 8 of the validation photograph."""
    restorer = load_restorer("photo_sr")
    truth = load_photographs("validation")["chelsea"][:, :256, 100:356].float()[None] / 127.5 - 1
    condition = restorer.task.condition(truth, torch.tensor([FIRST_ORDINAL]), 0)
    rows = {"degraded": measures(condition, truth, None)}
    for steps in (1, 2, 3, 5):
        short = Restorer(restorer.sampler.replace(num_inference_steps=steps), restorer.task)
        samples = [drawn(short, condition, 1000 * k) for k in range(MEAN_OF)]
        rows[f"ddim-{steps}: one sample"] = measures(samples[0], truth, None)
        rows[f"ddim-{steps}: mean of {MEAN_OF}"] = measures(torch.stack(samples).mean(0), truth, None)
    return {"images": 1, "rows": rows}


def measure_whole(restorer: Restorer) -> dict[str, dict[str, float]]:
    """The two test photographs whole, in tiles, cut to a multiple of the factor."""
    rows = {}
    for photograph, pixels in load_photographs("test").items():
        _, height, width = (side - side % restorer.factor for side in pixels.shape)
        truth = pixels[None, :, :height, :width].float() / 127.5 - 1
        condition = restorer.task.condition(truth, torch.tensor([FIRST_ORDINAL]), 0)
        samples = [next(restorer.draws(condition, [k])) for k in range(MEAN_OF)]
        rows[f"{photograph}, whole: degraded"] = measures(condition, truth, None)
        rows[f"{photograph}, whole: one sample"] = measures(samples[0], truth, None)
        rows[f"{photograph}, whole: mean of {MEAN_OF}"] = measures(torch.stack(samples).mean(0), truth, None)
        print(rows, flush=True)
    return rows


def draw_pictures(path: Path, base: Tensor, samples: list[Tensor], mean: Tensor, truth: Tensor) -> None:
    """The best, two median and the worst image by the first sample's error, a row for each.

    In a row: degraded, two samples, the mean, the truth.
    """
    errors = (samples[0] - truth).square().flatten(1).mean(1)
    order = errors.argsort()
    middle = len(order) // 2
    shown = [int(order[0]), int(order[middle - 1]), int(order[middle]), int(order[-1])]
    columns = (base, samples[0], samples[1], mean, truth)
    images = torch.stack([column[i] for i in shown for column in columns])
    save_png(path, grid(to_uint8(images), columns=len(columns)))


def table(rows: dict[str, dict[str, float]]) -> str:
    """Markdown."""
    names = list(rows["degraded" if "degraded" in rows else "half hidden"])
    lines = [["setting", *names], ["---"] * (len(names) + 1)]
    for setting, figures in rows.items():
        cells = [f"{figures.get(name, float('inf')):.{2 if name == 'psnr' else 3}f}" for name in names]
        lines.append([setting, *cells])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main() -> None:
    """Measures from the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("models", nargs="+", help="mnist_sr, mnist_deblur, photo_sr, photo_steps, repaint")
    parser.add_argument("--twins", type=Path, help="folder of the regression networks' runs")
    parser.add_argument("--digits", type=int, default=200)
    parser.add_argument("--repaint-digits", type=int, default=20)
    parser.add_argument("--crops", type=int, default=3, help="of each photograph")
    parser.add_argument("--whole", action="store_true", help="the photographs whole too")
    parser.add_argument("--long", action="store_true", help="all 1000 steps of ddpm too")
    parser.add_argument(
        "--chosen", action="store_true", help="of the short chains the model folder's own alone"
    )
    parser.add_argument("--pictures", type=Path, help="folder for best, median and worst")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    document = json.loads(arguments.out.read_text()) if arguments.out.exists() else {}
    for name in arguments.models:
        if name == "repaint":
            found = measure_repaint(arguments)
        else:
            found = measure_steps() if name == "photo_steps" else measure(name, arguments)
        found["rows"] = {**document.get(name, {}).get("rows", {}), **found["rows"]}
        found["command"] = "python benchmarks/restoration.py " + " ".join(sys.argv[1:])
        document[name] = found
        write_json(arguments.out, document)
        print(table(found["rows"]))


if __name__ == "__main__":
    main()
