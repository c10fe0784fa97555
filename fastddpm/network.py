"""What the loop calls for a prediction: a model with its conditioning held in static buffers.

A `Network` is made once per loop and filled once per chain, whose values go into its buffers before `begin`
derives the rest from them and the weights; the buffers keep their addresses, so that a captured graph or a
compiled step goes on reading the right memory. Calling it with the
state and the device counter gives the model's output for the current plan row, without touching the host.
"""

from __future__ import annotations

import functools
import inspect
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastddpm.forks import ForkLock
from fastddpm.unet import UNet
from fastddpm.unet.rearranged import Rearranged, can_be_rearranged
from fastddpm.weights import Inventory

Model = Callable[..., Any]


def unwrapped(output: Any) -> Tensor:
    """The tensor in a model's output: itself, its `.sample`, or the only element of a tuple."""
    if isinstance(output, Tensor):
        return output
    if isinstance(getattr(output, "sample", None), Tensor):
        tensor: Tensor = output.sample
        return tensor
    if isinstance(output, (tuple, list)) and len(output) == 1 and isinstance(output[0], Tensor):
        return output[0]
    raise ValueError(
        f"model: returned {type(output).__name__}; a tensor, an object with a tensor `.sample`, "
        "or a tuple of one tensor is accepted"
    )


def modules_of(model: Model) -> list[nn.Module]:
    """The modules that a model runs, as far as they can be seen: itself, or what a bound method's object, a
    `functools.partial` or a closure holds. Not what a function finds in global variables."""
    if isinstance(model, nn.Module):
        return [model]
    if isinstance(model, functools.partial):
        held = [model.func, *model.args, *model.keywords.values()]
    elif inspect.isfunction(model):
        held = [cell.cell_contents for cell in model.__closure__ or ()]
    elif inspect.ismethod(model):
        held = [model.__self__, model.__func__]
    else:
        # Any other object: the modules among its attributes, and no further.
        return [value for value in getattr(model, "__dict__", {}).values() if isinstance(value, nn.Module)]
    return [module for value in held for module in modules_of(value)]


def model_device_dtype(model: Model) -> tuple[torch.device, torch.dtype]:
    """Device and floating dtype of a model's first parameter; CPU and float32 if none can be seen."""
    for module in modules_of(model):
        for parameter in module.parameters():
            if parameter.is_floating_point():
                return parameter.device, parameter.dtype
    return torch.device("cpu"), torch.float32


class Network:
    """Any model ``model(x, t, **cond)``, its time input and conditioning in static buffers.

    Args:
        model: the model; called with x ``(N, C, H, W)`` in ``dtype`` and t ``(N,)``. It must not change x.
        device: where buffers are.
        dtype: what the model takes x in.
        capacity: plan rows the time buffer holds.
        guided: the batch is doubled, unconditional half first; ``cond`` tensors come doubled already.
        condition: image ``(N, Cc, H, W)`` concatenated in front of x, as in SR3; only its shape is used here.
        time_dtype: int64 for an index, float32 for a noise level.
        cond: keyword tensors ``(N, ...)``; only their shapes and dtypes are used here.

    Attributes:
        given: buffers for the caller's tensors, by name.
        time: ``(capacity,)``, the time input of each plan row.
        is_private: nobody else can reach what it runs, but for the values of weights.
    """

    is_private = False

    def __init__(
        self,
        model: Model,
        *,
        device: torch.device,
        dtype: torch.dtype,
        capacity: int,
        guided: bool,
        time_dtype: torch.dtype,
        cond: Mapping[str, Tensor],
        condition: Tensor | None,
    ) -> None:
        self.model = model
        self.guided = guided
        self.dtype = dtype
        self.given = {name: torch.empty_like(value, device=device) for name, value in cond.items()}
        self.cond = dict(self.given)
        self.condition = None if condition is None else torch.empty_like(condition, device=device)
        self.time = torch.zeros(capacity, dtype=time_dtype, device=device)

    def load(self, time: Tensor, cond: Mapping[str, Tensor], condition: Tensor | None) -> None:
        """Fills the buffers for one chain; ``time`` is ``(S,)`` with S up to the capacity."""
        self.time[: len(time)].copy_(time)
        for name, value in cond.items():
            self.given[name].copy_(value)
        if self.condition is not None and condition is not None:
            self.condition.copy_(condition)
        self.begin(len(time))

    def begin(self, rows: int) -> None:
        """Derives what else a chain of so many plan rows needs from the buffers and the weights.

        It runs on the device alone and into memory that stays, so that a graph may hold it; it is done for
        every chain, so that nothing derived is older than the weights.
        """

    def tensors(self) -> list[Tensor]:
        """What it holds besides the model."""
        return [value for value in [*vars(self).values(), *self.given.values()] if isinstance(value, Tensor)]

    def inputs(self, x: Tensor) -> Tensor:
        """x as the model takes it: doubled for guidance, behind the condition, in the model's dtype."""
        x = self.doubled(x)
        if self.condition is not None:
            x = torch.cat((self.condition.to(x.dtype), x), dim=1)
        return x.to(self.dtype)

    def doubled(self, x: Tensor) -> Tensor:
        """x, twice where guidance wants it."""
        return torch.cat((x, x)) if self.guided else x

    def __call__(self, x: Tensor, k: Tensor) -> Tensor:
        """Model output for state ``x (B, C, H, W)`` at plan row ``k`` (int64 ``(1,)``, on the device)."""
        x = self.inputs(x)
        t = self.time.index_select(0, k).expand(x.shape[0])
        return unwrapped(self.model(x, t, **self.cond))


