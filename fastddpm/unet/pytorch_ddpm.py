"""What w86763777/pytorch-ddpm calls the parts of the network.

Source: its model.py. Its time embedding is a table that interleaves sines and cosines; ours has the sines
first, so that the columns of the layer after it change places.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from fastddpm.unet.config import Options
from fastddpm.unet.names import Names

TABLE = "time_embedding.timembedding.0.weight"
_QKV = ("proj_q", "proj_k", "proj_v")
_BLOCK = {
    "norm1": "block1.0",
    "conv1": "block1.2",
    "time_proj": "temb_proj.1",
    "norm2": "block2.0",
    "conv2": "block2.3",
    "skip": "shortcut",
    "attention.norm": "attn.group_norm",
    "attention.proj": "attn.proj",
    "conv": "main",
}
NAMES = Names(
    top={
        "conv_in": "head",
        "norm_out": "tail.0",
        "conv_out": "tail.2",
        "time_mlp.0": "time_embedding.timembedding.1",
        "time_mlp.2": "time_embedding.timembedding.3",
    },
    sections={"down": "downblocks", "mid": "middleblocks", "up": "upblocks"},
    parts=dict.fromkeys(("down", "mid", "up"), _BLOCK),
)
FIXED: Options = {"activation": "silu", "num_groups": 32, "norm_eps": 1e-5}
"""Options that its code settles."""


def is_its_table(table: Tensor) -> bool:
    """Whether a time embedding ``(T, width)`` is that of its code, which training leaves as it is."""
    if table.ndim != 2 or table.shape[1] % 2 or not table.is_floating_point():
        return False
    steps, width = table.shape
    angles = torch.arange(steps)[:, None] * torch.exp(-math.log(10000) * torch.arange(0, width, 2) / width)
    expected = torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(1)
    return torch.allclose(
        table.float(), expected, rtol=0, atol=1e-2 if table.dtype != torch.float32 else 1e-3
    )


def state_dict(theirs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our state dict from one of theirs, without the table; a name that is not known comes back as it is."""
    state: dict[str, Tensor] = {}
    for name, value in theirs.items():
        block, _, last = name.rpartition(".attn.")
        part, _, kind = last.partition(".")
        if part not in _QKV:
            state[NAMES.ours(name)] = value
        elif part == _QKV[0]:
            names = [f"{block}.attn.{one}.{kind}" for one in _QKV]
            if all(one in theirs for one in names):
                ours = NAMES.ours(f"{block}.attn.proj.{kind}").replace(".proj.", ".qkv.")
                state[ours] = torch.cat([theirs[one] for one in names])
    state.pop(TABLE, None)
    first = state.get("time_mlp.0.weight")
    if first is not None and first.ndim == 2:
        state["time_mlp.0.weight"] = torch.cat([first[:, 0::2], first[:, 1::2]], dim=1)
    return state
