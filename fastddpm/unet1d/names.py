"""Tensors of published networks under our names, and the options that they show."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from fastddpm.unet.inference import check_shapes
from fastddpm.unet1d.config import UNet1DConfig
from fastddpm.unet1d.unet1d import UNet1D

_ENCODER = "diffusion_step_encoder"
_PAIR = r"(?P<section>(?:down|up)_modules\.\d+|mid_modules)\.(?P<place>[01])\."
# real-stanford/diffusion_policy names a block's convolutions blocks.0 and blocks.1, LeRobot conv1 and conv2.
_CONV = re.compile(
    _PAIR + r"(?:blocks\.(?P<index>[01])|conv(?P<number>[12]))\.block\.(?P<layer>[01])\.(?P<rest>\w+)"
)
_REST = re.compile(_PAIR + r"(?P<part>cond_encoder\.1|residual_conv)\.(?P<rest>\w+)")
_RESAMPLING = re.compile(r"(?P<way>down|up)_modules\.(?P<level>\d+)\.2\.(?:conv\.)?(?P<rest>\w+)")
_OTHERS = {
    f"{_ENCODER}.1.": "time_mlp.0.",
    f"{_ENCODER}.3.": "time_mlp.2.",
    "final_conv.0.block.0.": "final_conv.",
    "final_conv.0.block.1.": "final_norm.",
    "final_conv.1.": "conv_out.",
}


def recognises(state: Mapping[str, object]) -> bool:
    """Whether names are those of such a network."""
    return f"{_ENCODER}.1.weight" in state and any(_CONV.fullmatch(name) for name in state)


def state_dict(theirs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors under our names.

    Raises:
        ValueError: naming a tensor that we have no place for.
    """
    return {_renamed(name): value for name, value in theirs.items()}


def from_state(state: Mapping[str, Tensor], *, num_groups: int, final_groups: int = 8) -> UNet1D:
    """Our network around tensors under our names, in eval mode.

    Args:
        state: the tensors, which are shared.
        num_groups: of GroupNorm in the blocks, which tensors do not show.
        final_groups: of the last one.

    Raises:
        ValueError: a tensor that is missing, unexpected or of another shape.
    """
    config = UNet1DConfig(**_shown(state), num_groups=num_groups, final_groups=final_groups)  # type: ignore[arg-type]
    with torch.device("meta"):
        unet = UNet1D(config)
    check_shapes(state, unet.state_dict())
    unet.load_state_dict(dict(state), assign=True)
    return unet.eval()


def from_module(module: nn.Module) -> UNet1D | None:
    """Our network around a published one's own weights; None for anything else, and for one of conditions of
    each place (``local_cond``)."""
    theirs = module.state_dict()
    if not recognises(theirs) or getattr(module, "local_cond_encoder", None) is not None:
        return None
    norms = {name: part.num_groups for name, part in module.named_modules() if isinstance(part, nn.GroupNorm)}
    final = norms.pop("final_conv.0.block.1", None)
    if final is None or len(set(norms.values())) != 1:
        return None
    return from_state(state_dict(theirs), num_groups=next(iter(norms.values())), final_groups=final)


def _shown(state: Mapping[str, Tensor]) -> dict[str, object]:
    """The options that shapes show."""
    first, film, time = (
        _shape(state, "down.0.first.conv1.weight", 3),
        "down.0.first.film.weight",
        "time_mlp.0.weight",
    )
    levels = 1 + max(int(name.split(".")[1]) for name in state if name.startswith("down."))
    dims = tuple(_shape(state, f"down.{i}.first.conv1.weight", 3)[0] for i in range(levels))
    (rows, inputs), time_dim = _shape(state, film, 2), _shape(state, time, 2)[1]
    return {
        "action_dim": first[1],
        "cond_dim": inputs - time_dim,
        "down_dims": dims,
        "kernel_size": first[2],
        "time_dim": time_dim,
        "film_scale": rows == 2 * dims[0],
    }


def _shape(state: Mapping[str, Tensor], name: str, rank: int) -> tuple[int, ...]:
    if name not in state:
        raise ValueError(f"{name}: missing, so this is not a network of actions that fits")
    shape = tuple(state[name].shape)
    if len(shape) != rank or 0 in shape:
        raise ValueError(f"{name}: shape {shape} given, {rank} sizes of at least 1 accepted")
    return shape


def _renamed(name: str) -> str:
    if found := _CONV.fullmatch(name):
        number = found["number"] or int(found["index"]) + 1
        return f"{_place(found)}.{'conv' if found['layer'] == '0' else 'norm'}{number}.{found['rest']}"
    if found := _REST.fullmatch(name):
        return f"{_place(found)}.{'residual' if found['part'][0] == 'r' else 'film'}.{found['rest']}"
    if found := _RESAMPLING.fullmatch(name):
        return f"{'downsample' if found['way'] == 'down' else 'upsample'}.{found['level']}.{found['rest']}"
    for theirs, ours in _OTHERS.items():
        if name.startswith(theirs):
            return ours + name.removeprefix(theirs)
    raise ValueError(f"{name}: no tensor of a network of actions that we know")


def _place(found: re.Match[str]) -> str:
    return f"{found['section'].replace('_modules', '')}.{'second' if found['place'] == '1' else 'first'}"
