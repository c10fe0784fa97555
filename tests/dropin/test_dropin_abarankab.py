"""`fastddpm.optimize` of abarankab/DDPM's GaussianDiffusion.

Against the repository's stored outputs, and, at other shapes, against a restatement of it that is itself held
against them. Its chains are not clipped, so with untrained networks values leave [-1, 1]: differences are
then relative to the largest value.
"""

from __future__ import annotations

import copy
import itertools
import types

import goldens
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from dropin_checks import Watched, difference, fingerprint, seeded
from tolerances import ACROSS_BATCHES, DROP_IN, EAGER_VS_COMPILED, GOLDEN_RELATIVE
from torch import nn

import fastddpm
from fastddpm.dropin import abarankab
from fastddpm_bench.peers import abarankab as peer

NETWORKS = ("original", "ours")


def relative(ours, theirs):
    return difference(ours, theirs) / theirs.abs().max().item()


def make(size=(8, 8), channels=1, betas=None, seed=0, **options):
    """A restated object whose two networks differ, in eval mode."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = peer.Network(channels, 8, **options)
        diffusion = peer.Diffusion(model, size, channels, peer.linear_betas(12) if betas is None else betas)
        for parameter in diffusion.ema_model.parameters():
            parameter.data += 0.02 * torch.randn_like(parameter)
    return diffusion.eval()


# Sizes, channels, classes, schedules and options of the network: each row another combination.
CASES = {
    "classes": {"num_classes": 3, "attention_resolutions": (1,)},
    "three channels": {"channels": 3, "size": (8, 12), "betas": peer.cosine_betas(9), "activation": F.relu},
    "odd size": {"size": (10, 6), "channels": 2, "initial_pad": 3, "channel_mults": (1, 1, 2), "norm": "bn"},
    "50 steps": {"channels": 3, "num_classes": 11, "betas": peer.linear_betas(50), "norm": "in"},
    "no norm": {"norm": None, "activation": F.gelu, "time_emb_scale": 0.5, "num_res_blocks": 1},
}


def labels_for(diffusion, count):
    classes = diffusion.model.num_classes
    return None if classes is None else torch.arange(count) % classes


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_the_restatement_gives_the_repositorys_outputs(schedule):
    stored, diffusion = goldens.abarankab(schedule)
    with torch.no_grad():
        assert (
            relative(diffusion.model(stored["io.x"], stored["io.t"], stored["io.y"]), stored["io.eps"]) < 1e-5
        )
    images, _ = seeded(123, diffusion.sample, 3, "cpu", stored["io.y"])
    assert relative(images, stored["io.sample_seed123_ema"]) <= GOLDEN_RELATIVE


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_the_repositorys_own_images(schedule, network):
    stored, diffusion = goldens.abarankab(schedule)
    fast = fastddpm.optimize(diffusion, network=network)
    images, _ = seeded(123, fast.sample, 3, "cpu", stored["io.y"])
    assert relative(images, stored["io.sample_seed123_ema"]) <= GOLDEN_RELATIVE
    sequence, _ = seeded(123, fast.sample_diffusion_sequence, 3, "cpu", y=stored["io.y"], use_ema=False)
    assert relative(torch.stack(sequence), stored["io.sequence_seed123_model"]) <= GOLDEN_RELATIVE


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("name", CASES)
def test_same_seed_same_images_and_random_state(name, network):
    diffusion = make(**CASES[name])
    fast = fastddpm.optimize(diffusion, network=network)
    for use_ema, count, seed in ((True, 3, 5), (False, 1, 2**40)):
        y = labels_for(diffusion, count)
        theirs, state = seeded(seed, diffusion.sample, count, "cpu", y, use_ema)
        ours, state_after = seeded(seed, fast.sample, count, "cpu", y, use_ema)
        assert relative(ours, theirs) <= DROP_IN
        assert torch.equal(state_after, state)
        assert ours.device.type == "cpu"
        sequence, state_after = seeded(
            seed, fast.sample_diffusion_sequence, count, torch.device("cpu"), y, use_ema
        )
        expected, _ = seeded(seed, diffusion.sample_diffusion_sequence, count, "cpu", y, use_ema)
        assert len(sequence) == len(expected) == diffusion.num_timesteps + 1
        assert relative(torch.stack(sequence), torch.stack(expected)) <= DROP_IN
        assert torch.equal(state_after, state)


class Little(nn.Module):
    """Long chains are about their rows: a network of one layer is as good, and 20 times as fast."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, x, time, y=None):
        return self.layer(x) * torch.cos(time / 100)[:, None, None, None]


