"""`fastddpm.optimize` of the GaussianDiffusion of Janspiry's SR3 repository, both variants.

Against the repository's stored outputs, and, at other shapes, against a restatement of it that is itself held
against them.
"""

from __future__ import annotations

import itertools
import types

import goldens
import numpy as np
import pytest
import torch
from dropin_checks import Watched, difference, fingerprint, seeded
from tolerances import ACROSS_BATCHES, DROP_IN, EAGER_VS_COMPILED
from torch import nn

import fastddpm
from fastddpm.dropin import abarankab, sr3
from fastddpm_bench.peers import sr3 as peer

KINDS = ("sr3", "ddpm")
NETWORKS = ("original", "ours")


def make(kind, *, betas=None, channels=1, conditional=True, size=8, seed=0, **options):
    """A restated object in eval mode."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        given = {"norm_groups": 4, "image_size": size, **options}
        network = peer.Network(kind, channels * (1 + conditional), channels, 8, **given)
    diffusion = peer.Diffusion(network, size, channels, conditional, kind)
    diffusion.set_betas(peer.betas_of("linear", 12, 1e-4, 0.4) if betas is None else betas)
    return diffusion.eval()


def low_resolution(diffusion, count, size=(8, 8)):
    generator = torch.Generator().manual_seed(9)
    return torch.rand(count, diffusion.channels, *size, generator=generator) * 2 - 1


@pytest.mark.parametrize("kind", KINDS)
def test_the_restatement_gives_the_repositorys_outputs(kind):
    stored, diffusion = goldens.sr3(kind)
    with torch.no_grad():
        given = torch.cat([stored["io.cond"], stored["io.x"]], dim=1)
        assert difference(diffusion.denoise_fn(given, stored["io.time"]), stored["io.eps"]) <= 1e-5
    for continous, name in ((False, "as_returned"), (True, "continous")):
        images, _ = seeded(123, diffusion.super_resolution, stored["io.cond"], continous)
        assert difference(images, stored[f"io.super_resolution_seed123_{name}"]) <= 1e-5


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("kind", KINDS)
def test_the_repositorys_own_images(kind, network):
    stored, diffusion = goldens.sr3(kind)
    fast = fastddpm.optimize(diffusion, network=network)
    for continous, name in ((False, "as_returned"), (True, "continous")):
        images, _ = seeded(123, fast.super_resolution, stored["io.cond"], continous)
        assert difference(images, stored[f"io.super_resolution_seed123_{name}"]) <= DROP_IN
    images, _ = seeded(123, fast.super_resolution, stored["io.cond"], batched=True)
    assert difference(images, stored["io.sample_seed123_all"]) <= DROP_IN


# Schedules, numbers of steps, channels, sizes and options of the network: each row another combination.
CASES = {
    "linear": {},
    "three channels": {"channels": 3, "betas": peer.betas_of("cosine", 23, 0, 0), "res_blocks": 2},
    "50 steps": {"betas": peer.betas_of("quad", 50, 1e-4, 0.2), "channel_mults": (1, 2, 2), "attn_res": (4,)},
    "few steps": {"betas": peer.betas_of("const", 3, 0, 0.3), "channels": 2, "channel_mults": (2,)},
    "warmup": {"betas": peer.betas_of("warmup10", 31, 1e-6, 0.1), "attn_res": (), "dropout": 0.2},
}


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("kind", KINDS)
def test_same_seed_same_images_and_random_state(kind, name, network):
    diffusion = make(kind, **CASES[name])
    fast = fastddpm.optimize(diffusion, network=network)
    for count, size, continous in ((3, (8, 12), False), (2, (8, 8), True)):
        x_in = low_resolution(diffusion, count, size)
        theirs, state = seeded(count, diffusion.super_resolution, x_in, continous)
        ours, state_after = seeded(count, fast.super_resolution, x_in, continous)
        assert difference(ours, theirs) <= DROP_IN
        assert torch.equal(state_after, state)
        assert theirs.ndim == 4 if continous else theirs.ndim == 3


@pytest.mark.parametrize("kind", KINDS)
def test_unconditional_models(kind):
    diffusion = make(kind, conditional=False, channels=3)
    fast = fastddpm.optimize(diffusion)
    for continous in (False, True):
        theirs, state = seeded(4, diffusion.sample, 2, continous)
        ours, state_after = seeded(4, fast.sample, 2, continous)
        assert difference(ours, theirs) <= DROP_IN
        assert torch.equal(state_after, state)
    # The ddpm variant ignores continous here, the sr3 variant starts with the initial noise.
    assert ours.shape == ((2, 3, 8, 8) if kind == "ddpm" else (26, 3, 8, 8))
    theirs, _ = seeded(4, diffusion.p_sample_loop, (1, 3, 4, 8))
    ours, _ = seeded(4, fast.p_sample_loop, (1, 3, 4, 8))
    assert difference(ours, theirs) <= DROP_IN
    assert fast.sample().shape == ((1, 3, 8, 8) if kind == "ddpm" else (3, 8, 8))


@pytest.mark.parametrize("kind", KINDS)
def test_whole_batch_and_frames(kind):
    diffusion = make(kind, betas=peer.betas_of("linear", 25, 1e-4, 0.3))
    fast = fastddpm.optimize(diffusion)
    x_in = low_resolution(diffusion, 3)
    last, _ = seeded(1, fast.super_resolution, x_in)
    images, _ = seeded(1, fast.super_resolution, x_in, batched=True)
    frames, _ = seeded(1, fast.super_resolution, x_in, continous=True, batched=True)
    flat, _ = seeded(1, diffusion.super_resolution, x_in, True)
    # After i = 24, 21, ..., 0, behind the input.
    assert frames.shape == (1 + 9, 3, 1, 8, 8)
    assert difference(frames.flatten(0, 1), flat) <= DROP_IN
    assert torch.equal(images, frames[-1])
    assert torch.equal(last, images[-1])


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_thousand_steps(kind):
    betas = peer.betas_of("linear", 1000, 1e-6, 0.02)
    diffusion = make(kind, betas=betas, channel_mults=(1,), attn_res=(), size=4)
    x_in = low_resolution(diffusion, 1, (4, 4))
    theirs, state = seeded(1, diffusion.super_resolution, x_in)
    ours, state_after = seeded(1, fastddpm.optimize(diffusion).super_resolution, x_in)
    assert difference(ours, theirs) <= DROP_IN
    assert torch.equal(state_after, state)


def test_the_schedule_is_read_anew():
    options = {"schedule": "linear", "n_timestep": 20, "linear_start": 1e-4, "linear_end": 0.3}
    with torch.random.fork_rng():
        network = peer.Network("sr3", 2, 1, 8, norm_groups=4)
    diffusion = peer.Diffusion(network, 8, 1).eval()
    fast = fastddpm.optimize(diffusion)
    x_in = low_resolution(diffusion, 2)
    assert "waits" in str(fast.report())
    with pytest.raises(ValueError, match="set_new_noise_schedule first"):
        fast.super_resolution(x_in)
    for changes in ({}, {"n_timestep": 7}, {"schedule": "cosine", "n_timestep": 31}):
        # Through the drop-in, which passes it on.
        fast.set_new_noise_schedule({**options, **changes}, "cpu")
        theirs, _ = seeded(2, diffusion.super_resolution, x_in, True)
        ours, _ = seeded(2, fast.super_resolution, x_in, True)
        assert difference(ours, theirs) <= DROP_IN


@pytest.mark.parametrize("kind", KINDS)
def test_the_original_stays_as_it_was(kind):
    diffusion = make(kind)
    diffusion.denoise_fn.ups.train()
    before, state = fingerprint(diffusion), torch.get_rng_state()
    fast = fastddpm.optimize(diffusion)
    assert torch.equal(torch.get_rng_state(), state)
    x_in = low_resolution(diffusion, 2)
    given = x_in.clone()
    fast.super_resolution(x_in, True)
    assert fingerprint(diffusion) == before
    assert torch.equal(x_in, given)
    assert fast.original is diffusion
    assert fast.num_timesteps == 12


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("kind", KINDS)
def test_it_is_our_loop(kind, network):
    diffusion = make(kind)
    fast = fastddpm.optimize(diffusion, network=network)
    peer.Diffusion.steps_taken = 0
    with Watched().watching() as watched:
        fast.super_resolution(low_resolution(diffusion, 2))
    assert peer.Diffusion.steps_taken == 0
    assert (watched.steps, watched.kernels, watched.reads) == (12, 12, 0)


@pytest.mark.parametrize("network", NETWORKS)
def test_new_weights_are_used(network):
    diffusion = make("sr3")
    fast = fastddpm.optimize(diffusion, network=network)
    x_in = low_resolution(diffusion, 1)

    def agree():
        theirs, _ = seeded(3, diffusion.super_resolution, x_in)
        ours, _ = seeded(3, fast.super_resolution, x_in)
        assert difference(ours, theirs) <= DROP_IN
        return theirs

    images = [agree()]
    with torch.no_grad():
        for parameter in diffusion.denoise_fn.parameters():
            parameter.mul_(1.2)
    images.append(agree())
    diffusion.load_state_dict(make("sr3", seed=1).state_dict())
    images.append(agree())
    diffusion.load_state_dict(make("sr3", seed=2).state_dict(), assign=True)
    images.append(agree())
    diffusion.denoise_fn.final_conv.block[3].weight = nn.Parameter(torch.zeros(1, 8, 3, 3))
    images.append(agree())
    diffusion.denoise_fn = make("sr3", seed=3).denoise_fn
    images.append(agree())
    for before, after in itertools.pairwise(images):
        assert difference(before, after) > 5 * DROP_IN


def test_recognised_by_what_it_holds():
    diffusion = make("sr3")
    diffusion.__class__ = type("Renamed", (peer.Diffusion,), {"__module__": "elsewhere"})
    assert isinstance(fastddpm.optimize(diffusion), sr3.FastSR3)
    assert not abarankab.recognises(diffusion)
    parts = {name: getattr(diffusion, name) for name, _ in diffusion.named_buffers() if "." not in name}
    rebuilt = types.SimpleNamespace(
        denoise_fn=diffusion.denoise_fn,
        conditional=True,
        channels=1,
        image_size=8,
        super_resolution=None,
        set_new_noise_schedule=None,
        sqrt_alphas_cumprod_prev=diffusion.sqrt_alphas_cumprod_prev,
        **parts,
    )
    x_in = low_resolution(diffusion, 2)
    theirs, _ = seeded(1, diffusion.super_resolution, x_in)
    ours, _ = seeded(1, fastddpm.optimize(rebuilt).super_resolution, x_in)
    assert difference(ours, theirs) <= DROP_IN
    del rebuilt.denoise_fn
    for other in (rebuilt, diffusion.denoise_fn, peer.Diffusion, None, {}, "sr3"):
        assert not sr3.recognises(other)


def test_a_network_in_data_parallel():
    diffusion = make("ddpm")
    x_in = low_resolution(diffusion, 2)
    theirs, _ = seeded(1, diffusion.super_resolution, x_in)
    diffusion.denoise_fn = nn.DataParallel(diffusion.denoise_fn)
    fast = fastddpm.optimize(diffusion)
    assert "our UNet" in fast.report().network
    ours, _ = seeded(1, fast.super_resolution, x_in)
    assert difference(ours, theirs) <= DROP_IN


def test_errors_name_the_argument():
    diffusion = make("sr3")
    fast = fastddpm.optimize(diffusion)
    x_in = low_resolution(diffusion, 2)
    free = fastddpm.optimize(make("sr3", conditional=False))
    refused = [
        (lambda: fast.sample(2), r"sample: a conditional model given, super_resolution\(x_in\) accepted"),
        (lambda: fast.super_resolution((2, 1, 8, 8)), "x_in: tuple given, images"),
        (lambda: fast.super_resolution(x_in[0]), r"x_in: shape \(1, 8, 8\) given"),
        (lambda: free.super_resolution(x_in), "x_in: images for an unconditional model given, the shape"),
        (lambda: free.sample(0), "x_in: 0 given"),
        (
            lambda: fast.super_resolution(x_in, seeds=[1, 2]),
            'seeds: seeds with noise="torch"',
        ),
        (
            lambda: fast.super_resolution(x_in, num_inference_steps=0),
            "num_inference_steps: 0 given, an integer",
        ),
        (lambda: fast.super_resolution(x_in, method="plms"), "method: 'plms' given"),
        (lambda: fastddpm.optimize(diffusion, network="theirs"), "network: .* given, one of"),
    ]
    for call, message in refused:
        with pytest.raises(ValueError, match=message):
            call()
    with pytest.raises(TypeError, match="clip_denoised"):
        fast.super_resolution(x_in, clip_denoised=False)


@pytest.mark.parametrize("kind", KINDS)
def test_jsd_is_nan_there_and_refused_here(kind):
    diffusion = make(kind, betas=peer.betas_of("jsd", 10, 0, 0))
    fast = fastddpm.optimize(diffusion)
    x_in = low_resolution(diffusion, 1)
    assert diffusion.super_resolution(x_in).isnan().any()
    with pytest.raises(ValueError, match=r"num_inference_steps: all steps .*jsd.* NaN, given, up to 9 steps"):
        fast.super_resolution(x_in)
    for options in ({"num_inference_steps": 9}, {"method": "ddim"}, {"method": "dpmpp_2m"}):
        assert fast.super_resolution(x_in, **options).isfinite().all()


@pytest.mark.parametrize("kind", KINDS)
def test_ddim_with_fewer_steps_is_ddim_told_the_original_times(kind):
    """Song et al. 2021, equation 12 with sigma = 0 and eps from the clipped x0, in float64 between steps."""
    diffusion = make(kind, betas=peer.betas_of("linear", 40, 1e-4, 0.2))
    x_in = low_resolution(diffusion, 2)
    ours, _ = seeded(
        11,
        fastddpm.optimize(diffusion).super_resolution,
        x_in,
        batched=True,
        method="ddim",
        num_inference_steps=5,
    )
    torch.manual_seed(11)
    x = torch.randn(2, 1, 8, 8).double()
    abar = np.cumprod(1 - peer.betas_of("linear", 40, 1e-4, 0.2))
    for t in (32, 24, 16, 8, 0):
        after = abar[t - 8] if t else 1.0
        time = torch.full((2, 1), abar[t] ** 0.5).float() if kind == "sr3" else torch.tensor([t, t])
        with torch.no_grad():
            eps = diffusion.denoise_fn(torch.cat([x_in, x.float()], dim=1), time).double()
        x0 = ((x - (1 - abar[t]) ** 0.5 * eps) / abar[t] ** 0.5).clamp(-1, 1)
        eps = (x - abar[t] ** 0.5 * x0) / (1 - abar[t]) ** 0.5
        x = after**0.5 * x0 + (1 - after) ** 0.5 * eps
    assert difference(ours, x.float()) <= DROP_IN


class Exact(nn.Module):
    """eps for images that are N(cond / 2, 1/16) given the condition: DDIM's limit is smooth in the steps."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, x, level):
        cond, x = x.chunk(2, dim=1)
        level = level.view(-1, 1, 1, 1)
        variance = 1 - level**2
        return variance.sqrt() * (x - level * cond / 2) / (level**2 / 16 + variance) * self.weight


