"""diffusers: pipeline folders, folders of a ``UNet2DModel`` alone, and state dicts of one.

The sampler made of a scheduler's configuration computes in float64 and keeps eps and the clipped x0
consistent in DDIM. For the very images of a pipeline there is ``fastddpm.optimize(pipeline)``.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from pathlib import Path

from torch import Tensor

from fastddpm.checks import shortened
from fastddpm.formats._diffusers.betas import noise_schedule
from fastddpm.formats._diffusers.folder import INDEX, WEIGHTS, is_folder, parts, read_weights
from fastddpm.formats._diffusers.network import build, planned
from fastddpm.formats._diffusers.schedulers import CLASSES, SCHEDULERS, sampler_options
from fastddpm.formats.files import CheckpointError, ConfigError, read_json
from fastddpm.formats.loaded import SHARED, Loaded, ask, known, schedule_of, square
from fastddpm.inputs import Fields, Json
from fastddpm.options import SamplerOptions
from fastddpm.plans.diffusers.solver_classes import SOLVERS
from fastddpm.unet import diffusers as dialect
from fastddpm.unet.diffusers_classes import NETWORK

__all__ = ["CLASSES", "WEIGHTS", "read", "read_state", "recognises", "recognises_state"]

_GIVEN = ("unet", "scheduler", "num_classes", *SHARED)


def recognises(folder: Path) -> bool:
    """Whether a folder is a pipeline, a training checkpoint, or a model."""
    return is_folder(folder)


def network_of(folder: Path, *, ema: bool) -> Path:
    """The folder of the network in one that is recognised.

    Raises:
        CheckpointError: as of :func:`read`, of a pipeline that has no network to be read.
    """
    return parts(folder, ema=ema).network


def recognises_state(state: Mapping[str, Tensor]) -> bool:
    """Whether a state dict is that of a ``UNet2DModel``."""
    return "time_embedding.linear_1.weight" in state and "down_blocks.0.resnets.0.conv1.weight" in state


def read(folder: Path, given: Fields, *, ema: bool = True, method: str | None = None) -> Loaded:
    """Reads a folder; configurations are checked before weights are read.

    Args:
        folder: with ``model_index.json``, a training script's ``checkpoint-500``, or a UNet's ``config.json``
            and weights. Where it has no scheduler, that of the run or pipeline around it is taken.
        given: ``unet`` and ``scheduler``, fields that replace those of the configurations; ``schedule``
            instead of a scheduler's; ``image_size`` where the UNet has no sample_size; ``num_classes`` of a
            UNet with class_embed_type "timestep"; ``variant`` of its weights where there are several.
        ema: take ``unet_ema`` where there are it and ``unet``.
        method: of the sampler, where the caller chose one: a scheduler that has no method here is then read
            for its betas.

    Raises:
        CheckpointError: naming the file or field.
    """
    known(given, (*_GIVEN, "variant"))
    variant = given.get("variant")
    if variant is not None and not isinstance(variant, str):
        raise ConfigError(f"variant={shortened(repr(variant))} given, a name such as 'fp16' accepted")
    unet, scheduler = _fields(given, "unet"), _fields(given, "scheduler")
    found = parts(folder, ema=ema)
    path = found.network / "config.json"
    options = _configuration(path, found.classes.get("unet"), unet, [NETWORK])
    if found.scheduler is not None:
        known_classes = (*SCHEDULERS, *SOLVERS) if method is None else ()
        scheduler = _configuration(found.scheduler, found.classes.get("scheduler"), scheduler, known_classes)
    return _loaded(
        lambda: read_weights(found.network, variant),
        options,
        scheduler,
        given,
        where=(str(path), str(found.network / WEIGHTS)),
        method=method,
    )


def read_state(state: Mapping[str, Tensor], given: Fields, *, method: str | None = None) -> Loaded:
    """Reads a state dict of a ``UNet2DModel``; ``given`` as of :func:`read`, with the whole of ``unet``."""
    known(given, _GIVEN)
    ask(given, {"unet": "the UNet2DModel's config.json"}, "a state dict of diffusers")
    options, scheduler = _fields(given, "unet"), _fields(given, "scheduler")
    where = ("config: unet", WEIGHTS)
    return _loaded(lambda: dict(state), options, scheduler, given, where=where, method=method)


def _configuration(path: Path, listed: str | None, changed: Fields, accepted: Collection[str]) -> Json:
    """A part's configuration with a caller's changes; its class is that of the index where it has none.

    Where both have one, diffusers goes by the index, and people who edit a folder change either.
    """
    stored = read_json(path)
    fields = {"_class_name": listed, **stored, **changed}
    own = fields["_class_name"]
    if (
        isinstance(own, str)
        and listed not in (None, own)
        and own in accepted
        and "_class_name" not in changed
    ):
        part = "unet" if path.name == "config.json" else "scheduler"
        raise CheckpointError(
            f"{path}: _class_name={shortened(repr(own))} given, {shortened(listed)} by {INDEX}; "
            f'config={{"{part}": {{"_class_name": ...}}}} says which'
        )
    return fields


def _fields(given: Fields, name: str) -> Json:
    """A configuration that a caller gave, or none."""
    value = given.get(name)
    if value is not None and not isinstance(value, Mapping):
        raise ConfigError(f"{name}={shortened(repr(value))} given, a mapping of its fields accepted")
    return dict(value or {})


def _loaded(
    weights: Callable[[], dict[str, Tensor]],
    options: Fields,
    scheduler: Fields,
    given: Fields,
    *,
    where: tuple[str, str],
    method: str | None,
) -> Loaded:
    plan = planned(options, given.get("num_classes"), where[0])
    size = given.get("image_size") or options.get("sample_size")
    asked = {"image_size": "a side in pixels or (H, W)"}
    if not scheduler and given.get("schedule") is None:
        asked["scheduler"] = "a scheduler_config.json; or a schedule, for DDPM with it"
    ask({"image_size": size}, asked, "a UNet2DModel")
    sides = square(size)
    schedule = given.get("schedule")
    try:
        sampler: SamplerOptions = sampler_options(scheduler, method) if scheduler else {"method": "ddpm"}
        schedule = schedule_of(schedule) if schedule is not None else noise_schedule(scheduler)
    except CheckpointError:
        raise
    except (ArithmeticError, TypeError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"scheduler: {shortened(str(error), 200)}") from error
    model = build(plan, weights(), options, where[1])
    channels = options.get("in_channels", dialect.DEFAULTS["in_channels"])
    return Loaded(model, schedule, {**sampler, "shape": [channels, *sides]})
