"""What a format reads out of a checkpoint, and how it asks for what the checkpoint does not say."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from fastddpm.checks import BadArgument, image_shape, shortened
from fastddpm.formats.files import CheckpointError, ConfigError
from fastddpm.inputs import MAX_SIDE, Fields, asked_shape
from fastddpm.options import SamplerOptions
from fastddpm.schedule import NoiseSchedule
from fastddpm.unet import UNet, UNetConfig
from fastddpm.unet.config import Options
from fastddpm.unet.inference import assemble, infer
from fastddpm.unet.size import MAX_MAP, largest_map
from fastddpm.unet1d import UNet1DConfig

FREE = (
    "num_groups",
    "activation",
    "dropout",
    "initial_pad",
    "time_scale",
    "time_activation",
    "time_cosine_first",
    "time_frequency_shift",
    "attention_head_dim",
    "norm_eps",
    "downsample_padding",
    "center_input",
)
"""Options of the network that tensors do not show."""
SHARED = ("image_size", "schedule")
"""What else every format may be told."""
_ALIKE = {"norm": {"gn", "in"}, "time_conditioning": {"affine", "scale_shift"}}
"""Values that look the same in tensors."""


@dataclasses.dataclass
class Loaded:
    """A checkpoint read.

    Attributes:
        model: our network, or the library's own where ours does not fit.
        schedule: the noise schedule.
        options: of :class:`fastddpm.Sampler`, as that library samples by default.
    """

    model: nn.Module
    schedule: NoiseSchedule
    options: SamplerOptions


def check_shape(loaded: Loaded) -> None:
    """BadArgument where images of the shape that a checkpoint asks for are too large to be drawn unasked.

    Raises:
        ValueError: more than :func:`fastddpm.inputs.asked_shape` accepts, or a feature map of more than
            `MAX_MAP` values.
    """
    shape, config = loaded.options.get("shape"), getattr(loaded.model, "config", None)
    if shape is None:
        return
    sides = asked_shape(shape)
    if not isinstance(config, UNet1DConfig):
        sides = image_shape(sides)
    largest = largest_map(config, sides) if isinstance(config, UNetConfig) else 0
    if largest > MAX_MAP:
        given = f"{sides}, for which a feature map has {largest:,} values"
        raise BadArgument("shape", given, f"up to {MAX_MAP:,}, or a shape as an argument,")


def ask(given: Mapping[str, object], wanted: Mapping[str, str], what: str) -> None:
    """CheckpointError naming everything in ``wanted`` (name -> what is accepted) that is not given."""
    missing = [name for name in wanted if given.get(name) is None]
    if missing:
        described = "; ".join(f"{name}: {wanted[name]}" for name in missing)
        raise ConfigError(
            f"{', '.join(missing)} not given, and {what} does not say; "
            f'config={{"{missing[0]}": ...}} accepted, with {described}'
        )


def known(given: Mapping[str, object], names: Sequence[str]) -> None:
    """CheckpointError for a name in ``given`` that is not among ``names``."""
    unknown = sorted(set(given) - set(names))
    if unknown:
        raise ConfigError(f"{shortened(repr(unknown[0]))} given; known are {', '.join(sorted(names))}")


def network(state: Mapping[str, Tensor], given: Mapping[str, object], fixed: Mapping[str, object]) -> UNet:
    """Our network from tensors under our names.

    Args:
        state: the tensors.
        given: options that someone gave; those that tensors show must agree with them.
        fixed: options that the format settles.

    Raises:
        CheckpointError: naming the tensor or option.
    """
    fields = {**_inferred(state), **fixed}
    given = dict(given)
    if given.pop("null_class", False):
        fields |= {"null_class": True, "num_classes": (fields["num_classes"] or 0) - 1}
    for name, value in given.items():
        value = tuple(value) if isinstance(value, list) else value
        alike = isinstance(value, str) and {fields.get(name), value} <= _ALIKE.get(name, set())
        if name in fields and fields[name] != value and not alike and name not in FREE:
            raise ConfigError(f"{name}={shortened(repr(value))} given, the tensors show {fields[name]!r}")
        fields[name] = value
    if "num_groups" not in fields:
        fields["num_groups"] = 1  # nothing was asked: there is no GroupNorm, or only one group fits
    try:
        config = UNetConfig(**fields)
    except ValueError as error:
        raise ConfigError(error) from error
    try:
        return assemble(config, state)
    except ValueError as error:
        raise CheckpointError(f"state dict: {error}") from error


def groups_asked(state: Mapping[str, Tensor]) -> dict[str, str]:
    """What to ask about GroupNorm: nothing where there is no such norm, or only one number of groups fits."""
    fields = _inferred(state)
    widths = [fields["base_channels"] * m for m in fields["channel_mults"]]
    common = math.gcd(*widths)
    if fields["norm"] != "gn" or common == 1:
        return {}
    return {"num_groups": f"groups of GroupNorm, a divisor of {common}"}


def _inferred(state: Mapping[str, Tensor]) -> Options:
    try:
        return infer(state)
    except ValueError as error:
        raise CheckpointError(f"state dict: {error}") from error


def square(size: object) -> tuple[int, int]:
    """``(H, W)`` of an image size given as one side or as two."""
    sides = tuple(size) if isinstance(size, (list, tuple)) else (size, size)
    whole = all(isinstance(n, int) and not isinstance(n, bool) and 0 < n <= MAX_SIDE for n in sides)
    if len(sides) != 2 or not whole:
        raise ConfigError(
            f"image_size={shortened(repr(size))} given, a side in pixels or (H, W), up to {MAX_SIDE:,}, "
            "accepted"
        )
    return sides[0], sides[1]


def schedule_of(value: Any) -> NoiseSchedule:
    """A schedule given as such, as betas, as schedule.json, or as in the SR3 repository's configuration.

    The last is ``{"schedule": "linear", "n_timestep": 2000, "linear_start": 1e-6, "linear_end": 1e-2}``, with
    the names quad, linear, warmup10, warmup50, const, jsd and cosine.
    """
    if isinstance(value, NoiseSchedule):
        return value
    try:
        if not isinstance(value, Mapping):
            return NoiseSchedule.from_betas(value)
        if "schedule" not in value:
            return NoiseSchedule.from_dict(value)
        return _named(str(value["schedule"]), int(value["n_timestep"]), value)
    except (TypeError, ValueError, KeyError, ArithmeticError) as error:
        given, reason = shortened(repr(value)), shortened(str(error), 160)
        raise ConfigError(f"schedule={given} given, not a schedule ({reason})") from error


def _named(name: str, steps: int, value: Fields) -> NoiseSchedule:
    start, end = float(value.get("linear_start", 1e-4)), float(value.get("linear_end", 2e-2))
    if name in ("linear", "quad"):
        schedule: NoiseSchedule = getattr(NoiseSchedule, name)(steps, start, end)
        return schedule
    if name in ("warmup10", "warmup50"):
        return NoiseSchedule.warmup(float(name[-2:]) / 100, steps, start, end)
    if name == "const":
        return NoiseSchedule.const(steps, end)
    if name == "jsd":
        return NoiseSchedule.jsd(steps)
    if name == "cosine":
        return NoiseSchedule.cosine(steps, float(value.get("cosine_s", 8e-3)))
    raise ValueError(f"{name!r} is none of quad, linear, warmup10, warmup50, const, jsd, cosine")
