"""State dicts of our UNet without its folder: what the tensors do not show comes from who loads them."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from fastddpm.formats.loaded import SHARED, Loaded, ask, groups_asked, known, network, schedule_of, square
from fastddpm.inputs import Fields
from fastddpm.unet import UNetConfig

ANCHOR = "down.0.conv1.weight"


def recognises(state: Mapping[str, object]) -> bool:
    """Whether a state dict is that of a :class:`fastddpm.UNet`."""
    return "conv_in.weight" in state and ANCHOR in state


def read(state: Mapping[str, Tensor], given: Fields) -> Loaded:
    """Reads a state dict.

    Args:
        state: the tensors.
        given: options of `UNetConfig` that tensors do not show, ``image_size`` and ``schedule``.

    Raises:
        CheckpointError: naming what is missing or contradicts the tensors.
    """
    options = dict(given)
    known(options, (*UNetConfig().to_dict(), *SHARED))
    asked = {**groups_asked(state), "activation": "silu, relu, gelu or mish"}
    asked |= {"image_size": "a side in pixels or (H, W)", "schedule": "the content of a schedule.json"}
    ask(options, asked, "a state dict")
    schedule, (height, width) = schedule_of(options.pop("schedule")), square(options.pop("image_size"))
    unet = network(state, options, {})
    return Loaded(unet, schedule, {"shape": [unet.config.image_channels, height, width]})
