"""RePaint: its schedule against diffusers', its arithmetic in float64, its law for a Gaussian, its seeds."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from diffusers import RePaintScheduler

from fastddpm import NoiseSchedule, Sampler, load
from fastddpm.repaint import repaint, visits
from fastddpm_kernels.noise import reference

SCHEDULE = NoiseSchedule.linear(100, 1e-3, 0.2)
SHAPE = (1, 2, 2)
UNKNOWN = torch.tensor([[[[1.0, 0.0], [0.0, 1.0]]]])


@pytest.mark.parametrize(("jump", "resample"), [(10, 10), (5, 4), (1, 3), (7, 2), (4, 1)])
def test_the_schedule_is_diffusers(jump, resample):
    peer = RePaintScheduler(num_train_timesteps=250)
    peer.set_timesteps(250, jump_length=jump, jump_n_sample=resample)
    places = 249 - peer.timesteps.numpy()  # rows, single steps back among them
    expected = [int(row) for row, then in zip(places, [*places[1:], 250], strict=True) if then > row]
    assert visits(250, jump, resample) == expected


def mixing(x, t):
    """A network that looks at the neighbour too, so that unknown values hear of the known ones."""
    return 0.5 * x + 0.2 * x.flip(-1)


def restated(seeds, known, steps, jump, resample):
    """Lugmayr et al. 2022, algorithm 1, on respaced timesteps, float64, with the specification's noise."""
    times = [t for t in range(99, -1, -100 // steps)]
    abar = np.append(SCHEDULE.alphas_cumprod[times], 1.0)
    normal = {}

    def z(step, stream, repeat):
        key = (step, stream, repeat)
        if key not in normal:
            normal[key] = reference.normal(seeds, step, SHAPE, stream=stream, repeat=repeat).astype(float)
        return normal[key]

    x, before, count = z(0, 0, 0), -1, {}
    for k in visits(steps, jump, resample):
        n = count[k] = count.get(k, -1) + 1
        if k <= before:
            ratio = abar[k] / abar[before + 1]
            x = np.sqrt(ratio) * x + np.sqrt(1 - ratio) * z(k + 1, 3, n)
        # One step of Ho et al. 2020, eq. 7 with alpha = abar_k / abar_{k+1}.
        eps = 0.5 * x + 0.2 * x[..., ::-1]
        x_0 = (x - np.sqrt(1 - abar[k]) * eps) / np.sqrt(abar[k])
        alpha = abar[k] / abar[k + 1]
        mean = np.sqrt(abar[k + 1]) * (1 - alpha) * x_0 + np.sqrt(alpha) * (1 - abar[k + 1]) * x
        variance = (1 - abar[k + 1]) / (1 - abar[k]) * (1 - alpha)
        x = mean / (1 - abar[k]) + np.sqrt(variance) * z(k + 1, 0, n)
        given = np.sqrt(abar[k + 1]) * known + np.sqrt(1 - abar[k + 1]) * z(k + 1, 4, n + 1)
        x = np.where(UNKNOWN.numpy() > 0, x, given)
        before = k
    return x


def test_the_arithmetic_and_the_noise():
    sampler = Sampler(mixing, SCHEDULE, method="ddpm", num_inference_steps=10, timestep_spacing="trailing")
    known = torch.tensor([[[[0.3, -0.7], [0.9, 0.1]]]])
    seeds = [3, 2**40 + 1]
    result = repaint(sampler, known, UNKNOWN, seeds=seeds, jump=3, resample=2, progress=False)
    expected = restated(np.array(seeds), known.numpy(), 10, 3, 2)
    np.testing.assert_allclose(result, expected, atol=2e-5)
    assert torch.equal(result[:, :, 0, 1], known[0, :, 0, 1].expand(2, 1))


def test_resampling_brings_a_gaussian_to_its_conditional_mean():
    """Two values of correlation 0.9, one known as 1.5: the other has mean 1.35.

    Only the mean: repeated steps of the posterior's variance draw less than the conditional's 0.19.
    """
    schedule = NoiseSchedule.linear(50, 1e-3, 0.3)
    covariance = torch.tensor([[1.0, 0.9], [0.9, 1.0]])
    abar = schedule.tensor("alphas_cumprod")

    def exact(x, t):
        # eps = -sigma * score; the marginal at t is N(0, abar*covariance + (1 - abar))
        a = abar[t[0]]
        precision = torch.linalg.inv(a * covariance + (1 - a) * torch.eye(2))
        return ((1 - a).sqrt() * (x.flatten(1) @ precision)).reshape(x.shape)

    sampler = Sampler(exact, schedule, method="ddpm", shape=(1, 1, 2))
    known, unknown = torch.tensor([[[[0.0, 1.5]]]]), torch.tensor([[[[1.0, 0.0]]]])
    options = {"seeds": range(400), "jump": 1, "progress": False}
    once = repaint(sampler, known, unknown, resample=1, **options)[:, 0, 0, 0]
    often = repaint(sampler, known, unknown, resample=20, **options)[:, 0, 0, 0]
    # The mean of 400 draws is known to 0.02.
    assert float(often.mean()) == pytest.approx(1.35, abs=0.05)
    assert float(once.mean()) < 1.0
    assert 0.08 < float(often.var()) < 0.22


def test_a_result_depends_on_its_own_seed():
    sampler = load("mnist", num_inference_steps=4, method="ddim", eta=1.0)
    images = torch.rand(3, 1, 28, 28) * 2 - 1
    unknown = torch.zeros(1, 1, 28, 28, dtype=torch.bool)
    unknown[:, :, 8:20, 8:20] = True
    options = {"jump": 1, "resample": 2, "progress": False}
    together = repaint(
        sampler, images, unknown, seeds=[4, 5, 6], class_labels=[1, 2, 3], max_batch=2, **options
    )
    alone = repaint(sampler, images[2:], unknown, seeds=[6], class_labels=3, **options)
    torch.testing.assert_close(together[2:], alone, atol=1e-3, rtol=0)
    known = ~unknown.expand(3, -1, -1, -1)
    assert torch.equal(together[known], images[known])
    other = repaint(sampler, images[2:], unknown, seeds=[7], class_labels=3, **options)
    assert (other - alone).abs().max() > 0.05


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"jump": 0}, "jump: 0 given, an integer of at least 1 accepted"),
        ({"resample": 1.5}, "resample: 1.5 given"),
        ({"mask": torch.ones(1, 1, 2, 3)}, r"mask: shape \(1, 1, 2, 3\) given, \(2 or 1, 1, 2, 2\) accepted"),
        ({"mask": torch.full((1, 1, 2, 2), 0.5)}, "mask: values besides 0 and 1"),
        ({"images": torch.zeros(3, 1, 2, 2)}, r"images: shape \(3, 1, 2, 2\) given"),
        ({"method": "dpmpp_2m"}, r"method: dpmpp_2m given, ddpm or ddim \(going back needs"),
    ],
)
def test_what_is_refused(changes, message):
    given = {"images": torch.zeros(1, *SHAPE), "mask": UNKNOWN, "method": "ddpm", **changes}
    sampler = Sampler(mixing, SCHEDULE, method=given.pop("method"), num_inference_steps=4)
    with pytest.raises(ValueError, match=message):
        repaint(sampler, given.pop("images"), given.pop("mask"), seeds=[1, 2], progress=False, **given)
