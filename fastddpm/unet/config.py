"""The options of the UNet: a plain record that is written to and read from `config.json`."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Sequence
from typing import Any, Literal, TypeAlias

from fastddpm.checks import BadArgument, is_number
from fastddpm.inputs import Fields, Json
from fastddpm.signatures import checked

Options: TypeAlias = dict[str, Any]
"""Keyword arguments of `UNetConfig`, which checks them."""
Activation = Literal["silu", "relu", "gelu", "mish"]
Norm = Literal["gn", "bn", "in", "none"]
TimeConditioning = Literal["bias", "affine", "scale_shift"]
ClassConditioning = Literal["bias", "embedding", "timestep"]
MidAttention = Literal["norm", "plain", "none"]

CHOICES: dict[str, tuple[str, ...]] = {
    "activation": ("silu", "relu", "gelu", "mish"),
    "norm": ("gn", "bn", "in", "none"),
    "time_conditioning": ("bias", "affine", "scale_shift"),
    "class_conditioning": ("bias", "embedding", "timestep"),
    "mid_attention": ("norm", "plain", "none"),
}
# A file may say any number, and every block is an object: these are far above any network that was trained.
MAX_WIDTH = 2**16
"""Channels, heads, groups, and the width of the time embedding."""
MAX_BLOCKS = 64
"""Residual blocks a level."""
MAX_LEVELS = 12
"""Each halves the size."""
MAX_ALL_BLOCKS = 256
"""Residual blocks of a network, ten times those of the deepest: a second of making modules, however small."""
MAX_CLASSES = 2**24
MAX_SCALE = 10**6
"""Of time: as many steps as a schedule has at most, where a network is told a noise level in [0, 1]."""


@dataclasses.dataclass(frozen=True)
class UNetConfig:
    """Architecture of a :class:`fastddpm.UNet`.

    Attributes:
        in_channels: channels of the network's input (of the image, plus those of a condition).
        out_channels: channels of its output; ``None`` means ``in_channels``.
        base_channels: channels at full resolution.
        channel_mults: one factor per resolution level; each level after the first halves the size.
        num_res_blocks: residual blocks per level on the way down (one more on the way up), `MAX_ALL_BLOCKS`
            in all at most.
        time_dim: width of the time embedding.
        time_scale: the time index is multiplied by this before its sinusoidal embedding.
        num_classes: classes of a class-conditional network; ``None`` for an unconditional one.
        null_class: one more embedding row, index ``num_classes``, for "no class" (guidance needs it).
        attention_levels: levels whose residual blocks are followed by self-attention. The middle always
            has it.
        activation: ``silu``, ``relu``, ``gelu`` or ``mish``.
        norm: ``gn`` (GroupNorm), ``bn`` (BatchNorm), ``in`` (InstanceNorm with scale and shift) or ``none``.
        num_groups: groups of GroupNorm; divides every channel count.
        dropout: dropout probability inside residual blocks, in [0, 1).
        initial_pad: pixels of zero padding put around the input and cut from the output, so that sizes
            that are not multiples of ``2**(levels-1)`` fit (28 -> 32 with 2).

    The other fields make the network that of another implementation; their defaults are abarankab/DDPM's.

    Attributes:
        time_hidden: width of the time MLP's hidden layer; ``None`` means ``time_dim``.
        time_activation: whether the activation stands between the time MLP and the blocks' projections.
        time_cosine_first: cosines before sines in the sinusoidal embedding.
        time_frequency_shift: frequencies are ``10000**(-i/(half - shift))``, i = 0 .. half-1; below half,
            which is half of ``base_channels``.
        time_conditioning: how time enters a residual block. ``bias``: added before the second norm.
            ``affine``: h*(1 + scale) + shift before the second norm. ``scale_shift``: the same after it.
        class_conditioning: ``bias``: an embedding row per block, added to its time projection.
            ``embedding``: one row of ``time_dim`` added to the time embedding. ``timestep``: the label goes
            through a sinusoidal embedding and an MLP of its own, and is added to the time embedding.
        attention_head_dim: channels per attention head; ``None`` for one head, or ``attention_heads``.
        attention_heads: heads of every attention, whose channels then follow from the level's; ``None`` as
            ``attention_head_dim`` says.
        attention_bias: whether queries, keys and values have a bias.
        mid_attention: attention in the middle, ``norm``: with a norm before it as elsewhere, ``plain``:
            without, ``none``: no attention.
        norm_eps: epsilon of GroupNorm, above 0.
        downsample_padding: 1 pads the strided convolutions on all sides, 0 on the right and below only.
        center_input: the input is mapped from [0, 1] to [-1, 1] first: 2*x - 1.
        resblock_updown: residual blocks halve and double the size, in the place of strided convolutions and
            of convolutions after nearest neighbours: after the first norm and activation, and in the skip, by
            means of 2x2 pixels and by nearest neighbours (BigGAN's, Brock et al. 2019; guided-diffusion).

    Raises:
        ValueError: naming the field, what was given and what is accepted.
    """

    in_channels: int = 1
    out_channels: int | None = None
    base_channels: int = 32
    channel_mults: tuple[int, ...] = (1, 2, 2)
    num_res_blocks: int = 1
    time_dim: int = 128
    time_scale: float = 1.0
    num_classes: int | None = None
    null_class: bool = False
    attention_levels: tuple[int, ...] = ()
    activation: Activation = "silu"
    norm: Norm = "gn"
    num_groups: int = 8
    dropout: float = 0.0
    initial_pad: int = 0
    time_hidden: int | None = None
    time_activation: bool = True
    time_cosine_first: bool = False
    time_frequency_shift: float = 0.0
    time_conditioning: TimeConditioning = "bias"
    class_conditioning: ClassConditioning = "bias"
    attention_head_dim: int | None = None
    attention_bias: bool = True
    mid_attention: MidAttention = "norm"
    norm_eps: float = 1e-5
    downsample_padding: int = 1
    center_input: bool = False
    resblock_updown: bool = False
    attention_heads: int | None = None

    def __post_init__(self) -> None:
        for name in ("channel_mults", "attention_levels"):
            value = getattr(self, name)
            _require(self, name, isinstance(value, Sequence) and not isinstance(value, str), "a list")
            object.__setattr__(self, name, tuple(value))
        for name in ("in_channels", "base_channels", "num_res_blocks", "time_dim", "num_groups"):
            most = MAX_BLOCKS if name == "num_res_blocks" else MAX_WIDTH
            ok = _is_int(getattr(self, name), 1, most)
            _require(self, name, ok, f"an integer of at least 1, and at most {most:,},")
        for name in ("out_channels", "num_classes", "time_hidden", "attention_head_dim", "attention_heads"):
            value, most = getattr(self, name), MAX_CLASSES if name == "num_classes" else MAX_WIDTH
            ok = value is None or _is_int(value, 1, most)
            _require(self, name, ok, f"None or an integer of at least 1, and at most {most:,},")
        _require(
            self,
            "channel_mults",
            0 < len(self.channel_mults) <= MAX_LEVELS
            and all(_is_int(v, 1, MAX_WIDTH // self.base_channels) for v in self.channel_mults),
            f"one integer of at least 1 per level, {MAX_LEVELS} levels of {MAX_WIDTH:,} channels at most,",
        )
        most = (MAX_ALL_BLOCKS // len(self.channel_mults) - 1) // 2
        _require(
            self,
            "num_res_blocks",
            self.num_res_blocks <= most,
            f"at most {most} with {len(self.channel_mults)} levels",
        )
        _require(
            self,
            "attention_levels",
            all(_is_int(v, 0, len(self.channel_mults) - 1) for v in self.attention_levels),
            f"levels 0 to {len(self.channel_mults) - 1}",
        )
        for name, choices in CHOICES.items():
            _require(self, name, _is_name(getattr(self, name), choices), f"one of {', '.join(choices)}")
        flags = ("time_activation", "time_cosine_first", "attention_bias", "center_input", "resblock_updown")
        for name in flags:
            _require(self, name, isinstance(getattr(self, name), bool), "true or false")
        _require(self, "base_channels", self.base_channels % 2 == 0, "an even number")
        for name in ("time_scale", "dropout", "norm_eps", "time_frequency_shift"):
            _require(self, name, is_number(getattr(self, name)), "a finite number")
        _require(self, "time_scale", abs(self.time_scale) <= MAX_SCALE, f"a number up to {MAX_SCALE:,}")
        _require(self, "dropout", 0.0 <= self.dropout < 1.0, "a probability in [0, 1)")
        _require(self, "initial_pad", _is_int(self.initial_pad, 0, MAX_WIDTH), "an integer of at least 0")
        _require(
            self,
            "null_class",
            isinstance(self.null_class, bool) and not (self.null_class and self.num_classes is None),
            "true or false, and true only with num_classes",
        )
        _require(
            self,
            "null_class",
            not (self.null_class and self.class_conditioning == "timestep"),
            "false with class_conditioning 'timestep', which has no row per class",
        )
        _require(self, "norm_eps", 0.0 < self.norm_eps < 1.0, "a number above 0 and below 1")
        _require(self, "downsample_padding", _is_int(self.downsample_padding, 0, 1), "0 or 1")
        half = self.base_channels // 2
        _require(self, "time_frequency_shift", 0 <= self.time_frequency_shift < half, f"0 to below {half}")
        for name in ("attention_head_dim", "attention_heads"):
            _require(
                self,
                name,
                all(width % (getattr(self, name) or 1) == 0 for width in self.attention_widths),
                f"None or a divisor of the attended widths, {', '.join(map(str, self.attention_widths))}",
            )
        _require(
            self,
            "attention_heads",
            self.attention_heads is None or self.attention_head_dim is None,
            "None with attention_head_dim",
        )
        if self.norm == "gn":
            _require(
                self,
                "num_groups",
                all(self.base_channels * m % self.num_groups == 0 for m in self.channel_mults),
                "a divisor of base_channels * m for every m in channel_mults",
            )

    @property
    def image_channels(self) -> int:
        """Channels of the network's output."""
        return self.in_channels if self.out_channels is None else self.out_channels

    @property
    def attention_widths(self) -> tuple[int, ...]:
        """Channels where there is attention."""
        widths = [self.base_channels * m for m in self.channel_mults]
        middle = [] if self.mid_attention == "none" else [widths[-1]]
        return tuple(sorted({*(widths[level] for level in self.attention_levels), *middle}))

    @property
    def embeds_class(self) -> bool:
        """Whether the class is added to the time embedding, ahead of the blocks' projections."""
        return self.num_classes is not None and self.class_conditioning != "bias"

    @property
    def size_multiple(self) -> int:
        """Height and width, padding included, are multiples of this."""
        return int(2 ** (len(self.channel_mults) - 1))

    def to_dict(self) -> Json:
        """Fields as JSON values."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in dataclasses.asdict(self).items()}

    @classmethod
    @checked
    def from_dict(cls, values: Fields) -> UNetConfig:
        """Inverse of :meth:`to_dict`; an unknown field is an error that names those that are alike."""
        known = [f.name for f in dataclasses.fields(cls)]
        unknown = sorted(set(values) - set(known))
        if unknown:
            alike = difflib.get_close_matches(unknown[0][:80], known) or ["the fields of UNetConfig"]
            raise BadArgument("config", f"unknown field {unknown[0]!r}", ", ".join(alike))
        return cls(**values)


def _is_int(value: object, low: int, high: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high


def _is_name(value: object, names: Sequence[str]) -> bool:
    return isinstance(value, str) and value in names


def _require(config: UNetConfig, name: str, ok: bool, accepted: str) -> None:
    if not ok:
        raise BadArgument(name, repr(getattr(config, name)), accepted)
