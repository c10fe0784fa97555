"""`fastddpm super-resolve`, `deblur`, `inpaint` and `colorize`: image files to restored image files."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, cast

import typer
from torch import Tensor

from fastddpm.checks import BadArgument, whole
from fastddpm.cli.arguments import naming, parse_device
from fastddpm.cli.options import Sets
from fastddpm.cli.ranges import parse_class
from fastddpm.engine import executors
from fastddpm.options import ModelOptions
from fastddpm.plans.method_options import MethodName
from fastddpm.randomness import MAX_SEED
from fastddpm.restoration import Picture, Restorer, load_restorer, read_picture
from fastddpm.restoration.digits import check_digits
from fastddpm.restoration.files import Pair, in_and_out, read_mask, sample_paths
from fastddpm.restoration.restorer import task_of
from fastddpm.restoration.streamed import can_stream, is_large, restore_to_files
from fastddpm.restoration.zero_shot import ZeroShotInpainter
from fastddpm.tasks import TASKS

In = Annotated[Path, typer.Argument(help="An image file, or a folder of them.")]
Out = Annotated[Path, typer.Argument(help="Where the result goes: a file for a file, a folder for a folder.")]
Samples = Annotated[int, typer.Option(max=4096, help="Samples drawn of each image.")]
Mean = Annotated[bool, typer.Option("--mean", help="Write the mean of the samples, not each.")]
Seed = Annotated[int, typer.Option(help="Of the first sample; the others have the next ones.")]
Steps = Annotated[
    int | None,
    typer.Option(help="Inference steps; the model folder's, if left out."),
    Sets("num_inference_steps"),
]
Method = Annotated[str | None, typer.Option(help="ddpm, ddim or dpmpp_2m.")]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1; the first CUDA device if any.")]
Force = Annotated[
    bool, typer.Option("--force", help="Let the digit models in the box draw what are no digits.")
]
Engine = Annotated[str, typer.Option(help="auto, eager, compile, cudagraph, max or onnxruntime.")]

Draw = Callable[[Picture, Tensor | None, list[int]], list[Picture]]


@dataclass(frozen=True)
class Drawing:
    """What is drawn of each image.

    Attributes:
        samples: how many.
        mean: write their mean.
        seed: of the first.
    """

    samples: int
    mean: bool
    seed: int

    @property
    def seeds(self) -> list[int]:
        """One for each sample."""
        return list(range(self.seed, self.seed + self.samples))

    def check(self) -> None:
        """ValueError for numbers out of range."""
        whole("--samples", self.samples, least=1)
        if self.mean and self.samples < 2:
            raise BadArgument("--mean", "one sample to take it of", "--samples 2 or more")
        whole("--seed", self.seed, least=0, most=MAX_SEED + 1 - self.samples)


def super_resolve(
    source: In,
    out: Out,
    model: Annotated[str, typer.Option(help="Model folder, photo_sr or mnist_sr.")] = "photo_sr",
    samples: Samples = 1,
    mean: Mean = False,
    seed: Seed = 0,
    steps: Steps = None,
    method: Method = None,
    device: Device = None,
    engine: Engine = "auto",
    force: Force = False,
) -> None:
    """Enlarge images by the model's factor: the bundled ones, photographs and digits, by 4."""
    restorer = _restorer("sr", model, steps, method, device, engine)
    _restore(restorer, source, out, Drawing(samples, mean, seed), named=None if force else model)


def deblur(
    source: In,
    out: Out,
    model: Annotated[str, typer.Option(help="Model folder, or mnist_deblur: grey digits.")] = "mnist_deblur",
    samples: Samples = 1,
    mean: Mean = False,
    seed: Seed = 0,
    steps: Steps = None,
    method: Method = None,
    device: Device = None,
    engine: Engine = "auto",
    force: Force = False,
) -> None:
    """Sharpen images and free them of noise.

    The bundled model knows digits alone; train one for photographs.
    """
    restorer = _restorer("deblur", model, steps, method, device, engine)
    _restore(restorer, source, out, Drawing(samples, mean, seed), named=None if force else model)


def colorize(
    source: In,
    out: Out,
    model: Annotated[str, typer.Option(help="Model folder.")],
    samples: Samples = 1,
    mean: Mean = False,
    seed: Seed = 0,
    steps: Steps = None,
    method: Method = None,
    device: Device = None,
    engine: Engine = "auto",
) -> None:
    """Colour grey images by a model that was trained to; none is bundled."""
    restorer = _restorer("colorize", model, steps, method, device, engine)
    _restore(restorer, source, out, Drawing(samples, mean, seed))


