"""jannerm/diffuser's ``TemporalUnet``: tensors under our names.

It is the network of Diffusion Policy without observations, whose blocks the time gives a shift alone.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor, nn

from fastddpm.unet1d import names
from fastddpm.unet1d.unet1d import UNet1D

_FIRST = "downs.0.0.blocks.0.block.0.weight"
# Its names, part by part, as those of Diffusion Policy's network.
_AS_POLICY = (
    (re.compile(r"^time_mlp\."), "diffusion_step_encoder."),
    (re.compile(r"^(down|up)s\.(\d+)\.3\."), r"\1_modules.\2.2."),
    (re.compile(r"^(down|up)s\.(\d+)\.([01])\."), r"\1_modules.\2.\3."),
    (re.compile(r"^mid_block1\."), "mid_modules.0."),
    (re.compile(r"^mid_block2\."), "mid_modules.1."),
    (re.compile(r"\.time_mlp\.1\."), ".cond_encoder.1."),
    (re.compile(r"\.block\.2\."), ".block.1."),
)


def from_module(module: nn.Module) -> UNet1D | None:
    """Our network around a TemporalUnet's own weights; None for anything else.

    Raises:
        ValueError: naming a tensor that we have no place for, as those of its attention.
    """
    theirs = module.state_dict()
    if "time_mlp.1.weight" not in theirs or _FIRST not in theirs:
        return None
    norms = {part.num_groups for part in module.modules() if isinstance(part, nn.GroupNorm)}
    if len(norms) != 1:
        return None
    groups = norms.pop()
    return names.from_state(state_dict(theirs), num_groups=groups, final_groups=groups)


def state_dict(theirs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors under our names.

    Raises:
        ValueError: naming a tensor that we have no place for.
    """
    return names.state_dict({_of_policy(name): value for name, value in theirs.items()})


def _of_policy(name: str) -> str:
    for pattern, replacement in _AS_POLICY:
        name = pattern.sub(replacement, name)
    return name
