"""Training, guidance and inverse problems of score models, against mixtures that are known in closed form."""

from __future__ import annotations

import math

import pytest
import torch
from mixtures import Mixture, two_blobs
from torch import nn

from fastddpm.score import (
    VESDE,
    VPSDE,
    DenoisingScoreMatching,
    GuidedScore,
    KnownPart,
    NetworkScore,
    SubVPSDE,
    colourise,
    denoised,
    inpaint,
    on_denoised,
    sample_pc,
)
from fastddpm.score.inverse import COLOURS

SDES = {"vp": VPSDE(), "sub_vp": SubVPSDE(t_min=0.01), "ve": VESDE(0.05, 5.0)}


class Perceptron(nn.Module):
    """eps(x, t) of points in the plane; x is scaled to order 1 by the process's own spread."""

    def __init__(self, sde):
        super().__init__()
        self.sde = sde
        self.layers = nn.Sequential(
            nn.Linear(2 + 8, 96), nn.SiLU(), nn.Linear(96, 96), nn.SiLU(), nn.Linear(96, 2)
        )

    def forward(self, x, t):
        time = t.double()
        spread = (self.sde.signal(time) ** 2 + self.sde.sigma(time) ** 2).sqrt().float()
        angles = self.sde.log_snr(time).float()[:, None] * 2.0 ** torch.arange(-5, -1)
        return self.layers(torch.cat((x / spread[:, None], angles.sin(), angles.cos()), dim=1))