class TabulatedUNet(Network):
    """Our `UNet`, its time embedding and every block's time projection computed once per chain.

    The table has one row per plan step and is filled by each `begin`, so new weights are always in it. With
    ``rearrange`` the images go through another form of the network (`fastddpm.unet.rearranged`), filled by
    each `begin` too. Else, on a CPU, what the first convolution makes of the condition is computed by `begin`
    and added to what it makes of x; elsewhere the sum would be two more passes over all features.
    """

    model: UNet

    def __init__(
        self, model: UNet, *, class_labels: Tensor | None, rearrange: bool = False, **buffers: Any
    ) -> None:
        super().__init__(
            model, cond={} if class_labels is None else {"class_labels": class_labels}, **buffers
        )
        self._form = Rearranged(model) if rearrange and can_be_rearranged(model) else None
        self._images = model if self._form is None else self._form.unet
        self.is_private = self._form is not None
        width = model.bias_width
        self.table = torch.zeros(len(self.time), width, dtype=model.dtype, device=self.time.device)
        rows = 1 if class_labels is None else len(class_labels)
        self.class_bias = torch.zeros(rows, width, dtype=model.dtype, device=self.time.device)
        self._first: FirstConvolution | None = None
        plain_cpu = self.time.device.type == "cpu" and not torch.is_autocast_enabled("cpu")
        if self.condition is not None and plain_cpu and not self.is_private and can_be_rearranged(model):
            self._first = FirstConvolution(model, self.condition)

    def begin(self, rows: int) -> None:
        """Computes the tables, and brings the other forms of the weights up to date."""
        if self._form is not None:
            self._form.refresh()
        if self._first is not None and self.condition is not None:
            self._first.load(self.condition)
        self.table[:rows].copy_(self.model.time_biases(self.time[:rows]))
        if "class_labels" in self.given:
            self.class_bias.copy_(self.model.class_biases(self.given["class_labels"]))

    def tensors(self) -> list[Tensor]:
        """What it holds besides the model, the weights of its other form among them."""
        parts = [part.tensors() for part in (self._form, self._first) if part is not None]
        return [*super().tensors(), *(tensor for tensors in parts for tensor in tensors)]

    def __call__(self, x: Tensor, k: Tensor) -> Tensor:
        """Model output for state ``x (B, C, H, W)`` at plan row ``k`` (int64 ``(1,)``, on the device)."""
        bias = self.table.index_select(0, k) + self.class_bias
        if self._first is not None:
            return self.model.forward_features(self._first(self.doubled(x).to(self.dtype)), bias)
        return self._images.forward_biased(self.inputs(x), bias)


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


def bind(model: Model, *, cond: Mapping[str, Tensor], rearrange: bool = False, **buffers: Any) -> Network:
    """The `Network` for a model: tabulated for our UNet, as it is for everything else.

    Args:
        model: the model.
        cond: see `Network`.
        rearrange: our UNet may sum in another order: see `fastddpm.unet.rearranged`.
        buffers: the other arguments of `Network`.
    """
    if isinstance(model, UNet):
        has_classes = model.config.num_classes is not None
        if set(cond) != ({"class_labels"} if has_classes else set()):
            raise ValueError(
                "class_labels: needed by this class-conditional network"
                if has_classes
                else f"{', '.join(cond)}: given, but this network is unconditional"
            )
        return TabulatedUNet(model, class_labels=cond.get("class_labels"), rearrange=rearrange, **buffers)
    return Network(model, cond=cond, **buffers)


# Modules that chains run at this moment: in which threads, and the submodules to put back into training mode.
_running: dict[int, tuple[list[int], list[nn.Module]]] = {}


def _forget_other_threads() -> None:
    """In a child of a fork: their chains do not go on there, and put nothing back."""
    for module, (threads, training) in list(_running.items()):
        mine = [thread for thread in threads if thread == threading.get_ident()]
        if mine:
            _running[module] = (mine, training)
        else:
            _put_back(module)


_running_lock = ForkLock(_forget_other_threads)


@contextmanager
def in_eval_mode(model: Model, inventories: Sequence[Inventory] | None = None) -> Iterator[None]:
    """Puts a model into eval mode and every submodule back into its own mode afterwards.

    With several chains on one model, in several threads or samplers, the last to end puts it back.

    Args:
        model: of which `modules_of` sees the modules.
        inventories: of those modules, just looked at, where somebody keeps them.
    """
    modules, here = modules_of(model), threading.get_ident()
    kept = [Inventory([module]) for module in modules] if inventories is None else inventories
    with _running_lock:
        for module, inventory in zip(modules, kept, strict=True):
            if id(module) not in _running:
                _running[id(module)] = ([], [part for part in inventory.parts if part.training])
            threads, training = _running[id(module)]
            threads.append(here)
            for part in training:
                part.training = False
    try:
        yield
    finally:
        with _running_lock:
            for module in modules:
                threads, _ = _running.get(id(module), ([], []))
                if here in threads:  # not in a child of a fork that another thread of the parent made
                    threads.remove(here)
                    if not threads:
                        _put_back(id(module))


def _put_back(module: int) -> None:
    for part in _running[module][1]:
        part.training = True
    del _running[module]
