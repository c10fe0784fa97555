"""Janspiry's Palette repository: state dicts of its Network (``*_Network.pth``), and its configuration.

Its ``guided_diffusion`` network is told gamma, the alphas_cumprod, where guided-diffusion's is told the
timestep. Its ``sr3`` network has the names of the SR3 repository's: `fastddpm.formats.sr3` reads it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from fastddpm.checks import shortened
from fastddpm.formats import guided_diffusion
from fastddpm.formats.files import CheckpointError, ConfigError
from fastddpm.formats.loaded import SHARED, Loaded, ask, known, schedule_of, square
from fastddpm.inputs import Fields, Json
from fastddpm.options import SamplerOptions

ANCHOR = guided_diffusion.ANCHOR
_EMBEDDING, _THEIRS = "cond_embed.", "time_embed."
_OPTIONS = (
    "num_heads",
    "num_head_channels",
    "use_new_attention_order",
    "use_scale_shift_norm",
    "dropout",
    *SHARED,
)
_SHOWN = {
    "in_channel": "in_channels",
    "inner_channel": "base_channels",
    "channel_mults": "channel_mults",
    "res_blocks": "num_res_blocks",
}
"""Options of their network that the tensors show too, and ours of them."""


def recognises(state: Mapping[str, object]) -> bool:
    """Whether a state dict is that of its ``guided_diffusion`` network."""
    renamed = _renamed(state)
    return not any(name.startswith(_THEIRS) for name in state) and guided_diffusion.recognises(renamed)


def read(state: Mapping[str, Tensor], given: Fields) -> Loaded:
    """Reads a state dict.

    Args:
        state: of a network.
        given: the content of their JSON configuration, of which ``schedule_phase`` beside ``model`` picks a
            schedule: ``test``, with which they sample, unless it is ``train``. Or, without one,
            ``image_size``, ``schedule``, and ``num_heads`` or ``num_head_channels`` as its options are;
            ``use_new_attention_order`` where it is True. The gammas beside a network are those of training.

    Raises:
        CheckpointError: naming what is missing or contradicts the tensors.
    """
    options, shown = dict(given), {}
    if "model" in given:
        unet, schedule = configured(given, "guided_diffusion")
        shown = {ours: unet[theirs] for theirs, ours in _SHOWN.items() if theirs in unet}
        options = {name: unet[name] for name in _OPTIONS if name in unet} | {"schedule": schedule}
        if options.get("num_head_channels") in (-1, None):
            options |= {"num_head_channels": None, "num_heads": unet.get("num_heads", 1)}
    known(options, _OPTIONS)
    asked = {"image_size": "a side or (H, W)"}
    asked["schedule"] = "to sample with, theirs or ours"
    ask(
        options,
        asked | guided_diffusion.heads_asked(options, "1 by default there"),
        "a state dict of Palette",
    )
    height, width = square(options["image_size"])
    if options.get("dropout") is not None:
        shown["dropout"] = options["dropout"]
    model = guided_diffusion.unet_of(_renamed(state), options, shown)
    channels = model.config.image_channels
    if channels > model.config.in_channels:
        raise CheckpointError(
            f"state dict: {model.config.in_channels} channels in and {channels} out, at most as many accepted"
        )
    sampler: SamplerOptions = {
        "method": "ddpm",
        "clip_sample_range": 1.0,
        "time_input": "alphas_cumprod",
        "shape": [channels, height, width],
    }
    return Loaded(model, schedule_of(options["schedule"]), sampler)


def is_configuration(given: Fields) -> bool:
    """Whether what was given is the content of a JSON file of theirs."""
    return isinstance(given.get("model"), Mapping) and "which_networks" in given["model"]


def configured(document: Fields, module: str) -> tuple[Json, Json]:
    """The options of the network and the schedule to sample with, from the content of their JSON file.

    Args:
        document: the content.
        module: which network the tensors show, ``guided_diffusion`` or ``sr3``.

    Raises:
        ConfigError: another network, or none.
    """
    try:
        arguments: Any = document["model"]["which_networks"][0]["args"]
        name = arguments.get("module_name", "sr3")
        unet, schedules = dict(arguments["unet"]), arguments["beta_schedule"]
        schedule = dict(schedules[document.get("schedule_phase", "test")])
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        reason = f"{type(error).__name__}: {shortened(str(error))}"
        raise ConfigError(f"not a configuration of the Palette repository ({reason})") from error
    if name != module:
        raise ConfigError(f"module_name={shortened(repr(name))} given, the tensors show {module!r}")
    return unet, {"linear_start": 1e-6, "linear_end": 1e-2, **schedule}  # their defaults


def _renamed(state: Mapping[str, Any]) -> dict[str, Any]:
    """With the names of guided-diffusion."""
    return {
        _THEIRS + name.removeprefix(_EMBEDDING) if name.startswith(_EMBEDDING) else name: value
        for name, value in state.items()
    }
