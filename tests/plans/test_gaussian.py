"""The diffusion maths: against denoising-diffusion-pytorch, and the derivations that introductions give.

The derivations restate the schedule from its betas with a plain product, so that nothing under test is used
to check itself. t is 0-based: x_{t-1} at t = 0 is the image.
"""

import math

import numpy as np
import pytest
import torch

from fastddpm import gaussian
from fastddpm.schedule import NoiseSchedule

SCHEDULES = [NoiseSchedule.linear(20, 1e-3, 0.4), NoiseSchedule.cosine(20), NoiseSchedule.sigmoid(20)]
SHAPE = (20, 3, 4, 5)
EVERY_T = torch.arange(20)


def draw(count, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(SHAPE, generator=generator, dtype=dtype) for _ in range(count)]


def products(schedule):
    """alphas_cumprod by a plain product, with 1 in front: [t] is abar_{t-1}, [t + 1] is abar_t."""
    out = [1.0]
    for beta in schedule.betas.tolist():
        out.append(out[-1] * (1 - beta))
    return out


@pytest.fixture(scope="module")
def lucidrains():
    peer = pytest.importorskip("denoising_diffusion_pytorch.denoising_diffusion_pytorch")

    class Model(torch.nn.Module):
        channels = out_dim = 3
        self_condition = False

    return peer.GaussianDiffusion(Model(), image_size=(4, 5), timesteps=20, beta_schedule="cosine")


def test_against_lucidrains(lucidrains):
    """Its buffers are float32; the formulas are the same five."""
    schedule, t = NoiseSchedule.cosine(20), EVERY_T
    x, y = draw(2, torch.float32)

    def close(ours, theirs):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5 * float(theirs.abs().max()))

    close(gaussian.q_sample(schedule, x, t, y), lucidrains.q_sample(x, t, y))
    close(gaussian.x0_from_eps(schedule, x, t, y), lucidrains.predict_start_from_noise(x, t, y))
    close(gaussian.x0_from_v(schedule, x, t, y), lucidrains.predict_start_from_v(x, t, y))
    close(gaussian.eps_from_x0(schedule, x, t, y), lucidrains.predict_noise_from_start(x, t, y))
    close(gaussian.velocity(schedule, x, t, y), lucidrains.predict_v(x, t, y))
    mean, variance, _ = lucidrains.q_posterior(y, x, t)
    close(gaussian.posterior_mean(schedule, x, t, y), mean)
    close(gaussian.posterior_variance(schedule, x, t), variance)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: s.name)
def test_single_steps_compose_to_the_closed_form(schedule):
    """Mean and variance of q(x_t | x_0), carried through q(x_t | x_{t-1}) one step at a time."""
    x_0 = draw(1)[0][:1]
    mean, variance = x_0, torch.zeros(1, 1, 1, 1, dtype=torch.float64)
    for t in range(20):
        now = torch.tensor([t])
        mean, beta = gaussian.forward_mean_variance(schedule, mean, now)
        variance = (1 - beta) * variance + beta  # Var[sqrt(alpha) x + sqrt(beta) z]
        closed_mean, closed_variance = gaussian.q_mean_variance(schedule, x_0, now)
        torch.testing.assert_close(mean, closed_mean, rtol=1e-12, atol=1e-14)
        torch.testing.assert_close(variance, closed_variance, rtol=1e-12, atol=1e-14)
        abar = products(schedule)[t + 1]
        torch.testing.assert_close(closed_mean, math.sqrt(abar) * x_0, rtol=1e-12, atol=1e-14)
        assert math.isclose(closed_variance.item(), 1 - abar, rel_tol=1e-11)


def test_q_sample_is_mean_plus_deviation():
    x_0, noise = draw(2)
    mean, variance = gaussian.q_mean_variance(SCHEDULES[0], x_0, EVERY_T)
    expected = mean + variance.sqrt() * noise
    torch.testing.assert_close(gaussian.q_sample(SCHEDULES[0], x_0, EVERY_T, noise), expected)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: s.name)
def test_completing_the_square(schedule):
    """q(x_{t-1} | x_t, x_0) from Bayes' rule.

    log q(x_t | x_{t-1}) + log q(x_{t-1} | x_0) = -1/2 (A x_{t-1}^2 - 2 B x_{t-1}) + const, with
    A = alpha_t/beta_t + 1/(1 - abar_{t-1}) and B = sqrt(alpha_t)/beta_t x_t + sqrt(abar_{t-1})/(1 -
    abar_{t-1}) x_0: variance 1/A, mean B/A.
    """
    x_t, x_0 = draw(2)
    mean = gaussian.posterior_mean(schedule, x_t, EVERY_T, x_0)
    variance = gaussian.posterior_variance(schedule, x_t, EVERY_T)
    abar = products(schedule)
    for t in range(1, 20):
        beta, abar_prev = schedule.betas[t], abar[t]
        a = (1 - beta) / beta + 1 / (1 - abar_prev)
        b = math.sqrt(1 - beta) / beta * x_t[t] + math.sqrt(abar_prev) / (1 - abar_prev) * x_0[t]
        torch.testing.assert_close(mean[t], b / a, rtol=1e-10, atol=1e-12)
        assert math.isclose(variance[t].item(), 1 / a, rel_tol=1e-10)
    torch.testing.assert_close(mean[0], x_0[0])  # nothing is left to draw at the last step
    assert variance[0] == 0


