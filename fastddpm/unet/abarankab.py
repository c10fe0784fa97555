"""What abarankab/DDPM calls the parts and options of the network."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from fastddpm.unet.config import Activation, UNetConfig

# Their names on the left; longer ones first where one holds another.
_PARTS = {
    "init_conv": "conv_in",
    "out_norm": "norm_out",
    "out_conv": "conv_out",
    "downs": "down",
    "ups": "up",
    "norm_1": "norm1",
    "norm_2": "norm2",
    "conv_1": "conv1",
    "conv_2.1": "conv2",
    "time_bias": "time_proj",
    "class_bias": "class_embed",
    "residual_connection": "skip",
    "to_qkv": "qkv",
    "to_out": "proj",
    "downsample": "conv",
    "upsample.1": "conv",
    "time_mlp.1": "time_mlp.0",
    "time_mlp.3": "time_mlp.2",
}


def our_key(key: str) -> str:
    """Our name of a parameter of their UNet: ``downs.0.conv_2.1.weight`` -> ``down.0.conv2.weight``."""
    dotted = f".{key}."
    for theirs, ours in _PARTS.items():
        if f".{theirs}." in dotted:
            dotted = dotted.replace(f".{theirs}.", f".{ours}.", 1)
            if theirs.startswith("time_mlp"):
                break  # the 3 that becomes a 2 must not be looked at again
    return dotted[1:-1]


def state_dict(theirs: Mapping[str, Tensor], prefix: str = "") -> dict[str, Tensor]:
    """Our state dict from one of theirs; ``prefix`` picks a network in it (``model.`` or ``ema_model.``)."""
    return {our_key(k[len(prefix) :]): v for k, v in theirs.items() if k.startswith(prefix)}


def config(options: Mapping[str, Any], activation: Activation = "relu") -> UNetConfig:
    """Our configuration from the keyword arguments of their UNet, whose defaults fill what is left out."""
    given = {
        "channel_mults": (1, 2, 4, 8),
        "num_res_blocks": 2,
        "time_emb_scale": 1.0,
        "num_classes": None,
        "dropout": 0.1,
        "attention_resolutions": (),
        "norm": "gn",
        "num_groups": 32,
        "initial_pad": 0,
        **options,
    }
    return UNetConfig(
        in_channels=given["img_channels"],
        base_channels=given["base_channels"],
        channel_mults=tuple(given["channel_mults"]),
        num_res_blocks=given["num_res_blocks"],
        time_dim=given["time_emb_dim"],
        time_scale=given["time_emb_scale"],
        num_classes=given["num_classes"],
        attention_levels=tuple(given["attention_resolutions"]),
        activation=activation,
        norm=given["norm"] or "none",
        num_groups=given["num_groups"],
        dropout=given["dropout"],
        initial_pad=given["initial_pad"],
    )
