"""A capture backend for the CPU: records the ops that a function dispatches, with their storages.

It stands in for a CUDA graph. A replay runs the recorded ops again on the recorded tensors, in order, without
the Python that led to them: what Python baked in (a step number, a fresh tensor, a table copied elsewhere)
stays as it was when recorded, and the result is wrong where a CUDA graph's would be.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


def tensors_in(values: Any) -> list[torch.Tensor]:
    return [leaf for leaf in tree_leaves(values) if isinstance(leaf, torch.Tensor)]


class Recorder(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.ops: list[tuple[Any, tuple[Any, ...], dict[str, Any], Any]] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        self.ops.append((func, args, kwargs, out))
        return out

    def replay(self) -> None:
        # What is recorded holds its casts; a replay knows nothing of autocast.
        with torch.no_grad(), torch.autocast("cpu", enabled=False):
            for func, args, kwargs, recorded in self.ops:
                storages = {t.untyped_storage().data_ptr() for t in tensors_in((args, kwargs))}
                outputs = tensors_in(recorded)
                is_view = bool(outputs) and all(t.untyped_storage().data_ptr() in storages for t in outputs)
                if is_view and not func._schema.is_mutable:
                    continue
                fresh = tensors_in(func(*args, **kwargs))
                for old, new in zip(outputs, fresh, strict=True):
                    if old.untyped_storage().data_ptr() not in storages:
                        old.copy_(new)


class RecordingBackend:
    """A `CaptureBackend` (fastddpm.engine.graph) for CPU tensors; counts its captures of steps."""

    captures = 0

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.recorders: list[Recorder] = []

    def warm_up(self, run) -> None:
        run()

    @staticmethod
    def is_of_steps(run) -> bool:
        """Whether steps are captured, or what comes before them, which a loop hands over as it is."""
        return not isinstance(run, functools.partial)

    def capture(self, run):
        type(self).captures += self.is_of_steps(run)
        recorder = Recorder()
        with recorder:
            run()
        self.recorders.append(recorder)
        return recorder.replay

    def memory(self) -> int:
        """Of the tensors that recorded ops made, as a graph's pool holds them."""
        made = {
            tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes()
            for recorder in self.recorders
            for _, arguments, options, out in recorder.ops
            for tensor in tensors_in(out)
            if not any(tensor is given for given in tensors_in((arguments, options)))
        }
        return sum(made.values())
