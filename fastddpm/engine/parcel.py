"""The small values of a chain - counter, seeds, guidance, labels - sent to the device in one copy."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from fastddpm.transfer import locked

ALIGNMENT = 16


class Parcel:
    """Memory on a device for one copy from the host, and the buffers that its parts go to.

    Each sending has page-locked memory of its own, so that one that is still on its way is not written over.

    Args:
        targets: static buffers, all on one device, by name.
        device: where they are.
    """

    def __init__(self, targets: Mapping[str, Tensor], device: torch.device) -> None:
        self._targets = dict(targets)
        lengths = {name: target.numel() * target.element_size() for name, target in targets.items()}
        ends = {name: -(-length // ALIGNMENT) * ALIGNMENT for name, length in lengths.items()}
        # What stands for a value left out, and what follows one.
        self._nothing = {name: torch.zeros(end, dtype=torch.uint8) for name, end in ends.items()}
        self._rest = {name: nothing[lengths[name] :] for name, nothing in self._nothing.items()}
        self.held = torch.zeros(sum(ends.values()), dtype=torch.uint8, device=device)
        self._views, start = {}, 0
        for name, target in targets.items():
            part = self.held[start : start + lengths[name]]
            self._views[name] = part.view(target.dtype).view(target.shape)
            start += ends[name]

    def send(self, values: Mapping[str, Tensor]) -> None:
        """Puts values into the device's memory, in stream order; names left out become 0.

        Those of the host travel together, those of the device are copied there.
        """
        pieces, far = [], []
        for name, target in self._targets.items():
            value = values.get(name)
            if value is not None and value.device.type == "cpu":
                flat = value.detach().to(target.dtype).contiguous().flatten()
                pieces += [flat.view(torch.uint8), self._rest[name]]
            else:
                pieces.append(self._nothing[name])
                far += [] if value is None else [(name, value)]
        if self.held.device.type == "cuda":
            packed = torch.cat(pieces, out=locked(self.held.shape, torch.uint8))
        else:
            packed = torch.cat(pieces)
        self.held.copy_(packed, non_blocking=True)
        for name, value in far:
            self._views[name].copy_(value)

    def unpack(self) -> None:
        """Copies the parts into their buffers; on the device alone, so that a graph may hold it."""
        for name, target in self._targets.items():
            target.copy_(self._views[name])

    def tensors(self) -> list[Tensor]:
        """What it holds besides the buffers."""
        return [self.held]
