"""Drop-ins for guided-diffusion, against a restatement of its loops: same seed, same images."""

from __future__ import annotations

import functools
import gc
import weakref

import numpy as np
import pytest
import torch
from dropin_checks import Watched, fingerprint
from tolerances import DROP_IN
from torch import nn

from fastddpm.dropin.guided_diffusion import build, recognises
from fastddpm.dropin.settings import Settings
from fastddpm_bench.peers import guided_diffusion as peer
from fastddpm_bench.peers.guided_diffusion import ModelMeanType, ModelVarType

SHAPE = (2, 3, 6, 7)
CLASSES = torch.tensor([1, 4])


class Net(nn.Module):
    """Two convolutions, a time and a class embedding; like theirs it is told t as integers or floats."""

    def __init__(self, channels=3, out_channels=3):
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Conv2d(channels, 8, 3, padding=1)
        self.time, self.classes = nn.Linear(2, 8), nn.Embedding(5, 8)
        self.last = nn.Conv2d(8, out_channels, 3, padding=1)

    def forward(self, x, timesteps, y=None, low_res=None, gain=1.0):
        if low_res is not None:
            x = torch.cat([x, low_res], dim=1)
        times = torch.stack([timesteps.float() / 500, torch.cos(timesteps.float())], dim=1)
        bias = self.time(times) + (0 if y is None else self.classes(y))
        return gain * self.last(torch.tanh(self.first(x) + bias[:, :, None, None]))


def net(diffusion, **options):
    return Net(out_channels=6 if diffusion.model_var_type.name.startswith("LEARNED") else 3, **options)


def make(mean="EPSILON", variance="FIXED_SMALL", *, betas=None, spaced=None, **options):
    options = {
        "betas": peer.linear_betas(30) if betas is None else betas,
        "model_mean_type": ModelMeanType[mean],
        "model_var_type": ModelVarType[variance],
        **options,
    }
    if spaced is None:
        return peer.GaussianDiffusion(**options)
    return peer.SpacedDiffusion(spaced, **options)


def fast(diffusion, *, noise="torch", engine="auto", dtype=None):
    return build(diffusion, Settings(noise=noise, engine=engine, dtype=dtype))


def gradient(x, t, y=None, low_res=None):
    """Of a made-up log probability of y, larger at larger t; with autograd, as classifiers have it.

    Its slope times the largest variance stays below 1, or a chain would amplify its last bits in every step.
    """
    with torch.enable_grad():
        x = x.detach().requires_grad_(True)
        weight = 0.5 + t.float()[:, None, None, None] / 1000 + (0 if y is None else y[:, None, None, None])
        return torch.autograd.grad((torch.sin(x) * weight / 10).sum(), x)[0]


def same(theirs, ours, loop, *args, **kwargs):
    """Both loops from one seed: images, relative where they leave [-1, 1], and the generator afterwards."""
    torch.manual_seed(3)
    expected = getattr(theirs, loop)(*args, **kwargs)
    state = torch.get_rng_state()
    torch.manual_seed(3)
    images = getattr(ours, loop)(*args, **kwargs)
    assert torch.equal(torch.get_rng_state(), state)
    assert (images.shape, images.dtype) == (expected.shape, expected.dtype)
    assert expected.std() > 0.01
    assert (images - expected).abs().max() <= DROP_IN * max(1.0, expected.abs().max().item())


