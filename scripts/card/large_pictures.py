"""A picture restored by rows of tiles, beside the whole of it at once: the same picture, and what it takes.

    python scripts/card/large_pictures.py OUT [--seconds N] [--tiny]

A network of random weights doubles the sides of a random picture, by 4 DDIM steps. The difference is in
levels of 255 of the pictures as written.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from watch import Watch
from workload import Part, arguments

from fastddpm.restoration import Picture, Restorer, read_picture
from fastddpm.restoration.streamed import restore_to_files
from fastddpm.sampler import Sampler
from fastddpm.schedule import NoiseSchedule
from fastddpm.tasks import SuperResolve
from fastddpm.unet import UNet, UNetConfig


def restorer(tile: int, width: int, device: torch.device) -> Restorer:
    """Doubles the sides of pictures."""
    torch.manual_seed(0)
    config = UNetConfig(in_channels=6, out_channels=3, base_channels=width, channel_mults=(1, 2, 2))
    options: dict[str, Any] = {"method": "ddim", "num_inference_steps": 4, "timestep_spacing": "trailing"}
    options |= {"prediction_type": "sample", "clip_sample_range": 1.0, "engine": "eager"}
    unet = UNet(config).eval().requires_grad_(False).to(device)
    sampler = Sampler(unet, NoiseSchedule.cosine(1000), shape=(3, tile, tile), **options)
    return Restorer(sampler, SuperResolve(factor=2))


def main() -> None:
    """Measures small pictures both ways, and a large one by rows."""
    args = arguments(__doc__, seconds={"type": float, "default": 60.0})
    watch = Watch(Part("large_pictures", args.out), args.seconds, args.device)
    one = restorer(16, 32, args.device) if args.tiny else restorer(128, 64, args.device)
    sizes = [(12, 10)] if args.tiny else [(512, 512), (4096, 1024)]
    with tempfile.TemporaryDirectory() as folder:
        for height, width in sizes:
            pixels = torch.randint(0, 256, (3, height, width), dtype=torch.uint8)
            picture, out = Picture(pixels, None, None), Path(folder) / "rows.png"
            whole = height * width <= 512 * 512

            def by_rows(picture: Picture = picture, out: Path = out, pixels: int = pixels.numel()) -> Any:
                return _taken(watch, lambda: restore_to_files(one, picture, [out], seeds=[1]), pixels)

            def at_once(picture: Picture = picture, out: Path = out, pixels: int = pixels.numel()) -> Any:
                found: list[Picture] = []
                row = _taken(watch, lambda: found.extend(one.restore(picture, seeds=[1])), pixels)
                apart = (found[0].pixels.int() - read_picture(out).pixels.int()).abs()
                return {**row, "largest_difference": float(apart.max())}

            name = f"{2 * height}x{2 * width}"
            watch.measure({"name": f"{name}, by rows", "ours": True}, by_rows, most=args.seconds)
            if whole:
                watch.measure({"name": f"{name}, whole", "ours": True}, at_once)


def _taken(watch: Watch, call: Callable[[], Any], numbers: int) -> dict[str, Any]:
    """Seconds a megapixel of the result, and the most memory that was held at once."""
    if watch.on_card:
        torch.cuda.reset_peak_memory_stats()
    began = time.perf_counter()
    call()
    seconds = time.perf_counter() - began
    held = torch.cuda.max_memory_allocated() / 2**20 if watch.on_card else None
    return {"seconds": seconds, "s_per_megapixel": seconds / (4 * numbers / 3 / 1e6), "peak_mib": held}


if __name__ == "__main__":
    main()
