"""What improved-diffusion and guided-diffusion call the parts of the network.

Source: openai/guided-diffusion, unet.py; improved-diffusion's is the same with fewer options. A block, its
attention and the change of size after it are parts of one entry of theirs.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

from fastddpm.unet.config import Options

_TOP = {
    "time_embed.0": "time_mlp.0",
    "time_embed.2": "time_mlp.2",
    "label_emb": "class_embed",
    "input_blocks.0.0": "conv_in",
    "out.0": "norm_out",
    "out.2": "conv_out",
}
_BLOCK = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "skip",
}
_ATTENTION = {"norm": "attention.norm", "qkv": "attention.qkv", "proj_out": "attention.proj"}
_PLACE = re.compile(r"(input_blocks|middle_block|output_blocks)\.(\d+)(?:\.(\d+))?\.(.+)")
_DOWN = re.compile(r"input_blocks\.\d+\.0\.op\.weight")
_UP = re.compile(r"output_blocks\.\d+\.[12]\.in_layers\.2\.weight")
_INPUT = re.compile(r"input_blocks\.\d+\.0\.in_layers\.2\.weight")
_MIDDLE = {"0": "mid.0", "1": "mid.0", "2": "mid.1"}
FIXED: Options = {
    "activation": "silu",
    "num_groups": 32,
    "norm_eps": 1e-5,
    "time_cosine_first": True,
    "downsample_padding": 1,
}
"""Options that its code settles."""


def halvings(theirs: Mapping[str, object]) -> int:
    """How often the size is halved: by strided convolutions, or by blocks as many as those that double it
    (``resblock_updown``); none where pooling does it, which has no tensors."""
    return max(sum(bool(of.fullmatch(name)) for name in theirs) for of in (_DOWN, _UP))


def attention_widths(theirs: Mapping[str, Tensor]) -> list[int]:
    """Channels of the attentions, each number once."""
    weights = [value for name, value in theirs.items() if name.endswith(".qkv.weight") and value.ndim > 1]
    return sorted({value.shape[1] for value in weights})


def state_dict(
    theirs: Mapping[str, Tensor], head_dims: Mapping[int, int], *, new_order: bool
) -> dict[str, Tensor]:
    """Our state dict from one of theirs; a name that is not known comes back as it is.

    Args:
        theirs: of a UNetModel whose sizes change by convolutions or in blocks.
        head_dims: channels of an attention's head, by its width.
        new_order: queries of all heads before all keys and values (``use_new_attention_order``), as ours;
            else those of each head lie together.
    """
    levels = halvings(theirs) + 1
    # Those that halve the size are among them, one less than there are levels: the quotient is the same.
    blocks = sum(bool(_INPUT.fullmatch(name)) for name in theirs) // levels
    state: dict[str, Tensor] = {}
    for name, value in theirs.items():
        part, _, kind = name.rpartition(".")
        ours = _ours(part, blocks)
        if ours.endswith((".attention.qkv", ".attention.proj")) and kind == "weight" and value.ndim == 3:
            value = value[..., None]  # of a Conv1d
        width = len(value) // 3 if value.ndim else 0
        # Of another width it is damaged, and refused by its shape.
        fits = width in head_dims and len(value) == 3 * width
        if fits and ours.endswith(".attention.qkv") and not new_order:
            rows = value.reshape(-1, 3, head_dims[width], *value.shape[1:])
            value = rows.transpose(0, 1).reshape(value.shape)
        state[f"{ours}.{kind}"] = value
    return state


def _ours(part: str, blocks: int) -> str:
    """Our name of one of their parts, with ``blocks`` residual blocks a level on the way down."""
    if part in _TOP:
        return _TOP[part]
    found = _PLACE.fullmatch(part)
    if not found:
        return part
    section, number, place, inner = found.groups()
    if section == "middle_block":
        return f"{_MIDDLE.get(number, number)}.{(_ATTENTION if number == '1' else _BLOCK).get(inner, inner)}"
    if section == "input_blocks":
        at = f"down.{int(number) - 1}"
    else:
        # What doubles the size follows the blocks of each level, one more than on the way down.
        index = int(number) + int(number) // (blocks + 1)
        at = f"up.{index + (inner == 'conv' or (place != '0' and inner in _BLOCK))}"
    if inner in ("op", "conv"):
        return f"{at}.conv"
    return f"{at}.{(_BLOCK if place == '0' else {**_BLOCK, **_ATTENTION}).get(inner, inner)}"
