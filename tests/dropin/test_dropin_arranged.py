"""Networks of abarankab/DDPM and of SR3 that are not ours, as drop-ins run them on a GPU.

There a copy runs whose weights are in channels_last order and whose norms are fused. Here the device is taken
for one of CUDA where a drop-in asks what to run, and chains run where the network lies.
"""

from __future__ import annotations

import copy

import pytest
import torch
from dropin_checks import difference, fingerprint, seeded, taken_for_cuda
from replay import RecordingBackend
from tolerances import DROP_IN
from torch import nn

import fastddpm
from fastddpm import fusion
from fastddpm.engine import executors
from fastddpm_bench.peers import abarankab as peers_abarankab
from fastddpm_bench.peers import sr3 as peers_sr3

STEPS = 4


class OtherAbarankab(peers_abarankab.Network):
    """Of an architecture that our UNet does not express."""

    def forward(self, x, time=None, y=None):
        return torch.tanh(super().forward(x, time, y))


class OtherSR3(peers_sr3.Network):
    def forward(self, x, time):
        return torch.tanh(super().forward(x, time))


class Abarankab:
    """What the tests do with a library's object; of two networks the averaged one."""

    name = "ema_model"

    @staticmethod
    def network(seed=0):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return OtherAbarankab(1, 8, attention_resolutions=(1,)).eval()

    @classmethod
    def make(cls):
        betas = peers_abarankab.linear_betas(STEPS)
        return peers_abarankab.Diffusion(cls.network(), (8, 8), 1, betas).eval()

    @staticmethod
    def draw(one):
        return one.sample(2, "cpu")


class SR3:
    """The same for either variant of SR3."""

    name = "denoise_fn"

    def __init__(self, kind):
        self.kind = kind

    def network(self, seed=0):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return OtherSR3(self.kind, 2, 1, 8, norm_groups=4, image_size=8).eval()

    def make(self):
        diffusion = peers_sr3.Diffusion(self.network(), 8, 1, kind=self.kind)
        diffusion.set_betas(peers_sr3.betas_of("linear", STEPS, 1e-4, 0.4))
        return diffusion.eval()

    @staticmethod
    def draw(one):
        return one.super_resolution(torch.linspace(-1, 1, 128).reshape(2, 1, 8, 8), continous=True)


LIBRARIES = {"abarankab": Abarankab(), "sr3": SR3("sr3"), "sr3, ddpm variant": SR3("ddpm")}


@pytest.fixture(params=LIBRARIES)
def library(request, monkeypatch):
    """A library, with its networks taken for ones on a card."""
    taken_for_cuda(monkeypatch)
    return LIBRARIES[request.param]


@pytest.fixture
def ran(monkeypatch):
    """The convolutions that ran, with their weights; norms that were fused under "norms"."""
    seen = {"convolutions": [], "norms": 0}
    forward, norm = nn.Conv2d.forward, fusion.group_norm_silu

    def convolved(self, x):
        seen["convolutions"].append((self, self.weight))
        return forward(self, x)

    def normed(*arguments, **options):
        seen["norms"] += 1
        return norm(*arguments, **options)

    monkeypatch.setattr(nn.Conv2d, "forward", convolved)
    monkeypatch.setattr(fusion, "group_norm_silu", normed)
    return seen


def drawn(library, one, seed=3):
    images, _ = seeded(seed, library.draw, one)
    return images


def hold(library, diffusion, fast):
    """The original's images, relative to their largest value; returns them."""
    theirs = drawn(library, diffusion)
    assert difference(drawn(library, fast), theirs) <= DROP_IN * theirs.abs().max()
    return theirs


def count(network, kind):
    return sum(isinstance(part, kind) for part in network.modules())


def test_a_copy_runs_in_channels_last_with_its_norms_fused(library, ran):
    diffusion = library.make()
    network = getattr(diffusion, library.name)
    before = fingerprint(diffusion)
    fast = fastddpm.optimize(diffusion)
    assert "the original module (" in str(fast.report())
    assert "of another architecture than our UNet's), in channels_last, its norms fused" in str(fast.report())
    theirs = drawn(library, diffusion)
    ran.update(convolutions=[], norms=0)
    assert difference(drawn(library, fast), theirs) <= DROP_IN * theirs.abs().max()
    assert ran["norms"] == STEPS * count(network, nn.GroupNorm)
    assert len(ran["convolutions"]) == STEPS * count(network, nn.Conv2d)
    originals = set(diffusion.modules())
    for part, weight in ran["convolutions"]:
        assert part not in originals
        assert weight.is_contiguous(memory_format=torch.channels_last)
    assert fingerprint(diffusion) == before
    assert not any("forward" in vars(part) for part in diffusion.modules())


def test_all_but_the_weights_of_convolutions_is_shared(library, ran):
    """Those too that lie so anyway. Of a kernel of 1x1 the strides are of the one order or the other."""
    diffusion = library.make()
    network = getattr(diffusion, library.name)
    fast = fastddpm.optimize(diffusion)
    ran["convolutions"].clear()
    drawn(library, fast)
    theirs = {parameter.data_ptr() for parameter in network.parameters()}
    biases = {part.bias.data_ptr() for part, _ in ran["convolutions"] if part.bias is not None}
    assert biases <= theirs
    own = {weight.data_ptr() for _, weight in ran["convolutions"]} - theirs
    moved = [
        part
        for part in network.modules()
        if isinstance(part, nn.Conv2d)
        and part.weight.stride() != torch.empty_like(part.weight, memory_format=torch.channels_last).stride()
    ]
    assert len(own) == len(moved) > 3