class Trained(nn.Module):
    """eps for images with pixels N(0, 1/4), exactly, plus a little of a network: chains stay near [-1, 1]."""

    def __init__(self, network, betas):
        super().__init__()
        self.network = network
        abar = torch.tensor(np.cumprod(1 - betas), dtype=torch.float32)
        self.register_buffer("weights", (1 - abar).sqrt() / (abar / 4 + 1 - abar))

    def forward(self, x, time, y=None):
        return self.weights[time][:, None, None, None] * x + 0.02 * self.network(x, time, y)


@pytest.mark.slow
@pytest.mark.parametrize("steps", [50, 1000])
def test_whole_chains_of_a_network_that_denoises(steps):
    betas = peer.linear_betas(steps)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        network = Trained(Little(), betas)
    diffusion = peer.Diffusion(network, (4, 4), 3, betas).eval()
    theirs, state = seeded(7, diffusion.sample, 2, "cpu")
    ours, state_after = seeded(7, fastddpm.optimize(diffusion).sample, 2, "cpu")
    assert theirs.abs().max() < 4
    assert difference(ours, theirs) <= DROP_IN
    assert torch.equal(state_after, state)


@pytest.mark.parametrize("network", NETWORKS)
def test_the_original_stays_as_it_was(network):
    diffusion = make(num_classes=3)
    diffusion.ema_model.train()
    for part in diffusion.modules():
        if isinstance(part, nn.Dropout):
            part.p = 0.0
    before, state = fingerprint(diffusion), torch.get_rng_state()
    fast = fastddpm.optimize(diffusion, network=network)
    assert torch.equal(torch.get_rng_state(), state)
    fast.sample(2, "cpu", torch.tensor([0, 2]))
    fast.sample_diffusion_sequence(2, "cpu", torch.tensor([0, 2]), use_ema=False)
    assert fingerprint(diffusion) == before
    assert fast.original is diffusion
    assert fast.num_timesteps == 12


@pytest.mark.parametrize("network", NETWORKS)
def test_it_is_our_loop(network):
    diffusion = make(num_classes=3, betas=peer.linear_betas(7))
    fast = fastddpm.optimize(diffusion, network=network)
    peer.Diffusion.steps_taken = 0
    with Watched().watching() as watched:
        fast.sample(2, "cpu", torch.tensor([0, 1]))
    assert peer.Diffusion.steps_taken == 0
    assert (watched.steps, watched.kernels, watched.reads) == (7, 7, 0)
    diffusion.sample(2, "cpu", torch.tensor([0, 1]))
    assert peer.Diffusion.steps_taken == 7


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
@pytest.mark.parametrize("network", NETWORKS)
def test_new_weights_are_used(network, dtype):
    diffusion = make(attention_resolutions=(0,))
    fast = fastddpm.optimize(diffusion, network=network, dtype=dtype)
    # bfloat16 keeps 8 bits.
    tolerance = DROP_IN if dtype is None else 0.1

    def agree():
        theirs, _ = seeded(3, diffusion.sample, 2, "cpu")
        ours, _ = seeded(3, fast.sample, 2, "cpu")
        assert relative(ours, theirs) <= tolerance
        return theirs

    images = [agree()]
    with torch.no_grad():
        for parameter in diffusion.ema_model.parameters():
            parameter.mul_(1.1)
    images.append(agree())
    other = make(attention_resolutions=(0,), seed=1)
    diffusion.ema_model.load_state_dict(other.ema_model.state_dict())
    images.append(agree())
    diffusion.ema_model.load_state_dict(
        copy.deepcopy(make(attention_resolutions=(0,), seed=2).model).state_dict(), assign=True
    )
    images.append(agree())
    diffusion.ema_model.init_conv.weight = nn.Parameter(2 * diffusion.ema_model.init_conv.weight.detach())
    images.append(agree())
    diffusion.ema_model = make(seed=4).model
    images.append(agree())
    diffusion.sigma = 0.5 * diffusion.sigma
    images.append(agree())
    for before, after in itertools.pairwise(images):
        assert relative(before, after) > 5 * tolerance or dtype is not None


