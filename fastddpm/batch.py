"""One run of the loop: noise, conditioning and the state to start from, on the model's device."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from fastddpm.randomness import PhiloxNoise, TorchNoise
from fastddpm.transfer import to_device


@dataclasses.dataclass
class Batch:
    """One run of the loop.

    Attributes:
        shape: ``(B, ...)`` of the state; of images ``(B, C, H, W)``.
        x: float32 ``(B, ...)``, the state to start from; None for noise.
        count: images asked for; rows beyond are padding.
        source: where the noise comes from.
        guidance: float32 ``(B,)`` on either side, or None without guidance.
        cond: keyword tensors for the model, doubled under guidance, on the host or the device.
        condition: ``(B, Cc, ...)``, as the state but for its channels, doubled under guidance, or None.
        known: float32 as the state: what is given of it, which it holds at every step; or None.
        known_mask: bool as the state: where that is.
    """

    shape: tuple[int, ...]
    x: Tensor | None
    count: int
    source: PhiloxNoise | TorchNoise
    guidance: Tensor | None
    cond: dict[str, Tensor]
    condition: Tensor | None
    known: Tensor | None = None
    known_mask: Tensor | None = None

    def initial(self) -> Tensor:
        """The state to start from: ``x``, or noise drawn now."""
        return self.source.initial(self.shape) if self.x is None else self.x


def make_batch(
    shape: Sequence[int],
    source: PhiloxNoise | TorchNoise,
    *,
    x: Tensor | None = None,
    cond: Mapping[str, Tensor] | None = None,
    condition: Tensor | None = None,
    known: Tensor | None = None,
    known_mask: Tensor | None = None,
) -> Batch:
    """A batch without padding or guidance, of shape ``(B, ...)``; attributes as of `Batch`."""
    shape = tuple(int(n) for n in shape)
    if x is not None:
        x = to_device(x.detach(), source.device, torch.float32)
    return Batch(shape, x, shape[0], source, None, dict(cond or {}), condition, known, known_mask)
