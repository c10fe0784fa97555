"""A chain that ends in NaN or infinity says so: raised for our samplers, warned of by drop-ins."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
import torch
from mixtures import two_blobs
from networks import TINY, make_unet
from onnx_exports import tiny_sampler

import fastddpm
from fastddpm import NoiseSchedule, NonFiniteSamples, Sampler
from fastddpm.finite import check_finite, is_finite, warn_if_not_finite
from fastddpm.repaint import repaint
from fastddpm.score import VPSDE, Heun, decode, encode, log_likelihood, sample_karras, sample_ode, sample_pc
from fastddpm.score.langevin import sample_annealed_langevin

QUIET = {"progress": False}
BAD = 11


class Poisoned:
    """A network that gives NaN for the images whose label is BAD's place, in the step that is told."""

    def __init__(self, value: float = math.nan, from_step: int = 300) -> None:
        self.value, self.from_step = value, from_step

    def __call__(self, x, t, class_labels):
        wrong = (class_labels == 1) & (t <= self.from_step)
        return torch.where(wrong[:, None, None, None], self.value, 0.1 * x)


def sampler(model=None, **options):
    chosen = {"num_inference_steps": 5, "shape": (1, 4, 4), "device": "cpu", "engine": "eager"} | options
    return Sampler(model or Poisoned(), NoiseSchedule.linear(1000), **chosen)


LABELS = [0, 1, 0, 0, 1]
SEEDS = [5, BAD, 6, 7, 2**63 - 1]
FOUND = r"images: 2 of 5 hold NaN or infinity \(of seeds 11, 9223372036854775807\); likely causes: float16"


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_chain_that_ends_in_nan_names_the_seeds(value):
    # The last step alone, so that infinity is not made NaN by the next.
    with pytest.raises(NonFiniteSamples, match=FOUND):
        sampler(Poisoned(value, from_step=0)).sample(seeds=SEEDS, class_labels=LABELS, **QUIET)
    assert sampler().sample(seeds=SEEDS, class_labels=0, **QUIET).isfinite().all()
    assert issubclass(NonFiniteSamples, FloatingPointError)


def test_padding_is_not_looked_at_and_later_batches_are_not_drawn():
    calls = []

    class Counted(Poisoned):
        def __call__(self, x, t, class_labels):
            calls.append(len(x))
            return super().__call__(x, t, class_labels)

    with pytest.raises(NonFiniteSamples, match=r"images: 1 of 2 hold NaN or infinity \(of seeds 11\)"):
        sampler(Counted()).sample(seeds=SEEDS, class_labels=LABELS, max_batch=2, **QUIET)
    assert len(calls) == 5
    last = {"seeds": SEEDS[2:], "class_labels": LABELS[2:], "max_batch": 2}
    with pytest.raises(NonFiniteSamples, match=r"images: 1 of 1 hold NaN or infinity \(of seeds 92233"):
        sampler().sample(**last, **QUIET)


def test_trajectories_variations_and_rows_of_images_too():
    labels = {"class_labels": LABELS}
    for predicted in (False, True):
        with pytest.raises(NonFiniteSamples, match=FOUND):
            sampler().sample_trajectory(seeds=SEEDS, predicted=predicted, **labels, **QUIET)
    images = torch.zeros(5, 1, 4, 4)
    with pytest.raises(NonFiniteSamples, match=FOUND):
        sampler().sample_from(images, 500, seeds=SEEDS, **labels, **QUIET)
    with pytest.raises(NonFiniteSamples, match=r"2 of 2 hold .* \(of seeds 3, 3\)"):
        sampler().interpolate(*images[:2], 500, steps=2, seed=3, class_labels=1, **QUIET)


def test_nothing_of_it_is_left_to_the_next_chain():
    """The first row of DPM-Solver++ multiplies the x0 before it by 0, which makes no NaN a number."""
    one = sampler(method="dpmpp_2m")
    with pytest.raises(NonFiniteSamples, match=FOUND):
        one.sample(seeds=SEEDS, class_labels=LABELS, **QUIET)
    images = one.sample(seeds=SEEDS, class_labels=0, **QUIET)
    assert torch.equal(images, sampler(method="dpmpp_2m").sample(seeds=SEEDS, class_labels=0, **QUIET))


def test_without_seeds_the_places_are_named():
    with pytest.raises(NonFiniteSamples, match=r"2 of 5 hold NaN or infinity \(at places 1, 4\)"):
        sampler().sample(5, class_labels=LABELS, noise="torch", generator=torch.Generator(), **QUIET)


def test_repaint_names_the_seeds():
    images, mask = torch.zeros(1, 1, 4, 4), torch.ones(1, 1, 4, 4)
    options = {"seeds": SEEDS, "class_labels": LABELS, "jump": 2, "resample": 1}
    with pytest.raises(NonFiniteSamples, match=FOUND):
        repaint(sampler(), images, mask, **options, **QUIET)


