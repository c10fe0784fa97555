"""Our network of actions as the loop calls it: its time path tabulated, its observations projected once."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fastddpm.checks import BadArgument
from fastddpm.network import Network
from fastddpm.unet1d import UNet1D
from fastddpm.unet1d.buffered import Buffered
from fastddpm.unet1d.rows import Rows
from fastddpm.unet1d.unfolded import MOST_PLACES, Unfolded, is_small
from fastddpm.weights import Inventory

if TYPE_CHECKING:
    from collections.abc import Mapping

    from typing_extensions import Unpack

    from fastddpm.tabulated import Buffers

CONDITION = "global_cond"


class TabulatedUNet1D(Network):
    """`UNet1D`, what FiLM gives every block computed once per chain.

    With ``in_rows`` trajectories go through `fastddpm.unet1d.rows`, as on a card, where nothing is hooked.
    The part of the time has a row for each of the plan's, the part of the observations one for each
    trajectory. Both are derived by each `begin`, so that new weights are always in them.
    """

    model: UNet1D

    def __init__(
        self,
        model: UNet1D,
        *,
        cond: Mapping[str, Tensor],
        in_rows: bool = False,
        **buffers: Unpack[Buffers],
    ) -> None:
        wanted = {CONDITION} if model.config.cond_dim else set()
        if set(cond) != wanted:
            given = (
                f"{', '.join(cond) or 'no condition'} to a network of {model.config.cond_dim} observations"
            )
            raise BadArgument("cond", given, CONDITION if wanted else "no condition")
        super().__init__(model, cond=cond, **buffers)
        self.table = self.time.new_zeros(len(self.time), model.bias_width, dtype=model.dtype)
        self.observed: Tensor | None = None
        if wanted:
            self.observed = self.table.new_zeros(len(cond[CONDITION]), model.bias_width)
        self._inventory = Inventory([model])
        self._unfolded = Unfolded(model)
        self._in_rows = Rows(model) if in_rows and not self._inventory.look().is_hooked() else None
        self._buffered: tuple[tuple[int, ...], Buffered] | None = None
        self._unfolds = False

    def begin(self, rows: int) -> None:
        """Computes the table, and what the observations add."""
        self.table[:rows].copy_(self.model.time_biases(self.time[:rows]))
        is_hooked, on_cpu = self._inventory.look().is_hooked(), self.time.device.type == "cpu"
        self._unfolds = on_cpu and not is_hooked and self._in_rows is None and is_small(self.model)
        if self._buffered is not None:
            self._buffered[1].refresh()
        if self._in_rows is not None:
            self._in_rows.refresh()
        self.begin_conditions()

    def begin_conditions(self) -> None:
        """Computes what the observations add."""
        if self.observed is not None:
            self.observed.copy_(self.model.condition_biases(self.given[CONDITION]))

    def tensors(self) -> list[Tensor]:
        """What it holds besides the model, the weights of its other form among them."""
        return [*super().tensors(), *(self._in_rows.tensors() if self._in_rows is not None else ())]

    def __call__(self, x: Tensor, k: Tensor) -> Tensor:
        """Model output for state ``x (B, T, A)`` at rows ``k`` (int64 ``(B,)``, on the device)."""
        bias = self.doubled(self.table.index_select(0, k))
        if self.observed is not None:
            bias = bias + self.observed
        return (self._compiled or self.predict)(x, bias)

    def predict(self, x: Tensor, time: Tensor) -> Tensor:
        """Model output for x and FiLM's numbers, ``(N, bias_width)``."""
        x, bias = self.arguments(x, time)
        self.model.check_shape("x", x.shape)
        if not self._unfolds or len(x) * x.shape[1] > MOST_PLACES:
            return self.core(x, bias)
        if torch.compiler.is_compiling() or torch.is_autocast_enabled("cpu"):
            return self._unfolded.forward_biased(x, bias)
        if self._buffered is None or self._buffered[0] != x.shape:
            self._buffered = x.shape, Buffered(self.model, len(x), x.shape[1])
        return self._buffered[1].forward_biased(x, bias)

    def arguments(self, x: Tensor, time: Tensor) -> tuple[Tensor, Tensor]:
        """x as the network takes it, and FiLM's numbers."""
        return self.inputs(x), time

    def core(self, x: Tensor, t: Tensor, *cond: Tensor) -> Tensor:
        """The output for FiLM's numbers in the place of the time."""
        return (self._in_rows or self.model).forward_biased(x, t)