def test_few_steps_of_dpm_solver_come_near_all_of_ddim():
    diffusion = peer.Diffusion(Exact(), 4, 1)
    diffusion.set_betas(peer.betas_of("linear", 300, 1e-4, 0.05))
    x_in = low_resolution(diffusion, 2, (4, 4))
    fast = fastddpm.optimize(diffusion)
    exact, _ = seeded(1, fast.super_resolution, x_in, batched=True, method="ddim")
    errors = {}
    for method in ("dpmpp_2m", "ddim"):
        few, _ = seeded(
            1,
            fast.super_resolution,
            x_in,
            batched=True,
            method=method,
            num_inference_steps=30,
            timestep_spacing="trailing",
        )
        errors[method] = difference(few, exact)
    assert errors["dpmpp_2m"] < 0.5 * errors["ddim"] < 0.05


@pytest.mark.parametrize("kind", KINDS)
def test_philox_images_depend_on_their_own_seed_only(kind):
    fast = fastddpm.optimize(make(kind, channels=3), noise="philox")
    x_in = low_resolution(fast.original, 3)
    images = fast.super_resolution(x_in, batched=True, seeds=[5, 6, 7])
    alone = fast.super_resolution(x_in[1:2], batched=True, seeds=[6])
    assert difference(alone, images[1:2]) <= ACROSS_BATCHES
    assert difference(fast.super_resolution(x_in, batched=True, seeds=[5, 8, 7])[1:2], alone) > 0.01


