"""FastScoreSdeVeScheduler and FastKarrasVeScheduler against diffusers': steps, chains, saving, refusals."""

from __future__ import annotations

import copy
import json
import pickle

import pytest
import torch

import fastddpm

diffusers = pytest.importorskip("diffusers")
pytest.importorskip("transformers")

from diffusers import KarrasVePipeline, KarrasVeScheduler, ScoreSdeVePipeline, ScoreSdeVeScheduler  # noqa: E402
from latent_pipelines import pixel_unet, quiet  # noqa: E402

from fastddpm.dropin.diffusers_schedulers import (  # noqa: E402
    FastKarrasVeScheduler,
    FastScoreSdeVeScheduler,
)

KINDS = [(ScoreSdeVeScheduler, FastScoreSdeVeScheduler), (KarrasVeScheduler, FastKarrasVeScheduler)]
STEPS = ("step", "step_pred", "step_correct")
SHAPE = (2, 3, 4, 5)
GENERATORS = {
    "one": lambda: torch.Generator().manual_seed(7),
    "each": lambda: [torch.Generator().manual_seed(seed) for seed in (7, 8)],
    "none": lambda: None,
}


def network(x, t):
    weight = torch.randn((3, 3, 3, 3), generator=torch.Generator().manual_seed(1)) * 0.1
    return torch.tanh(torch.nn.functional.conv2d(x.float(), weight, padding=1) + t).to(x.dtype)


def flat(result):
    return list(result.to_tuple() if hasattr(result, "to_tuple") else result)


def langevin(scheduler, x, generator, **options):
    """The loop of ScoreSdeVePipeline; all that its steps return."""
    found = []
    for k, t in enumerate(scheduler.timesteps):
        for _ in range(scheduler.config.correct_steps):
            found.append(scheduler.step_correct(-0.1 * network(x, t), x, generator=generator, **options))
            x = flat(found[-1])[0]
        times = (t, float(t), t.expand(len(x)))[k % 3]  # as one may be given
        found.append(scheduler.step_pred(-network(x, t), times, x, generator=generator, **options))
        x = flat(found[-1])[0]
    return found


def churned(scheduler, x, generator, **options):
    """The loop of KarrasVePipeline, likewise; levels in turn as tensors and as numbers."""
    found, x = [], x * scheduler.init_noise_sigma
    for k, t in enumerate(scheduler.timesteps):
        sigma, after = scheduler.schedule[t], scheduler.schedule[t - 1] if t > 0 else 0
        x, sigma = scheduler.add_noise_to_input(x, sigma, generator=generator)
        sigma, after = (float(sigma), float(after)) if k % 2 else (sigma, after)
        found.append(scheduler.step(network(x, sigma), sigma, after, x, **options))
        ahead, slope = flat(found[-1])[:2]
        if after != 0:
            given = (network(ahead, after), sigma, after, x, ahead, slope)
            found.append(scheduler.step_correct(*given, **options))
        x = flat(found[-1])[0]
    return found


LOOPS = {ScoreSdeVeScheduler: langevin, KarrasVeScheduler: churned}


def chain(scheduler, generator, dtype=torch.float32, steps=6, **options):
    original = next(of for of in LOOPS if isinstance(scheduler, of))
    scheduler.set_timesteps(steps)
    if original is ScoreSdeVeScheduler:
        scheduler.set_sigmas(steps)
    torch.manual_seed(3)
    x = torch.randn(SHAPE, generator=torch.Generator().manual_seed(5)).to(dtype)
    return LOOPS[original](scheduler, x, generator, **options)


def hold(original, fast, *, generator="one", **options):
    """Both chains of one stream of noise, which are the same to the last bit; their last results."""
    ends = []
    for scheduler in (original, fast):
        draws = GENERATORS[generator]()
        ends.append((chain(scheduler, draws, **options), torch.get_rng_state(), draws))
    (theirs, after, first), (ours, after_ours, second) = ends
    assert len(theirs) == len(ours)
    for wanted, found in zip(theirs, ours, strict=True):
        assert type(found) is type(wanted)
        for a, b in zip(flat(wanted), flat(found), strict=True):
            assert b.dtype == a.dtype
            assert torch.isfinite(a).all()
            assert b.equal(a)
    assert after_ours.equal(after)
    for a, b in zip(*(one if isinstance(one, list) else [one] for one in (first, second)), strict=True):
        assert a is None or a.get_state().equal(b.get_state())
    return ours[-1]


@pytest.fixture
def no_original(monkeypatch):
    """No step of the original's, once it has been called for the last time."""

    def forbid():
        for original, _ in KINDS:
            for name in STEPS:
                if hasattr(original, name):
                    monkeypatch.setattr(original, name, lambda *a, **k: pytest.fail("the original's step"))

    return forbid