@pytest.mark.parametrize("name", SDES)
def test_score_matching_learns_the_score_of_a_mixture(name):
    """A small network, trained for two seconds, against the true score, in the mean over p_t.

    Returning 0 would leave errors of 0.5 to 2.
    """
    sde = SDES[name]
    mixture, loss = two_blobs(sde), DenoisingScoreMatching(seed=1)
    torch.manual_seed(0)
    network = Perceptron(sde)
    score = NetworkScore(sde, network)
    optimiser = torch.optim.Adam(network.parameters(), 1e-2)
    batch, steps = 256, 500
    data = mixture.draw(batch * steps).float()
    for step in range(steps):
        ordinals = torch.arange(step * batch, (step + 1) * batch)
        value = loss(score, data[ordinals], ordinals).mean()
        optimiser.zero_grad()
        value.backward()
        optimiser.step()
        for group in optimiser.param_groups:
            group["lr"] = 1e-2 * (1 - step / steps)
    x_0 = mixture.draw(500, seed=9)
    for moment in (0.2, 0.5, 0.9):
        t = torch.full((500,), moment, dtype=torch.float64)
        z = torch.randn(500, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
        x = sde.signal(t)[:, None] * x_0 + sde.sigma(t)[:, None] * z
        with torch.no_grad():
            error = sde.sigma(t)[:, None] * (score(x.float(), t) - mixture(x, t))
        assert float(error.square().sum(dim=1).mean()) < 0.2, moment


@pytest.mark.parametrize("name", SDES)
def test_the_true_score_minimises_the_loss(name):
    """Shifting it by a constant in units of 1/sigma adds that constant's square to the loss."""
    mixture = two_blobs(SDES[name])
    x_0, ordinals = mixture.draw(4000), torch.arange(4000)
    loss = DenoisingScoreMatching(seed=3)

    class Shifted(Mixture):
        def __call__(self, x, t):
            return super().__call__(x, t) + 0.3 / self.sde.sigma(t)[:, None]

    shifted = Shifted(mixture.weights, mixture.means, mixture.covariances, mixture.sde)
    rise = (loss(shifted, x_0, ordinals) - loss(mixture, x_0, ordinals)).numpy()
    # 2 * 0.3^2, and a cross term of mean 0 whose standard deviation is at most 2 * 0.3 * sqrt(2).
    assert rise.mean() == pytest.approx(0.18, abs=5 * rise.std() / 4000**0.5)
    assert rise.std() / 4000**0.5 < 0.015


def test_likelihood_weighting_is_g_squared():
    sde, ordinals = SDES["sub_vp"], torch.arange(50)
    mixture = two_blobs(sde)
    x_0 = mixture.draw(50)
    times = []

    class Watched(Mixture):
        def __call__(self, x, t):
            times.append(t)
            return super().__call__(x, t)

    watched = Watched(mixture.weights, mixture.means, mixture.covariances, sde)
    plain = DenoisingScoreMatching(seed=3)(watched, x_0, ordinals)
    weighted = DenoisingScoreMatching(seed=3, weighting="likelihood")(watched, x_0, ordinals)
    t = times[0]
    beta = 0.1 + 19.9 * t
    integral = 0.1 * t + 19.9 * t**2 / 2
    g_squared, sigma = beta * (1 - torch.exp(-2 * integral)), 1 - torch.exp(-integral)
    torch.testing.assert_close(weighted, plain * g_squared / sigma**2)
    assert float(t.min()) >= sde.t_min
    assert float(t.max()) <= 1


def test_noise_of_the_loss_follows_from_seed_and_ordinal():
    mixture = two_blobs(SDES["vp"])
    x_0, loss = mixture.draw(6), DenoisingScoreMatching(seed=3)
    together = loss(mixture, x_0, torch.arange(6))
    torch.testing.assert_close(loss(mixture, x_0[4:5], torch.tensor([4])), together[4:5])
    assert not torch.allclose(DenoisingScoreMatching(seed=4)(mixture, x_0, torch.arange(6)), together)


@pytest.mark.parametrize("name", SDES)
def test_guidance_by_the_true_classifier_gives_the_class(name):
    """The component's posterior is a classifier; the guided score is the score of that component alone."""
    mixture = two_blobs(SDES[name])
    for k in (0, 1):
        guided = GuidedScore(mixture, mixture.component_log_densities, torch.tensor([k]))
        alone = Mixture(torch.ones(1), mixture.means[k : k + 1], mixture.covariances[k : k + 1], mixture.sde)
        t = torch.linspace(0.05, 0.95, 10, dtype=torch.float64)
        x = torch.randn(10, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(k))
        torch.testing.assert_close(guided(x, t), alone(x, t))
    twice = GuidedScore(mixture, mixture.component_log_densities, torch.tensor([1]), scale=2.0)
    torch.testing.assert_close(twice(x, t), 2 * alone(x, t) - mixture(x, t))


def test_guided_scores_can_be_differentiated():
    """As likelihoods need: the Jacobian of the guided score is that of the component."""
    mixture = two_blobs(SDES["vp"])
    guided = GuidedScore(mixture, mixture.component_log_densities, torch.tensor([0]))
    alone = Mixture(torch.ones(1), mixture.means[:1], mixture.covariances[:1], mixture.sde)
    x = torch.randn(3, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    t = torch.full((3,), 0.3, dtype=torch.float64)
    found, expected = (torch.autograd.grad(s(x, t)[:, 0].sum(), x)[0] for s in (guided, alone))
    torch.testing.assert_close(found, expected)


def test_a_classifier_of_clean_images_reads_the_denoised_state():
    """Linear logits W x_0: the gradient through E[x_0 | x_t], by finite differences."""
    mixture, weights = two_blobs(SDES["vp"]), torch.tensor([[1.0, -2.0], [0.5, 0.3]])
    classifier = on_denoised(mixture, lambda images: images @ weights.T)
    guided = GuidedScore(mixture, classifier, torch.tensor([1]), scale=3.0)
    x = torch.tensor([[0.3, -0.4]], dtype=torch.float64)
    t = torch.tensor([0.3], dtype=torch.float64)
    gradient = (guided(x, t) - mixture(x, t)) / 3

    def log_probability(y):
        return (denoised(mixture, y, t) @ weights.double().T).log_softmax(dim=1)[0, 1]

    h = 1e-4
    for i in range(2):
        step = torch.zeros(1, 2, dtype=torch.float64)
        step[0, i] = h
        slope = (log_probability(x + step) - log_probability(x - step)) / (2 * h)
        assert float(gradient[0, i]) == pytest.approx(float(slope), abs=1e-4)


class Field:
    """The score of images whose channels are jointly Gaussian at each pixel, pixels being independent."""

    device = torch.device("cpu")

    def __init__(self, mean, covariance, sde):
        self.mean, self.covariance, self.sde = mean.double(), covariance.double(), sde

    def __call__(self, x, t):
        a, variance = self.sde.signal(t), self.sde.sigma(t) ** 2
        matrix = a[:, None, None] ** 2 * self.covariance + variance[:, None, None] * torch.eye(len(self.mean))
        offset = x.double() - (a[:, None] * self.mean)[:, :, None, None]
        return -torch.einsum("bij,bjhw->bihw", torch.linalg.inv(matrix), offset).to(x.dtype)


MEAN = torch.tensor([0.2, -0.1, 0.3], dtype=torch.float64)
COVARIANCE = torch.tensor([[0.2, 0.12, 0.05], [0.12, 0.25, 0.1], [0.05, 0.1, 0.15]], dtype=torch.float64)
OPTIONS = {"steps": 120, "corrector_steps": 3, "spacing": "log_snr", "predictor": "ancestral"}


def conditional(known: torch.Tensor, value: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and covariance of x given known . x = value, for x ~ N(MEAN, COVARIANCE): textbook."""
    gain = COVARIANCE @ known / (known @ COVARIANCE @ known)
    return MEAN + gain * (value - known @ MEAN), COVARIANCE - torch.outer(gain, known @ COVARIANCE)


@pytest.mark.parametrize("sde", [VPSDE(), VESDE(0.01, 20.0)], ids=["vp", "ve"])
def test_inpainting_draws_from_the_conditional_distribution(sde):
    """Channel 0 known at every pixel; the others' mean and covariance over 8 images of 8 x 8 pixels."""
    image = torch.full((1, 3, 8, 8), math.nan)
    image[:, 0] = 0.7
    mask = torch.tensor([True, False, False]).reshape(3, 1, 1)
    found = inpaint(Field(MEAN, COVARIANCE, sde), image, mask, range(8), **OPTIONS)
    assert found.shape == (8, 3, 8, 8)
    assert (found[:, 0] == 0.7).all()
    mean, covariance = conditional(torch.tensor([1.0, 0, 0]).double(), 0.7)
    values = found.double().movedim(1, -1).reshape(-1, 3)[:, 1:]
    assert float((values.mean(dim=0) - mean[1:]).abs().max()) < 0.08
    assert float((values.T.cov() - covariance[1:, 1:]).abs().max()) < 0.05


def test_colours_are_drawn_given_the_grey():
    grey = torch.full((1, 1, 8, 8), 0.5)
    found = colourise(Field(MEAN, COVARIANCE, VPSDE()), grey, range(8), **OPTIONS)
    torch.testing.assert_close(found.mean(dim=1), torch.full((8, 8, 8), 0.5), rtol=0, atol=1e-5)
    mean, covariance = conditional(torch.full((3,), 1 / 3, dtype=torch.float64), 0.5)
    values = found.double().movedim(1, -1).reshape(-1, 3)
    assert float((values.mean(dim=0) - mean).abs().max()) < 0.08
    assert float((values.T.cov() - covariance).abs().max()) < 0.05
    torch.testing.assert_close(COLOURS @ COLOURS.T, torch.eye(3, dtype=torch.float64))


def test_an_inpainted_image_depends_on_its_own_seed_alone():
    field = Field(MEAN, COVARIANCE, VPSDE())
    image, mask = torch.zeros(1, 3, 4, 4), torch.arange(4) < 2
    together = inpaint(field, image, mask, [3, 4], steps=5)
    torch.testing.assert_close(inpaint(field, image, mask, [4], steps=5), together[1:], rtol=1e-4, atol=1e-4)
    assert float((together[0] - together[1]).abs().max()) > 0.1


def test_noise_of_what_is_known_is_fresh_each_time():
    """After the predictor and after every pass of the corrector."""
    seen = []

    class Recorder:
        def __call__(self, sde, x, t, noise):
            seen.append(noise.clone())
            return x

        def final(self, x_0):
            return x_0

    sample_pc(two_blobs(VPSDE()), [3], (2,), steps=3, corrector_steps=2, constraint=Recorder())
    assert len(torch.unique(torch.cat(seen), dim=0)) == len(seen) == 9


def test_bad_arguments_are_named():
    field, mixture = Field(MEAN, COVARIANCE, VPSDE()), two_blobs(SDES["vp"])
    image, mask = torch.zeros(2, 3, 4, 4), torch.ones(4, 4, dtype=torch.bool)
    for make, name in [
        (lambda: inpaint(field, image, mask.float(), [1, 2]), "mask"),
        (lambda: inpaint(field, image, mask[:3], [1, 2]), "mask"),
        (lambda: inpaint(field, image * math.nan, mask, [1, 2]), "image"),
        (lambda: inpaint(field, image, mask, [1, 2, 3]), "seeds"),
        (lambda: colourise(field, image, [1, 2]), "grey"),
        (lambda: DenoisingScoreMatching(-1), "seed"),
        (lambda: DenoisingScoreMatching(weighting="none"), "weighting"),
        (lambda: GuidedScore(mixture, mixture.component_log_densities, torch.tensor([0.5])), "class_labels"),
        (lambda: GuidedScore(mixture, mixture.component_log_densities, torch.tensor([0]), -1.0), "scale"),
        (lambda: NetworkScore(VPSDE(), Perceptron(VPSDE()), prediction_type="noise"), "prediction_type"),
        (lambda: NetworkScore(VPSDE(), Perceptron(VPSDE()), guidance_scale=2.0), "guidance_scale"),
    ]:
        with pytest.raises(ValueError, match=name):
            make()


def test_what_is_known_is_put_in_at_the_level_of_the_state():
    """a x_0 + sigma z under the mask, the state elsewhere; of colours the grey alone is replaced."""
    sde, t = VPSDE(), torch.tensor(0.4, dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    image, x, z = (torch.randn(2, 3, 4, 4, generator=generator) for _ in range(3))
    mask = torch.arange(4) < 2
    found = KnownPart(image, mask)(sde, x, t, z)
    noised = float(sde.signal(t)) * image + float(sde.sigma(t)) * z
    torch.testing.assert_close(found, torch.where(mask, noised, x))
    grey = torch.tensor([True, False, False]).reshape(3, 1, 1)
    found = KnownPart(image, grey, COLOURS)(sde, x, t, z)
    torch.testing.assert_close(found.mean(dim=1), noised.mean(dim=1))
    torch.testing.assert_close(found[:, 0] - found[:, 1], x[:, 0] - x[:, 1])
    torch.testing.assert_close(found[:, 1] - found[:, 2], x[:, 1] - x[:, 2])