def test_posterior_is_the_conditional_of_the_joint_gaussian():
    """The same by linear algebra: condition the joint Gaussian of (x_{t-1}, x_t) given x_0 on x_t."""
    schedule, x_0, x_t = SCHEDULES[0], 0.7, -1.3
    abar = products(schedule)
    for t in range(1, 20):
        alpha = 1 - schedule.betas[t]
        means = np.sqrt(abar[t]) * x_0, np.sqrt(abar[t + 1]) * x_0
        var_prev, covariance, var_t = 1 - abar[t], np.sqrt(alpha) * (1 - abar[t]), 1 - abar[t + 1]
        expected = means[0] + covariance / var_t * (x_t - means[1])
        now, one = torch.tensor([t]), torch.ones(1, 1, dtype=torch.float64)
        mean = gaussian.posterior_mean(schedule, x_t * one, now, x_0 * one)
        assert math.isclose(mean.item(), expected, rel_tol=1e-10)
        variance = gaussian.posterior_variance(schedule, one, now)
        assert math.isclose(variance.item(), var_prev - covariance**2 / var_t, rel_tol=1e-9)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: s.name)
def test_both_forms_of_the_posterior_mean_agree(schedule):
    x_0, eps = draw(2)
    x_t = gaussian.q_sample(schedule, x_0, EVERY_T, eps)
    from_x0 = gaussian.posterior_mean(schedule, x_t, EVERY_T, x_0)
    from_eps = gaussian.posterior_mean_from_eps(schedule, x_t, EVERY_T, eps)
    torch.testing.assert_close(from_eps, from_x0, rtol=1e-9, atol=1e-9)
    beta, abar = schedule.betas[7], products(schedule)[8]
    textbook = (x_t[7] - beta / math.sqrt(1 - abar) * eps[7]) / math.sqrt(1 - beta)
    torch.testing.assert_close(from_eps[7], textbook, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: s.name)
def test_weights_move_to_x0_as_t_falls(schedule):
    """The posterior mean is a weighted sum of x_0 and x_t; the weight of x_0 ends at 1, that of x_t at 0.

    On a linear schedule all the way. Where betas near 1 end a schedule (cosine, sigmoid) x_t knows next to
    nothing of x_{t-1}, so that the first few steps lean on x_0 too.
    """
    one, zero = torch.ones(20, 1, dtype=torch.float64), torch.zeros(20, 1, dtype=torch.float64)
    of_x0 = gaussian.posterior_mean(schedule, zero, EVERY_T, one).flatten()
    of_xt = gaussian.posterior_mean(schedule, one, EVERY_T, zero).flatten()
    share = of_x0 / (of_x0 + of_xt)
    falling = share if schedule.name == "linear" else share[:16]
    assert (falling.diff() < 0).all()
    assert falling[-1] < 0.4
    assert math.isclose(of_x0[0].item(), 1.0, rel_tol=1e-12)
    assert of_xt[0] == 0


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: s.name)
def test_posterior_variance_is_the_smaller_choice(schedule):
    one = torch.ones(20, 1, dtype=torch.float64)
    small = gaussian.posterior_variance(schedule, one, EVERY_T).flatten()
    large = gaussian.forward_mean_variance(schedule, one, EVERY_T)[1].flatten()
    assert (small < large).all()
    assert small[0] == 0
    assert (small[1:] > 0).all()


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: s.name)
def test_predictions_convert_into_each_other(schedule):
    """From x_t = alpha x_0 + sigma eps and v = alpha eps - sigma x_0, all six ways."""
    x_0, eps = draw(2)
    abar = torch.tensor(products(schedule)[1:], dtype=torch.float64).reshape(-1, 1, 1, 1)
    x_t = abar.sqrt() * x_0 + (1 - abar).sqrt() * eps
    v = abar.sqrt() * eps - (1 - abar).sqrt() * x_0
    for function, given, expected in [
        (gaussian.x0_from_eps, eps, x_0),
        (gaussian.x0_from_v, v, x_0),
        (gaussian.eps_from_x0, x_0, eps),
        (gaussian.eps_from_v, v, eps),
        (gaussian.v_from_x0, x_0, v),
        (gaussian.v_from_eps, eps, v),
    ]:
        got = function(schedule, x_t, EVERY_T, given)
        torch.testing.assert_close(got, expected, rtol=1e-8, atol=1e-8, msg=function.__name__)
    torch.testing.assert_close(gaussian.velocity(schedule, x_0, EVERY_T, eps), v, rtol=1e-11, atol=1e-12)


def test_shapes_and_dtypes():
    schedule = SCHEDULES[0]
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        for shape in [(2, 3), (2, 3, 4, 5), (2,)]:
            x = torch.ones(shape, dtype=dtype)
            out = gaussian.q_sample(schedule, x, torch.tensor([0, 19], dtype=torch.int32), x)
            assert out.dtype == dtype
            assert out.shape == shape


@pytest.mark.parametrize(
    ("t", "message"),
    [
        (torch.tensor([0, 20]), r"0 \.\. 20 given, in 0 \.\. 19 accepted"),
        (torch.tensor([-1, 3]), r"-1 \.\. 3 given"),
        (torch.tensor([0.0, 1.0]), "integer tensor"),
        (torch.tensor([True, False]), "integer tensor"),
        (torch.tensor(3), "shape"),
        (torch.tensor([1, 2, 3]), "shape"),
    ],
    ids=str,
)
def test_bad_t(t, message):
    with pytest.raises(ValueError, match=message):
        gaussian.q_sample(SCHEDULES[0], torch.ones(2, 3), t, torch.ones(2, 3))
