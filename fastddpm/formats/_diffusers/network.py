"""The network of a `UNet2DModel`'s configuration: ours where it fits, else diffusers' own."""

from __future__ import annotations

import importlib.util
import math
import warnings
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from fastddpm.checks import BadArgument, check_number, shortened, whole
from fastddpm.formats.files import CheckpointError, ConfigError
from fastddpm.inputs import Fields
from fastddpm.unet import UNetConfig
from fastddpm.unet import diffusers as dialect
from fastddpm.unet.config import MAX_ALL_BLOCKS, MAX_BLOCKS, MAX_CLASSES, MAX_LEVELS, MAX_WIDTH
from fastddpm.unet.diffusers_classes import check_class
from fastddpm.unet.inference import assemble, check_shapes

_MOST = {
    "in_channels": MAX_WIDTH,
    "out_channels": MAX_WIDTH,
    "norm_num_groups": MAX_WIDTH,
    "attn_norm_num_groups": MAX_WIDTH,
    "attention_head_dim": MAX_WIDTH,
    "time_embedding_dim": MAX_WIDTH,
    "layers_per_block": MAX_BLOCKS,
    "num_class_embeds": MAX_CLASSES,
}
_NEEDED = ("in_channels", "out_channels", "norm_num_groups", "layers_per_block")
_NUMBERS = {
    "freq_shift": (0.0, math.inf),
    "mid_block_scale_factor": (1e-6, math.inf),
    "norm_eps": (0.0, 1.0),
    "dropout": (0.0, 1.0),
}
"""The least that they may be, and what they stay below."""
_CALLER = 7
"""Frames from a warning here to who called `fastddpm.load`."""


def planned(options: Fields, num_classes: int | None, where: str) -> UNetConfig | str:
    """Our configuration, or why ours does not fit; nothing is built.

    Args:
        options: diffusers' configuration.
        num_classes: of ``class_embed_type="timestep"``, which it does not say.
        where: it stands, for errors.

    Raises:
        CheckpointError: another class than ``UNet2DModel``, an option that no network can have, or diffusers
            wanted and not installed.
    """
    try:
        check_class(options.get("_class_name"))
        _check_options({**dialect.DEFAULTS, **options})
    except BadArgument as error:
        raise CheckpointError(f"{where}: {_in_words(error)}") from error
    try:
        return dialect.config(options, num_classes=num_classes)
    except ValueError as error:
        if isinstance(error, BadArgument) and error.argument == "num_classes":
            raise ConfigError(error) from error
        reason = _in_words(error)
    if importlib.util.find_spec("diffusers") is None:
        raise CheckpointError(
            f"{reason}; other networks run as they are, with diffusers: pip install 'fastddpm[diffusers]'"
        )
    return reason


def build(plan: UNetConfig | str, state: dict[str, Tensor], options: Fields, where: str) -> nn.Module:
    """The network with the weights, in eval mode.

    Args:
        plan: of :func:`planned`.
        state: diffusers' state dict.
        options: diffusers' configuration.
        where: the weights stand, for errors.

    Raises:
        CheckpointError: naming a tensor that does not fit.
    """
    if isinstance(plan, str):
        return _theirs({dialect.modern(name): value for name, value in state.items()}, options, plan, where)
    try:
        return assemble(plan, dialect.state_dict(state, plan))
    except ValueError as error:
        raise CheckpointError(f"{where}: {error}") from error


def _theirs(state: Mapping[str, Tensor], options: Fields, reason: str, where: str) -> nn.Module:
    """diffusers' own network, where ours does not fit."""
    from diffusers import UNet2DModel

    warnings.warn(f"diffusers' own UNet2DModel is used: {reason}", UserWarning, stacklevel=_CALLER)
    fields = {name: value for name, value in options.items() if name not in dialect.AVERAGING}
    try:
        with torch.device("meta"):  # nothing is allocated for sizes that the tensors do not have
            model: nn.Module = UNet2DModel.from_config(fields)  # type: ignore[no-untyped-call]
    except Exception as error:  # the constructor checks little, and raises what a bad option trips it over
        words = shortened(str(error) or type(error).__name__, 160)
        raise CheckpointError(f"{where}: no UNet2DModel can be built for it ({words})") from error
    try:
        check_shapes(state, model.state_dict())
    except ValueError as error:
        raise CheckpointError(f"{where}: {error}") from error
    model.load_state_dict(dict(state), assign=True)
    return model.eval()


def _check_options(given: Fields) -> None:
    """BadArgument for what no UNet2DModel can have, sizes from which it would build for hours among it."""
    for name in ("block_out_channels", "down_block_types", "up_block_types"):
        if not isinstance(given[name], (list, tuple)):
            raise BadArgument(name, repr(given[name]), "a list")
        whole(f"number of {name}", len(given[name]), least=1, most=MAX_LEVELS)
    levels = len(given["block_out_channels"])
    for width in given["block_out_channels"]:
        whole("block_out_channels", width, least=1, most=MAX_WIDTH)
    for name in ("down_block_types", "up_block_types"):
        if not all(isinstance(kind, str) for kind in given[name]):
            raise BadArgument(name, repr(given[name]), "a list of names")
        if len(given[name]) != len(given["block_out_channels"]):
            raise BadArgument(
                f"number of {name}", str(len(given[name])), f"{levels}, one each of the levels,"
            )
    for name, most in _MOST.items():
        if given[name] is not None or name in _NEEDED:
            whole(name, given[name], least=1, most=most)
    whole("layers_per_block", given["layers_per_block"], least=1, most=(MAX_ALL_BLOCKS // levels - 1) // 2)
    whole("downsample_padding", given["downsample_padding"], least=0, most=1)
    for name, (low, below) in _NUMBERS.items():
        check_number(name, given[name], low=low, below=below)
    for name in ("flip_sin_to_cos", "center_input_sample", "add_attention"):
        if not isinstance(given[name], bool):
            raise BadArgument(name, repr(given[name]), "true or false")


def _in_words(error: ValueError) -> str:
    if not isinstance(error, BadArgument):
        return shortened(str(error), 200)
    return f"{error.argument}: {shortened(error.given, 160)} given, {error.accepted} accepted"
