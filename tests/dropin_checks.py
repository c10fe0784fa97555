"""What every drop-in is held to, whatever the peer: the original untouched, our loop, no host reads."""

from __future__ import annotations

import contextlib
import hashlib
import sys

import torch
from torch.utils._python_dispatch import TorchDispatchMode

import fastddpm.dropin.network
import fastddpm.engine.loop
import fastddpm.engine.step
from fastddpm.network import model_device_dtype


def fingerprint(module):
    """Everything of a module that a drop-in is not to change."""
    digest = hashlib.sha256()
    for name, value in module.state_dict().items():
        digest.update(name.encode() + value.detach().cpu().contiguous().numpy().tobytes())
    modes = [part.training for part in module.modules()]
    places = [(name, p.data_ptr(), p.requires_grad) for name, p in module.named_parameters()]
    attributes = {name: id(value) for name, value in vars(module).items()}
    return digest.hexdigest(), modes, places, attributes


class Reads(TorchDispatchMode):
    """Counts reads of a tensor's value by the host."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, operator, types, arguments=(), options=None):
        self.count += operator.name() in ("aten::_local_scalar_dense", "aten::equal", "aten::nonzero")
        return operator(*arguments, **(options or {}))


class Watched:
    """Counts steps, calls of the kernel's operator and host reads inside a step."""

    def __init__(self):
        self.steps = self.kernels = self.reads = 0

    @contextlib.contextmanager
    def watching(self):
        step, kernel = fastddpm.engine.step.step, fastddpm.engine.step.reverse_step

        def counted_step(*arguments):
            self.steps += 1
            with Reads() as reads:
                step(*arguments)
            self.reads += reads.count

        def counted_kernel(*arguments, **options):
            self.kernels += 1
            kernel(*arguments, **options)

        fastddpm.engine.loop.step, fastddpm.engine.step.reverse_step = counted_step, counted_kernel
        try:
            yield self
        finally:
            fastddpm.engine.loop.step, fastddpm.engine.step.reverse_step = step, kernel


def seeded(seed, function, *arguments, **options):
    """A function's result after `torch.manual_seed`, and the random state that it leaves."""
    torch.manual_seed(seed)
    result = function(*arguments, **options)
    return result, torch.get_rng_state()


def difference(ours, theirs):
    """Largest absolute difference; shapes and dtypes must agree."""
    assert ours.shape == theirs.shape
    assert ours.dtype == theirs.dtype
    return (ours - theirs).abs().max().item()


def taken_for_cuda(monkeypatch):
    """Takes networks for ones on a card wherever a drop-in asks what to run; chains run where they lie."""

    def taken(model):
        return torch.device("cuda"), model_device_dtype(model)[1]

    deciding = [module for name, module in sys.modules.items() if name.startswith("fastddpm.dropin.")]
    for module in deciding:
        if getattr(module, "model_device_dtype", None) is model_device_dtype:
            monkeypatch.setattr(module, "model_device_dtype", taken)