def in_place(library, diffusion):
    with torch.no_grad():
        torch._foreach_mul_(list(getattr(diffusion, library.name).parameters()), 1.2)


def by_data(library, diffusion):
    """As averages of weights are put into a network: no version counter moves."""
    for parameter in getattr(diffusion, library.name).parameters():
        parameter.data.copy_(parameter.data * 1.2)


def loaded(library, diffusion):
    getattr(diffusion, library.name).load_state_dict(library.network(seed=1).state_dict())


def assigned(library, diffusion):
    state = copy.deepcopy(library.network(seed=1).state_dict())
    getattr(diffusion, library.name).load_state_dict(state, assign=True)


def one_exchanged(library, diffusion):
    last = [part for part in getattr(diffusion, library.name).modules() if isinstance(part, nn.Conv2d)][-1]
    last.weight = nn.Parameter(2 * last.weight.detach())


def another_network(library, diffusion):
    setattr(diffusion, library.name, library.network(seed=1))


CHANGES = [in_place, by_data, loaded, assigned, one_exchanged, another_network]


@pytest.mark.parametrize(
    ("change", "captured"),
    [*((change, True) for change in CHANGES), (in_place, False), (another_network, False)],
    ids=lambda given: getattr(given, "__name__", str(given)),
)
def test_new_weights_are_used(library, change, captured, monkeypatch):
    """Also where steps, and the copying before them, are replayed."""
    diffusion = library.make()
    if captured:
        monkeypatch.setattr("fastddpm.runner.resolve_engine", lambda engine, device: "cudagraph")
        monkeypatch.setattr(executors, "CudaGraphBackend", RecordingBackend)
    fast = fastddpm.optimize(diffusion)
    before = [hold(library, diffusion, fast) for _ in range(3)][-1]
    change(library, diffusion)
    after = [hold(library, diffusion, fast) for _ in range(3)][-1]
    assert difference(before, after) > 1e-2 * after.abs().max()


def test_a_network_with_hooks_runs_itself(library, ran):
    diffusion = library.make()
    network = getattr(diffusion, library.name)
    fast = fastddpm.optimize(diffusion)
    calls = []
    handle = network.mid[0].register_forward_hook(lambda *_: calls.append(1))
    ran["convolutions"].clear()
    drawn(library, fast)
    assert len(calls) == STEPS
    assert {part for part, _ in ran["convolutions"]} <= set(diffusion.modules())
    assert "the original module (it has hooks or a forward of its own)" in str(fast.report())
    hold(library, diffusion, fast)
    handle.remove()
    assert "hooks" not in str(fast.report())
    ran["norms"] = 0
    hold(library, diffusion, fast)
    assert ran["norms"] == STEPS * count(network, nn.GroupNorm)


def test_the_original_runs_where_that_is_asked_for(library, ran):
    diffusion = library.make()
    fast = fastddpm.optimize(diffusion, network="original")
    assert "the original module (as asked for)" in str(fast.report())
    assert "channels_last" not in str(fast.report())
    drawn(library, fast)
    assert ran["norms"] == 0
    assert {part for part, _ in ran["convolutions"]} <= set(diffusion.modules())


def test_in_bfloat16_the_copy_runs_under_autocast(library, ran):
    """A few roundings of 8 bits from the original under autocast, and not its float32 images."""
    diffusion = library.make()
    plain, fast = (
        fastddpm.optimize(diffusion, dtype=torch.bfloat16, network=name) for name in ("original", "auto")
    )
    assert "in channels_last, its norms fused" in str(fast.report())
    assert "bfloat16" in str(fast.report())
    exact, theirs = drawn(library, diffusion), drawn(library, plain)
    ran["norms"] = 0
    ours = drawn(library, fast)
    assert ran["norms"] > 0
    assert DROP_IN < difference(ours, exact) / exact.abs().max() <= 0.1
    assert difference(ours, theirs) <= 0.1 * exact.abs().max()
    assert {parameter.dtype for parameter in diffusion.parameters()} == {torch.float32}


def test_norms_that_disagree_once_fused_run_as_they_are(library, ran, monkeypatch):
    """The weights' order stays, the report says why, and no norm of the copy is replaced."""
    norm = fusion.group_norm_silu
    monkeypatch.setattr(fusion, "group_norm_silu", lambda x, *given, **more: norm(x, *given, **more) + 1e-2)
    diffusion = library.make()
    before = fingerprint(diffusion)
    fast = fastddpm.optimize(diffusion)
    found = str(fast.report())
    assert "in channels_last, its norms not fused (" in found
    assert ": another output once fused" in found
    ran.update(convolutions=[], norms=0)
    hold(library, diffusion, fast)
    assert ran["norms"] == 0
    own = [(part, weight) for part, weight in ran["convolutions"] if part not in set(diffusion.modules())]
    assert len(own) == STEPS * count(getattr(diffusion, library.name), nn.Conv2d)
    assert all(weight.is_contiguous(memory_format=torch.channels_last) for _, weight in own)
    in_place(library, diffusion)
    hold(library, diffusion, fast)
    assert fingerprint(diffusion)[1:] == before[1:]


def test_modes_are_those_of_a_chain(library):
    """The copy of a network in training mode runs in eval mode; the original stays in its own."""
    diffusion = library.make()
    for part in diffusion.modules():
        if isinstance(part, nn.Dropout):
            part.p = 0.5
    expected = drawn(library, diffusion)
    fast = fastddpm.optimize(diffusion)
    diffusion.train()
    ours = drawn(library, fast)
    assert difference(ours, expected) <= DROP_IN * expected.abs().max()
    assert all(part.training for part in diffusion.modules())
