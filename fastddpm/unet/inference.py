"""A UNet from tensors alone: what their names and shapes say about its options, and the network itself.

Tensors carry our names here; `abarankab`, `sr3` and `diffusers` translate to them. Shapes do not show the
groups of GroupNorm, the activation, the scale of time, or the heads of attention.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from fastddpm.checks import BadArgument, shortened
from fastddpm.unet.config import Options, UNetConfig
from fastddpm.unet.unet import UNet


def infer(state: Mapping[str, Tensor]) -> Options:
    """The options of :class:`UNetConfig` that a state dict shows.

    Args:
        state: tensors under our names.

    Returns:
        Keyword arguments for `UNetConfig`. ``norm`` is ``gn`` for InstanceNorm too, whose tensors look the
        same. A block whose time projection is twice as wide is taken for ``affine``. ``null_class`` is never
        set: the row of such a class is counted as a class.

    Raises:
        ValueError: naming a tensor that is missing, or an irregularity that no option describes.
    """
    base, in_channels = _shape(state, "conv_in.weight", 4)[:2]
    widths, counts, attended = _levels(state)
    if len(set(counts)) > 1:
        raise BadArgument("num_res_blocks", f"{counts} from level to level", "one number")
    if any(width % base for width in widths):
        raise BadArgument("channel_mults", f"widths {widths}", f"multiples of {base} (conv_in)")
    time_dim, hidden = _shape(state, "time_mlp.2.weight", 2)
    _shape(state, "time_mlp.0.weight", 2)
    classes, conditioning = _classes(state)
    out_channels = _shape(state, "conv_out.weight", 4)[0]
    first, out = "down.0.time_proj.weight", _shape(state, "down.0.conv1.weight", 4)[0]
    return {
        "in_channels": in_channels,
        "out_channels": None if out_channels == in_channels else out_channels,
        "base_channels": base,
        "channel_mults": tuple(width // base for width in widths),
        "num_res_blocks": counts[0],
        "time_dim": time_dim,
        "time_hidden": None if hidden == time_dim else hidden,
        "time_conditioning": "bias" if _shape(state, first, 2)[0] == out else "affine",
        "num_classes": classes,
        "class_conditioning": conditioning,
        "attention_levels": attended,
        "attention_bias": not any(".qkv." in name for name in state)
        or any(name.endswith(".qkv.bias") for name in state),
        "mid_attention": _mid_attention(state),
        "norm": _norm(state),
        "resblock_updown": _resizes_in_blocks(state),
    }


def assemble(config: UNetConfig, state: Mapping[str, Tensor]) -> UNet:
    """The network of a configuration around given tensors, which it shares, in eval mode.

    Raises:
        ValueError: a tensor that is missing, unexpected, of another shape, or of integers where the network
            has none.
    """
    with torch.device("meta"):
        unet = UNet(config, max_parameters=None)  # no more than the tensors have, which are there
    tensors = unet.state_dict()
    check_shapes(state, tensors)
    for name, value in state.items():
        if value.is_floating_point() != tensors[name].is_floating_point():
            accepted = "floating point numbers" if tensors[name].is_floating_point() else "integers"
            raise ValueError(f"{name} holds {value.dtype}, {accepted} expected")
    unet.load_state_dict(dict(state), assign=True)
    return unet.eval()


def check_shapes(state: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> None:
    """ValueError naming the first tensor that is missing, unexpected or of another shape than wanted."""
    expected = {name: tuple(value.shape) for name, value in wanted.items()}
    given = {name: tuple(value.shape) for name, value in state.items()}
    for name in sorted(set(expected) | set(given)):
        if expected.get(name) != given.get(name):
            raise ValueError(
                f"{shortened(name)} has shape {given.get(name, 'none (missing)')}, "
                f"{expected.get(name, 'no such tensor')} expected"
            )


def _shape(state: Mapping[str, Tensor], name: str, rank: int) -> tuple[int, ...]:
    if name not in state:
        raise ValueError(f"{name}: missing, so this is not a UNet that fits")
    shape = tuple(state[name].shape)
    if len(shape) != rank or 0 in shape:
        raise BadArgument(name, f"shape {shape}", f"{rank} sizes of at least 1")
    return shape


def _levels(state: Mapping[str, Tensor]) -> tuple[list[int], list[int], tuple[int, ...]]:
    """Width and number of residual blocks of each level, and the levels with attention."""
    widths, counts, attended = [0], [0], set()
    length = _length(state, "down")
    # A block that changes the size looks like any other: the last of each level but the lowest.
    every = (length + 1) // _level_count(state) if _resizes_in_blocks(state) else length + 1
    for i in range(length):
        if (i + 1) % every == 0:
            _shape(state, f"down.{i}.conv1.weight", 4)
            widths.append(0)
            counts.append(0)
        elif f"down.{i}.conv1.weight" in state:
            widths[-1] = _shape(state, f"down.{i}.conv1.weight", 4)[0]
            counts[-1] += 1
            if f"down.{i}.attention.qkv.weight" in state:
                attended.add(len(widths) - 1)
        else:
            _shape(state, f"down.{i}.conv.weight", 4)
            widths.append(0)
            counts.append(0)
    if min(counts) == 0:
        raise BadArgument("down", f"{counts} residual blocks from level to level", "at least 1")
    return widths, counts, tuple(sorted(attended))


def _length(state: Mapping[str, Tensor], section: str) -> int:
    """Layers of ``down`` or ``up``."""
    numbers = (int(name.split(".")[1]) for name in state if name.startswith(f"{section}."))
    return 1 + max(numbers, default=-1)


def _level_count(state: Mapping[str, Tensor]) -> int:
    """Levels: the way up has one block more in each."""
    return _length(state, "up") - _length(state, "down")


def _resizes_in_blocks(state: Mapping[str, Tensor]) -> bool:
    """Whether there are several levels, and blocks alone."""
    levels, length = _level_count(state), _length(state, "down")
    has_others = any(f"down.{i}.conv1.weight" not in state for i in range(length))
    return levels > 1 and not has_others and (length + 1) % levels == 0


def _classes(state: Mapping[str, Tensor]) -> tuple[int | None, str]:
    for name, conditioning in (("down.0.class_embed.weight", "bias"), ("class_embed.weight", "embedding")):
        if name in state:
            return _shape(state, name, 2)[0], conditioning
    return None, "bias"


def _mid_attention(state: Mapping[str, Tensor]) -> str:
    if "mid.0.attention.qkv.weight" not in state:
        return "none"
    normed = "mid.0.attention.norm.weight" in state or "down.0.norm1.weight" not in state
    return "norm" if normed else "plain"


def _norm(state: Mapping[str, Tensor]) -> str:
    if "down.0.norm1.running_mean" in state:
        return "bn"
    return "gn" if "down.0.norm1.weight" in state else "none"
