"""Proof k: the networks of lucidrains and of guided-diffusion as drop-ins run them on a card, map by map.

A convolution of cuDNN copies a map that is in another order than it computes in, without an operator of its
own that a trace could show: so the order of what each is given is looked at, by cuDNN's own rule
(`fake_gpu`). Sums of maps in different orders cost as much. What is left are the state, which comes
contiguous, and maps that lucidrains' attention and its halving give in the other order themselves.
"""

from __future__ import annotations

import fake_gpu
import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

fake_gpu.skip_unless_pinned()

from fastddpm.dropin.arranged import ForGpu  # noqa: E402

SHAPE = (2, 3, 8, 8)


class Layouts(TorchDispatchMode):
    """Convolutions that copy what they are given, and sums of maps of two orders."""

    def __init__(self):
        super().__init__()
        self.convolutions, self.copied, self.contiguous, self.mixed = 0, [], 0, []

    def __torch_dispatch__(self, operator, types, arguments=(), options=None):
        result = operator(*arguments, **(options or {}))
        name = operator.name()
        if name.startswith("aten::convolution") and result.dim() == 4:
            self.convolutions += 1
            self.contiguous += not _is_last(result)
            if _is_last(arguments[0]) != _is_last(result):
                self.copied.append(tuple(arguments[0].shape))
        elif name == "aten::add.Tensor" and result.shape[2:].numel() > 1:
            given = [v for v in arguments if isinstance(v, torch.Tensor) and v.shape == result.shape]
            if len({_is_last(value) for value in [*given, result]}) > 1:
                self.mixed.append(tuple(result.shape))
        return result


def _is_last(values):
    """Of a map of one pixel or one channel either order is the other, too."""
    return values.is_contiguous(memory_format=torch.channels_last)


class GroupNorm32(nn.GroupNorm):
    """As of guided-diffusion's nn.py."""

    def forward(self, x):
        return super().forward(x.float()).type(x.dtype)


def lucidrains():
    """With the seven maps that are in the other order: the state, five of attention, one halved."""
    library = pytest.importorskip("denoising_diffusion_pytorch")
    return library.Unet(dim=8, dim_mults=(1, 2), channels=3, attn_dim_head=4, attn_heads=2), 7


def guided():
    """With the state alone: its attention is of maps laid flat."""
    from fastddpm_bench.peers.guided_unet import UNetModel

    network = UNetModel(width=32, attention=(1,))
    for part in network.modules():
        if type(part) is nn.GroupNorm:
            part.__class__ = GroupNorm32
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.1)
    return network, 1


@pytest.mark.parametrize("library", [lucidrains, guided])
def test_maps_of_a_step(library, proof):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network, most = library()
    module = ForGpu(network.eval().requires_grad_(False)).module
    with fake_gpu.fake_card("sm_90"), FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
        module = module.to("cuda:0")
        x, t = torch.zeros(SHAPE, device="cuda:0"), torch.zeros(2, dtype=torch.int64, device="cuda:0")
        with Layouts() as layouts:
            module(x, t)
    figures = {"convolutions": layouts.convolutions, "contiguous": layouts.contiguous}
    counts = {"maps copied": len(layouts.copied), "sums of two orders": len(layouts.mixed)}
    proof("k", library.__name__, **figures, **counts)
    assert layouts.convolutions > 20
    assert layouts.contiguous == 0
    assert layouts.mixed == []
    assert len(layouts.copied) == most
    assert layouts.copied[0] == SHAPE