def inpaint(
    source: In,
    out: Out,
    mask: Annotated[Path, typer.Option(help="Image of the same size, white where SOURCE is unknown.")],
    model: Annotated[
        str, typer.Option(help="Model folder, of the task inpaint or of none (RePaint), or mnist.")
    ] = "mnist",
    label: Annotated[
        str | None,
        typer.Option("--class", help="What to draw, for a model with classes: a name or a number."),
        Sets("class_labels"),
    ] = None,
    jump: Annotated[int, typer.Option(max=1000, help="RePaint: steps that are taken back at a time.")] = 5,
    resample: Annotated[
        int, typer.Option(max=1000, help="RePaint: times each such stretch is walked; 1 is once.")
    ] = 4,
    samples: Samples = 1,
    mean: Mean = False,
    seed: Seed = 0,
    steps: Steps = None,
    method: Method = None,
    device: Device = None,
    engine: Engine = "auto",
    force: Force = False,
) -> None:
    """Fill in the unknown part of images, by a model trained for it or by any other (RePaint).

    The bundled model knows digits alone; train one for photographs.
    """
    drawing = Drawing(samples, mean, seed)
    with naming("--model"):
        task = task_of(model)
    if task is not None:
        if label is not None:
            raise BadArgument("--class", f"{label} with a model without classes", "no value")
        restorer = _restorer("inpaint", model, steps, method, device, engine)
        _restore(restorer, source, out, drawing, mask)
        return
    with naming("--model"):
        inpainter = ZeroShotInpainter.load(
            model,
            jump=jump,
            resample=resample,
            steps=steps,
            method=cast("MethodName | None", method),  # as typed, as is the engine; the sampler checks them
            device=parse_device(device),
            engine=cast("executors.Engine", engine),
        )
    if label is not None:
        inpainter = replace(inpainter, class_label=parse_class(label, inpainter.sampler.class_names))
    _restore(inpainter, source, out, drawing, mask, named=None if force else model)


def _restorer(
    task: str, model: str, steps: int | None, method: str | None, device: str | None, engine: str
) -> Restorer:
    given = {"num_inference_steps": steps, "method": method, "engine": engine}
    options = cast("ModelOptions", {name: value for name, value in given.items() if value is not None})
    with naming("--model"):
        restorer = load_restorer(model, device=parse_device(device), **options)
    if not isinstance(restorer.task, TASKS[task]):
        is_for = next(name for name, kind in TASKS.items() if isinstance(restorer.task, kind))
        raise BadArgument("--model", f"{model}, which is for the task {is_for},", f"one for {task}")
    return restorer


def _restore(
    restorer: Restorer | ZeroShotInpainter,
    source: Path,
    out: Path,
    drawing: Drawing,
    mask: Path | None = None,
    named: str | None = None,
) -> None:
    """Checks everything that can be checked first, then restores one picture after the other."""
    drawing.check()
    streams = isinstance(restorer, Restorer) and can_stream(restorer)
    pairs: list[Pair] = in_and_out(source, out, restorer.factor, streams=streams)
    if named is not None:
        check_digits(named, [pair.source for pair in pairs])
    hidden = None if mask is None else read_mask(mask)
    seeds = drawing.seeds
    outs = [sample_paths(pair.out, 1 if drawing.mean else len(seeds)) for pair in pairs]
    for pair, paths in zip(pairs, outs, strict=True):
        _check_kept(pair.source, "the source", paths)
        if mask is not None:
            _check_kept(mask, "the mask", paths)
    for pair, paths in zip(pairs, outs, strict=True):
        began = time.perf_counter()
        picture = read_picture(pair.source)
        if isinstance(restorer, Restorer) and streams and is_large(restorer, picture, pair.out):
            restore_to_files(restorer, picture, paths, seeds=seeds, mask=hidden, progress=True)
        else:
            if drawing.mean:
                results = [restorer.restore_mean(picture, seeds=seeds, mask=hidden, progress=True)]
            else:
                results = restorer.restore(picture, seeds=seeds, mask=hidden, progress=True)
            for path, result in zip(paths, results, strict=True):
                result.write(path)
        height, width = (restorer.factor * side for side in picture.size)
        written = f"{paths[0]}" if len(paths) == 1 else f"{paths[0]} to {paths[-1].name}"
        print(f"{pair.source} -> {written} ({width}x{height}, {time.perf_counter() - began:.1f} s)")


def _check_kept(read: Path, what: str, paths: list[Path]) -> None:
    """BadArgument where a file that is read would be written over, by a name with a sample's number too."""
    for path in paths:
        if path.exists() and path.samefile(read):
            raise BadArgument("out", f"{str(path)!r}, {what},", "another file")
