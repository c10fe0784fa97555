"""improved-diffusion and guided-diffusion (openai): state dicts of the UNetModel, such as ema_0.9999_*.pt."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from fastddpm.checks import shortened
from fastddpm.formats.files import CheckpointError, ConfigError
from fastddpm.formats.loaded import SHARED, Loaded, ask, known, network, schedule_of, square
from fastddpm.inputs import Fields
from fastddpm.options import SamplerOptions
from fastddpm.unet import UNet
from fastddpm.unet import guided_diffusion as dialect
from fastddpm.unet.config import Options

ANCHOR = "input_blocks.0.0.weight"
_OPTIONS = (
    "num_heads",
    "num_head_channels",
    "use_new_attention_order",
    "use_scale_shift_norm",
    "rescale_timesteps",
    *SHARED,
)
_INSTEAD = "build the network by its own code: fastddpm.optimize(diffusion) takes its GaussianDiffusion"
_STEPS = 1000
"""Of the scale that ``rescale_timesteps`` brings timesteps to."""


_NAMES = {
    ANCHOR,
    "time_embed.0.weight",
    "middle_block.0.emb_layers.1.weight",
    "middle_block.0.out_layers.0.weight",
    "middle_block.1.qkv.weight",
    "output_blocks.0.0.in_layers.2.weight",
}


def recognises(state: Mapping[str, object]) -> bool:
    """Whether a state dict is that of a UNetModel whose sizes change by convolutions or in blocks."""
    return state.keys() >= _NAMES and dialect.halvings(state) > 0


def read(state: Mapping[str, Tensor], given: Fields) -> Loaded:
    """Reads a state dict.

    Args:
        state: of a UNetModel.
        given: ``image_size`` and ``schedule``; ``num_heads`` or ``num_head_channels``, as its options are;
            ``use_new_attention_order`` where it is True; ``rescale_timesteps`` where the schedule has not
            1000 steps; ``use_scale_shift_norm``, which tensors show, is held to them.

    Raises:
        CheckpointError: naming what is missing, contradicts the tensors, or what our UNet does not express.
    """
    known(given, _OPTIONS)
    asked = {"image_size": "a side in pixels or (H, W)"}
    asked["schedule"] = "a NoiseSchedule or its betas, such as NoiseSchedule.linear(1000)"
    asked |= heads_asked(given, "4 by default there")
    ask(given, asked, "a state dict of guided-diffusion")
    schedule, (height, width) = schedule_of(given["schedule"]), square(given["image_size"])
    if len(schedule) != _STEPS and given.get("rescale_timesteps") is None:
        raise ConfigError(
            f"rescale_timesteps not given, for {len(schedule)} timesteps; True, improved-diffusion's "
            "default, or False, guided-diffusion's, accepted"
        )
    rescales = _flag(given, "rescale_timesteps")
    unet = unet_of(state, given, {"time_scale": _STEPS / len(schedule)} if rescales else {})
    config = unet.config
    channels, outputs = config.in_channels, config.out_channels or config.in_channels
    if outputs not in (channels, 2 * channels):
        raise CheckpointError(
            f"state dict: {channels} channels in and {outputs} out, as of an upsampler; {_INSTEAD}"
        )
    sampler: SamplerOptions = {
        "method": "ddpm",
        "variance_type": "learned_range" if outputs == 2 * channels else "fixed_large",
        "clip_sample_range": 1.0,
        "shape": [channels, height, width],
    }
    return Loaded(unet, schedule, sampler)


def heads_asked(given: Fields, usual: str) -> dict[str, str]:
    """What to ask about attention; ``usual``: what their code does unasked."""
    if given.get("num_head_channels") is not None:
        return {}
    return {"num_heads": f"of an attention, {usual}, unless num_head_channels is"}


def unet_of(state: Mapping[str, Tensor], given: Fields, others: Options) -> UNet:
    """Our network from the tensors of a UNetModel.

    Args:
        state: of a UNetModel.
        given: as of `read`, of which it takes what is about the network.
        others: options of ours that the format knows or was told besides.

    Raises:
        CheckpointError: naming what contradicts the tensors.
    """
    head_dims = _head_dims(state, given)
    if len(set(head_dims.values())) == 1:
        heads: Options = {"attention_head_dim": next(iter(head_dims.values()))}
    else:
        heads = {"attention_heads": given["num_heads"]}
    ours = dialect.state_dict(state, head_dims, new_order=_flag(given, "use_new_attention_order"))
    fixed = {**dialect.FIXED, "time_conditioning": _conditioning(state, given)}
    return network(ours, {**heads, **others}, fixed)


def _flag(given: Fields, name: str) -> bool:
    value = given.get(name)
    if value is not None and not isinstance(value, bool):
        raise ConfigError(f"{name}={shortened(repr(value))} given, True or False accepted")
    return bool(value)


def _head_dims(state: Mapping[str, Tensor], given: Fields) -> dict[int, int]:
    """Channels a head by the width of an attention."""
    name = "num_heads" if given.get("num_head_channels") is None else "num_head_channels"
    value = given[name]
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ConfigError(f"{name}={shortened(repr(value))} given, an integer of at least 1 accepted")
    widths = dialect.attention_widths(state)
    for width in widths:
        if width % value:
            raise ConfigError(f"{name}={value} given, a divisor of the {width} channels accepted")
    return {width: value if name == "num_head_channels" else width // value for width in widths}


def _conditioning(state: Mapping[str, Tensor], given: Fields) -> str:
    """How time enters a block: a scale and a shift have two numbers a channel."""
    projection = state["middle_block.0.emb_layers.1.weight"]
    has_scale = len(projection) == 2 * len(state["middle_block.0.out_layers.0.weight"])
    if given.get("use_scale_shift_norm") not in (None, has_scale):
        raise ConfigError(f"use_scale_shift_norm={not has_scale} given, the tensors show {has_scale}")
    return "scale_shift" if has_scale else "bias"