def test_callback_sees_every_step():
    diffusion = make("sr3", betas=peer.betas_of("linear", 6, 1e-4, 0.4))
    fast = fastddpm.optimize(diffusion)
    seen = []
    x_in = low_resolution(diffusion, 2)
    images = fast.super_resolution(
        x_in,
        batched=True,
        num_inference_steps=3,
        callback=lambda i, t, x: seen.append((i, t, x.clone())),
    )
    assert [(i, t) for i, t, _ in seen] == [(0, 4), (1, 2), (2, 0)]
    assert torch.equal(seen[-1][2], images)


def test_training_mode_warns():
    diffusion = make("ddpm", dropout=0.3).train()
    with pytest.warns(UserWarning, match="denoise_fn: in training mode with active Dropout"):
        fast = fastddpm.optimize(diffusion)
    x_in = low_resolution(diffusion, 1)
    ours, _ = seeded(1, fast.super_resolution, x_in)
    assert all(part.training for part in diffusion.modules())
    theirs, _ = seeded(1, diffusion.eval().super_resolution, x_in)
    assert difference(ours, theirs) <= DROP_IN


@pytest.mark.slow
@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("kind", KINDS)
def test_compiled_images_are_the_same(kind, network, traced):
    diffusion = make(kind, channels=3)
    fast = fastddpm.optimize(diffusion, engine="compile", network=network)
    x_in = low_resolution(diffusion, 2)
    for seed in (1, 2):
        theirs, state = seeded(seed, diffusion.super_resolution, x_in)
        ours, state_after = seeded(seed, fast.super_resolution, x_in)
        assert difference(ours, theirs) <= EAGER_VS_COMPILED
        assert torch.equal(state_after, state)


@pytest.mark.parametrize("kind", KINDS)
def test_the_report_says_what_runs(kind):
    diffusion = make(kind)
    text = str(fastddpm.optimize(diffusion).report())
    for part in (
        f"{kind} variant",
        "our UNet with its weights",
        "engine    eager",
        "q_posterior",
        "not fused",
    ):
        assert part in text
    text = repr(fastddpm.optimize(diffusion, network="original", noise="philox", dtype=torch.bfloat16))
    for part in ("FastSR3", "the original module (as asked for)", "philox"):
        assert part in text