LOOPS = {
    "ddpm": ("p_sample_loop", {}),
    "ddim": ("ddim_sample_loop", {}),
    "ddim, eta": ("ddim_sample_loop", {"eta": 0.6}),
}
MEANS, VARIANCES = tuple(kind.name for kind in ModelMeanType), tuple(kind.name for kind in ModelVarType)


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("variance", VARIANCES)
@pytest.mark.parametrize("mean", MEANS)
def test_images(mean, variance, loop):
    name, options = LOOPS[loop]
    for clip in (True, False):
        theirs = make(mean, variance)
        arguments = {"clip_denoised": clip, "model_kwargs": {"y": CLASSES}, **options}
        same(theirs, fast(theirs), name, net(theirs), SHAPE, **arguments)


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("rescale", [True, False])
@pytest.mark.parametrize("spaced", [range(0, 1000, 20), [0, 3, 250, 251, 700, 999]])
def test_spaced_and_rescaled(spaced, rescale, loop):
    name, options = LOOPS[loop]
    theirs = make(
        variance="LEARNED_RANGE", betas=peer.cosine_betas(1000), spaced=spaced, rescale_timesteps=rescale
    )
    same(theirs, fast(theirs), name, net(theirs), SHAPE, **options)


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("steps", [50, 1000])
def test_all_timesteps(steps, loop):
    name, options = LOOPS[loop]
    theirs = make(betas=peer.linear_betas(steps), rescale_timesteps=True)
    same(theirs, fast(theirs), name, net(theirs), (1, 3, 8, 5), **options)


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("variance", VARIANCES)
@pytest.mark.parametrize("mean", MEANS)
@pytest.mark.parametrize("functions", ["cond_fn", "denoised_fn", "both"])
def test_functions_of_the_caller(functions, mean, variance, loop):
    name, options = LOOPS[loop]
    options = {**options, "model_kwargs": {"y": CLASSES}}
    if functions != "denoised_fn":
        options["cond_fn"] = gradient
    if functions != "cond_fn":
        options["denoised_fn"] = lambda x0: 0.9 * x0 + 0.05
    theirs = make(mean, variance, betas=peer.cosine_betas(12), spaced=range(0, 12, 2), rescale_timesteps=True)
    same(theirs, fast(theirs), name, net(theirs), SHAPE, **options)


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("guided", [True, False])
def test_every_step(loop, guided):
    name, options = LOOPS[loop]
    options = {**options, "model_kwargs": {"y": CLASSES}, "cond_fn": gradient if guided else None}
    theirs = make(variance="LEARNED")
    ours, model = fast(theirs), net(theirs)
    torch.manual_seed(3)
    expected = list(getattr(theirs, f"{name}_progressive")(model, SHAPE, **options))
    torch.manual_seed(3)
    states = list(getattr(ours, f"{name}_progressive")(model, SHAPE, **options))
    assert len(states) == len(expected) == 30
    for state, out in zip(states, expected, strict=True):
        assert set(state) == set(out)
        for key, value in out.items():
            assert (state[key] - value).abs().max() <= DROP_IN * max(1.0, value.abs().max().item())


def test_the_first_draw_is_at_the_first_step():
    """As in a generator of theirs: what the caller draws between two steps comes between two draws."""
    theirs = make(betas=peer.cosine_betas(4))
    model, seen = net(theirs), {}
    for name, diffusion in (("theirs", theirs), ("ours", fast(theirs))):
        torch.manual_seed(3)
        states = diffusion.ddim_sample_loop_progressive(model, SHAPE, eta=1.0)
        drawn = [torch.randn(2)]
        for state in states:
            drawn += [torch.randn(2), state["sample"]]
        seen[name] = drawn
    for ours, expected in zip(seen["ours"], seen["theirs"], strict=True):
        assert (ours - expected).abs().max() <= DROP_IN


def test_two_loops_at_once_with_one_network():
    theirs = make(betas=peer.cosine_betas(5))
    model, ours = net(theirs), fast(theirs)
    noises = torch.randn(2, *SHAPE)
    alone = [ours.ddim_sample_loop(model, SHAPE, noise=noise) for noise in noises]
    pair = [ours.ddim_sample_loop_progressive(model, SHAPE, noise=noise) for noise in noises]
    for states in zip(*pair, strict=True):
        last = [state["sample"] for state in states]
    assert torch.equal(torch.stack(last), torch.stack(alone))


