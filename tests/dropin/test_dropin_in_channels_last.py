"""Networks of lucidrains' library and of guided-diffusion as drop-ins run them on a GPU: in channels_last.

The device is taken for one of CUDA where a drop-in asks what to run, and chains run where the network lies.
"""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from dropin_checks import difference, fingerprint, seeded, taken_for_cuda
from tolerances import DROP_IN
from torch import nn

import fastddpm
import fastddpm.dropin.guided_diffusion  # else not there yet when it is to take networks for a card's
from fastddpm import fusion
from fastddpm_bench.peers import guided_diffusion as peer
from fastddpm_bench.peers.guided_unet import UNetModel

lucidrains = pytest.importorskip("denoising_diffusion_pytorch")

STEPS = 3


class GroupNorm32(nn.GroupNorm):
    """As of guided-diffusion's nn.py."""

    def forward(self, x):
        return super().forward(x.float()).type(x.dtype)


class Lucidrains:
    norms = 0

    def __init__(self):
        torch.manual_seed(0)
        network = lucidrains.Unet(dim=8, dim_mults=(1, 2), channels=3, attn_dim_head=4, attn_heads=2)
        self.network = network.eval()
        self.given = lucidrains.GaussianDiffusion(network, image_size=8, timesteps=STEPS)

    def draw(self, one):
        return one.sample(2)


class GuidedDiffusion:
    def __init__(self):
        torch.manual_seed(0)
        self.network = UNetModel(width=32, attention=(1,)).eval()
        for part in self.network.modules():
            if type(part) is nn.GroupNorm:
                part.__class__ = GroupNorm32
        # Zeros where theirs begins, which an untrained network would be all of.
        for parameter in self.network.parameters():
            nn.init.normal_(parameter, std=0.1)
        self.norms = sum(isinstance(part, nn.GroupNorm) for part in self.network.modules())
        self.given = peer.GaussianDiffusion(
            betas=np.linspace(0.01, 0.3, STEPS),
            model_mean_type=peer.ModelMeanType["EPSILON"],
            model_var_type=peer.ModelVarType["LEARNED_RANGE"],
        )

    def draw(self, one):
        return one.p_sample_loop(self.network, (2, 3, 8, 8))


@pytest.fixture(params=[Lucidrains, GuidedDiffusion])
def library(request, monkeypatch):
    taken_for_cuda(monkeypatch)
    with torch.random.fork_rng():
        return request.param()


@pytest.fixture
def ran(monkeypatch):
    """Of every convolution that ran: whether its weight and its output are in channels_last order.

    By its strides: a kernel of 1x1 is in either order otherwise, and behind lucidrains' attention, which
    gives maps in the other one, would leave them so.
    """
    seen = {"convolutions": [], "norms": 0}
    forward, norm = nn.Conv2d.forward, fusion.group_norm_silu

    def convolved(self, x):
        out = forward(self, x)
        order = {"memory_format": torch.channels_last}
        strides = torch.empty_like(self.weight, **order).stride()
        # What a CPU makes of one of 1x1 is its own matter; `gpu_proofs/test_proof_layouts.py` has cuDNN's.
        is_last = self.kernel_size == (1, 1) or out.is_contiguous(**order)
        seen["convolutions"].append((self.weight.stride() == strides, is_last))
        return out

    def normed(*arguments, **options):
        seen["norms"] += 1
        return norm(*arguments, **options)

    monkeypatch.setattr(nn.Conv2d, "forward", convolved)
    monkeypatch.setattr(fusion, "group_norm_silu", normed)
    return seen


def drawn(library, one):
    return seeded(3, library.draw, one)[0]


def test_it_runs_in_channels_last_with_the_originals_images(library, ran):
    before = fingerprint(library.network)
    theirs = drawn(library, library.given)
    fast = fastddpm.optimize(library.given)
    drawn(library, fast)  # in which the copy is made and its norms are tried
    ran.update(convolutions=[], norms=0)
    ours = drawn(library, fast)
    assert difference(ours, theirs) <= DROP_IN * theirs.abs().max()
    convolutions = [part for part in library.network.modules() if isinstance(part, nn.Conv2d)]
    assert len(ran["convolutions"]) == STEPS * len(convolutions)
    assert all(weight and out for weight, out in ran["convolutions"])
    assert ran["norms"] == STEPS * library.norms
    words = "in channels_last, its norms fused" if library.norms else "in channels_last"
    assert f"the original module, {words}" in str(fast.report())
    assert fingerprint(library.network) == before
    # Other weights, in place, are the next call's.
    with torch.no_grad():
        torch._foreach_mul_(list(library.network.parameters()), 1.2)
    theirs = drawn(library, library.given)
    assert difference(drawn(library, fast), theirs) <= DROP_IN * theirs.abs().max()
    assert difference(theirs, ours) > 1e-3


def test_the_original_is_run_where_asked_for_or_hooked(library, ran):
    plain = fastddpm.optimize(library.given, network="original")
    drawn(library, plain)
    assert not any(weight and out for weight, out in ran["convolutions"][:3])
    assert "as asked for" in str(plain.report())
    fast, calls = fastddpm.optimize(library.given), []
    drawn(library, fast)
    part = next(part for part in library.network.modules() if isinstance(part, nn.Conv2d))
    part.register_forward_hook(lambda *_: calls.append(1))
    drawn(library, fast)
    assert len(calls) == STEPS
    assert "channels_last" not in str(fast.report())


def test_no_other_choice_is_accepted(library):
    with pytest.raises(ValueError, match="network: 'ours' given, one of auto, original accepted"):
        fastddpm.optimize(library.given, network="ours")


def test_half_weights_of_lucidrains_run(monkeypatch):
    """Its own sampling fails with them: the network embeds its times in float32."""
    with torch.random.fork_rng():
        library = Lucidrains()
    wanted = drawn(library, fastddpm.optimize(library.given))
    half = copy.deepcopy(library.given).bfloat16()
    for name, value in library.given.named_buffers():
        if "." not in name:  # the schedule is no weight
            setattr(half, name, value)
    found = drawn(library, fastddpm.optimize(half))
    assert found.dtype == torch.float32
    assert difference(found, wanted) < 0.1
    assert difference(found, wanted) > 0
