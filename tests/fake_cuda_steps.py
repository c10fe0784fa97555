"""Steps on fake CUDA tensors: which operators touch a tensor off the device."""

from __future__ import annotations

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from fastddpm.engine.step import StepBuffers, step

BUFFERS = {
    "device": torch.device("cuda"),
    "dtype": torch.float32,
    "capacity": 10,
    "time_dtype": torch.int64,
    "condition": None,
}


class Devices(TorchDispatchMode):
    """Names the ops that touch a tensor off the device."""

    def __init__(self):
        super().__init__()
        self.operators = []
        self.strays = []

    def __torch_dispatch__(self, operator, types, arguments=(), options=None):
        result = operator(*arguments, **(options or {}))
        tensors = [v for v in tree_leaves((arguments, options, result)) if isinstance(v, torch.Tensor)]
        self.operators.append(operator.name())
        if any(tensor.device.type != "cuda" for tensor in tensors):
            self.strays.append(operator.name())
        return result


def run_step(case, network):
    buffers = StepBuffers(case, 10, torch.device("cuda"))
    with Devices() as devices:
        step(network, buffers, case)
    return devices
