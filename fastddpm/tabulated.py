"""Our UNet as the loop calls it: its time path tabulated, its images through the form that is fastest where
it runs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from fastddpm.checks import BadArgument
from fastddpm.network import Model, Network
from fastddpm.unet import UNet
from fastddpm.unet.deferred import Deferred
from fastddpm.unet.rearranged import Rearranged, can_be_rearranged

Form = Literal["plain", "rearranged", "deferred"]


class TabulatedUNet(Network):
    """Our `UNet`, its time embedding and every block's time projection computed once per chain.

    The table has one row per plan step and is filled by each `begin`, so new weights are always in it. The
    images may go through another form of the network, filled by each `begin` too. Else, on a CPU, what the
    first convolution makes of the condition is computed by `begin` and added to what it makes of x; elsewhere
    the sum would be two more passes over all features.
    """

    model: UNet

    def __init__(
        self, model: UNet, *, class_labels: Tensor | None, form: Form = "plain", **buffers: Any
    ) -> None:
        super().__init__(
            model, cond={} if class_labels is None else {"class_labels": class_labels}, **buffers
        )
        self._form: Rearranged | Deferred | None = None
        if form != "plain" and can_be_rearranged(model):
            self._form = Rearranged(model) if form == "rearranged" else Deferred(model)
        self.is_private = isinstance(self._form, Rearranged)
        if isinstance(self._form, Deferred):
            self.layout = torch.channels_last
        width = model.bias_width
        self.table = torch.zeros(len(self.time), width, dtype=model.dtype, device=self.time.device)
        self.class_bias: Tensor | None = None
        if class_labels is not None:
            self.class_bias = self.table.new_zeros(len(class_labels), width)
        self._first: FirstConvolution | None = None
        plain_cpu = self.time.device.type == "cpu" and not torch.is_autocast_enabled("cpu")
        if self.condition is not None and plain_cpu and self._form is None and can_be_rearranged(model):
            self._first = FirstConvolution(model, self.condition)

    def begin(self, rows: int) -> None:
        """Computes the tables, and brings the other forms of the weights up to date."""
        if self._form is not None:
            self._form.refresh()
        if self._first is not None and self.condition is not None:
            self._first.load(self.condition)
        biases = self.model.time_biases(self.time[:rows])
        if isinstance(self._form, Deferred) and self._form.table_offset is not None:
            biases = biases + self._form.table_offset
        self.table[:rows].copy_(biases)
        if self.class_bias is not None:
            self.class_bias.copy_(self.model.class_biases(self.given["class_labels"]))

    def tensors(self) -> list[Tensor]:
        """What it holds besides the model, the weights of its other form among them."""
        parts = [part.tensors() for part in (self._form, self._first) if part is not None]
        return [*super().tensors(), *(tensor for tensors in parts for tensor in tensors)]

    def __call__(self, x: Tensor, k: Tensor) -> Tensor:
        """Model output for state ``x (B, C, H, W)`` at plan row ``k`` (int64 ``(1,)``, on the device)."""
        bias = self.table.index_select(0, k)
        bias = bias if self.class_bias is None else bias + self.class_bias
        return (self._compiled or self.predict)(x, bias)

    def predict(self, x: Tensor, time: Tensor) -> Tensor:
        """Model output for x and the bias of time and class, ``(1 or N, bias_width)``.

        Compiled by itself: with the choice of a row in it, each block would copy its part of the row.
        """
        if self._first is not None:
            return self.model.forward_features(self._first(self.doubled(x).to(self.dtype)), time)
        return (self._form or self.model).forward_biased(self.inputs(x), time)


class FirstConvolution:
    """A network's first convolution, the condition's part of its sum kept for a chain.

    Args:
        model: its first channels are the condition's.
        condition: ``(N, Cc, H, W)``; only its shape is used here.
    """

    def __init__(self, model: UNet, condition: Tensor) -> None:
        self.model, self.channels = model, condition.shape[1]
        weight = model.conv_in.weight.detach()
        is_last = weight.is_contiguous(memory_format=torch.channels_last)
        layout = torch.channels_last if is_last else torch.contiguous_format
        self.weight = weight[:, self.channels :].clone(memory_format=layout)
        height, width = (side + 2 * model.config.initial_pad for side in condition.shape[2:])
        shape = (len(condition), model.config.base_channels, height, width)
        self.kept = torch.empty(shape, dtype=weight.dtype, device=weight.device, memory_format=layout)

    def load(self, condition: Tensor) -> None:
        """Computes what is kept, with the weights as they are now."""
        conv = self.model.conv_in
        self.weight.copy_(conv.weight[:, self.channels :])
        prepared = self.model.prepared(condition.to(self.model.dtype))
        of_condition = conv.weight[:, : self.channels]
        self.kept.copy_(F.conv2d(prepared, of_condition, conv.bias, padding=conv.padding))

    def __call__(self, x: Tensor) -> Tensor:
        """``(N, C, H, W)`` in the model's dtype -> the convolution of condition and x."""
        self.model.check_size(x, condition_channels=self.channels)
        prepared = self.model.prepared(x)
        return F.conv2d(prepared, self.weight, padding=self.model.conv_in.padding) + self.kept

    def tensors(self) -> list[Tensor]:
        """What it holds besides the model."""
        return [self.weight, self.kept]


def bind(model: Model, *, cond: Mapping[str, Tensor], form: Form = "plain", **buffers: Any) -> Network:
    """The `Network` for a model: tabulated for our UNet, as it is for everything else.

    Args:
        model: the model.
        cond: see `Network`.
        form: what our UNet is run as. ``plain``: as it is. ``rearranged``: as Inductor runs it fastest on a
            CPU (`fastddpm.unet.rearranged`). ``deferred``: as a GPU does (`fastddpm.unet.deferred`). Both sum
            in another order, and a network that has been altered stays as it is.
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
    return Network(model, cond=cond, **buffers)
