"""Draws docs/images/backends.png: one seed from PyTorch alone, from PyTorch in a batch of 64, and from ONNX.

    fastddpm export --out digits-onnx && python scripts/draw_backends.py digits-onnx

Prints the largest differences between the three images. Needs onnxruntime.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

import fastddpm
from fastddpm.images import save_png, to_uint8
from fastddpm.onnx import OnnxSampler

SEED = 5
BATCH = 64
SCALE = 6
MARGIN = 8
CAPTION = 16


def images_of(folder: Path) -> dict[str, np.ndarray]:
    """float32 (1, 1, 28, 28) of the seed, by where it comes from."""
    sampler = fastddpm.load(device="cpu")
    alone = {"seeds": [SEED], "class_labels": [SEED % 10], "progress": False}
    seeds = range(BATCH)
    many = {"seeds": seeds, "class_labels": [s % 10 for s in seeds], "progress": False}
    exported = OnnxSampler(folder, "cpu")
    return {
        "PyTorch, batch of 1": sampler.sample(**alone).numpy(),
        "PyTorch, batch of 64": sampler.sample(**many).numpy()[SEED : SEED + 1],
        "ONNX, batch of 1": exported.sample(**alone),
        "ONNX, batch of 64": exported.sample(**many)[SEED : SEED + 1],
    }


def picture(captioned: dict[str, np.ndarray]) -> np.ndarray:
    """uint8 (H, W, 1): the images side by side, a caption under each."""
    import torch

    height, width = (SCALE * size for size in next(iter(captioned.values())).shape[-2:])
    canvas = Image.new("L", (len(captioned) * (width + MARGIN) + MARGIN, height + CAPTION + 2 * MARGIN), 255)
    draw = ImageDraw.Draw(canvas)
    for i, (caption, image) in enumerate(captioned.items()):
        left = MARGIN + i * (width + MARGIN)
        pixels = to_uint8(torch.from_numpy(image))[0, ..., 0]
        canvas.paste(
            Image.fromarray(pixels).resize((width, height), Image.Resampling.NEAREST), (left, MARGIN)
        )
        draw.text((left + width // 2, height + MARGIN + CAPTION // 2), caption, fill=0, anchor="mm")
    return np.asarray(canvas)[..., None]


def main() -> None:
    """Draws the picture."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="Export of the model in the box.")
    parser.add_argument("--out", type=Path, default=Path("docs/images/backends.png"))
    args = parser.parse_args()
    images = images_of(args.folder)
    first = next(iter(images.values()))
    for name, image in images.items():
        print(f"{name}: {np.abs(image - first).max():.1e} from the first")
    save_png(args.out, picture(images))
    print(args.out)


if __name__ == "__main__":
    main()
