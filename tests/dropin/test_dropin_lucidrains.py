"""Drop-ins for denoising-diffusion-pytorch, against the library itself: same seed, same images."""

from __future__ import annotations

import functools
import warnings

import pytest
import torch
from dropin_checks import Watched, fingerprint
from fake_cuda_steps import BUFFERS, run_step
from tolerances import DROP_IN
from torch import nn

from fastddpm.dropin import lucidrains_guidance, lucidrains_loops
from fastddpm.dropin.comparison import Adapter
from fastddpm.dropin.lucidrains import build, recognises
from fastddpm.dropin.settings import Settings
from fastddpm.engine.step import StepCase
from fastddpm.network import Network
from fastddpm.plans.lucidrains import cfg_plus_plus_rows

library = pytest.importorskip("denoising_diffusion_pytorch")
guidance = pytest.importorskip("denoising_diffusion_pytorch.classifier_free_guidance")
learned_gaussian_diffusion = pytest.importorskip("denoising_diffusion_pytorch.learned_gaussian_diffusion")

LABELS = torch.tensor([2, 0, 1])


def fast(obj, *, noise="torch", engine="auto", dtype=None, **options):
    return build(obj, Settings(noise=noise, engine=engine, dtype=dtype), **options)


def unet(**options):
    torch.manual_seed(0)
    return library.Unet(dim=8, dim_mults=(1, 2), channels=3, attn_dim_head=4, attn_heads=2, **options)


def class_unet(**options):
    torch.manual_seed(0)
    return guidance.Unet(dim=8, num_classes=3, dim_mults=(1, 2), channels=3, **options)


def diffusion(network=None, *, kind=None, **options):
    options = {"image_size": (8, 12), "timesteps": 50, "beta_schedule": "cosine", **options}
    return (kind or library.GaussianDiffusion)(network or unet(), **options)


def guided(network=None, **options):
    options = {"image_size": 8, "timesteps": 10, **options}
    return guidance.GaussianDiffusion(network or class_unet(), **options)


class Tiny(nn.Module):
    """A network of two convolutions, for long chains."""

    self_condition, random_or_learned_sinusoidal_cond = False, False

    def __init__(self, channels=3, out_dim=3):
        super().__init__()
        self.channels, self.out_dim = channels, out_dim
        torch.manual_seed(1)
        self.first, self.last = nn.Conv2d(channels, 8, 3, padding=1), nn.Conv2d(8, out_dim, 3, padding=1)

    def forward(self, x, t, x_self_cond=None):
        return self.last(torch.tanh(self.first(x) + (t / 1000)[:, None, None, None]))


def same_images(theirs, ours, *args, **kwargs):
    """Our images of one call of each; both leave torch's generator in the same state."""
    torch.manual_seed(11)
    expected = theirs(*args, **kwargs)
    state = torch.get_rng_state()
    torch.manual_seed(11)
    images = ours(*args, **kwargs)
    assert torch.equal(torch.get_rng_state(), state)
    assert (images.shape, images.dtype) == (expected.shape, expected.dtype)
    assert expected.std() > 0.01
    assert (images - expected).abs().max() <= DROP_IN
    return images


def same_again(theirs, ours, *args):
    """Also of a second call on the same object: no chain sees the x0 with which the last one ended."""
    images = same_images(theirs, ours, *args)
    torch.manual_seed(11)
    assert torch.equal(ours(*args), images)


OBJECTIVES = ("pred_noise", "pred_x0", "pred_v")
CHAINS = {
    "ddpm, linear": {"beta_schedule": "linear"},
    "ddpm, sigmoid": {"beta_schedule": "sigmoid"},
    "ddim, cosine": {"timesteps": 1000, "sampling_timesteps": 20, "beta_schedule": "cosine"},
    "ddim, eta 1": {
        "timesteps": 100,
        "sampling_timesteps": 30,
        "ddim_sampling_eta": 1.0,
        "beta_schedule": "linear",
    },
}


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("chain", CHAINS)
def test_images(chain, objective):
    theirs = diffusion(objective=objective, **CHAINS[chain])
    same_images(theirs.sample, fast(theirs).sample, 2)


