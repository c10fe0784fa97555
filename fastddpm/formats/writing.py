"""A pipeline folder of diffusers from our network, where `UNet2DModel` and a scheduler can hold it."""

from __future__ import annotations

import json
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from fastddpm.checks import BadArgument
from fastddpm.files import WRITER, check_replaceable, made_folder, replacing, write_tensors
from fastddpm.formats.diffusers import CLASSES, WEIGHTS
from fastddpm.inputs import Json
from fastddpm.interruption import postponed
from fastddpm.options import SamplerOptions
from fastddpm.plans.method import FIELDS, Method
from fastddpm.plans.scheduler import PRECONDITIONED
from fastddpm.schedule import NoiseSchedule
from fastddpm.unet import UNet
from fastddpm.unet import diffusers as dialect

# The version whose folders these are; diffusers reads it, and warns where its own is older.
VERSION = "0.36.0"
_NEUTRAL = {"sigma_scale": 1.0, "time_input": "timestep", "timesteps": None, "eta": 0.0}
_SHAPES = {"linear": "linear", "scaled_linear": "scaled_linear", "quad": "scaled_linear"}


def save_pipeline(folder: str | Path, unet: UNet, schedule: NoiseSchedule, options: SamplerOptions) -> Path:
    """Writes a folder that ``DDPMPipeline.from_pretrained`` or ``DDIMPipeline.from_pretrained`` reads.

    Args:
        folder: made if need be; an earlier pipeline of this function's is replaced, other files in it stay.
        unet: the network.
        schedule: its noise schedule.
        options: of :class:`fastddpm.Sampler`; its ``shape`` gives the sample_size.

    Raises:
        ValueError: an option of the network or the sampler that diffusers has not; a folder with a pipeline
            of somebody else's. Nothing is written then.
        OSError: it cannot be written.
    """
    folder = Path(folder)
    theirs = dialect.their_config(unet.config)
    shape = options.get("shape")
    if shape is None:
        raise BadArgument("shape", "None", "(C, H, W), for a pipeline's folder holds the size,")
    height, width = shape[-2:]
    theirs["sample_size"] = height if height == width else [height, width]
    fields = {name: value for name, value in options.items() if name in FIELDS}
    scheduler = scheduler_config(schedule, Method.from_dict(fields))
    name = scheduler["_class_name"]
    pipeline = {"DDIMScheduler": "DDIMPipeline", "PNDMScheduler": "PNDMPipeline"}.get(name, "DDPMPipeline")
    version = {"_diffusers_version": VERSION}
    documents = {
        folder / "unet" / "config.json": {"_class_name": "UNet2DModel", **version, **theirs},
        folder / "scheduler" / "scheduler_config.json": scheduler,
        folder / "model_index.json": {
            "_class_name": pipeline,
            **version,
            "scheduler": ["diffusers", name],
            "unet": ["diffusers", "UNet2DModel"],
        },
    }
    written = folder / "unet" / f"{WEIGHTS}.safetensors"
    check_replaceable(folder, [str(path.relative_to(folder)) for path in (*documents, written)], written)
    # All are written before the first takes its name; without the index in between it is no pipeline.
    with ExitStack() as stack:
        for part in ("unet", "scheduler"):
            stack.enter_context(made_folder(folder / part))
        index = stack.enter_context(replacing(folder / "model_index.json"))
        for path, document in documents.items():
            temporary = index if path.name == "model_index.json" else stack.enter_context(replacing(path))
            temporary.write_text(json.dumps(document, indent=2) + "\n")
        weights = stack.enter_context(replacing(written))
        write_tensors(weights, dialect.their_state_dict(unet), format="pt", writer=WRITER)
        with postponed():
            (folder / "model_index.json").unlink(missing_ok=True)
            stack.close()
    return folder


def scheduler_config(schedule: NoiseSchedule, method: Method) -> Json:
    """A scheduler's configuration for a schedule and a method.

    Raises:
        ValueError: an option that diffusers' schedulers have not.
    """
    if method.scheduler is not None:
        betas = {} if method.fields["_class_name"] in PRECONDITIONED else _betas(schedule)
        steps = len(schedule)
        return {**method.fields, "_diffusers_version": VERSION, "num_train_timesteps": steps, **betas}
    names = {name: theirs for name, theirs in CLASSES.items() if name in ("ddpm", "ddim")}
    if method.method not in names:
        raise BadArgument("method", repr(method.method), f"{' or '.join(names)} by a pipeline of diffusers")
    for name, value in method.to_dict().items():
        if value != _NEUTRAL.get(name, value):
            raise BadArgument(name, repr(value), f"{_NEUTRAL[name]!r} by a pipeline of diffusers")
    clip = method.clip_sample_range
    config: Json = {
        "_class_name": names[method.method],
        "_diffusers_version": VERSION,
        "num_train_timesteps": len(schedule),
        **_betas(schedule),
        "prediction_type": method.prediction_type,
        "timestep_spacing": method.timestep_spacing,
        "clip_sample": clip is not None,
        "clip_sample_range": 1.0 if clip is None else float(clip),
        "thresholding": method.thresholding,
        "dynamic_thresholding_ratio": method.dynamic_thresholding_ratio,
        "sample_max_value": method.sample_max_value,
        "steps_offset": 0,
    }
    if method.method == "ddpm":
        config["variance_type"] = method.variance_type
    elif method.variance_type != "fixed_small":
        raise BadArgument(
            "variance_type",
            f"{method.variance_type!r} with ddim",
            "fixed_small by a DDIMScheduler of diffusers",
        )
    else:
        config["set_alpha_to_one"] = True
    return config


def _betas(schedule: NoiseSchedule) -> Json:
    """Fields that give these betas; by name where diffusers has the name, else the betas themselves."""
    parameters = schedule.to_dict().get("parameters", {})
    named = {"trained_betas": None, "rescale_betas_zero_snr": schedule.zero_terminal_snr}
    if schedule.name in _SHAPES:
        ends = {name: parameters[name] for name in ("beta_start", "beta_end")}
        return {"beta_schedule": _SHAPES[schedule.name], **ends, **named}
    if schedule.name == "cosine" and parameters == {**parameters, "s": 0.008, "max_beta": 0.999}:
        return {"beta_schedule": "squaredcos_cap_v2", **named}
    betas = np.asarray(schedule.betas).tolist()
    return {"beta_schedule": "linear", "trained_betas": betas, "rescale_betas_zero_snr": False}
