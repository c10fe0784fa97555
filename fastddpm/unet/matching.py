"""Whether our network computes what another one does: both are run, and the outputs compared."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from fastddpm.precision import forced
from fastddpm.unet.unet import UNet

RELATIVE = 1e-4
"""Largest difference to the largest output, float32: tens of layers whose sums are arranged otherwise."""


@torch.no_grad()
def agrees(unet: UNet, module: nn.Module, call: Callable[[Tensor, Tensor, Tensor | None], object]) -> bool:
    """Whether a network gives the outputs of a module, on random images at times over the whole range.

    Args:
        unet: ours, with the module's weights.
        module: theirs; left as it was, training mode and random state included.
        call: ``call(x, t, labels)`` runs it: x ``(B, C, H, W)``, t ``(B,)`` in [0, 1000), labels ``(B,)`` or
            None; a tensor comes back.
    """
    config, weight = unet.config, unet.conv_in.weight
    generator = torch.Generator().manual_seed(0)
    count, sides = 3, [n * config.size_multiple - 2 * config.initial_pad for n in (4, 6)]
    x = torch.randn(count, config.in_channels, *sides, generator=generator).to(weight)
    t = torch.tensor([0, 371, 999], device=weight.device)
    labels = None
    if config.num_classes is not None:
        labels = torch.arange(count, device=weight.device).remainder(config.num_classes)
    with _in_eval_mode(module), forced("highest"):
        expected = call(x, t, labels)
    with forced("highest"):
        given = unet(x, t, labels)
    if not isinstance(expected, Tensor) or expected.shape != given.shape:
        return False
    tolerance = max(RELATIVE, 8 * torch.finfo(weight.dtype).eps)
    return bool((given - expected).abs().max() <= tolerance * expected.abs().max())


def single(module: nn.Module, attribute: str, kind: type[nn.Module] = nn.Module) -> Any:
    """The one value an attribute has in all submodules of a kind that have it; None if several or none."""
    parts = [part for part in module.modules() if isinstance(part, kind) and hasattr(part, attribute)]
    values = {getattr(part, attribute) for part in parts}
    return values.pop() if len(values) == 1 else None


@contextmanager
def _in_eval_mode(module: nn.Module) -> Iterator[None]:
    training = [part for part in module.modules() if part.training]
    for part in training:
        part.training = False
    try:
        yield
    finally:
        for part in training:
            part.training = True
