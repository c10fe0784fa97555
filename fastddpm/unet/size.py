"""How large a network of a configuration is, before any of it is made."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from fastddpm.checks import BadArgument
from fastddpm.unet.config import UNetConfig

MAX_PARAMETERS = 2**31
"""Of a network that is made: 8 GiB in float32, four times the largest that draws pixels."""
MAX_MAP = 2**32
"""Values of the largest feature map of one image: 16 GiB in float32."""


class Block(NamedTuple):
    """A residual block: its channels, the level that it stands on, and whether attention follows it."""

    in_channels: int
    out_channels: int
    level: int
    attends: bool


def residual_blocks(config: UNetConfig) -> Iterator[Block]:
    """The residual blocks in the order in which they run."""
    widths = [config.base_channels * m for m in config.channel_mults]
    channels, last = config.base_channels, len(widths) - 1
    skips = [channels]
    for level, width in enumerate(widths):
        for _ in range(config.num_res_blocks):
            yield Block(channels, width, level, level in config.attention_levels)
            channels = width
            skips.append(channels)
        if level != last:
            skips.append(channels)
    yield Block(channels, channels, last, config.mid_attention != "none")
    yield Block(channels, channels, last, False)
    for level, width in reversed(list(enumerate(widths))):
        for _ in range(config.num_res_blocks + 1):
            yield Block(skips.pop() + channels, width, level, level in config.attention_levels)
            channels = width


def parameters(config: UNetConfig) -> int:
    """Parameters of the network."""
    base, widths = config.base_channels, [config.base_channels * m for m in config.channel_mults]
    hidden = config.time_hidden or config.time_dim
    mlp = hidden * (base + 1) + config.time_dim * (hidden + 1)
    rows = (config.num_classes or 0) + config.null_class
    total = mlp + _conv(config.in_channels, base) + _conv(widths[0], config.image_channels)
    total += _norm(config, widths[0])
    if config.embeds_class:
        total += rows * config.time_dim if config.class_conditioning == "embedding" else mlp
        rows = 0
    for width in (*widths[:-1], *widths[1:]):  # between the levels
        resizes = Block(width, width, 0, False)
        total += _residual_block(config, resizes, rows) if config.resblock_updown else _conv(width, width)
    total += sum(_residual_block(config, block, rows) for block in residual_blocks(config))
    return total - (_norm(config, widths[-1]) if config.mid_attention == "plain" else 0)


def largest_map(config: UNetConfig, shape: Sequence[int]) -> int:
    """Values of the largest feature map of an image of ``shape`` (C, H, W), skips concatenated to it."""
    pad = 2 * config.initial_pad
    pixels: int = (shape[1] + pad) * (shape[2] + pad)
    sizes = (max(block[:2]) * -(-pixels >> 2 * block.level) for block in residual_blocks(config))
    return max(sizes)


def check_parameters(config: UNetConfig, most: int) -> None:
    """BadArgument where the network would have more parameters."""
    count = parameters(config)
    if count > most:
        raise BadArgument(
            "config", f"a network of {count:,} parameters", f"up to {most:,}, max_parameters of them,"
        )


def _residual_block(config: UNetConfig, block: Block, rows: int) -> int:
    into, out = block.in_channels, block.out_channels
    biases = out * (1 if config.time_conditioning == "bias" else 2)
    skip = 0 if into == out else _conv(into, out, 1)
    attention = _norm(config, out) + _conv(out, 3 * out, 1) + _conv(out, out, 1)
    if not config.attention_bias:
        attention -= 3 * out
    return (
        _norm(config, into)
        + _conv(into, out)
        + biases * (config.time_dim + 1 + rows)
        + _norm(config, out)
        + _conv(out, out)
        + skip
        + (attention if block.attends else 0)
    )


def _conv(into: int, out: int, side: int = 3) -> int:
    return out * (into * side**2 + 1)


def _norm(config: UNetConfig, channels: int) -> int:
    return 0 if config.norm == "none" else 2 * channels
