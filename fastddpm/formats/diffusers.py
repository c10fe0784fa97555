"""diffusers: pipeline folders, folders of a ``UNet2DModel`` alone, and state dicts of one.

The sampler made of a scheduler's configuration computes in float64 and keeps eps and the clipped x0
consistent in DDIM. For the very images of a pipeline there is ``fastddpm.optimize(pipeline)``.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn

from fastddpm.betas import MAX_STEPS
from fastddpm.checks import BadArgument, whole
from fastddpm.formats.files import CheckpointError, ConfigError, check_finite, read_json, read_tensors
from fastddpm.formats.loaded import SHARED, Loaded, ask, known, schedule_of, square
from fastddpm.inputs import Fields, InputError, member
from fastddpm.options import SamplerOptions
from fastddpm.plans.diffusers.config import COMMON_DEFAULTS, float32_betas, read_config
from fastddpm.schedule import NoiseSchedule
from fastddpm.unet import diffusers as dialect
from fastddpm.unet.config import MAX_BLOCKS, MAX_LEVELS, MAX_WIDTH
from fastddpm.unet.inference import assemble

WEIGHTS = "diffusion_pytorch_model"
SCHEDULERS = {"DDPMScheduler": "ddpm", "DDIMScheduler": "ddim"}
_PIPELINE_STEPS = {"ddim": 50}
"""Steps that DDIMPipeline takes unless told otherwise; DDPMPipeline takes all 1000."""
_DEFAULTS = {
    **COMMON_DEFAULTS,
    "clip_sample": True,
    "clip_sample_range": 1.0,
    "variance_type": "fixed_small",
    "set_alpha_to_one": True,
    "timestep_spacing": "leading",
}


def recognises(folder: Path) -> bool:
    """Whether a folder is a pipeline, or a ``UNet2DModel``."""
    if (folder / "model_index.json").is_file():
        return True
    path = folder / "config.json"
    try:
        return path.is_file() and read_json(path).get("_class_name") == "UNet2DModel"
    except CheckpointError:
        return False


def recognises_state(state: Mapping[str, Tensor]) -> bool:
    """Whether a state dict is that of a ``UNet2DModel``."""
    return "time_embedding.linear_1.weight" in state and "down_blocks.0.resnets.0.conv1.weight" in state


def read(folder: Path, given: Fields) -> Loaded:
    """Reads a folder.

    Args:
        folder: with ``model_index.json``, or a UNet's ``config.json`` and weights.
        given: ``unet`` and ``scheduler``, fields that replace those of the configurations; ``schedule``
            instead of a scheduler's; ``image_size`` where the UNet has no sample_size; ``num_classes`` of a
            UNet with class_embed_type "timestep".

    Raises:
        CheckpointError: naming the file or field.
    """
    known(given, ("unet", "scheduler", "num_classes", *SHARED))
    unet = folder / "unet" if (folder / "unet").is_dir() else folder
    options = {**read_json(unet / "config.json"), **(given.get("unet") or {})}
    scheduler = next(
        (path for path in (folder / "scheduler", folder) if (path / "scheduler_config.json").is_file()), None
    )
    stored = read_json(scheduler / "scheduler_config.json") if scheduler else {}
    state = _weights(unet)
    check_finite(state, str(unet / WEIGHTS))
    return _loaded(state, options, stored, given)


def read_state(state: Mapping[str, Tensor], given: Fields) -> Loaded:
    """Reads a state dict of a ``UNet2DModel``; ``given`` as of :func:`read`, with the whole of ``unet``."""
    known(given, ("unet", "scheduler", "num_classes", *SHARED))
    ask(given, {"unet": "the UNet2DModel's config.json"}, "a state dict of diffusers")
    return _loaded(dict(state), given["unet"], {}, given)


def _weights(folder: Path) -> dict[str, Tensor]:
    index = folder / f"{WEIGHTS}.safetensors.index.json"
    if index.is_file():
        return {name: value for file in _parts(index) for name, value in read_tensors(file).items()}
    for suffix in ("safetensors", "bin"):
        path = folder / f"{WEIGHTS}.{suffix}"
        if path.is_file():
            return read_tensors(path)
    raise CheckpointError(f"{folder / WEIGHTS}.safetensors: not found, nor {WEIGHTS}.bin")


def _parts(index: Path) -> list[Path]:
    """The files that an index lists, all beside it."""
    parts = read_json(index).get("weight_map")
    if not isinstance(parts, dict) or not parts:
        raise CheckpointError(f"{index}: no weight_map from tensors to files")
    try:
        return sorted({member(index.parent, name) for name in parts.values()})
    except InputError as error:
        raise CheckpointError(f"{index}: {error}") from error


def _loaded(state: dict[str, Tensor], options: Fields, stored: Fields, given: Fields) -> Loaded:
    size = given.get("image_size") or options.get("sample_size")
    asked = {"image_size": "a side in pixels or (H, W)"}
    scheduler = {**stored, **(given.get("scheduler") or {})}
    if not scheduler and given.get("schedule") is None:
        asked["scheduler"] = "a scheduler_config.json; or a schedule, for DDPM with it"
    ask({"image_size": size}, asked, "a UNet2DModel")
    sides = square(size)
    schedule = given.get("schedule")
    try:
        sampler: SamplerOptions = sampler_options(scheduler) if scheduler else {"method": "ddpm"}
        schedule = schedule_of(schedule) if schedule is not None else noise_schedule(scheduler)
    except CheckpointError:
        raise
    except (ArithmeticError, TypeError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"scheduler: {error}") from error
    model = _network(state, options, given.get("num_classes"))
    channels = options.get("in_channels", dialect.DEFAULTS["in_channels"])
    return Loaded(model, schedule, {**sampler, "shape": [channels, *sides]})


def _network(state: dict[str, Tensor], options: Fields, num_classes: int | None) -> nn.Module:
    try:
        ours = dialect.config(options, num_classes=num_classes)
    except ValueError as error:
        if isinstance(error, BadArgument) and error.argument == "num_classes":
            raise ConfigError(error) from error
        return _theirs(state, options, str(error))
    try:
        return assemble(ours, dialect.state_dict(state, ours))
    except ValueError as error:
        raise CheckpointError(f"{WEIGHTS}: {error}") from error


def _theirs(state: dict[str, Tensor], options: Fields, reason: str) -> nn.Module:
    """diffusers' own network, where ours does not fit."""
    try:
        from diffusers import UNet2DModel
    except ImportError as error:
        raise CheckpointError(
            f"{reason}; other networks run as they are, with diffusers installed"
        ) from error
    _check_limits(options)
    warnings.warn(f"diffusers' own UNet2DModel is used: {reason}", UserWarning, stacklevel=5)
    try:
        with torch.device("meta"):  # nothing is allocated for sizes that the tensors do not have
            model: nn.Module = UNet2DModel.from_config(dict(options))  # type: ignore[no-untyped-call]
        model.load_state_dict(state, assign=True)
    except Exception as error:  # the constructor checks little, and raises what a bad option trips it over
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise CheckpointError(f"{WEIGHTS}: {reason}") from error
    return model.eval()


