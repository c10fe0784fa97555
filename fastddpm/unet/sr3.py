"""What Janspiry's SR3 repository calls the parts and options of the network, in both its variants.

``sr3`` (model/sr3_modules/unet.py) is told the noise level sqrt(alphas_cumprod), ``ddpm``
(model/ddpm_modules/unet.py) the timestep. Keys are those of the network, without the ``denoise_fn.`` that
its GaussianDiffusion puts in front.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor, nn

from fastddpm.checks import BadArgument
from fastddpm.unet.config import Options, UNetConfig
from fastddpm.unet.inference import assemble, infer
from fastddpm.unet.matching import agrees, single
from fastddpm.unet.names import Names
from fastddpm.unet.unet import UNet

Variant = Literal["sr3", "ddpm"]


def _names(mlp: str, time_proj: str) -> Names:
    block = {
        "norm1": "res_block.block1.block.0",
        "conv1": "res_block.block1.block.3",
        "norm2": "res_block.block2.block.0",
        "conv2": "res_block.block2.block.3",
        "time_proj": time_proj,
        "skip": "res_block.res_conv",
        "attention.norm": "attn.norm",
        "attention.qkv": "attn.qkv",
        "attention.proj": "attn.out",
        "conv": "conv",
    }
    top = {
        "conv_in": "downs.0",
        "norm_out": "final_conv.block.0",
        "conv_out": "final_conv.block.3",
        "time_mlp.0": f"{mlp}.1",
        "time_mlp.2": f"{mlp}.3",
    }
    sections = {"down": "downs", "mid": "mid", "up": "ups"}
    # Their first convolution stands at the head of the blocks on the way down.
    return Names(top, sections, dict.fromkeys(sections, block), first_down=1)


NAMES: dict[Variant, Names] = {
    "sr3": _names("noise_level_mlp", "res_block.noise_func.noise_func.0"),
    "ddpm": _names("time_mlp", "res_block.mlp.1"),
}
_FREQUENCIES = "time_mlp.0.inv_freq"


def variant_of(theirs: Mapping[str, Tensor]) -> Variant | None:
    """Which variant a state dict is of; None if it is neither."""
    if "final_conv.block.3.weight" not in theirs or "downs.0.weight" not in theirs:
        return None
    if "noise_level_mlp.1.weight" in theirs:
        return "sr3"
    return "ddpm" if "time_mlp.1.weight" in theirs else None


def state_dict(theirs: Mapping[str, Tensor], prefix: str = "") -> dict[str, Tensor]:
    """Our state dict from one of theirs; ``prefix`` picks the network in it (``denoise_fn.``).

    Raises:
        ValueError: neither variant.
    """
    picked = {name[len(prefix) :]: value for name, value in theirs.items() if name.startswith(prefix)}
    variant = variant_of(picked)
    if variant is None:
        raise ValueError("state dict: no network of the SR3 repository in it, of variant sr3 or ddpm")
    return {NAMES[variant].ours(name): value for name, value in picked.items() if name != _FREQUENCIES}


def their_state_dict(unet: UNet, prefix: str = "") -> dict[str, Tensor]:
    """Their state dict from our network; inverse of :func:`state_dict`.

    Raises:
        ValueError: an option that their network has not.
    """
    config = unet.config
    variant: Variant = "ddpm" if config.time_activation else "sr3"
    fields = infer(unet.state_dict())
    wanted = our_config({**fields, "dropout": config.dropout}, variant, num_groups=config.num_groups)
    if config.to_dict() != wanted.to_dict():
        differing = [k for k, v in config.to_dict().items() if v != wanted.to_dict()[k]]
        raise BadArgument(
            differing[0],
            f"{getattr(config, differing[0])!r}, which their network has not,",
            repr(getattr(wanted, differing[0])),
        )
    state = {prefix + NAMES[variant].theirs(name): value for name, value in unet.state_dict().items()}
    if variant == "ddpm":
        dim = config.base_channels
        steps = torch.arange(0, dim, 2, dtype=torch.float32)
        state[prefix + _FREQUENCIES] = torch.exp(steps * (-math.log(10000) / dim)).to(unet.conv_in.weight)
    return state


def our_config(fields: Options, variant: Variant, *, num_groups: int) -> UNetConfig:
    """Our configuration from what :func:`fastddpm.unet.inference.infer` found in the tensors."""
    options = {"num_groups": num_groups, "time_activation": variant == "ddpm", "activation": "silu"}
    return UNetConfig(**{**fields, **options})


def from_module(module: nn.Module) -> UNet | None:
    """Our network around the weights of a live one of theirs, which it shares.

    Args:
        module: a network of either variant, or code copied from it; left as it was.

    Returns:
        None where it is another network, or ours does not give its outputs to 1e-4 relative.
    """
    theirs = module.state_dict()
    variant = variant_of(theirs)
    groups, heads = single(module, "num_groups"), single(module, "n_head")
    if variant is None or groups is None or heads not in (None, 1):
        return None
    dropout = single(module, "p", nn.Dropout)
    try:
        ours = state_dict(theirs)
        fields = {**infer(ours), "norm_eps": single(module, "eps"), "dropout": dropout or 0.0}
        unet = assemble(our_config(fields, variant, num_groups=groups), ours)
    except (ValueError, TypeError):
        return None

    def call(x: Tensor, t: Tensor, labels: Tensor | None) -> object:
        return module(x, t[:, None].to(x.dtype) if variant == "sr3" else t)

    return unet if agrees(unet, module, call) else None