def test_noise_given_is_not_drawn_nor_changed():
    theirs = make()
    noise = torch.randn(SHAPE)
    kept = noise.clone()
    same(theirs, fast(theirs), "p_sample_loop", net(theirs), SHAPE, noise)
    same(theirs, fast(theirs), "ddim_sample_loop", net(theirs), list(SHAPE), noise, False)
    assert torch.equal(noise, kept)


def test_conditions():
    """A low-resolution image as in SuperResModel, a constant, and another image of the same shape later."""
    theirs = make(variance="LEARNED_RANGE")
    model, ours = net(theirs, channels=5), fast(theirs)
    for gain in (1.0, 0.7):
        for low_res in torch.randn(2, 2, 2, 6, 7):
            kwargs = {"y": CLASSES, "low_res": low_res, "gain": gain}
            same(theirs, ours, "p_sample_loop", model, SHAPE, model_kwargs=kwargs)


def test_a_function_in_place_of_a_network():
    theirs = make()
    model = net(theirs)

    def model_fn(x, t, y=None):
        return model(x, t, y)

    same(theirs, fast(theirs), "p_sample_loop", model_fn, SHAPE, device="cpu", model_kwargs={"y": CLASSES})


@pytest.mark.parametrize("training", [True, False])
def test_the_original_and_the_network_are_left_as_they_were(training):
    theirs = make()
    model = net(theirs).train(training)
    before, random = fingerprint(model), torch.get_rng_state()
    tables = {name: (id(value), np.array(value, copy=True)) for name, value in vars(theirs).items()}
    ours = fast(theirs)
    assert torch.equal(torch.get_rng_state(), random)
    ours.p_sample_loop(model, SHAPE)
    list(ours.ddim_sample_loop_progressive(model, SHAPE, cond_fn=gradient))
    assert ours.original is theirs
    assert fingerprint(model) == before
    assert vars(theirs).keys() == tables.keys()
    for name, (place, value) in tables.items():
        assert id(vars(theirs)[name]) == place
        assert np.array_equal(vars(theirs)[name], value)


@pytest.mark.parametrize("guided", [True, False])
@pytest.mark.parametrize("loop", LOOPS)
def test_it_is_our_loop(loop, guided):
    """One reverse_step a step, none of the peer's step code, and no reads on the host."""
    name, options = LOOPS[loop]
    theirs = make(variance="LEARNED_RANGE", betas=peer.cosine_betas(100), spaced=range(0, 100, 9))
    watched = Watched()
    with watched.watching():
        getattr(fast(theirs), name)(net(theirs), SHAPE, cond_fn=gradient if guided else None, **options)
    assert (watched.steps, watched.kernels, watched.reads, theirs.step_calls) == (12, 12, 0, 0)
    getattr(theirs, name)(net(theirs), SHAPE)
    assert theirs.step_calls == 12


def test_recognised_by_what_it_holds():
    theirs = make(variance="LEARNED_RANGE")
    body = {
        k: v
        for k, v in vars(peer.GaussianDiffusion).items()
        if k not in ("__init__", "__dict__", "__weakref__")
    }
    theirs.__class__ = type("MyDiffusion", (), {**body, "__module__": "my_project"})
    assert recognises(theirs)
    same(theirs, fast(theirs), "p_sample_loop", net(theirs), SHAPE)
    for other in (None, 3, Net(), peer.GaussianDiffusion, object()):
        assert not recognises(other)


def test_the_engine_compile_gives_the_same_images(traced):
    theirs = make(variance="LEARNED_RANGE", betas=peer.cosine_betas(6), rescale_timesteps=True)
    ours, model = fast(theirs, engine="compile"), net(theirs)
    for y in (CLASSES, CLASSES - 1):
        same(theirs, ours, "p_sample_loop", model, SHAPE, model_kwargs={"y": y})
    assert ours.report().engine == "compile"
    # The caller's functions run eagerly.
    same(theirs, ours, "p_sample_loop", model, SHAPE, cond_fn=gradient)