def test_weights_are_shared_and_replaced_ones_left_alone():
    diffusion = make()
    fast = fastddpm.optimize(diffusion, network="ours")
    fast.sample(1, "cpu")
    old = diffusion.ema_model.out_conv.weight
    kept = old.detach().clone()
    diffusion.ema_model.out_conv.weight = nn.Parameter(torch.zeros_like(old))
    fast.sample(1, "cpu")
    assert torch.equal(old, kept)
    assert (
        fast._network("ema_model").unet.conv_out.weight.data_ptr()
        == diffusion.ema_model.out_conv.weight.data_ptr()
    )


@pytest.mark.parametrize("register", ["register_forward_hook", "register_forward_pre_hook"])
def test_hooks_on_the_network_go_on_being_called(register):
    diffusion = make(betas=peer.linear_betas(4))
    fast = fastddpm.optimize(diffusion)
    calls = []
    handle = getattr(diffusion.ema_model.mid[0], register)(lambda *_: calls.append(1))
    fast.sample(1, "cpu")
    assert len(calls) == 4
    assert "hooks" in str(fast.report())
    handle.remove()
    assert "our UNet" in str(fast.report())


@pytest.mark.parametrize("difference", [1e-3, 3e-5])
def test_a_network_that_differs_a_little_runs_as_it_is(difference):
    """Parts, weights and outputs are ours, but for the outputs at the times of its own chain."""

    class Near(peer.Network):
        def forward(self, x, time, y=None):
            is_there = (time > 0) & (time < 20)
            return (1 + difference * is_there)[:, None, None, None] * super().forward(x, time, y)

    diffusion = make()
    diffusion.ema_model.__class__ = Near
    fast = fastddpm.optimize(diffusion)
    assert "our UNet's outputs differ by" in str(fast.report())
    theirs, _ = seeded(1, diffusion.sample, 2, "cpu")
    ours, _ = seeded(1, fast.sample, 2, "cpu")
    assert relative(ours, theirs) <= DROP_IN
    with pytest.raises(ValueError, match="network: 'ours', but our UNet's outputs differ"):
        fastddpm.optimize(diffusion, network="ours")


def test_recognised_by_what_it_holds():
    diffusion = make()
    renamed = type("Renamed", (peer.Diffusion,), {"__module__": "elsewhere"})
    diffusion.__class__ = renamed
    assert isinstance(fastddpm.optimize(diffusion), abarankab.FastAbarankab)

    names = ("betas", "alphas_cumprod", "reciprocal_sqrt_alphas", "remove_noise_coeff", "sigma")
    rebuilt = types.SimpleNamespace(
        model=diffusion.model,
        ema_model=diffusion.ema_model,
        img_size=diffusion.img_size,
        img_channels=1,
        sample=None,
        **{name: getattr(diffusion, name) for name in names},
    )
    theirs, _ = seeded(1, diffusion.sample, 2, "cpu")
    ours, _ = seeded(1, fastddpm.optimize(rebuilt).sample, 2, "cpu")
    assert relative(ours, theirs) <= DROP_IN

    class Hostile:
        @property
        def betas(self):
            raise RuntimeError("not now")

    del rebuilt.ema_model
    for other in (rebuilt, Hostile(), diffusion.model, peer.Diffusion, None, 3, "sample", lambda x, t: x):
        assert not abarankab.recognises(other)


def test_wrong_classes_are_the_originals_errors():
    diffusion = make(num_classes=3)
    fast = fastddpm.optimize(diffusion)
    for arguments in ((2, "cpu", torch.tensor([0])), (2, "cpu")):
        with pytest.raises(ValueError, match="y") as theirs:
            diffusion.sample(*arguments)
        for call in (fast.sample, fast.sample_diffusion_sequence):
            with pytest.raises(ValueError, match="y") as ours:
                call(*arguments)
            assert str(ours.value) == str(theirs.value)
    with pytest.raises(IndexError):
        diffusion.sample(2, "cpu", torch.tensor([0, 3]))
    with pytest.raises(IndexError):
        fast.sample(2, "cpu", torch.tensor([0, 3]))
    assert fast.sample(2, "cpu", torch.tensor([0, 2])).isfinite().all()


