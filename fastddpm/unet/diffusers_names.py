"""What diffusers' ``UNet2DModel`` calls the parameters of our UNet, both ways.

Source: diffusers 0.42.1, models/unets/unet_2d.py and unet_2d_blocks.py. diffusers is not imported here.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from fastddpm.unet.config import UNetConfig
from fastddpm.unet.unet import UNet

_BLOCK = {
    "norm1": "norm1",
    "conv1": "conv1",
    "time_proj": "time_emb_proj",
    "norm2": "norm2",
    "conv2": "conv2",
    "skip": "conv_shortcut",
}
_ATTENTION = {"norm": "group_norm", "proj": "to_out.0"}
_QKV = ("to_q", "to_k", "to_v")
_TOP = {
    "conv_in": "conv_in",
    "norm_out": "conv_norm_out",
    "conv_out": "conv_out",
    "time_mlp.0": "time_embedding.linear_1",
    "time_mlp.2": "time_embedding.linear_2",
    "class_embed": "class_embedding",
    "class_embed.0": "class_embedding.linear_1",
    "class_embed.2": "class_embedding.linear_2",
}
# Names of attention layers before diffusers 0.12, which checkpoints of that time still have.
_OLD_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


def state_dict(theirs: Mapping[str, Tensor], ours: UNetConfig) -> dict[str, Tensor]:
    """Our state dict from one of theirs, for our configuration.

    Queries, keys and values become one tensor; a name that is not known comes back as it is.
    """
    rest = {modern(name): value for name, value in theirs.items()}
    state = {}
    for our_name, names in _names(ours):
        tensors = [rest.pop(name) for name in names if name in rest]
        if len(tensors) == len(names):
            merged = torch.cat(tensors) if len(tensors) > 1 else tensors[0]
            # Their linear layers are our 1x1 convolutions.
            is_linear = ".attention." in our_name and merged.ndim == 2
            state[our_name] = merged[:, :, None, None] if is_linear else merged
    return {**state, **rest}


def their_state_dict(unet: UNet) -> dict[str, Tensor]:
    """Their state dict from our network; inverse of :func:`state_dict`."""
    ours = unet.state_dict()
    state: dict[str, Tensor] = {}
    for our_name, names in _names(unet.config):
        if our_name in ours:
            value = ours[our_name]
            if ".attention." in our_name and value.ndim == 4:
                value = value[:, :, 0, 0]
            state.update(zip(names, value.chunk(len(names)), strict=True))
    return state


def modern(name: str) -> str:
    """A name of theirs as it is today."""
    match = re.fullmatch(r"(.+\.attentions\.\d+)\.(query|key|value|proj_attn)\.(weight|bias)", name)
    return f"{match[1]}.{_OLD_ATTENTION[match[2]]}.{match[3]}" if match else name


def _names(ours: UNetConfig) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Every name that a parameter of ours may have, and their one name of it, or three."""
    parts: list[tuple[str, tuple[str, ...]]] = [(name, (theirs,)) for name, theirs in _TOP.items()]
    for block, section, layer in _blocks(ours):
        if layer is None:
            parts.append((f"{block}.conv", (section,)))
            continue
        parts += [
            (f"{block}.{part}", (f"{section}.resnets.{layer}.{name}",)) for part, name in _BLOCK.items()
        ]
        attention = f"{section}.attentions.{layer}"
        parts += [(f"{block}.attention.{p}", (f"{attention}.{name}",)) for p, name in _ATTENTION.items()]
        parts.append((f"{block}.attention.qkv", tuple(f"{attention}.{name}" for name in _QKV)))
    for part, names in parts:
        for kind in ("weight", "bias"):
            yield f"{part}.{kind}", tuple(f"{name}.{kind}" for name in names)


def _blocks(ours: UNetConfig) -> Iterator[tuple[str, str, int | None]]:
    """Our blocks, the section of theirs each is in, and its number there; None for a change of size."""
    levels, down, up = len(ours.channel_mults), 0, 0
    for level in range(levels):
        for layer in range(ours.num_res_blocks):
            yield f"down.{down + layer}", f"down_blocks.{level}", layer
        down += ours.num_res_blocks
        if level < levels - 1:
            yield f"down.{down}", f"down_blocks.{level}.downsamplers.0.conv", None
            down += 1
    for layer in range(2):
        yield f"mid.{layer}", "mid_block", layer
    for level in range(levels):
        for layer in range(ours.num_res_blocks + 1):
            yield f"up.{up + layer}", f"up_blocks.{level}", layer
        up += ours.num_res_blocks + 1
        if level < levels - 1:
            yield f"up.{up}", f"up_blocks.{level}.upsamplers.0.conv", None
            up += 1