def test_new_weights_and_tables_are_used():
    theirs = make()
    ours, model = fast(theirs), net(theirs)
    ours.p_sample_loop(model, SHAPE)
    with torch.no_grad():
        model.last.weight.mul_(1.5)
    same(theirs, ours, "p_sample_loop", model, SHAPE)
    theirs.model_var_type = ModelVarType.FIXED_LARGE
    same(theirs, ours, "p_sample_loop", model, SHAPE)
    assert ours.num_timesteps == 30


def test_only_the_last_networks_are_kept():
    theirs = make(betas=peer.cosine_betas(3))
    ours, seen = fast(theirs), []
    for _ in range(6):
        model = net(theirs)
        seen.append(weakref.ref(model))
        ours.p_sample_loop(model, SHAPE)
    del model
    gc.collect()
    assert [ref() is not None for ref in seen] == [False, False, True, True, True, True]
    ours.clear()
    gc.collect()
    assert all(ref() is None for ref in seen)


def test_a_lower_precision_is_that_of_autocast():
    theirs = make()
    model, ours = net(theirs), fast(theirs, dtype=torch.bfloat16)

    def autocast(x, t):
        with torch.autocast("cpu", torch.bfloat16):
            return model(x, t)

    torch.manual_seed(3)
    expected = theirs.p_sample_loop(autocast, SHAPE)
    torch.manual_seed(3)
    assert (ours.p_sample_loop(model, SHAPE) - expected).abs().max() <= DROP_IN


def test_seeds_with_philox():
    theirs = make()
    ours, model = fast(theirs, noise="philox"), net(theirs)
    pair = ours.p_sample_loop(model, SHAPE, seeds=[5, 6])
    alone = ours.p_sample_loop(model, (1, *SHAPE[1:]), seeds=[6])
    assert (pair[1:] - alone).abs().max() <= DROP_IN
    assert (pair[0] - pair[1]).abs().max() > 0.1


def test_dropout_in_training_mode_is_warned_of():
    theirs = make()
    model = nn.Sequential(nn.Dropout(0.5))
    call = functools.partial(lambda model, x, t: model(x), model)
    with pytest.warns(UserWarning, match="training mode"):
        images = fast(theirs).p_sample_loop(call, SHAPE, torch.ones(SHAPE))
    assert model.training
    assert torch.isfinite(images).all()


def test_the_report_says_what_runs():
    theirs = make("START_X", "LEARNED_RANGE")
    ours = fast(theirs)
    ours.p_sample_loop(net(theirs), SHAPE)
    for part in (
        "guided-diffusion",
        "START_X",
        "LEARNED_RANGE",
        "eager",
        "cond_fn",
        "in the original's order",
    ):
        assert part in repr(ours)


def test_what_is_not_accepted():
    theirs = make()
    ours, model = fast(theirs), net(theirs)
    with pytest.raises(ValueError, match=r"shape: \(3, 8\) given"):
        ours.p_sample_loop(model, (3, 8))
    with pytest.raises(ValueError, match="noise: shape"):
        ours.p_sample_loop(model, SHAPE, torch.zeros(1, 3, 6, 7))
    with pytest.raises(ValueError, match=r"eta: 3\.0, which leaves less than no variance"):
        ours.ddim_sample_loop(model, SHAPE, eta=3.0)
    with pytest.raises(TypeError, match="eta"):
        ours.p_sample_loop(model, SHAPE, eta=1.0)
    with pytest.raises(ValueError, match='seeds: seeds with noise="torch"'):
        ours.p_sample_loop(model, SHAPE, seeds=[1, 2])
    with pytest.raises(ValueError, match="learned_range with a model that returns 3 channels"):
        fast(make(variance="LEARNED")).p_sample_loop(Net(), SHAPE)
    theirs.model_mean_type = type("Kind", (), {"name": "VELOCITY"})()
    assert recognises(theirs)
    with pytest.raises(ValueError, match=r"model_mean_type: .* given, one of EPSILON, START_X, PREVIOUS_X"):
        fast(theirs)