@pytest.mark.parametrize("options", [{}, {"return_dict": False}])
@pytest.mark.parametrize("generator", GENERATORS)
@pytest.mark.parametrize(
    ("original", "config"),
    [
        (ScoreSdeVeScheduler, {"sigma_max": 50.0}),
        (ScoreSdeVeScheduler, {"correct_steps": 3, "snr": 0.01, "sampling_eps": 0.1}),
        (KarrasVeScheduler, {}),
        (KarrasVeScheduler, {"sigma_max": 2.0, "s_churn": 3.0, "s_min": 0.0, "s_max": 10.0}),
    ],
)
def test_chains_are_the_originals_to_the_last_bit(original, config, generator, options):
    made = original(**config)
    fast = fastddpm.optimize(made)
    assert type(fast) is dict(KINDS)[original]
    hold(made, fast, generator=generator, **options)


def test_halves_of_score_sde_ve():
    """Its results are in float32, as its levels are."""
    made = ScoreSdeVeScheduler(sigma_max=50.0)
    assert hold(made, fastddpm.optimize(made), dtype=torch.float16).prev_sample.dtype == torch.float32


@pytest.mark.parametrize(("original", "twin"), KINDS)
def test_no_step_of_the_originals(original, twin, no_original):
    fast = fastddpm.optimize(original())
    no_original()
    assert len(chain(fast, None)) > 6
    assert len(chain(twin(), None)) > 6


def test_in_the_pipelines_place():
    """Whose images are the same, whichever of the two schedulers they call."""
    for pipeline, made in (
        (ScoreSdeVePipeline, ScoreSdeVeScheduler(sigma_max=1.5, snr=0.05)),
        (KarrasVePipeline, KarrasVeScheduler(sigma_max=2.0, s_churn=3.0, s_min=0.0, s_max=1.0)),
    ):
        of = quiet(pipeline(pixel_unet(), made))
        call = {"num_inference_steps": 3, "output_type": "np", "return_dict": False}
        (wanted,) = of(generator=torch.Generator().manual_seed(1), **call)
        of.scheduler = fastddpm.optimize(made)
        (found,) = of(generator=torch.Generator().manual_seed(1), **call)
        assert (found == wanted).all()
        assert fastddpm.optimize(of).original is of  # which is a drop-in all the same


def test_levels_that_are_set_anew():
    """`set_sigmas` in the middle of a chain, and levels that someone changes in place."""
    made = ScoreSdeVeScheduler()
    fast = fastddpm.optimize(made)
    x, m = torch.randn(2, *SHAPE, generator=torch.Generator().manual_seed(3))
    for change in (
        lambda one: one.set_sigmas(20),
        lambda one: one.discrete_sigmas.mul_(1.5),
        lambda one: one.set_sigmas(8, sigma_max=3.0),
    ):
        means = []
        for scheduler in (made, fast):
            scheduler.set_timesteps(5)
            change(scheduler)
            means.append(scheduler.step_pred(m, 0.7, x).prev_sample_mean)
        assert means[1].equal(means[0])


def test_where_the_originals_step_is_taken():
    x, m = torch.randn(2, *SHAPE, generator=torch.Generator().manual_seed(3))
    fast = FastScoreSdeVeScheduler()
    fast.timesteps = None
    for step in (lambda: fast.step_pred(m, 1.0, x), lambda: fast.step_correct(m, x)):
        with pytest.raises(ValueError, match=r"`self\.timesteps` is not set"):
            step()
    fast.set_timesteps(4)
    with pytest.raises(IndexError):  # no such level
        fast.step_pred(m, 900.0, x)
    fast.step_pred(m.clone().requires_grad_(), 1.0, x).prev_sample.sum().backward()
    assert fast.step_correct(m.double(), x.double()).prev_sample.dtype == torch.float64
    karras = FastKarrasVeScheduler()
    karras.step(m.clone().requires_grad_(), 2.0, 1.0, x).prev_sample.sum().backward()
    assert karras.step(m.half(), 2.0, 1.0, x.half()).prev_sample.dtype == torch.float16


@pytest.mark.parametrize(("original", "twin"), KINDS)
def test_saved_under_the_originals_name(original, twin, tmp_path):
    fast = twin(sigma_max=7.0)
    chain(fast, None)
    fast.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "scheduler_config.json").read_text())["_class_name"] == original.__name__
    assert type(twin.from_pretrained(tmp_path)) is twin
    for copied in (pickle.loads(pickle.dumps(fast)), copy.copy(fast), copy.deepcopy(fast)):
        assert type(copied) is twin
        hold(original(sigma_max=7.0), copied)
    assert repr(fast).startswith(f"{twin.public_name} in the place of ")
    for part in (f"diffusers {original.__name__}, alone", "passes of "):
        assert part in str(fast.report())


@pytest.mark.parametrize(("original", "twin"), KINDS)
def test_refused(original, twin):
    own = type("Mine", (original,), {"step_correct": lambda self, *args: None})
    with pytest.raises(ValueError, match="obj: Mine, whose step_correct takes the place of"):
        fastddpm.optimize(own())
    with pytest.raises(ValueError, match=f"variance_type, previous_timestep: of a {original.__name__} given"):
        fastddpm.optimize(original(), previous_timestep="consistent")
    with pytest.raises(ValueError, match="noise: 'philox' for a scheduler alone given"):
        fastddpm.optimize(original(), noise="philox")