def test_a_network_without_classes_ignores_y():
    diffusion = make()
    theirs, _ = seeded(1, diffusion.sample, 2, "cpu", torch.tensor([0, 1]))
    for network in NETWORKS:
        fast = fastddpm.optimize(diffusion, network=network)
        ours, _ = seeded(1, fast.sample, 2, "cpu", torch.tensor([0, 1]))
        assert relative(ours, theirs) <= DROP_IN


def test_errors_name_the_argument():
    diffusion = make()
    fast = fastddpm.optimize(diffusion)
    refused = [
        (lambda: fast.sample(0, "cpu"), "batch_size: 0 given"),
        (lambda: fast.sample(2, "meta"), "device: 'meta' given, 'cpu'"),
        (lambda: fast.sample(2, "cpu", seeds=[1, 2]), 'seeds: seeds with noise="torch"'),
        (lambda: fast.sample(2, "cpu", method="eular"), "method: 'eular' given"),
        (
            lambda: fast.sample(2, "cpu", num_inference_steps=13),
            r"num_inference_steps: 13 given, .* \[1, 12\]",
        ),
        (lambda: fast.sample(2, "cpu", eta=0.5), "eta: 0.5, .* heun and tcd, with method 'ddpm'"),
        (lambda: fastddpm.optimize(diffusion, network="mine"), "network: .* given, one of"),
        (lambda: fastddpm.optimize(diffusion, noise="randn"), "noise: .* given, one of torch, philox"),
    ]
    for call, message in refused:
        with pytest.raises(ValueError, match=message):
            call()
    diffusion.ema_model = Trained(diffusion.ema_model, diffusion.betas.numpy())
    with pytest.raises(ValueError, match="network: 'ours', but of another architecture"):
        fastddpm.optimize(diffusion, network="ours")


def test_a_schedule_that_ends_at_beta_one_is_refused():
    with np.errstate(divide="ignore"):
        diffusion = make(betas=np.array([0.1, 0.5, 1.0]))
    assert not diffusion.sample(1, "cpu").isfinite().all()
    with pytest.raises(ValueError, match="beta"):
        fastddpm.optimize(diffusion).sample(1, "cpu")


def test_philox_images_depend_on_their_own_seed_only():
    diffusion = make(channels=3, num_classes=4)
    fast = fastddpm.optimize(diffusion, noise="philox")
    y = torch.tensor([0, 1, 2])
    images = fast.sample(3, "cpu", y, seeds=[5, 6, 7])
    alone = fast.sample(1, "cpu", y[1:2], seeds=[6])
    assert relative(alone, images[1:2]) <= ACROSS_BATCHES
    assert relative(fast.sample(3, "cpu", y, seeds=[5, 6, 8])[2:], images[2:]) > 0.01
    first, _ = seeded(3, fast.sample, 2, "cpu", y[:2])
    again, _ = seeded(3, fast.sample, 2, "cpu", y[:2])
    assert torch.equal(first, again)


def test_ddim_with_fewer_steps_is_ddim():
    """Song et al. 2021, equation 12 with sigma = 0, in float64 between the steps."""
    diffusion = make(num_classes=4, betas=peer.cosine_betas(40))
    y = torch.tensor([3, 1])
    fast = fastddpm.optimize(diffusion)
    ours, _ = seeded(11, fast.sample, 2, "cpu", y, method="ddim", num_inference_steps=5)

    torch.manual_seed(11)
    x = torch.randn(2, 1, 8, 8).double()
    abar = np.cumprod(1 - diffusion.betas.double().numpy())
    for t in (32, 24, 16, 8, 0):
        after = abar[t - 8] if t else 1.0
        with torch.no_grad():
            eps = diffusion.ema_model(x.float(), torch.tensor([t, t]), y).double()
        x0 = (x - (1 - abar[t]) ** 0.5 * eps) / abar[t] ** 0.5
        x = after**0.5 * x0 + (1 - after) ** 0.5 * eps
    assert relative(ours, x.float()) <= DROP_IN