def test_weights_of_half_precision_that_overflow():
    """Activations beyond 65504: the network is right in bfloat16, and infinite in float16."""
    network = make_unet(TINY)
    with torch.no_grad():
        network.conv_in.weight.mul_(1e6)
    options = {"num_inference_steps": 2, "shape": (3, 8, 8), "engine": "eager"}
    for dtype in (torch.bfloat16, torch.float16):
        half = Sampler(network.to(dtype), NoiseSchedule.linear(1000), **options)
        if dtype is torch.bfloat16:
            assert half.sample(seeds=[1], class_labels=1, **QUIET).isfinite().all()
        else:
            with pytest.raises(NonFiniteSamples, match="float16 overflow"):
                half.sample(seeds=[1], class_labels=1, **QUIET)


def test_score_samplers_and_latents():
    mixture = two_blobs(VPSDE(t_min=0.02))

    class Broken(type(mixture)):
        def __call__(self, x, t):
            wrong = torch.zeros(len(x), dtype=torch.bool)
            wrong[1] = True
            return torch.where(wrong[:, None], torch.nan, super().__call__(x, t))

    broken = Broken(mixture.weights, mixture.means, mixture.covariances, mixture.sde)
    x = torch.zeros(2, 2)
    heun = Heun(3)
    drawn = {
        "pc": lambda score: sample_pc(score, [5, BAD], (2,), steps=3),
        "karras": lambda score: sample_karras(score, [5, BAD], (2,)),
        "langevin": lambda score: sample_annealed_langevin(
            score, [5, BAD], (2,), sigmas=[1.0, 0.5], steps_per_level=2
        ),
        "ode": lambda score: sample_ode(score, [5, BAD], (2,), solver=heun),
    }
    for draw in drawn.values():
        assert draw(mixture).isfinite().all()
        with pytest.raises(NonFiniteSamples, match=r"images: 1 of 2 hold NaN or infinity \(of seeds 11\)"):
            draw(broken)
    with pytest.raises(NonFiniteSamples, match=r"latents: 1 of 2 hold NaN or infinity \(at places 1\)"):
        encode(broken, x, solver=heun)
    with pytest.raises(NonFiniteSamples, match=r"images: 1 of 2 hold NaN or infinity \(at places 1\)"):
        decode(broken, x, solver=heun)
    with pytest.raises(NonFiniteSamples, match=r"log likelihoods: 1 of 2"):
        log_likelihood(broken, x, solver=heun)


def test_drop_ins_warn_once_a_call_and_return_what_the_original_does():
    lucidrains = pytest.importorskip("denoising_diffusion_pytorch")
    network = lucidrains.Unet(8, dim_mults=(1, 2), channels=1)
    diffusion = lucidrains.GaussianDiffusion(network, image_size=8, timesteps=10, beta_schedule="cosine")
    fast = fastddpm.optimize(diffusion, engine="eager")
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        assert fast.sample(batch_size=2).isfinite().all()
    with torch.no_grad():
        network.final_conv.bias.fill_(math.nan)
    assert diffusion.sample(batch_size=2).isnan().all()
    with pytest.warns(
        RuntimeWarning, match=r"images: 2 of 2 hold .* \(at places 0, 1\).* as the orig"
    ) as said:
        assert fast.sample(batch_size=2).isnan().all()
    assert len([one for one in said if issubclass(one.category, RuntimeWarning)]) == 1


def test_the_command_says_it_in_one_line(tmp_path, monkeypatch, capsys):
    from fastddpm.cli import app

    def load(*arguments, **options):
        return tiny_sampler("classes").replace(clip_sample_range=None)

    monkeypatch.setattr("fastddpm.cli.sample.load", load)
    wrong = NonFiniteSamples("images: 1 of 1 hold NaN or infinity")
    monkeypatch.setattr(Sampler, "sample", lambda self, **request: (_ for _ in ()).throw(wrong))
    monkeypatch.setattr("sys.argv", ["fastddpm", "sample", "--seeds", "1", "--out", str(tmp_path / "a.png")])
    with pytest.raises(SystemExit) as ended:
        app.main()
    assert ended.value.code == 2
    assert capsys.readouterr().err == "fastddpm: error: images: 1 of 1 hold NaN or infinity\n"


@pytest.mark.parametrize("size", [1, 7, 4099])
def test_one_value_among_many_is_found_and_large_ones_are_not_mistaken(size):
    largest = torch.finfo(torch.float32).max
    values = torch.linspace(-1, 1, 3 * size).reshape(3, size) * largest
    for place, wrong in ((0, math.nan), (size // 2, math.inf), (size - 1, -math.inf)):
        spoiled = values.clone()
        spoiled[1, place] = wrong
        for given in (spoiled, spoiled.numpy(), spoiled.T.contiguous().T):
            assert not is_finite(given)
            with pytest.raises(NonFiniteSamples, match=r"1 of 3 hold .*\(of seeds 8\)"):
                check_finite(given, torch.tensor([7, 8, 9]))
            with pytest.warns(RuntimeWarning, match="returned as they are"):
                warn_if_not_finite(given)
    check_finite(values)
    check_finite(values.numpy())


def test_a_long_list_of_seeds_is_cut():
    with pytest.raises(
        NonFiniteSamples, match=r"20 of 20 .* \(of seeds 0, 1, 2, 3, 4, 5, 6, 7 and 12 more\)"
    ):
        check_finite(np.full((20, 1), np.nan), range(20))
