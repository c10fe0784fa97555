"""What a peer's module is besides its weights: parts, shapes, hooks, forwards of its own, randomness."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from operator import attrgetter

import torch
from torch import Tensor, nn

from fastddpm.network import model_device_dtype
from fastddpm.weights import Inventory

_shape: Callable[[Tensor], torch.Size] = attrgetter("shape")
_attributes: Callable[[nn.Module], dict[str, object]] = attrgetter("__dict__")


def signature(inventory: Inventory, module: nn.Module) -> tuple[torch.device, torch.dtype, int, bool]:
    """What a form of a network depends on besides the weights' values: device, dtype, parts, shapes, hooks.

    Args:
        inventory: of the module.
        module: the network.
    """
    parts = inventory.look().parts
    kinds = hash((*map(type, parts), *map(_shape, inventory.tensors())))
    return (*model_device_dtype(module), kinds, _is_altered(inventory))


def is_altered(module: nn.Module) -> bool:
    """Whether hooks, or a forward set on an instance, make a module do something else than its class."""
    return _is_altered(Inventory([module]))


def _is_altered(inventory: Inventory) -> bool:
    return inventory.is_hooked() or any("forward" in held for held in map(_attributes, inventory.parts))


def warn_if_random(module: nn.Module, name: str) -> None:
    """UserWarning for a network in training mode with parts that behave otherwise there."""
    random = [
        part
        for part in module.modules()
        if part.training
        and (
            (isinstance(part, nn.modules.dropout._DropoutNd) and part.p > 0)
            or (isinstance(part, nn.modules.batchnorm._NormBase) and part.track_running_stats)
        )
    ]
    if random:
        warnings.warn(
            f"{name}: in training mode with active {type(random[0]).__name__}, so that the original's images "
            "depend on more than the noise; chains here run it in eval mode, and put it back",
            UserWarning,
            stacklevel=4,
        )
