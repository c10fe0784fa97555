"""What ermongroup/ddim and pesser/pytorch_diffusion call the parts of the network, that of Ho et al. 2020.

Source: ermongroup/ddim, models/diffusion.py; the other repository's model.py is the same. Their blocks are
numbered within their level, the levels by resolution on both ways.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from fastddpm.unet.config import Options

_TOP = {"temb.dense.0": "time_mlp.0", "temb.dense.1": "time_mlp.2"}
_BLOCK = {"temb_proj": "time_proj", "nin_shortcut": "skip"}
_QKV = ("q", "k", "v")
_PLACE = re.compile(r"(down|up)\.(\d+)\.(block|attn)\.(\d+)\.(.+)")
_RESIZED = re.compile(r"(down|up)\.(\d+)\.(?:down|up)sample\.conv")
_MIDDLE = {"block_1": "mid.0", "attn_1": "mid.0.attention", "block_2": "mid.1"}
UNUSED = ("logvar",)
"""Parameters that their network holds and does not use: that of ``type: bayesian``."""
FIXED: Options = {
    "activation": "silu",
    "num_groups": 32,
    "norm_eps": 1e-6,
    "time_frequency_shift": 1.0,
    "downsample_padding": 0,
}
"""Options that their code settles."""


def state_dict(theirs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our state dict from one of theirs; a name that is not known comes back as it is."""
    levels = 1 + max((int(m[2]) for m in map(_PLACE.match, theirs) if m), default=0)
    blocks = sum(bool(re.fullmatch(r"down\.0\.block\.\d+\.conv1\.weight", name)) for name in theirs)
    state: dict[str, Tensor] = {}
    for name, value in theirs.items():
        part, _, kind = name.rpartition(".")
        ours, _, last = _ours(part, levels, blocks).rpartition(".")
        if not ours.endswith(".attention") or last not in (*_QKV, "proj_out"):
            state[f"{ours}.{last}.{kind}".lstrip(".")] = value
        elif last == "proj_out":
            state[f"{ours}.proj.{kind}"] = value
        elif last == "q":
            names = [f"{part[:-1]}{one}.{kind}" for one in _QKV]
            if all(one in theirs for one in names):
                state[f"{ours}.qkv.{kind}"] = torch.cat([theirs[one] for one in names])
    return {name: value for name, value in state.items() if name not in UNUSED}


def _ours(part: str, levels: int, blocks: int) -> str:
    """Our name of one of their parts; an attention's are still theirs."""
    if part in _TOP:
        return _TOP[part]
    section, _, rest = part.partition(".")
    if section == "mid":
        block, _, inner = rest.partition(".")
        return f"{_MIDDLE.get(block, rest)}.{_BLOCK.get(inner, inner)}"
    placed, resized = _PLACE.fullmatch(part), _RESIZED.fullmatch(part)
    if resized:
        return (
            f"{section}.{_first(section, int(resized[2]), levels, blocks) + blocks + (section == 'up')}.conv"
        )
    if not placed:
        return part
    block = f"{section}.{_first(section, int(placed[2]), levels, blocks) + int(placed[4])}"
    inner = placed[5]
    return f"{block}.attention.{inner}" if placed[3] == "attn" else f"{block}.{_BLOCK.get(inner, inner)}"


def _first(section: str, level: int, levels: int, blocks: int) -> int:
    """Our number of the first block of a level: a change of size follows the blocks of each."""
    return level * (blocks + 1) if section == "down" else (levels - 1 - level) * (blocks + 2)