def _check_limits(options: Fields) -> None:
    """Refuses sizes of a UNet2DModel from which its constructor would build for hours."""
    given = {**dialect.DEFAULTS, **options}
    try:
        for name in ("block_out_channels", "down_block_types", "up_block_types"):
            if not isinstance(given[name], (list, tuple)):
                raise BadArgument(name, repr(given[name]), "a list")
            whole(f"number of {name}", len(given[name]), least=1, most=MAX_LEVELS)
        for width in given["block_out_channels"]:
            whole("block_out_channels", width, least=1, most=MAX_WIDTH)
        whole("layers_per_block", given["layers_per_block"], least=1, most=MAX_BLOCKS)
    except ValueError as error:
        raise ConfigError(error) from error


def sampler_options(scheduler: Fields) -> SamplerOptions:
    """Options of :class:`fastddpm.Sampler` from a scheduler's configuration.

    Raises:
        CheckpointError: naming a field that the sampler has not.
    """
    config = read_config(scheduler, _DEFAULTS)
    method = SCHEDULERS.get(str(config.get("_class_name")))
    if method is None:
        raise CheckpointError(
            f"scheduler: _class_name={config.get('_class_name')!r} given, {' or '.join(SCHEDULERS)} accepted"
        )
    refused = {
        "thresholding": bool(config["thresholding"]),
        "steps_offset": config["steps_offset"] != 0 and config["timestep_spacing"] == "leading",
        "set_alpha_to_one": method == "ddim" and not config["set_alpha_to_one"],
    }
    for name, present in refused.items():
        if present:
            raise CheckpointError(
                f"scheduler: {name}={config.get(name)!r} is no option of Sampler; "
                "fastddpm.optimize(pipeline) repeats it, "
                f'config={{"scheduler": {{"{name}": {_DEFAULTS[name]!r}}}}} leaves it out'
            )
    options = {
        "method": method,
        "num_inference_steps": _PIPELINE_STEPS.get(method),
        "prediction_type": config["prediction_type"],
        "clip_sample_range": float(config["clip_sample_range"]) if config["clip_sample"] else None,
        "timestep_spacing": config["timestep_spacing"],
    }
    if method == "ddpm":
        options["variance_type"] = _variance_type(config["variance_type"])
    # `Sampler` checks them.
    return cast("SamplerOptions", {name: value for name, value in options.items() if value is not None})


def _variance_type(name: object) -> str:
    # fixed_large_log gives NaN in diffusers.
    types = {"fixed_small": "fixed_small", "fixed_small_log": "fixed_small"}
    types |= {"fixed_large": "fixed_large", "learned_range": "learned_range"}
    if not isinstance(name, str) or name not in types:
        raise CheckpointError(f"scheduler: variance_type={name!r} given, {', '.join(types)} accepted")
    return types[name]


def noise_schedule(scheduler: Fields) -> NoiseSchedule:
    """The schedule of a scheduler's configuration."""
    config = read_config(scheduler, _DEFAULTS)
    name = config["beta_schedule"]
    steps = whole("num_train_timesteps", config["num_train_timesteps"], least=1, most=MAX_STEPS)
    ends = (config["beta_start"], config["beta_end"])
    if config["trained_betas"] is None and name in ("linear", "scaled_linear"):
        schedule: NoiseSchedule = getattr(NoiseSchedule, name)(steps, *ends)
    elif config["trained_betas"] is None and name == "squaredcos_cap_v2":
        schedule = NoiseSchedule.cosine(steps)
    else:
        accepted = ("linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid", "laplace")
        try:
            betas = float32_betas(config, accepted).numpy().astype(np.float64)
        except ValueError as error:
            raise CheckpointError(f"scheduler: {error}") from error
        schedule = NoiseSchedule.from_betas(betas)
    return schedule.rescaled_zero_terminal_snr() if config["rescale_betas_zero_snr"] else schedule