@pytest.mark.parametrize("chain", CHAINS)
def test_self_conditioning(chain):
    theirs = diffusion(unet(self_condition=True), **CHAINS[chain])
    same_again(theirs.sample, fast(theirs).sample, 2)


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("steps", [1000, 50, 1])
def test_long_and_short_chains(objective, steps):
    theirs = diffusion(
        Tiny(), objective=objective, timesteps=1000, sampling_timesteps=steps, beta_schedule="cosine"
    )
    same_images(theirs.sample, fast(theirs).sample, 2)


@pytest.mark.parametrize("chain", CHAINS)
@pytest.mark.parametrize("auto_normalize", [True, False])
def test_all_timesteps(chain, auto_normalize):
    theirs = diffusion(Tiny(), auto_normalize=auto_normalize, **CHAINS[chain])
    same_images(theirs.sample, fast(theirs).sample, 2, return_all_timesteps=True)


@pytest.mark.parametrize("chain", CHAINS)
def test_early_versions_hold_no_unnormalize(chain):
    """0.27 and 1.0 map [-1, 1] to [0, 1] by a function of their module, as the later ones' attribute does."""
    theirs = diffusion(Tiny(), **CHAINS[chain])
    early = diffusion(Tiny(), **CHAINS[chain])
    del early.unnormalize
    same_images(theirs.sample, fast(early).sample, 2)


def test_guidance_of_early_versions_is_refused_before_the_chain():
    class Early(nn.Module):
        def forward_with_cond_scale(self, *args, cond_scale=1.0, **kwargs):
            raise AssertionError

    theirs = guided(timesteps=4)
    theirs.model = Early()
    with pytest.raises(ValueError, match="obj: a network whose forward_with_cond_scale has no rescaled_phi"):
        fast(theirs)


def test_loops_by_name():
    theirs = diffusion(Tiny(), sampling_timesteps=7)
    ours = fast(theirs)
    same_images(theirs.p_sample_loop, ours.p_sample_loop, (2, 3, 4, 6))
    same_images(theirs.ddim_sample, ours.ddim_sample, (1, 3, 4, 6), return_all_timesteps=True)


@pytest.mark.parametrize("objective", ["pred_noise", "pred_x0"])
@pytest.mark.parametrize("chain", CHAINS)
def test_learned_variance(chain, objective, monkeypatch):
    # Version 2.3.4 forgot an import that its DDIM needs.
    monkeypatch.setattr(learned_gaussian_diffusion, "partial", functools.partial, raising=False)
    theirs = diffusion(
        Tiny(out_dim=6), kind=library.LearnedGaussianDiffusion, objective=objective, **CHAINS[chain]
    )
    same_images(theirs.sample, fast(theirs).sample, 3)


@pytest.mark.parametrize("self_condition", [True, False])
@pytest.mark.parametrize("t", [None, 9, 1, 0])
def test_interpolate(t, self_condition):
    theirs = diffusion(unet(self_condition=self_condition), timesteps=12, sampling_timesteps=5)
    x1, x2 = torch.randn(2, 2, 3, 8, 12).clamp(-1, 1)
    same_again(theirs.interpolate, fast(theirs).interpolate, x1, x2, t, 0.3)


GUIDED_CHAINS = {
    "ddpm": {"use_cfg_plus_plus": True},
    "ddim": {"timesteps": 1000, "sampling_timesteps": 20, "ddim_sampling_eta": 0.0},
    "ddim, eta 1": {"timesteps": 100, "sampling_timesteps": 15, "beta_schedule": "cosine"},
    "cfg++": {
        "timesteps": 100,
        "sampling_timesteps": 15,
        "ddim_sampling_eta": 0.5,
        "use_cfg_plus_plus": True,
    },
}


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("chain", GUIDED_CHAINS)
def test_guided_images(chain, objective):
    theirs = guided(objective=objective, **GUIDED_CHAINS[chain])
    ours = fast(theirs)
    same_images(theirs.sample, ours.sample, LABELS)
    same_images(theirs.sample, ours.sample, LABELS, cond_scale=1.7, rescaled_phi=0.0)


def test_guided_interpolate():
    theirs = guided(timesteps=12, offset_noise_strength=0.1)
    x1, x2 = torch.randn(2, 3, 3, 8, 8).clamp(-1, 1)
    same_images(theirs.interpolate, fast(theirs).interpolate, x1, x2, LABELS, 7)


