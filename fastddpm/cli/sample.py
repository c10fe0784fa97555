"""`fastddpm sample`: images from a model folder, or from the model in the box."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import Annotated, Any

import typer
from torch import Tensor

from fastddpm.checkpoint import load
from fastddpm.cli.arguments import (
    check_output,
    check_output_folder,
    parse_device,
    parse_dtype,
    parse_ranges,
)
from fastddpm.images import grid, save_gif, save_npz, save_png, to_uint8
from fastddpm.sampler import Sampler
from fastddpm.unet import UNet

LONGEST_ANIMATION = 40


@dataclasses.dataclass(frozen=True)
class Outputs:
    """Where samples go."""

    out: Path | None
    outdir: Path | None
    trajectory: Path | None

    def check(self) -> None:
        """Refuses what could not be written, before sampling."""
        if self.out is not None:
            check_output(self.out, "--out", (".png", ".npz"))
        if self.trajectory is not None:
            check_output(self.trajectory, "--trajectory", (".gif",))
        if self.outdir is not None:
            check_output_folder(self.outdir, "--outdir")

    def write(self, frames: Tensor, seeds: list[int], labels: list[int] | None) -> list[str]:
        """Writes the last frame of ``(F, B, C, H, W)``, and all of them as an animation; names them."""
        pixels = to_uint8(frames[-1])
        written = []
        if self.out is not None:
            if self.out.suffix.lower() == ".npz":
                save_npz(self.out, pixels, labels, seeds)
            else:
                save_png(self.out, grid(pixels))
            written.append(str(self.out))
        if self.outdir is not None:
            self.outdir.mkdir(parents=True, exist_ok=True)
            for seed, image in zip(seeds, pixels, strict=True):
                save_png(self.outdir / f"{seed:06d}.png", image)
            written.append(f"{self.outdir}/ ({len(seeds)} files)")
        if self.trajectory is not None:
            save_gif(self.trajectory, [grid(to_uint8(frame)) for frame in frames])
            written.append(str(self.trajectory))
        return written


def sample(
    model: Annotated[str, typer.Argument(help="Model folder, or mnist: the model in the box.")] = "mnist",
    seeds: Annotated[str, typer.Option(help="Seeds, one image each: 0-9,20.")] = "0-63",
    classes: Annotated[
        str | None,
        typer.Option("--class", help="Class, or classes 0-4,7 taken in turn by seed. All, if left out."),
    ] = None,
    method: Annotated[str | None, typer.Option(help="ddpm, ddim or dpmpp_2m.")] = None,
    steps: Annotated[int | None, typer.Option(help="Inference steps, 1 to T.")] = None,
    eta: Annotated[float | None, typer.Option(help="Noise of ddim: 0 deterministic, 1 as ddpm.")] = None,
    guidance: Annotated[float, typer.Option(help="Classifier-free guidance scale; 1 is none.")] = 1.0,
    batch: Annotated[int, typer.Option(help="Images at a time.")] = 64,
    out: Annotated[Path | None, typer.Option(help="A grid (.png) or arrays (.npz).")] = None,
    outdir: Annotated[Path | None, typer.Option(help="Folder for one PNG a seed, named by it.")] = None,
    trajectory: Annotated[Path | None, typer.Option(help="The way from noise to images (.gif).")] = None,
    device: Annotated[
        str | None, typer.Option(help="cpu, cuda, cuda:1; the first CUDA device if any.")
    ] = None,
    engine: Annotated[str, typer.Option(help="auto, eager, compile, cudagraph or max.")] = "auto",
    dtype: Annotated[str, typer.Option(help="Of the network: float32, float16 or bfloat16.")] = "float32",
) -> None:
    """Draw images from a trained model, one per seed.

    Without an output option the images go into samples.png. The image of a seed does not depend on which
    other seeds are drawn with it.
    """
    if out is None and outdir is None and trajectory is None:
        out = Path("samples.png")
    outputs = Outputs(out, outdir, trajectory)
    seed_list = parse_ranges(seeds, "--seeds")
    given: dict[str, Any] = {"method": method, "num_inference_steps": steps, "eta": eta, "engine": engine}
    changes = {name: value for name, value in given.items() if value is not None}
    if method not in (None, "ddim") and eta is None:
        changes["eta"] = 0.0  # the folder's default may be meant for ddim
    sampler = load(model, device=parse_device(device), dtype=parse_dtype(dtype), **changes)
    labels = _labels(sampler, classes, seed_list)
    outputs.check()

    began = time.perf_counter()
    request: dict[str, Any] = {
        "seeds": seed_list,
        "class_labels": labels,
        "guidance_scale": guidance,
        "max_batch": batch,
    }
    if trajectory is not None:
        frames = sampler.sample_trajectory(frames=min(LONGEST_ANIMATION, len(sampler.plan) + 1), **request)
    else:
        frames = sampler.sample(**request)[None]
    seconds = time.perf_counter() - began
    written = outputs.write(frames, seed_list, labels)
    count, (height, width) = len(seed_list), frames.shape[-2:]
    print(
        f"{count} image{'s' * (count > 1)} of {height}x{width}, {sampler.plan.method}, "
        f"{len(sampler.plan)} steps, engine {sampler.engine} on {sampler.device}: {seconds:.2f} s, "
        f"{count / seconds:.1f} images/s -> {', '.join(written)}"
    )


def _labels(sampler: Sampler, classes: str | None, seeds: list[int]) -> list[int] | None:
    """A label per seed: the given classes, or all of them, in turn by seed; None without classes."""
    network = sampler.model
    n_classes = network.config.num_classes if isinstance(network, UNet) else None
    if n_classes is None:
        if classes is not None:
            raise ValueError("--class: given, but this model has no classes")
        return None
    choices = list(range(n_classes)) if classes is None else parse_ranges(classes, "--class")
    if max(choices) >= n_classes:
        raise ValueError(f"--class: {classes} given, 0 to {n_classes - 1} accepted")
    return [choices[seed % len(choices)] for seed in seeds]
