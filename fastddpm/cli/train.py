"""`fastddpm train`: a data set to a model folder."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, TypedDict

import typer

from fastddpm.checks import BadArgument
from fastddpm.cli.options import Sets
from fastddpm.extras import needed
from fastddpm.interruption import exit_code
from fastddpm.options import SamplerOptions
from fastddpm.tasks import TASKS, Task, make_task
from fastddpm.unet.size import MAX_PARAMETERS


class Source(TypedDict):
    """How the images of both splits are opened."""

    size: int | None
    channels: int | None
    skip_broken: bool
    labels: bool


# The commands that use a model of a task.
USES = {"sr": "super-resolve", "deblur": "deblur", "inpaint": "inpaint", "colorize": "colorize"}


def train(
    out: Annotated[
        Path, typer.Option(help="Folder of the run; run again with the same options to go on."), Sets("run")
    ],
    data: Annotated[
        str, typer.Option(help="mnist, photographs, an image folder, or a Hugging Face path.")
    ] = "mnist",
    size: Annotated[int | None, typer.Option(max=65536, help="Resize and crop images to this.")] = None,
    channels: Annotated[int | None, typer.Option(help="1 (grey) or 3 (colour).")] = None,
    flip: Annotated[bool, typer.Option(help="Mirror half of the images.")] = False,
    shift: Annotated[int, typer.Option(max=65536, help="Move images by up to so many pixels.")] = 0,
    skip_broken: Annotated[bool, typer.Option(help="Leave broken image files out.")] = False,
    conditional: Annotated[bool, typer.Option(help="Learn the labels, where the data has them.")] = True,
    steps: Annotated[int, typer.Option(help="Optimiser steps.")] = 5000,
    batch: Annotated[int, typer.Option(help="Samples per step."), Sets("batch_size")] = 128,
    accumulate: Annotated[
        int, typer.Option(help="Micro-batches per step."), Sets("gradient_accumulation")
    ] = 1,
    lr: Annotated[float, typer.Option(help="Peak learning rate.")] = 1e-3,
    lr_schedule: Annotated[str, typer.Option(help="cosine, linear or constant.")] = "cosine",
    warmup: Annotated[int, typer.Option(help="Steps of warm-up."), Sets("warmup_steps")] = 200,
    ema: Annotated[
        float, typer.Option(help="Decay of the moving average of the weights."), Sets("ema_decay")
    ] = 0.999,
    loss: Annotated[str, typer.Option(help="l2, l1 or huber.")] = "l2",
    weighting: Annotated[str, typer.Option(help="none, min_snr or p2.")] = "none",
    prediction: Annotated[
        str | None,
        typer.Option(help="epsilon, sample or v_prediction (v_prediction)."),
        Sets("prediction_type"),
    ] = None,
    schedule: Annotated[
        str | None, typer.Option(help="linear, scaled_linear, cosine or sigmoid (cosine).")
    ] = None,
    class_dropout: Annotated[float, typer.Option(help="Share of labels dropped, for guidance.")] = 0.1,
    task: Annotated[
        str | None, typer.Option(help="sr, deblur, inpaint or colorize: from an image to an image.")
    ] = None,
    factor: Annotated[int | None, typer.Option(help="Of the task sr: how much larger (4).")] = None,
    blur: Annotated[str | None, typer.Option(help="Of deblur: gaussian or motion.")] = None,
    sigma: Annotated[float | None, typer.Option(help="Of deblur: the Gaussian's, in pixels (2).")] = None,
    length: Annotated[int | None, typer.Option(help="Of deblur: of motion, in pixels (9).")] = None,
    noise: Annotated[
        float | None, typer.Option(help="Of deblur: standard deviation, the range being -1 to 1 (0.1).")
    ] = None,
    gain: Annotated[
        float | None, typer.Option(help="Of a task: predict the residual times this, not the image.")
    ] = None,
    init_from: Annotated[
        str | None,
        typer.Option(help="Fine-tune a model: its weights, network, schedule and prediction to begin with."),
    ] = None,
    time_input: Annotated[
        str | None, typer.Option(help="timestep, noise_level (SR3) or alphas_cumprod (Palette) (timestep).")
    ] = None,
    mid_attention: Annotated[
        bool | None,
        typer.Option("--mid-attention/--no-mid-attention", help="Self-attention at the lowest level (yes)."),
    ] = None,
    base_channels: Annotated[
        int | None, typer.Option(max=65536, help="Channels at full resolution (32).")
    ] = None,
    mults: Annotated[
        str | None, typer.Option(help="Channel factor of each level (1,2,2)."), Sets("channel_mults")
    ] = None,
    blocks: Annotated[
        int | None, typer.Option(max=64, help="Residual blocks per level (1)."), Sets("num_res_blocks")
    ] = None,
    dropout: Annotated[float, typer.Option(help="Dropout in residual blocks.")] = 0.0,
    max_parameters: Annotated[
        int, typer.Option(min=1, help="Refuse a network of more before it is made.")
    ] = MAX_PARAMETERS,
    mixed_precision: Annotated[str, typer.Option(help="no, fp16 or bf16.")] = "no",
    compile_network: Annotated[bool, typer.Option("--compile", help="torch.compile the network.")] = False,
    checkpoint_every: Annotated[int, typer.Option(help="Steps between checkpoints and sample grids.")] = 500,
    workers: Annotated[
        int, typer.Option(help="Processes that decode images ahead; 0: the training does it itself.")
    ] = 0,
    seed: Annotated[int, typer.Option(help="Of everything random.")] = 0,
) -> None:
    """Train a model: the run folder gets a log, a loss plot, sample grids, checkpoints, and RUN/model.

    With several processes: accelerate launch -m fastddpm train ...
    """
    needed("accelerate", by="train")
    from fastddpm.cli.train_base import base_of
    from fastddpm.data import open_dataset
    from fastddpm.data.opening import BUILT_IN
    from fastddpm.training import Objective, TrainConfig, Trainer, TrainingDiverged
    from fastddpm.training.interruption import Interrupted
    from fastddpm.training.processes import MainProcessFailed

    base = base_of(
        init_from,
        prediction=prediction,
        schedule=schedule,
        time_input=time_input,
        base_channels=base_channels,
        mults=mults,
        blocks=blocks,
        mid_attention=mid_attention,
    )
    noise_schedule = base.schedule
    config = TrainConfig(
        steps=steps,
        batch_size=batch,
        gradient_accumulation=accumulate,
        lr=lr,
        lr_schedule=lr_schedule,  # type: ignore[arg-type]
        warmup_steps=warmup,
        ema_decay=ema,
        class_dropout=class_dropout,
        objective=Objective(base.prediction, loss, weighting),  # type: ignore[arg-type]
        mixed_precision=mixed_precision,  # type: ignore[arg-type]
        compile=compile_network,
        seed=seed,
        checkpoint_every=checkpoint_every,
        workers=workers,
    )
    parameters = {
        "factor": factor,
        "blur": blur,
        "sigma": sigma,
        "length": length,
        "noise": noise,
        "gain": gain,
    }
    chosen = chosen_task(task, parameters)
    source: Source = {
        "size": size,
        "channels": channels,
        "skip_broken": skip_broken,
        "labels": conditional and chosen is None,
    }
    images = open_dataset(data, flip=flip, shift=shift, **source)
    validation = open_dataset(data, split="validation", **source) if data in BUILT_IN else None
    n_channels, height, width = images.shape
    model = base.network(n_channels, images.num_classes, chosen, dropout)
    if height % model.size_multiple or width % model.size_multiple:
        raise BadArgument(
            "size",
            f"images of {height}x{width}",
            f"multiples of {model.size_multiple} by a network of {len(model.channel_mults)} levels "
            "(--size, --mults)",
        )
    sampler: SamplerOptions = {
        "method": "ddim",
        "num_inference_steps": 50,
        "timestep_spacing": "trailing",
        "prediction_type": config.objective.prediction_type,
        "time_input": base.time_input,
        "clip_sample_range": 1.0 if chosen is None or chosen.gain is None else chosen.gain,
        "shape": [n_channels, height, width],
    }
    trainer = Trainer(
        config,
        model,
        noise_schedule,
        images,
        out,
        validation=validation,
        sampler=sampler,
        task=chosen,
        initial=base.initial,
        max_parameters=max_parameters,
    )
    # What happens to all processes is said by one.
    says = trainer.accelerator.is_main_process
    try:
        folder = trainer.train()
    except (Interrupted, TrainingDiverged, MainProcessFailed) as ended:
        if says:
            kind = "" if isinstance(ended, Interrupted) else "error: "
            print(f"fastddpm: {kind}{ended}", file=sys.stderr)
        code = exit_code(ended.signal, resumable=True) if isinstance(ended, Interrupted) else 2
        raise typer.Exit(code) from None
    if says:
        command = "sample" if task is None else f"{USES[task]} --model"
        print(f"{len(images):,} images, {steps} steps -> {folder}; use it: fastddpm {command} {folder}")
    trainer.accelerator.end_training()


def chosen_task(name: str | None, parameters: Mapping[str, object]) -> Task | None:
    """The task for the options; None without ``--task``, where its options are refused."""
    if name is not None:
        return make_task(name, **parameters)
    given = [option for option, value in parameters.items() if value is not None]
    if given:
        raise BadArgument(
            given[0], f"{parameters[given[0]]!r} without a task", f"--task {' or '.join(TASKS)}"
        )
    return None