def test_cond_scale_of_one():
    """The library unpacks a batch of two as a pair of predictions, and fails on any other batch."""
    theirs = guided(sampling_timesteps=5)
    ours = fast(theirs)
    with pytest.raises(ValueError, match="unpack"):
        theirs.sample(LABELS, cond_scale=1.0)
    with pytest.warns(UserWarning, match="repair=True"):
        same_images(theirs.sample, ours.sample, LABELS[:2], cond_scale=1.0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        torch.manual_seed(11)
        pair = fast(theirs, repair=True).sample(LABELS[:2], cond_scale=1.0)
        torch.manual_seed(11)
        alone = fast(theirs, repair=True).sample(LABELS[:1], cond_scale=1.0)
    assert pair.shape == (2, 3, 8, 8)
    assert alone.shape == (1, 3, 8, 8)
    plus = guided(sampling_timesteps=5, use_cfg_plus_plus=True)
    with pytest.raises(ValueError, match=r"cond_scale: 1 under CFG\+\+.* given"):
        fast(plus).sample(LABELS, cond_scale=1.0)


def test_repair_gives_each_image_its_own_prediction():
    theirs = guided(sampling_timesteps=5, ddim_sampling_eta=0.0)
    ours = fast(theirs, repair=True)
    torch.manual_seed(2)
    pair = ours.sample(LABELS[:2], cond_scale=1.0)
    torch.manual_seed(2)
    near = ours.sample(LABELS[:2], cond_scale=1.0 + 1e-6, rescaled_phi=0.0)
    assert (pair - near).abs().max() <= 1e-3


@pytest.mark.parametrize("training", [True, False])
def test_the_original_is_left_as_it_was(training):
    for theirs, arguments in ((diffusion(sampling_timesteps=4), (2,)), (guided(timesteps=4), (LABELS,))):
        theirs.train(training)
        before, random = fingerprint(theirs), torch.get_rng_state()
        ours = fast(theirs)
        assert torch.equal(torch.get_rng_state(), random)
        ours.sample(*arguments)
        assert ours.original is theirs
        assert fingerprint(theirs) == before


@pytest.mark.parametrize("chain", ["ddpm", "ddim", "guided", "cfg++"])
def test_it_is_our_loop(chain, monkeypatch):
    """One reverse_step a step, none of the library's step code, and no reads on the host."""
    steps, theirs_called = 9 if chain == "ddpm" else 4, []
    if chain in ("ddpm", "ddim"):
        theirs, arguments = diffusion(Tiny(), timesteps=9, sampling_timesteps=steps), (2,)
    else:
        theirs = guided(timesteps=9, sampling_timesteps=steps, use_cfg_plus_plus=chain == "cfg++")
        arguments = (LABELS,)
    for name in ("p_sample", "p_mean_variance", "model_predictions", "q_posterior", "ddim_sample"):
        monkeypatch.setattr(type(theirs), name, noted(getattr(type(theirs), name), theirs_called))
    watched = Watched()
    with watched.watching():
        fast(theirs).sample(*arguments)
    assert (watched.steps, watched.kernels, watched.reads, theirs_called) == (steps, steps, 0, [])
    theirs.sample(*arguments)
    assert theirs_called


def noted(function, calls):
    # With its signature, which says how a version of the library behaves.
    @functools.wraps(function)
    def wrapped(*args, **kwargs):
        calls.append(function.__name__)
        return function(*args, **kwargs)

    return wrapped


@pytest.mark.parametrize("chain", ["plain", "self-conditioned", "guided", "cfg++"])
def test_a_step_reads_nothing_on_the_host(fake_cuda, chain):
    """The step of each kind on fake CUDA tensors, with the call that the drop-in makes of the network."""
    is_guided, conditioned = chain in ("guided", "cfg++"), chain == "self-conditioned"
    cond = {}
    with fake_cuda:
        network = (class_unet() if is_guided else unet(self_condition=conditioned)).eval()
        call = lucidrains_loops._self_conditioned
        if conditioned:
            cond["x_self_cond"] = torch.zeros(2, 3, 8, 8)
        if is_guided:
            cond["classes"] = torch.zeros(2, dtype=torch.int64)
            predict = functools.partial(lucidrains_guidance._guided_pair, 6.0, 0.7, False)
            call = functools.partial(lucidrains_guidance._first, predict)
        if chain == "cfg++":
            call = functools.partial(lucidrains_guidance._finished_mean, predict, False)
            cond["times"], cond["rows"] = torch.zeros(10, dtype=torch.int64), torch.zeros(10, 6)
    adapter = Adapter(network, call)
    bound = Network(adapter, guided=False, cond=cond, **BUFFERS)
    case = StepCase((2, 3, 8, 8), noise="torch", ring=4, clip=True, self_condition=conditioned)
    assert run_step(case, bound).strays == []


def test_recognised_by_what_it_holds():
    theirs = diffusion(Tiny(), timesteps=6)
    body = {k: v for k, v in vars(library.GaussianDiffusion).items() if k not in ("__init__", "__dict__")}
    theirs.__class__ = type("MyModel", (nn.Module,), {**body, "__module__": "my_project"})
    assert not isinstance(theirs, library.GaussianDiffusion)
    assert recognises(theirs)
    same_images(theirs.sample, fast(theirs).sample, 2)
    for other in (None, 3, nn.Linear(2, 2), Tiny(), library.GaussianDiffusion, object(), "model"):
        assert not recognises(other)


def test_the_engine_compile_gives_the_same_images(traced):
    theirs = diffusion(Tiny(), timesteps=6)
    ours = fast(theirs, engine="compile")
    same_images(theirs.sample, ours.sample, 2)
    assert ours.report().engine == "compile"


def test_the_engine_compile_under_guidance(traced):
    options = {"objective": "pred_v", "use_cfg_plus_plus": True}
    theirs = guided(timesteps=50, sampling_timesteps=4, **options)
    same_images(theirs.sample, fast(theirs, engine="compile").sample, LABELS)


def test_changes_of_the_original_are_seen():
    theirs = diffusion(Tiny(), timesteps=30)
    ours = fast(theirs)
    ours.sample(2)
    with torch.no_grad():
        theirs.model.last.weight.mul_(1.5)
    same_images(theirs.sample, ours.sample, 2)
    theirs.sampling_timesteps, theirs.is_ddim_sampling, theirs.ddim_sampling_eta = 10, True, 0.4
    theirs.objective = "pred_x0"
    same_images(theirs.sample, ours.sample, 2)
    theirs.model = Tiny()
    same_images(theirs.sample, ours.sample, 2)
    assert ours.num_timesteps == 30


def test_a_lower_precision_is_that_of_autocast():
    theirs = diffusion(Tiny(), timesteps=10)

    def autocast(batch_size):
        with torch.autocast("cpu", torch.bfloat16):
            return theirs.sample(batch_size)

    ours = fast(theirs, dtype=torch.bfloat16)
    same_images(autocast, ours.sample, 2)
    assert "autocast" in str(ours.report())
    assert theirs.model.first.weight.dtype == torch.float32


def test_seeds_with_philox():
    ours = fast(diffusion(Tiny(), timesteps=8), noise="philox")
    pair = ours.sample(2, seeds=[5, 6], progress=False)
    assert (pair[1:] - ours.sample(1, seeds=[6])).abs().max() <= DROP_IN
    assert (pair[0] - pair[1]).abs().max() > 0.1
    by_class = fast(guided(timesteps=4), noise="philox")
    two = by_class.sample(LABELS[:2], cond_scale=2.0, seeds=[5, 6])
    assert (two[1:] - by_class.sample(LABELS[1:2], cond_scale=2.0, seeds=[6])).abs().max() <= DROP_IN


def test_a_generator_in_place_of_the_global_one():
    theirs = diffusion(Tiny(), timesteps=8)
    torch.manual_seed(4)
    expected = theirs.sample(2)
    images = fast(theirs).sample(2, generator=torch.Generator().manual_seed(4))
    assert (images - expected).abs().max() <= DROP_IN


def test_the_report_says_what_runs():
    text = str(fast(diffusion(objective="pred_v", timesteps=100, sampling_timesteps=20)).report())
    for part in ("lucidrains", "eager", "torch, in the original's order", "pred_v", "DDIM (20 of 100 steps"):
        assert part in text
    text = repr(fast(guided(use_cfg_plus_plus=True, timesteps=9, sampling_timesteps=3), noise="philox"))
    for part in ("classifier-free guidance", "forward_with_cond_scale", "CFG++", "philox"):
        assert part in text


def test_what_is_not_accepted():
    theirs = diffusion(Tiny(), timesteps=8)
    with pytest.raises(ValueError, match="repair: an option given, none for"):
        fast(theirs, repair=True)
    ours = fast(theirs)
    with pytest.raises(ValueError, match="batch_size: 0 given"):
        ours.sample(0)
    with pytest.raises(ValueError, match='seeds with noise="torch"'):
        ours.sample(1, seeds=[1])
    x = torch.zeros(1, 3, 8, 8)
    with pytest.raises(ValueError, match=r"t: 8 given, an integer in \[0, 7\] accepted"):
        ours.interpolate(x, x, 8)
    with pytest.raises(ValueError, match="x2: shape"):
        ours.interpolate(x, x[:, :2])
    with pytest.raises(ValueError, match="noise: 'philox' to interpolate"):
        fast(theirs, noise="philox").interpolate(x, x)
    theirs.sampling_timesteps, theirs.is_ddim_sampling, theirs.ddim_sampling_eta = 4, True, 3.0
    with pytest.raises(ValueError, match=r"ddim_sampling_eta: 3\.0, which leaves"):
        ours.sample(1)
    by_class = fast(guided(timesteps=4))
    with pytest.raises(ValueError, match="classes: "):
        by_class.sample(3)
    with pytest.raises(ValueError, match="classes: 3 for 2 images given"):
        by_class.p_sample_loop(LABELS, (2, 3, 8, 8))


def test_other_classes_of_the_library_are_refused():
    from denoising_diffusion_pytorch import guided_diffusion, repaint

    weighted = diffusion(Tiny(out_dim=8), kind=library.WeightedObjectiveGaussianDiffusion)
    continuous = library.ContinuousTimeGaussianDiffusion(
        unet(random_fourier_features=True), image_size=8, num_sample_steps=5
    )
    for theirs, reason in (
        (weighted, "WeightedObjectiveGaussianDiffusion"),
        (continuous, "ContinuousTimeGaussianDiffusion"),
        (guided_diffusion.GaussianDiffusion(Tiny(), image_size=8, timesteps=5), "guided_diffusion.py"),
        (repaint.GaussianDiffusion(Tiny(), image_size=8, timesteps=5), "repaint.py"),
    ):
        assert recognises(theirs)
        with pytest.raises(ValueError, match=reason):
            fast(theirs)


def test_a_network_in_training_mode_with_dropout_is_warned_of():
    theirs = diffusion(unet(dropout=0.1), timesteps=3)
    with pytest.warns(UserWarning, match="training mode"):
        ours = fast(theirs)
    torch.manual_seed(11)
    images = ours.sample(2)
    assert theirs.model.training
    theirs.eval()
    torch.manual_seed(11)
    assert (images - theirs.sample(2)).abs().max() <= DROP_IN


def test_cfg_plus_plus_rows_in_float64():
    """The rows of one chain from their formulas."""
    options = {"ddim_sampling_eta": 0.5, "use_cfg_plus_plus": True, "beta_schedule": "linear"}
    theirs = guided(timesteps=40, sampling_timesteps=6, **options)
    plan = fast(theirs).ddim_plan()
    rows = torch.tensor(cfg_plus_plus_rows(dict(theirs.named_buffers()), plan)).double()
    abar = torch.cumprod(1 - theirs.betas.double(), 0)[torch.from_numpy(plan.timesteps.copy())]
    after = torch.cat([abar[1:], torch.ones(1, dtype=torch.float64)])
    variance = 0.25 * (1 - abar / after) * (1 - after) / (1 - abar)
    assert torch.allclose(rows[:, 2], after.sqrt(), atol=1e-5)
    assert torch.allclose(rows[:, 3], (1 - after - variance).sqrt(), atol=1e-5)
    assert torch.allclose(rows[:, 4], (1 / abar).sqrt(), rtol=1e-4)
    assert torch.allclose(rows[:, 5], (1 / abar - 1).sqrt(), rtol=1e-4)
