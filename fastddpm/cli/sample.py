"""`fastddpm sample`: images from a model folder, another library's checkpoint, or the model in the box."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer
from torch import Tensor

from fastddpm.checkpoint import load
from fastddpm.checks import BadArgument, check_choice
from fastddpm.cli import lists, plan
from fastddpm.cli.arguments import parse_device, parse_dtype, parse_shape
from fastddpm.cli.options import Sets
from fastddpm.cli.outputs import Outputs, summary
from fastddpm.cli.ranges import choose_labels, parse_seeds
from fastddpm.cli.sample_job import JobOptions, onnx_drawer, run_job, torch_drawer
from fastddpm.cli.sample_onnx import refuse_condition, refuse_torch_options, sample_onnx
from fastddpm.engine import Engine, EngineUnavailable
from fastddpm.images import to_uint8
from fastddpm.options import ModelOptions, SampleArguments
from fastddpm.precision import Precision, described
from fastddpm.sampler import Sampler

if TYPE_CHECKING:
    from fastddpm.onnx.request import PlanOptions

LONGEST_ANIMATION = 40


def sample(
    model: Annotated[
        str,
        typer.Argument(
            help="Model folder, diffusers folder, .pth of abarankab/DDPM, or mnist: the model in the box."
        ),
    ] = "mnist",
    seeds: Annotated[str, typer.Option(help="Seeds, one image each: 0-9,20.")] = "0-63",
    classes: Annotated[
        str | None,
        typer.Option(
            "--class", help="Class, or classes taken in turn by seed: cat,dog or 0-4,7. All, if left out."
        ),
        Sets("class_labels"),
    ] = None,
    method: plan.Name = None,
    steps: plan.Steps = None,
    spacing: plan.Spacing = None,
    timesteps: plan.Timesteps = None,
    sigmas: plan.Sigmas = None,
    order: plan.Order = None,
    eta: plan.Eta = None,
    lower_order_final: plan.LowerOrderFinal = None,
    thresholding: plan.Thresholding = None,
    dynamic_thresholding_ratio: plan.ThresholdingRatio = None,
    sample_max_value: plan.MaxValue = None,
    guidance: Annotated[
        float, typer.Option(help="Classifier-free guidance scale; 1 is none."), Sets("guidance_scale")
    ] = 1.0,
    batch: Annotated[int, typer.Option(help="Images at a time."), Sets("batch_size", "max_batch")] = 64,
    shape: Annotated[
        str | None, typer.Option(help="Of an image, C,H,W; that of the model folder, if left out.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="A grid (.png) or arrays (.npz).")] = None,
    outdir: Annotated[Path | None, typer.Option(help="Folder for one PNG a seed, or for shards.")] = None,
    format: Annotated[
        str | None,
        typer.Option(help="npz, png or webdataset: shards in --outdir; run again, only what is missing."),
    ] = None,
    shard_size: Annotated[int | None, typer.Option(help="Images in a shard, a multiple of --batch.")] = None,
    workers: Annotated[str | None, typer.Option(help="Of shards: local (torchrun too) or ray.")] = None,
    threads: Annotated[int | None, typer.Option(help="Of a worker that draws shards on a CPU.")] = None,
    merge: Annotated[bool, typer.Option("--merge", help="Put all shards into one npz file too.")] = False,
    trajectory: Annotated[Path | None, typer.Option(help="From noise to images (.gif, .png).")] = None,
    device: Annotated[
        str | None, typer.Option(help="cpu, cuda, cuda:1; the first CUDA device if any.")
    ] = None,
    engine: Annotated[
        str, typer.Option(help="auto, eager, compile, cudagraph, max or onnxruntime.")
    ] = "auto",
    dtype: Annotated[str, typer.Option(help="Of the network: float32, float16 or bfloat16.")] = "float32",
    precision: Annotated[
        str | None,
        typer.Option(help="Of the network: highest, tf32, bf16, fp16 or int8; as torch is set, if left out."),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(exists=True, help="JSON with what a checkpoint of another library does not say."),
    ] = None,
    backend: Annotated[
        str, typer.Option(help="torch, or onnx: MODEL is a folder of `fastddpm export`, run by ONNX Runtime.")
    ] = "torch",
) -> None:
    """Draw images from a trained model, one per seed.

    Without an output option the images go into samples.png. The image of a seed does not depend on which
    other seeds are drawn with it.
    """
    job = JobOptions(outdir, format, shard_size, workers, threads, merge)
    is_job = job.check(out=out, trajectory=trajectory)
    if out is None and outdir is None and trajectory is None:
        out = Path("samples.png")
    outputs = Outputs(out, outdir, trajectory)
    seed_list = parse_seeds(seeds)
    check_choice("backend", backend, ("torch", "onnx"))
    steps_of_it: dict[str, object] = {"method": method, "num_inference_steps": steps, "eta": eta}
    steps_of_it |= {"timestep_spacing": spacing, "solver_order": order}
    steps_of_it |= {"timesteps": lists.integers(timesteps, "--timesteps")}
    steps_of_it |= {"sigmas": lists.floats(sigmas, "--sigmas")}
    of_x0 = {
        "lower_order_final": lower_order_final,
        "thresholding": thresholding,
        "dynamic_thresholding_ratio": dynamic_thresholding_ratio,
        "sample_max_value": sample_max_value,
    }
    if backend == "onnx":
        given = {"trajectory": trajectory, "shape": shape, "precision": precision, "config": config, **of_x0}
        refuse_torch_options(engine=engine, dtype=dtype, **given)
        chosen = cast("PlanOptions", steps_of_it)
        if is_job:
            export = onnx_drawer(model, job, device=device, guidance=guidance, plan=chosen)
            refuse_condition(model, export.condition_channels)
            labels = choose_labels(export.num_classes, classes, seed_list, export.class_names)
            run_job(export, job, seed_list, labels, batch=batch)
            return
        sample_onnx(
            model,
            outputs,
            seed_list,
            classes=classes,
            device=device,
            guidance=guidance,
            batch=batch,
            plan=chosen,
        )
        return
    image_shape = None if shape is None else parse_shape(shape)
    options: ModelOptions = {} if image_shape is None else {"shape": image_shape}
    if precision is not None:
        options["precision"] = cast("Precision", precision)  # as typed
    typed_engine = cast("Engine", engine)
    if precision == "int8" or not is_job:  # in a job the workers', but for a precision that is one engine's
        options["engine"] = typed_engine
    # The device of a job may be another machine's: its workers move the model there.
    here = "cpu" if is_job else parse_device(device)
    sampler = load(model, config=config, device=here, dtype=parse_dtype(dtype), **options)
    _refuse_condition(model, sampler)
    sampler = sampler.replace(**plan.adapted(sampler, {**steps_of_it, **of_x0}))
    labels = choose_labels(sampler.facts.num_classes, classes, seed_list, sampler.class_names)
    if is_job:
        place = job.device(device)
        drawer = torch_drawer(sampler, job, guidance=guidance, device=place, engine=typed_engine)
        run_job(drawer, job, seed_list, labels, batch=batch)
        return
    drawn_shape = image_shape or sampler.shape
    request: SampleArguments = {
        "seeds": seed_list,
        "class_labels": labels,
        "guidance_scale": guidance,
        "max_batch": batch,
        "shape": drawn_shape,
    }
    with outputs.ready(seed_list, drawn_shape[0] if drawn_shape else None):
        began = time.perf_counter()
        frames = _draw(sampler, request, animated=trajectory is not None)
        seconds = time.perf_counter() - began
        pixels = to_uint8(frames[-1])
        written = outputs.write(pixels, seed_list, labels, frames)
    where = f"{sampler.plan.method}, {len(sampler.plan)} steps, engine {sampler.engine} on {sampler.device}"
    if precision is not None:
        where += f" in {described(precision, sampler.dtype, sampler.device)}"
    print(summary(pixels, where, seconds, written))


def _draw(sampler: Sampler, request: SampleArguments, *, animated: bool) -> Tensor:
    """The states kept, float32 ``(F, B, C, H, W)``: the last alone, or those of an animation."""
    try:
        if animated:
            frames = min(LONGEST_ANIMATION, len(sampler.plan) + 1)
            return sampler.sample_trajectory(frames=frames, **request)
        return sampler.sample(**request)[None]
    except RuntimeError as error:
        # Imported here, where it is loaded already if it is needed: it takes seconds.
        from torch._dynamo.exc import TorchDynamoException

        if not isinstance(error, TorchDynamoException):
            raise
        reason = str(getattr(error, "inner_exception", error)).strip().split("\n")[0]
        raise EngineUnavailable(
            f"engine: {sampler.engine!r} cannot compile this model here ({reason}); auto or eager accepted"
        ) from error


def _refuse_condition(model: str, sampler: Sampler) -> None:
    observed = getattr(getattr(sampler.model, "config", None), "cond_dim", 0)
    if observed:
        raise BadArgument(
            "MODEL",
            f"{model}, a policy, whose actions depend on what it observes,",
            "a network without observations (fastddpm.load_policy(folder).act(observations) takes them)",
        )
    channels = sampler.facts.condition_channels
    if channels is not None and channels > 0:
        raise BadArgument(
            "MODEL",
            f"{model}, a super-resolution network, which needs an image of {channels} channels as its "
            "condition,",
            "one without a condition (fastddpm.load(...).sample(condition=image) takes one)",
        )
