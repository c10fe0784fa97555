"""The options of the UNet: a plain record that is written to and read from `config.json`."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

Activation = Literal["silu", "relu", "gelu"]
Norm = Literal["gn", "bn", "in", "none"]

ACTIVATIONS = ("silu", "relu", "gelu")
NORMS = ("gn", "bn", "in", "none")


@dataclasses.dataclass(frozen=True)
class UNetConfig:
    """Architecture of a :class:`fastddpm.UNet`.

    Attributes:
        in_channels: channels of the network's input (of the image, plus those of a condition).
        out_channels: channels of its output; ``None`` means ``in_channels``.
        base_channels: channels at full resolution.
        channel_mults: one factor per resolution level; each level after the first halves the size.
        num_res_blocks: residual blocks per level on the way down (one more on the way up).
        time_dim: width of the time embedding.
        time_scale: the time index is multiplied by this before its sinusoidal embedding.
        num_classes: classes of a class-conditional network; ``None`` for an unconditional one.
        null_class: one more embedding row, index ``num_classes``, for "no class" (guidance needs it).
        attention_levels: levels whose residual blocks are followed by self-attention. The middle always
            has it.
        activation: ``silu``, ``relu`` or ``gelu``.
        norm: ``gn`` (GroupNorm), ``bn`` (BatchNorm), ``in`` (InstanceNorm with scale and shift) or ``none``.
        num_groups: groups of GroupNorm; divides every channel count.
        dropout: dropout probability inside residual blocks, in [0, 1).
        initial_pad: pixels of zero padding put around the input and cut from the output, so that sizes
            that are not multiples of ``2**(levels-1)`` fit (28 -> 32 with 2).

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

    def __post_init__(self) -> None:
        object.__setattr__(self, "channel_mults", tuple(self.channel_mults))
        object.__setattr__(self, "attention_levels", tuple(self.attention_levels))
        for name in ("in_channels", "base_channels", "num_res_blocks", "time_dim", "num_groups"):
            _require(self, name, _is_int(getattr(self, name), 1), "an integer of at least 1")
        for name in ("out_channels", "num_classes"):
            value = getattr(self, name)
            _require(self, name, value is None or _is_int(value, 1), "None or an integer of at least 1")
        _require(
            self,
            "channel_mults",
            len(self.channel_mults) > 0 and all(_is_int(v, 1) for v in self.channel_mults),
            "one integer of at least 1 per level",
        )
        _require(
            self,
            "attention_levels",
            all(_is_int(v, 0) and v < len(self.channel_mults) for v in self.attention_levels),
            f"levels 0 to {len(self.channel_mults) - 1}",
        )
        _require(self, "activation", self.activation in ACTIVATIONS, f"one of {', '.join(ACTIVATIONS)}")
        _require(self, "norm", self.norm in NORMS, f"one of {', '.join(NORMS)}")
        _require(self, "base_channels", self.base_channels % 2 == 0, "an even number")
        _require(self, "dropout", 0.0 <= self.dropout < 1.0, "a probability in [0, 1)")
        _require(self, "initial_pad", _is_int(self.initial_pad, 0), "an integer of at least 0")
        _require(
            self,
            "null_class",
            isinstance(self.null_class, bool) and not (self.null_class and self.num_classes is None),
            "true or false, and true only with num_classes",
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
    def size_multiple(self) -> int:
        """Height and width, padding included, are multiples of this."""
        return int(2 ** (len(self.channel_mults) - 1))

    def to_dict(self) -> dict[str, Any]:
        """Fields as JSON values."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in dataclasses.asdict(self).items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> UNetConfig:
        """Inverse of :meth:`to_dict`; an unknown field is an error that lists the known ones."""
        known = [f.name for f in dataclasses.fields(cls)]
        unknown = sorted(set(values) - set(known))
        if unknown:
            raise ValueError(f"config: unknown field {unknown[0]!r}; known fields are {', '.join(known)}")
        return cls(**values)


def _is_int(value: object, minimum: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= minimum


def _require(config: UNetConfig, name: str, ok: bool, accepted: str) -> None:
    if not ok:
        raise ValueError(f"{name}: {getattr(config, name)!r} given, {accepted} accepted")