def test_fewer_steps_keep_the_large_variance():
    """Two steps of DDPM from t = 20, sigma^2 = beta of the skipped stretch, in float64 between the steps."""
    diffusion = make(betas=peer.linear_betas(40))
    ours, state = seeded(2, fastddpm.optimize(diffusion).sample, 3, "cpu", num_inference_steps=2)

    torch.manual_seed(2)
    x = torch.randn(3, 1, 8, 8).double()
    abar = np.cumprod(1 - diffusion.betas.double().numpy())
    for t, after in ((20, abar[0]), (0, 1.0)):
        alpha = abar[t] / after
        with torch.no_grad():
            eps = diffusion.ema_model(x.float(), torch.full((3,), t), None).double()
        x = (x - (1 - alpha) / (1 - abar[t]) ** 0.5 * eps) / alpha**0.5
        if t:
            x = x + (1 - alpha) ** 0.5 * torch.randn(3, 1, 8, 8)
    assert relative(ours, x.float()) <= DROP_IN
    assert torch.equal(state, torch.get_rng_state())


def test_dpm_solver_comes_near_ddim_of_many_steps():
    betas = peer.linear_betas(200)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        network = Trained(peer.Network(1, 4, num_res_blocks=1, num_groups=2), betas)
    fast = fastddpm.optimize(peer.Diffusion(network, (4, 4), 1, betas).eval())
    exact, _ = seeded(1, fast.sample, 2, "cpu", method="ddim")
    few = {
        method: seeded(
            1, fast.sample, 2, "cpu", method=method, num_inference_steps=15, timestep_spacing="trailing"
        )[0]
        for method in ("dpmpp_2m", "ddim")
    }
    assert difference(few["dpmpp_2m"], exact) < 0.5 * difference(few["ddim"], exact)


def test_callback_sees_every_step():
    fast = fastddpm.optimize(make(betas=peer.linear_betas(5)))
    seen = []
    images, _ = seeded(1, fast.sample, 2, "cpu", callback=lambda i, t, x: seen.append((i, t, x.clone())))
    sequence, _ = seeded(1, fast.sample_diffusion_sequence, 2, "cpu")
    assert [(i, t) for i, t, _ in seen] == [(0, 4), (1, 3), (2, 2), (3, 1), (4, 0)]
    for (_, _, x), expected in zip(seen, sequence[1:], strict=True):
        assert torch.equal(x, expected)
    assert torch.equal(images, sequence[-1])


def test_training_mode_warns_and_is_put_back():
    diffusion = make().train()
    modes = [part.training for part in diffusion.modules()]
    with pytest.warns(UserWarning, match="training mode with active Dropout") as warned:
        fast = fastddpm.optimize(diffusion)
    assert all(w.filename == __file__ for w in warned)
    ours, state = seeded(1, fast.sample, 2, "cpu")
    assert [part.training for part in diffusion.modules()] == modes
    theirs, expected = seeded(1, diffusion.eval().sample, 2, "cpu")
    assert relative(ours, theirs) <= DROP_IN
    assert torch.equal(state, expected)


@pytest.mark.parametrize("network", NETWORKS)
def test_compiled_images_are_the_same(network, traced):
    diffusion = make(channels=3, num_classes=3)
    fast = fastddpm.optimize(diffusion, engine="compile", network=network)
    for seed in (1, 2):
        theirs, state = seeded(seed, diffusion.sample, 2, "cpu", torch.tensor([0, 1]))
        ours, state_after = seeded(seed, fast.sample, 2, "cpu", torch.tensor([0, 1]))
        assert relative(ours, theirs) <= EAGER_VS_COMPILED
        assert torch.equal(state_after, state)


def test_the_report_says_what_runs():
    diffusion = make()
    fast = fastddpm.optimize(diffusion)
    text = str(fast.report())
    assert text in repr(fast)
    for part in (
        "abarankab",
        "our UNet with its weights",
        "engine    eager",
        "torch",
        "remove_noise",
        "not fused",
    ):
        assert part in text
    text = str(fastddpm.optimize(diffusion, network="original", noise="philox").report())
    for part in ("the original module (as asked for)", "philox"):
        assert part in text
    assert "not fused" not in text
