"""What abarankab/DDPM calls the parts and options of the network."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from fastddpm.checks import BadArgument
from fastddpm.inputs import Fields
from fastddpm.unet.blocks import activate
from fastddpm.unet.config import CHOICES, Activation, UNetConfig
from fastddpm.unet.inference import assemble, infer
from fastddpm.unet.matching import agrees, single
from fastddpm.unet.names import Names
from fastddpm.unet.unet import UNet

_BLOCK = {
    "norm1": "norm_1",
    "norm2": "norm_2",
    "conv1": "conv_1",
    "conv2": "conv_2.1",
    "time_proj": "time_bias",
    "class_embed": "class_bias",
    "skip": "residual_connection",
    "attention.norm": "attention.norm",
    "attention.qkv": "attention.to_qkv",
    "attention.proj": "attention.to_out",
}
NAMES = Names(
    top={
        "conv_in": "init_conv",
        "norm_out": "out_norm",
        "conv_out": "out_conv",
        "time_mlp.0": "time_mlp.1",
        "time_mlp.2": "time_mlp.3",
    },
    sections={"down": "downs", "mid": "mid", "up": "ups"},
    parts={"down": {**_BLOCK, "conv": "downsample"}, "mid": _BLOCK, "up": {**_BLOCK, "conv": "upsample.1"}},
)


def recognises(keys: Mapping[str, object]) -> bool:
    """Whether a state dict is that of one of their networks."""
    return "init_conv.weight" in keys and "out_conv.weight" in keys and "downs.0.conv_1.weight" in keys


def our_key(key: str) -> str:
    """Our name of a parameter of their UNet: ``downs.0.conv_2.1.weight`` -> ``down.0.conv2.weight``."""
    return NAMES.ours(key)


def state_dict(theirs: Mapping[str, Tensor], prefix: str = "") -> dict[str, Tensor]:
    """Our state dict from one of theirs; ``prefix`` picks a network in it (``model.`` or ``ema_model.``)."""
    return {our_key(k[len(prefix) :]): v for k, v in theirs.items() if k.startswith(prefix)}


def their_state_dict(unet: UNet, prefix: str = "") -> dict[str, Tensor]:
    """Their state dict from our network; inverse of :func:`state_dict`.

    Raises:
        ValueError: an option that their network has not.
    """
    expected = UNetConfig(**{name: getattr(unet.config, name) for name in OPTIONS})
    for name, value in expected.to_dict().items():
        if unet.config.to_dict()[name] != value:
            raise BadArgument(
                name, f"{getattr(unet.config, name)!r}, which their network has not,", repr(value)
            )
    return {prefix + NAMES.theirs(name): value for name, value in unet.state_dict().items()}


OPTIONS = {
    "in_channels": "img_channels",
    "base_channels": "base_channels",
    "channel_mults": "channel_mults",
    "num_res_blocks": "num_res_blocks",
    "time_dim": "time_emb_dim",
    "time_scale": "time_emb_scale",
    "num_classes": "num_classes",
    "attention_levels": "attention_resolutions",
    "activation": "activation",
    "norm": "norm",
    "num_groups": "num_groups",
    "dropout": "dropout",
    "initial_pad": "initial_pad",
}
"""Our options on the left, the keyword arguments of their UNet on the right."""


def config(options: Fields, activation: Activation = "relu") -> UNetConfig:
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
        "activation": activation,
    }
    given["norm"] = given["norm"] or "none"
    return UNetConfig(**{ours: given[theirs] for ours, theirs in OPTIONS.items()})


def from_module(module: nn.Module) -> UNet | None:
    """Our network around the weights of a live one of theirs, which it shares.

    Args:
        module: their UNet, or code copied from it; left as it was.

    Returns:
        None where it is another network, or ours does not give its outputs to 1e-4 relative.
    """
    theirs = module.state_dict()
    activation = activation_name(getattr(module, "activation", None))
    if not recognises(theirs) or activation is None:
        return None
    options = {
        "activation": activation,
        "num_groups": single(module, "num_groups") or 1,
        "norm_eps": single(module, "eps", nn.GroupNorm) or 1e-5,
        "dropout": single(module, "p", nn.Dropout) or 0.0,
        "time_scale": float(getattr(module.time_mlp[0], "scale", 1.0)),  # type: ignore[index, union-attr, unused-ignore]
        "initial_pad": int(getattr(module, "initial_pad", 0)),
    }
    try:
        ours = state_dict(theirs)
        fields = infer(ours)
        if any(isinstance(part, nn.InstanceNorm2d) for part in module.modules()):
            fields["norm"] = "in"
        unet = assemble(UNetConfig(**{**fields, **options}), ours)
    except (ValueError, TypeError):
        return None
    return unet if agrees(unet, module, lambda x, t, labels: module(x, t, labels)) else None


def activation_name(function: Callable[[Tensor], Tensor] | None) -> Activation | None:
    """Which of our activations a function computes; None if none of them."""
    points = torch.linspace(-3, 3, 25)
    for name in CHOICES["activation"]:
        kind: Activation = name  # type: ignore[assignment]
        try:
            if function is not None and torch.allclose(function(points.clone()), activate(points, kind)):
                return kind
        except (TypeError, ValueError, RuntimeError):
            return None
    return None
