"""Our UNet as the loop calls it: its time path tabulated, its images through the form that is fastest where
it runs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal, TypedDict

import torch
from torch import Tensor

from fastddpm.checks import BadArgument
from fastddpm.network import Model, Network
from fastddpm.tabulated_1d import TabulatedUNet1D
from fastddpm.unet import UNet
from fastddpm.unet.deferred import Deferred
from fastddpm.unet1d import UNet1D

if TYPE_CHECKING:
    from typing_extensions import Unpack

Form = Literal["plain", "deferred"]


class ModelInputs(TypedDict):
    """Of the arguments of `Network`: what x and t are."""

    dtype: torch.dtype
    guided: bool
    time_dtype: torch.dtype


class Buffers(ModelInputs):
    """The arguments of `Network` for any model."""

    device: torch.device
    capacity: int
    condition: Tensor | None


class TabulatedUNet(Network):
    """Our `UNet`, its time embedding and every block's time projection computed once per chain.

    The table has one row per plan step and is filled by each `begin`, so new weights are always in it. The
    images may go through another form of the network, filled by each `begin` too.
    """

    model: UNet

    def __init__(
        self, model: UNet, *, class_labels: Tensor | None, form: Form = "plain", **buffers: Unpack[Buffers]
    ) -> None:
        super().__init__(
            model, cond={} if class_labels is None else {"class_labels": class_labels}, **buffers
        )
        self._deferred = Deferred(model) if form == "deferred" and is_as_built(model) else None
        if self._deferred is not None:
            self.layout = torch.channels_last
        width = model.bias_width
        self.table = torch.zeros(len(self.time), width, dtype=model.dtype, device=self.time.device)
        self.class_bias: Tensor | None = None
        if class_labels is not None:
            self.class_bias = self.table.new_zeros(len(class_labels), width)

    def begin(self, rows: int) -> None:
        """Computes the tables, and brings the other form of the weights up to date."""
        biases = self.model.time_biases(self.time[:rows])
        if self._deferred is not None:
            self._deferred.refresh()
            if self._deferred.table_offset is not None:
                biases = biases + self._deferred.table_offset
        self.table[:rows].copy_(biases)
        self.begin_conditions()

    def begin_conditions(self) -> None:
        """Computes what the classes add."""
        if self.class_bias is not None:
            self.class_bias.copy_(self.model.class_biases(self.given["class_labels"]))

    def tensors(self) -> list[Tensor]:
        """What it holds besides the model, the weights of its other form among them."""
        return [*super().tensors(), *(self._deferred.tensors() if self._deferred is not None else ())]

    def __call__(self, x: Tensor, k: Tensor) -> Tensor:
        """Model output for state ``x (B, C, H, W)`` at rows ``k`` (int64 ``(B,)``, on the device)."""
        bias = self.table.index_select(0, k)
        if self.class_bias is None:
            bias = self.doubled(bias)
        else:
            # Of both halves under guidance.
            bias = (bias + self.class_bias.view(-1, *bias.shape)).flatten(0, 1)
        # Compiled without what stands above: with the choice of a row in it, each block would copy its part.
        return (self._compiled or self.predict)(x, bias)

    def arguments(self, x: Tensor, time: Tensor) -> tuple[Tensor, ...]:
        """x as the network takes it, and the bias of time and class."""
        return self.inputs(x), time

    def core(self, x: Tensor, t: Tensor, *cond: Tensor) -> Tensor:
        """The output for a bias in the place of the time."""
        return (self._deferred or self.model).forward_biased(x, t)


def is_as_built(unet: UNet) -> bool:
    """Whether the network is as its configuration builds it: nothing exchanged, hooked or parametrised."""
    with torch.device("meta"):
        plain = UNet(unet.config, max_parameters=None)
    kinds = {name: type(module) for name, module in plain.named_modules()}
    return kinds == {name: type(module) for name, module in unet.named_modules()} and not any(
        module._forward_hooks or module._forward_pre_hooks for module in unet.modules()
    )


def bind(
    model: Model, *, cond: Mapping[str, Tensor], form: Form = "plain", **buffers: Unpack[Buffers]
) -> Network:
    """The `Network` for a model: tabulated for our UNets, as it is for everything else.

    Args:
        model: the model.
        cond: see `Network`.
        form: what our UNet is run as. ``plain``: as it is. ``deferred``: as a GPU does
            (`fastddpm.unet.deferred`), which sums in another order; a network that has been altered stays as
            it is.
        buffers: the other arguments of `Network`.
    """
    if isinstance(model, UNet):
        has_classes = model.config.num_classes is not None
        if set(cond) != ({"class_labels"} if has_classes else set()):
            names = "class_labels" if has_classes else ", ".join(cond)
            accepted = "one each" if has_classes else "no condition"
            kind = "class-conditional" if has_classes else "unconditional"
            raise BadArgument(names, f"{', '.join(cond) or 'none'} to a network that is {kind}", accepted)
        return TabulatedUNet(model, class_labels=cond.get("class_labels"), form=form, **buffers)
    if isinstance(model, UNet1D):
        return TabulatedUNet1D(model, cond=cond, in_rows=form == "deferred", **buffers)
    return Network(model, cond=cond, **buffers)
