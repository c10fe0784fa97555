"""The options of `UNet1D`."""

from __future__ import annotations

import dataclasses

from fastddpm.checks import BadArgument, whole


@dataclasses.dataclass(frozen=True)
class UNet1DConfig:
    """What a network of actions is made of.

    Attributes:
        action_dim: A, numbers of one place of a trajectory.
        cond_dim: of the vector of observations; 0 without.
        down_dims: channels of the levels.
        kernel_size: of the convolutions, odd.
        num_groups: of GroupNorm in the residual blocks.
        final_groups: of GroupNorm before the last convolution.
        time_dim: of the time embedding, even and 4 or more.
        film_scale: whether the condition gives a scale and a shift, or a shift alone.

    Raises:
        ValueError: naming the option, what was given and what is accepted.
    """

    action_dim: int
    cond_dim: int
    down_dims: tuple[int, ...] = (512, 1024, 2048)
    kernel_size: int = 5
    num_groups: int = 8
    final_groups: int = 8
    time_dim: int = 128
    film_scale: bool = True

    def __post_init__(self) -> None:
        whole("action_dim", self.action_dim, least=1)
        whole("cond_dim", self.cond_dim, least=0)
        if not self.down_dims:
            raise BadArgument("down_dims", "none", "channels of one level or more")
        for name in ("num_groups", "final_groups"):
            whole(name, getattr(self, name), least=1)
        for width in self.down_dims:
            whole("down_dims", width, least=1)
            if width % self.num_groups:
                raise BadArgument(
                    "num_groups", str(self.num_groups), f"a divisor of down_dims {self.down_dims}"
                )
        if self.down_dims[0] % self.final_groups:
            raise BadArgument("final_groups", str(self.final_groups), f"a divisor of {self.down_dims[0]}")
        if whole("kernel_size", self.kernel_size, least=1) % 2 == 0:
            raise BadArgument("kernel_size", str(self.kernel_size), "an odd number")
        if whole("time_dim", self.time_dim, least=4) % 2:
            raise BadArgument("time_dim", str(self.time_dim), "an even number")

    @property
    def length_multiple(self) -> int:
        """What the number of places is a multiple of: each level but the last halves it."""
        return 1 << (len(self.down_dims) - 1)
