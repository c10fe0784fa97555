"""What chains on fake CUDA tensors send to the card, and that they read nothing back.

A fake tensor has no values, so that reading one raises. What is copied to the host is found here, and so is
what goes to the card from memory that is not page-locked: the host would wait until the stream came to it.
"""

from __future__ import annotations

import contextlib
import types

import torch
import torch._subclasses.fake_tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from fastddpm.engine import Loop
from fastddpm.weights import Inventory

COPIES = ("aten::copy_", "aten::_to_copy")


class HostCopies(TorchDispatchMode):
    """Copies from the host to the device, and whether each could go on while the host does."""

    def __init__(self):
        super().__init__()
        self.locked = []
        self.sent = []
        self.operators = []

    def __torch_dispatch__(self, operator, types, arguments=(), options=None):
        options = options or {}
        result = operator(*arguments, **options)
        if options.get("pin_memory"):
            self.locked.append(result.untyped_storage()._cdata)
        name = operator.name()
        self.operators.append(name)
        if name in COPIES:
            source = arguments[1] if name == "aten::copy_" else arguments[0]
            if source.device.type == "cpu" and result.device.type == "cuda":
                is_async = options.get("non_blocking") or True in arguments[2:3]
                self.sent.append(source.untyped_storage()._cdata in self.locked and bool(is_async))
        reads = [v for v in tree_leaves((arguments, options)) if isinstance(v, torch.Tensor)]
        made = [v for v in tree_leaves(result) if isinstance(v, torch.Tensor)]
        if any(v.is_cuda for v in reads):
            # An operator sends tensors of the host by itself, an index among them; one number is an argument.
            beside = name not in COPIES and any(v.dim() and not v.is_cuda for v in reads)
            self.sent += [False] * beside
            assert all(v.is_cuda for v in made), f"{name} brings values to the host"
        return result


def pretend_streams(monkeypatch):
    """Events and streams where there is no card; the device of launches is of no matter then."""
    stream = types.SimpleNamespace(wait_event=lambda event: None)
    event = types.SimpleNamespace(
        record=lambda stream=None: None, synchronize=lambda: None, elapsed_time=lambda end: 1.0
    )
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device=None: stream)
    monkeypatch.setattr(torch.cuda, "Event", lambda **options: event)
    monkeypatch.setattr(Loop, "current", lambda self: contextlib.nullcontext())
    # Of one number a fake tensor keeps the value, and would have it page-locked by a driver.
    monkeypatch.setattr(torch._subclasses.fake_tensor, "CONSTANT_NUMEL_LIMIT", 0)
    # Fake tensors lie nowhere.
    monkeypatch.setattr(Inventory, "places", lambda self: 0)
