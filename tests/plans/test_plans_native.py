"""Native plans against float64 restatements of the papers, exact solutions, and two libraries' samplers."""

import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from step_cases import COLUMNS

from fastddpm.plans import (
    METHODS,
    Method,
    Plan,
    ddim_plan,
    ddpm_plan,
    dpmpp_2m_plan,
    make_plan,
    spaced_timesteps,
)
from fastddpm.plans.diffusers import from_ddpm_scheduler
from fastddpm.schedule import NoiseSchedule
from fastddpm_kernels import reverse_step
from fastddpm_kernels.table import N_COLUMNS, Column


def name_of(value):
    """Of a test's argument: the same in every process, unlike a function's address."""
    return getattr(value, "__name__", str(value))


GOLDEN = load_file(Path(__file__).parents[1] / "golden" / "schedules.safetensors")
LINEAR = NoiseSchedule.linear()
COSINE = NoiseSchedule.cosine(200)
SIGMOID = NoiseSchedule.sigmoid(100)

PREDICTIONS = ["epsilon", "sample", "v_prediction"]
SPACINGS = ["leading", "linspace", "trailing"]
TOLERANCE = 1e-6
"""Relative to the largest value: a row is float32, its restatement float64."""


def step(plan, k, x, m, *, z=0.0, x0_prev=0.0):
    """Row k in float64: (x_next, x0)."""
    row = {letter: float(plan.table[k, column]) for letter, column in COLUMNS.items()}
    x0 = np.clip(row["p"] * x + row["q"] * m, -row["r"], row["r"])
    x_next = row["a"] * x0 + row["b"] * x + row["e"] * m + row["h"] * x0_prev + row["c"] * z
    return x_next, x0


def walk(plan, network, x):
    """The deterministic part of a chain, by rows."""
    x0 = np.full_like(x, 7.0)  # left over from elsewhere; a first row must not use it
    for k in range(len(plan)):
        x, x0 = step(plan, k, x, network(x, plan.timesteps[k]), x0_prev=x0)
    return x


def abar_of(schedule, t):
    """alphas_cumprod by a plain product; 1 for t = -1, before the first step."""
    return math.prod(1 - beta for beta in schedule.betas[: t + 1].tolist())


def clean_and_noise(prediction, x, m, abar):
    """x0 and eps from the network's output, solving x = alpha x0 + sigma eps, v = alpha eps - sigma x0."""
    alpha, sigma = math.sqrt(abar), math.sqrt(1 - abar)
    if prediction == "epsilon":
        return (x - sigma * m) / alpha, m
    if prediction == "sample":
        return m, (x - alpha * m) / sigma
    x0, eps = np.linalg.solve([[alpha, sigma], [-sigma, alpha]], np.stack([x, m]))
    return x0, eps


def inputs(n_rows):
    generator = np.random.default_rng(0)
    return generator.standard_normal((4, n_rows, 64))


def hold(got, expected, *, cancelled=0.0):
    """`cancelled`: size of the terms whose difference the result is, where that is larger than the result."""
    assert np.abs(got - expected).max() <= TOLERANCE * np.abs(expected).max() + 2e-7 * cancelled


# ---------------------------------------------------------------- rows


@pytest.mark.parametrize("schedule", [LINEAR, COSINE, SIGMOID], ids=lambda s: s.name)
@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("clip", [None, 1.0, 0.3])
@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large"])
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_ddpm_rows(prediction, variance, clip, spacing, schedule):
    """The posterior by completing the square, between consecutive timesteps of the plan."""
    plan = ddpm_plan(
        schedule,
        10,
        prediction_type=prediction,
        variance_type=variance,
        clip_sample_range=clip,
        timestep_spacing=spacing,
        sigma_scale=0.8,
    )
    assert plan.clip is (clip is not None)
    x, m, z, _ = inputs(len(plan))
    for k, t in enumerate(plan.timesteps):
        last = k == len(plan) - 1
        abar, abar_prev = abar_of(schedule, t), 1.0 if last else abar_of(schedule, plan.timesteps[k + 1])
        x0, _ = clean_and_noise(prediction, x[k], m[k], abar)
        if clip is not None:
            x0 = np.clip(x0, -clip, clip)
        alpha = abar / abar_prev
        if last:
            expected = x0
        else:
            a = alpha / (1 - alpha) + 1 / (1 - abar_prev)
            b = math.sqrt(alpha) / (1 - alpha) * x[k] + math.sqrt(abar_prev) / (1 - abar_prev) * x0
            variance_t = 1 / a if variance == "fixed_small" else 1 - alpha
            expected = b / a + 0.8 * math.sqrt(variance_t) * z[k]
        hold(step(plan, k, x[k], m[k], z=z[k])[0], expected)


@pytest.mark.parametrize("schedule", [LINEAR, COSINE, SIGMOID], ids=lambda s: s.name)
@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("clip", [None, 1.0, 0.3])
@pytest.mark.parametrize("rederive", [False, True])
@pytest.mark.parametrize("eta", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_ddim_rows(prediction, eta, rederive, clip, spacing, schedule):
    """Song et al. 2021, equations 12 and 16."""
    plan = ddim_plan(
        schedule,
        10,
        eta=eta,
        prediction_type=prediction,
        clip_sample_range=clip,
        timestep_spacing=spacing,
        use_clipped_model_output=rederive,
    )
    x, m, z, _ = inputs(len(plan))
    for k, t in enumerate(plan.timesteps):
        last = k == len(plan) - 1
        abar, abar_prev = abar_of(schedule, t), 1.0 if last else abar_of(schedule, plan.timesteps[k + 1])
        x0, eps = clean_and_noise(prediction, x[k], m[k], abar)
        if clip is not None:
            x0 = np.clip(x0, -clip, clip)
        if rederive:
            eps = (x[k] - math.sqrt(abar) * x0) / math.sqrt(1 - abar)
        sigma = eta * math.sqrt((1 - abar_prev) / (1 - abar)) * math.sqrt(1 - abar / abar_prev)
        expected = math.sqrt(abar_prev) * x0 + math.sqrt(1 - abar_prev - sigma**2) * eps + sigma * z[k]
        hold(step(plan, k, x[k], m[k], z=z[k])[0], expected)


@pytest.mark.parametrize("schedule", [LINEAR, COSINE, SIGMOID], ids=lambda s: s.name)
@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("clip", [None, 0.3])
@pytest.mark.parametrize("final", [1.0, 0.9999999])
@pytest.mark.parametrize("steps", [1, 2, 10, 20])
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_dpmpp_rows(prediction, steps, final, clip, spacing, schedule):
    """Lu et al. 2022b, algorithm 2: x_t = sigma_t/sigma_s x_s - alpha_t (e^-h - 1) D."""
    plan = dpmpp_2m_plan(
        schedule,
        steps,
        prediction_type=prediction,
        clip_sample_range=clip,
        timestep_spacing=spacing,
        final_alpha_cumprod=final,
    )
    x, m, _, x0_prev = inputs(len(plan))
    abars = [abar_of(schedule, t) for t in plan.timesteps] + [final]
    lambdas = [0.5 * math.log(a / (1 - a)) if a < 1 else math.inf for a in abars]
    for k, abar in enumerate(abars[:-1]):
        x0, _ = clean_and_noise(prediction, x[k], m[k], abar)
        if clip is not None:
            x0 = np.clip(x0, -clip, clip)
        d, h = x0, lambdas[k + 1] - lambdas[k]
        lower = k == 0 or (k == steps - 1 and (final == 1 or steps < 15))
        if not lower:
            r = (lambdas[k] - lambdas[k - 1]) / h
            d = (1 + 1 / (2 * r)) * x0 - 1 / (2 * r) * x0_prev[k]
        sigma_ratio = math.sqrt(1 - abars[k + 1]) / math.sqrt(1 - abar)
        expected = sigma_ratio * x[k] - math.sqrt(abars[k + 1]) * (math.exp(-h) - 1) * d
        got, got_x0 = step(plan, k, x[k], m[k], x0_prev=x0_prev[k])
        terms = (
            float(plan.table[k, Column.X0_FROM_X]) * np.abs(x[k]).max()
        )  # x0 = p x + q m is small beside both
        hold(got, expected, cancelled=abs(plan.table[k, Column.FROM_X0]) * terms)
        hold(got_x0, x0, cancelled=terms)
    assert plan.kept == bool((plan.table[:, Column.FROM_KEPT_1] != 0).any())
    assert plan.kept == (steps >= 10)
    assert not plan.combines


def test_collapsed_columns():
    """Unclipped, LINEAR_X x + LINEAR_M m is the row."""
    for prediction in PREDICTIONS:
        for plan in (
            ddpm_plan(LINEAR, 50, prediction_type=prediction),
            ddim_plan(LINEAR, 50, eta=0.3, prediction_type=prediction),
        ):
            x, m, _, _ = inputs(len(plan))
            for k in range(len(plan)):
                linear_x, linear_m = plan.table[k, [Column.LINEAR_X, Column.LINEAR_M]].astype(np.float64)
                # Float32 p and q nearly cancel at large t; the collapsed form was computed in float64.
                scale = abs(float(plan.table[k, Column.FROM_X0] * plan.table[k, Column.X0_FROM_X])) + 1
                difference = linear_x * x[k] + linear_m * m[k] - step(plan, k, x[k], m[k])[0]
                assert np.abs(difference).max() < 1e-6 * scale


@pytest.mark.parametrize("kind", ["linear", "cosine"])
def test_abarankab_step(kind):
    """remove_noise is (x - remove_noise_coeff eps) * reciprocal_sqrt_alphas; then sigma z but at the end."""
    golden = {
        name.split(".")[1]: values for name, values in GOLDEN.items() if name.startswith(f"abarankab_{kind}")
    }
    plan = ddpm_plan(NoiseSchedule.from_betas(golden["betas64"]), variance_type="fixed_large")
    table = plan.table[::-1]  # by t
    np.testing.assert_allclose(table[:, Column.LINEAR_X], golden["reciprocal_sqrt_alphas"], rtol=2e-7)
    weight = golden["remove_noise_coeff"] * golden["reciprocal_sqrt_alphas"]
    np.testing.assert_allclose(table[:, Column.LINEAR_M], -weight, rtol=3e-7)
    np.testing.assert_allclose(table[1:, Column.FROM_NOISE], golden["sigma"][1:], rtol=2e-7)
    assert table[0, Column.FROM_NOISE] == 0


def test_sr3_step():
    golden = {name.split(".")[1]: values for name, values in GOLDEN.items() if name.startswith("sr3_linear")}
    schedule = NoiseSchedule.linear(24, 1 / 24000, 10 / 24)
    plan = ddpm_plan(schedule, clip_sample_range=1.0).with_noise_levels(schedule)
    table = plan.table[::-1]
    for column, values in [
        (Column.X0_FROM_X, golden["sqrt_recip_alphas_cumprod"]),
        (Column.X0_FROM_M, -golden["sqrt_recipm1_alphas_cumprod"]),
        (Column.FROM_X0, golden["posterior_mean_coef1"]),
        (Column.FROM_X, golden["posterior_mean_coef2"]),
    ]:
        np.testing.assert_allclose(table[:, column], values, rtol=3e-7, atol=1e-9, err_msg=column.name)
    deviation = np.exp(0.5 * golden["posterior_log_variance_clipped"])
    np.testing.assert_allclose(table[1:, Column.FROM_NOISE], deviation[1:], rtol=3e-6)
    assert plan.model_time.dtype == np.float32
    np.testing.assert_allclose(plan.model_time[::-1], golden["sqrt_alphas_cumprod"], rtol=1e-7)


@pytest.mark.parametrize("method", ["ddpm", "unipc"])
def test_what_a_network_of_palette_is_told(method):
    """gamma of Saharia et al. 2022, the product of 1 - beta, at the timesteps visited."""
    schedule = NoiseSchedule.linear(1000, 1e-6, 0.01)
    plan = Method(method=method, num_inference_steps=7, time_input="alphas_cumprod").plan(schedule)
    gamma = np.cumprod(1 - np.linspace(1e-6, 0.01, 1000))[plan.timesteps]
    assert plan.model_time.dtype == np.float32
    np.testing.assert_allclose(plan.model_time, gamma, rtol=1e-7)
    np.testing.assert_array_equal(
        plan.with_noise_levels(schedule, "alphas_cumprod").model_time, plan.model_time
    )
    with pytest.raises(ValueError, match="time_input: 'gamma' given, one of noise_level, alphas_cumprod"):
        plan.with_noise_levels(schedule, "gamma")


@pytest.mark.parametrize("spacing", SPACINGS)
def test_ddpm_close_to_diffusers(spacing):
    """The same method as DDPMScheduler, but for its float32 and its noise in a last step at t > 0."""
    native = ddpm_plan(LINEAR, 50, clip_sample_range=1.0, timestep_spacing=spacing)
    peer = from_ddpm_scheduler({"timestep_spacing": spacing}, 50)
    assert (native.timesteps == peer.timesteps).all()
    table = peer.table.copy()
    # There x0 is (x - sigma*m) / alpha; here the division is multiplied out.
    table[:, [Column.X0_FROM_X, Column.X0_FROM_M]] /= table[:, [Column.X0_DIVISOR]]
    table[:, Column.X0_DIVISOR] = 0
    np.testing.assert_allclose(native.table[:-1], table[:-1], rtol=2e-3, atol=1e-6)


def test_learned_range_spans_the_two_variances():
    """At v = -1 and +1 the noise is that of fixed_small and fixed_large; the last step has none."""
    learned = ddpm_plan(LINEAR, 50, variance_type="learned_range", sigma_scale=0.5)
    assert learned.learned_range
    small, large = (
        ddpm_plan(LINEAR, 50, variance_type=kind, sigma_scale=0.5).table
        for kind in ("fixed_small", "fixed_large")
    )
    c = learned.table[:, Column.FROM_NOISE]
    np.testing.assert_allclose(
        c * np.exp(0.5 * learned.table[:, Column.LOG_VAR_MIN]), small[:, Column.FROM_NOISE], rtol=1e-6
    )
    np.testing.assert_allclose(
        c * np.exp(0.5 * learned.table[:, Column.LOG_VAR_MAX]), large[:, Column.FROM_NOISE], rtol=1e-6
    )
    assert (c[:-1] == 0.5).all()
    assert c[-1] == 0


def test_rows_through_the_operator():
    """reverse_step walks a plan: every method, with the operator's own float32 arithmetic."""
    x, m, z, x0_prev = (torch.tensor(v, dtype=torch.float32)[:, None] for v in inputs(10))
    for plan in (
        ddpm_plan(LINEAR, 10, clip_sample_range=1.0),
        ddpm_plan(LINEAR, 10),
        ddim_plan(LINEAR, 10, eta=0.5, clip_sample_range=1.0, use_clipped_model_output=True),
        dpmpp_2m_plan(LINEAR, 10, prediction_type="v_prediction"),
    ):
        for k in range(10):
            got, buffer = x[k].clone(), x0_prev[k].clone()[None]
            reverse_step(
                got,
                m[k],
                torch.tensor(plan.table),
                torch.tensor([[k, 0]]).expand(len(got), 2),
                noise=z[k][None],
                kept=buffer if plan.kept else None,
                clip=plan.clip,
            )
            arrays = (v[k].double().numpy() for v in (x, m, z, x0_prev))
            now, output, noise, before = arrays
            expected = step(plan, k, now, output, z=noise, x0_prev=before)[0]
            assert np.abs(got.numpy() - expected).max() < 3e-6 * np.abs(expected).max()


# ---------------------------------------------------------------- chains with known answers


def knows_the_image(image, schedule):
    """The exact epsilon of a data set that is one image."""

    def network(x, t):
        abar = abar_of(schedule, t)
        return (x - math.sqrt(abar) * image) / math.sqrt(1 - abar)

    return network


@pytest.mark.parametrize("spacing", SPACINGS)
def test_one_image_is_found(spacing):
    """With the exact network of a single image every method ends on that image."""
    image, x = np.random.default_rng(1).uniform(-1, 1, (2, 50))
    network = knows_the_image(image, LINEAR)
    for plan in (
        ddpm_plan(LINEAR, 20, timestep_spacing=spacing),
        ddim_plan(LINEAR, 20, timestep_spacing=spacing),
        dpmpp_2m_plan(LINEAR, 20, timestep_spacing=spacing),
        dpmpp_2m_plan(LINEAR, 20, timestep_spacing=spacing, clip_sample_range=1.0),
    ):
        assert np.abs(walk(plan, network, x) - image).max() < 1e-5


def gaussian_network(scale, schedule):
    """The exact epsilon for data N(0, scale^2): E[eps | x_t] = sigma x / (alpha^2 scale^2 + sigma^2)."""

    def network(x, t):
        abar = abar_of(schedule, t)
        return math.sqrt(1 - abar) * x / (abar * scale**2 + 1 - abar)

    return network


def test_order_of_the_solvers():
    """On Gaussian data the ODE is solved exactly: x_t / sqrt(alpha_t^2 s^2 + sigma_t^2) is constant.

    Halving the steps of DPM-Solver++(2M) quarters its error, those of DDIM halve it.
    """
    scale, last = 0.5, 20

    def error(build, n_steps):
        timesteps = np.unique(np.round(np.geomspace(last, 999, n_steps + 1)).astype(int))[::-1]
        assert len(timesteps) == n_steps + 1
        final = abar_of(LINEAR, last)
        plan = build(LINEAR, timesteps=timesteps[:-1], final_alpha_cumprod=final)
        if plan.kept:
            assert plan.table[-1, Column.FROM_KEPT_1] != 0
        start, end = abar_of(LINEAR, 999), final
        exact = math.sqrt((end * scale**2 + 1 - end) / (start * scale**2 + 1 - start))
        return abs(walk(plan, gaussian_network(scale, LINEAR), np.ones(1))[0] - exact)

    def second_order(*args, **kwargs):
        return dpmpp_2m_plan(*args, lower_order_final=False, **kwargs)

    for build, order in [(ddim_plan, 1), (second_order, 2)]:
        observed = math.log2(error(build, 32) / error(build, 64))
        assert abs(observed - order) < 0.35, (build.__name__, observed)


def test_variance_of_the_ancestral_chain():
    """The variance of the samples for Gaussian data of variance s^2, carried through all 1000 steps.

    Ho et al. 2020, section 3.2: beta_t is the right variance of a step for s = 1, the posterior's for a
    single image, and in between the two are an upper and a lower bound.
    """

    def final_variance(scale, variance_type):
        plan = ddpm_plan(LINEAR, variance_type=variance_type)
        network, total = gaussian_network(scale, LINEAR), 1.0
        for k, t in enumerate(plan.timesteps):
            gain = step(plan, k, 1.0, network(1.0, t))[0]
            total = gain**2 * total + float(plan.table[k, Column.FROM_NOISE]) ** 2
        return total

    # Exact but for beta_0, which the last, noiseless step leaves out.
    assert math.isclose(final_variance(1.0, "fixed_large"), 1 - LINEAR.betas[0], rel_tol=1e-6)
    small, large = final_variance(0.3, "fixed_small"), final_variance(0.3, "fixed_large")
    assert 0.97 * 0.3**2 < small < 0.3**2 < large < 1.01 * 0.3**2


def test_ddim_with_eta_one_is_ddpm():
    ddpm, ddim = ddpm_plan(LINEAR, 25), ddim_plan(LINEAR, 25, eta=1.0)
    for column in (Column.LINEAR_X, Column.LINEAR_M, Column.FROM_NOISE):
        np.testing.assert_allclose(ddim.table[:, column], ddpm.table[:, column], rtol=1e-5, atol=1e-7)


def test_sigma_scale_zero_is_deterministic_and_not_ddim():
    still, ddim = ddpm_plan(LINEAR, 50, sigma_scale=0.0), ddim_plan(LINEAR, 50)
    assert not still.stochastic
    assert not ddim.stochastic
    assert ddpm_plan(LINEAR, 50).stochastic
    network, x = gaussian_network(0.5, LINEAR), np.ones(1)
    exact = 0.5
    # The mean of the posterior, taken over and over, falls short; DDIM follows the ODE.
    assert abs(walk(ddim, network, x)[0] - exact) < 0.03
    assert walk(still, network, x)[0] < 0.8 * exact


def test_only_the_last_step_is_noiseless():
    for plan in (
        ddpm_plan(LINEAR, 10),
        ddpm_plan(LINEAR, 10, variance_type="fixed_large", timestep_spacing="trailing"),
        ddpm_plan(LINEAR, 10, variance_type="learned_range"),
        ddim_plan(LINEAR, 10, eta=0.5, final_alpha_cumprod=0.99999),
    ):
        assert (plan.table[:-1, Column.FROM_NOISE] > 0).all()
        assert plan.table[-1, Column.FROM_NOISE] == 0
        assert plan.draws.tolist() == [True] * 9 + [False]


# ---------------------------------------------------------------- denoising-diffusion-pytorch


def lucidrains(objective, **options):
    peer = pytest.importorskip("denoising_diffusion_pytorch.denoising_diffusion_pytorch")
    weight = torch.randn((3, 3, 3, 3), generator=torch.Generator().manual_seed(1)) * 0.2

    class Model(torch.nn.Module):
        channels = out_dim = 3
        self_condition = False

        def forward(self, x, t, x_self_cond=None):
            phase = t.reshape(-1, 1, 1, 1) / 100
            return torch.tanh(torch.nn.functional.conv2d(x, weight, padding=1) + phase)

    model = Model()
    return model, peer.GaussianDiffusion(
        model,
        image_size=8,
        timesteps=100,
        beta_schedule="cosine",
        objective=objective,
        auto_normalize=False,
        **options,
    )


def run_plan(plan, model, shape, draws):
    x = torch.randn(shape)
    table = torch.tensor(plan.table)
    for k, t in enumerate(plan.timesteps):
        noise = torch.randn(shape)[None] if draws[k] else None
        m = model(x, torch.full((shape[0],), int(t)))
        reverse_step(x, m, table, torch.tensor([[k, 0]] * len(x)), noise=noise, clip=plan.clip)
    return x


OBJECTIVES = [("pred_noise", "epsilon"), ("pred_x0", "sample"), ("pred_v", "v_prediction")]


@pytest.mark.parametrize(("objective", "prediction"), OBJECTIVES)
def test_lucidrains_ddpm_chain(objective, prediction):
    model, peer = lucidrains(objective)
    plan = ddpm_plan(NoiseSchedule.cosine(100), prediction_type=prediction, clip_sample_range=1.0)
    torch.manual_seed(3)
    expected = peer.sample(batch_size=2)
    torch.manual_seed(3)
    got = run_plan(plan, model, (2, 3, 8, 8), plan.draws)
    assert (got - expected).abs().max() < 1e-3


@pytest.mark.parametrize("eta", [0.0, 0.6])
@pytest.mark.parametrize(("objective", "prediction"), OBJECTIVES)
def test_lucidrains_ddim_chain(objective, prediction, eta):
    """It re-derives eps from the clipped x0, and draws noise in all but the last step whatever eta is."""
    model, peer = lucidrains(objective, sampling_timesteps=12, ddim_sampling_eta=eta)
    timesteps = torch.linspace(-1, 99, 13).int().flip(0)[:-1].numpy()
    plan = ddim_plan(
        NoiseSchedule.cosine(100),
        timesteps=timesteps,
        eta=eta,
        prediction_type=prediction,
        clip_sample_range=1.0,
        use_clipped_model_output=True,
    )
    torch.manual_seed(3)
    expected = peer.sample(batch_size=2)
    torch.manual_seed(3)
    got = run_plan(plan, model, (2, 3, 8, 8), [True] * 11 + [False])
    assert (got - expected).abs().max() < 1e-3


# ---------------------------------------------------------------- zero terminal SNR


@pytest.mark.parametrize(
    "schedule", [LINEAR.rescaled_zero_terminal_snr(), NoiseSchedule.jsd(40)], ids=lambda s: s.name
)
@pytest.mark.parametrize("build", [ddpm_plan, ddim_plan, dpmpp_2m_plan])
def test_zero_terminal_snr(build, schedule):
    """At abar = 0 the state is pure noise: nothing of it may survive a step, and no row may be infinite."""
    for prediction in ("sample", "v_prediction"):
        plan = build(schedule, 10, prediction_type=prediction, timestep_spacing="trailing")
        x, m, _, _ = inputs(1)
        first, x0 = step(plan, 0, x[0], m[0])
        expected_x0 = m[0] if prediction == "sample" else -m[0]
        assert np.abs(x0 - expected_x0).max() < 1e-3  # 2**-12 of x is left in DPM-Solver++
        assert np.isfinite(first).all()
    if build is not dpmpp_2m_plan:
        with pytest.raises(ValueError, match=r"clip_sample_range.*alphas_cumprod is 0"):
            build(schedule, 10, timestep_spacing="trailing")
    clipped = build(schedule, 10, timestep_spacing="trailing", clip_sample_range=1.0)
    assert clipped.table[0, Column.X0_FROM_X] == (2.0**12 if build is dpmpp_2m_plan else 2.0**60)
    assert (np.abs(step(clipped, 0, np.array([0.5, -2.0]), np.zeros(2))[1]) == 1).all()
    assert len(build(schedule, 10, timesteps=range(9, -1, -1))) == 10


def test_ddim_eta_one_at_zero_snr():
    plan = ddim_plan(LINEAR.rescaled_zero_terminal_snr(), 10, eta=1.0, prediction_type="sample",
                     timestep_spacing="trailing")  # fmt: skip
    # 1 - abar_prev - sigma^2 is exactly 0 in the first step: no direction, all noise.
    assert abs(plan.table[0, Column.FROM_X]) < 1e-7
    assert np.isclose(plan.table[0, Column.FROM_NOISE] ** 2 + plan.table[0, Column.FROM_X0] ** 2, 1)


def test_no_nan_leaves_a_plan():
    """Betas so large that alphas_cumprod underflows to 0 at several timesteps: 0/0."""
    schedule = NoiseSchedule.const(2000, 0.9)
    for build in (ddpm_plan, ddim_plan, dpmpp_2m_plan):
        with pytest.raises(ValueError, match="no finite row at timestep"):
            build(schedule, prediction_type="sample")
    with pytest.raises(ValueError, match="no finite row at timestep"):
        ddpm_plan(NoiseSchedule.const(2000, 0.2))  # 1/sqrt(abar) is beyond float32


# ---------------------------------------------------------------- spacing


def test_spacing_is_table_2_of_lin_et_al():
    """Lin et al. 2023, table 2, for T = 1000 and S = 10; theirs counts from 1."""
    leading = [901, 801, 701, 601, 501, 401, 301, 201, 101, 1]
    linspace = [1000, 889, 778, 667, 556, 445, 334, 223, 112, 1]
    trailing = [1000, 900, 800, 700, 600, 500, 400, 300, 200, 100]
    for spacing, table in [("leading", leading), ("linspace", linspace), ("trailing", trailing)]:
        assert (spaced_timesteps(1000, 10, spacing) + 1).tolist() == table
        assert ddpm_plan(LINEAR, 10, timestep_spacing=spacing).timesteps.tolist() == [t - 1 for t in table]


@pytest.mark.parametrize("solver", [False, True], ids=["ancestral", "dpm"])
@pytest.mark.parametrize("spacing", SPACINGS)
def test_spacing_against_diffusers(spacing, solver):
    diffusers = pytest.importorskip("diffusers")
    cls = diffusers.DPMSolverMultistepScheduler if solver else diffusers.DDIMScheduler
    scheduler = cls(timestep_spacing=spacing)
    for steps in (2, 7, 10, 30, 50, 250, 333, 499):
        scheduler.set_timesteps(steps)
        ours = spaced_timesteps(1000, steps, spacing, skip_last=solver)
        # Its "trailing" of 499 steps has a 500th, -1.
        assert ours.tolist() == scheduler.timesteps.tolist()[:steps], steps


@pytest.mark.parametrize("total", [1, 2, 24, 1000])
@pytest.mark.parametrize("skip_last", [False, True])
@pytest.mark.parametrize("spacing", SPACINGS)
def test_every_number_of_steps_is_spaced(spacing, skip_last, total):
    for steps in range(1, total + 1):
        visited = spaced_timesteps(total, steps, spacing, skip_last=skip_last)
        assert visited.dtype == np.int64
        assert len(visited) == steps
        assert visited[0] < total
        assert visited[-1] >= 0
        assert (np.diff(visited) < 0).all()
        if spacing != "leading" and not (skip_last and steps == 1):
            assert visited[0] == total - 1


def test_timesteps_by_hand():
    plan = ddpm_plan(LINEAR, timesteps=[999, 500, 3])
    assert plan.timesteps.tolist() == [999, 500, 3]
    assert ddim_plan(LINEAR, 3, timesteps=np.array([999, 500, 3])).timesteps.tolist() == [999, 500, 3]
    assert len(ddpm_plan(LINEAR)) == 1000


# ---------------------------------------------------------------- the plan itself


def test_fields():
    plan = ddpm_plan(LINEAR, 50)
    assert isinstance(plan, Plan)
    assert (plan.method, plan.prediction_type, len(plan)) == ("ddpm", "epsilon", 50)
    assert plan.table.shape == (50, N_COLUMNS)
    assert (plan.table.dtype, plan.timesteps.dtype, plan.model_time.dtype) == (np.float32, np.int64, np.int64)
    assert plan.thresholding is None
    assert (plan.table[:, Column.X0_BOUND] == np.inf).all()
    assert (plan.table[:, 12:] == 0).all()
    for array in (plan.table, plan.timesteps, plan.model_time, plan.draws):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 0
    with pytest.raises(dataclasses.FrozenInstanceError):
        plan.clip = True


def test_row_of():
    plan = ddim_plan(LINEAR, 10)  # 900, 800, ..., 0
    assert [plan.row_of(t) for t in (999, 900, 899, 450, 100, 99, 0)] == [0, 0, 1, 5, 8, 9, 9]
    with pytest.raises(ValueError, match="timestep: 98 given, at least the plan's last, 99"):
        ddim_plan(LINEAR, 10, timestep_spacing="trailing").row_of(98)


def test_restarted_row_is_first_order():
    """From row k on, the restarted plan is the one made for the remaining timesteps alone."""
    plan = dpmpp_2m_plan(LINEAR, 20)
    for row in (0, 7, 19):
        fresh = dpmpp_2m_plan(LINEAR, timesteps=plan.timesteps[row:], lower_order_final=False)
        np.testing.assert_allclose(plan.restarted(row).table[row:], fresh.table, rtol=1e-6, atol=1e-7)
        assert (plan.restarted(row).table[:row] == plan.table[:row]).all()
    ddim = ddim_plan(LINEAR, 20)
    assert ddim.restarted(3) is ddim
    for row in (-1, 20):
        with pytest.raises(ValueError, match=r"row: .* given, in 0 \.\. 19"):
            plan.restarted(row)


def test_thresholding_takes_the_place_of_the_clip():
    plan = ddpm_plan(LINEAR, 10, clip_sample_range=1.0).with_thresholding(0.9, 1.5)
    assert plan.thresholding == (0.9, 1.5)
    assert plan.clip is False
    assert (plan.table[:, Column.X0_BOUND] == np.inf).all()
    for arguments in [(-0.1, 1.0), (1.1, 1.0), (0.9, 0.5), (float("nan"), 1.0)]:
        with pytest.raises(ValueError, match=r"ratio|max_value"):
            plan.with_thresholding(*arguments)


def test_plan_checks_itself():
    plan = ddpm_plan(LINEAR, 4)
    broken = plan.table.copy()
    broken[2, Column.FROM_X] = np.nan
    with pytest.raises(ValueError, match=r"timestep 250: column from_x is nan"):
        dataclasses.replace(plan, table=broken)
    broken[2, Column.FROM_X] = 0.0
    for bound in (np.nan, 0.0, -1.0):
        broken[1, Column.X0_BOUND] = bound
        with pytest.raises(ValueError, match=r"timestep 500: column x0_bound"):
            dataclasses.replace(plan, table=broken)
    with pytest.raises(ValueError, match=r"table: shape .* given, shape"):
        dataclasses.replace(plan, table=plan.table[:3])
    with pytest.raises(ValueError, match=r"model_time: shape .* given, shape"):
        dataclasses.replace(plan, model_time=plan.timesteps[:3])
    with pytest.raises(ValueError, match="clip, thresholding: both given"):
        dataclasses.replace(plan, clip=True, thresholding=(0.9, 1.0))
    with pytest.raises(ValueError, match=r"prediction_type: .* given, one of"):
        dataclasses.replace(plan, prediction_type="score")
    with pytest.raises(ValueError, match=r"model_time: .* given, finite numbers"):
        dataclasses.replace(plan, model_time=np.array([3.0, 2.0, np.nan, 0.0]))


@pytest.mark.parametrize(
    "timesteps",
    [
        [0, 250, 500, 750],
        [750, 500, 500, 0],
        [750, 500, 250, -1],
        [7.5, 5.0, 2.5, 0.0],
        [[3, 2, 1, 0]],
        [],
        [True],
    ],
    ids=name_of,
)
def test_plan_refuses_timesteps_that_no_chain_walks(timesteps):
    with pytest.raises(ValueError, match=r"timesteps: .* given, at least one integer, strictly desc"):
        dataclasses.replace(ddpm_plan(LINEAR, 4), timesteps=timesteps)


def test_plan_takes_unsigned_timesteps():
    plan = ddpm_plan(LINEAR, timesteps=[30, 20, 10, 0])
    assert dataclasses.replace(plan, timesteps=plan.timesteps.astype(np.uint8)).timesteps.dtype == np.int64
    with pytest.raises(ValueError, match="strictly desc"):
        dataclasses.replace(plan, timesteps=np.array([3, 2, 1, 2], np.uint8))


@pytest.mark.parametrize("build", [ddpm_plan, ddim_plan, dpmpp_2m_plan])
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_inference_steps": 0}, r"num_inference_steps: 0 given, an integer in \[1, 1000\]"),
        ({"num_inference_steps": -5}, "num_inference_steps: -5 given, an integer in"),
        ({"num_inference_steps": 1001}, "num_inference_steps: 1001 given, an integer in"),
        ({"num_inference_steps": 10.0}, "num_inference_steps: 10.0 given, an integer in"),
        ({"num_inference_steps": True}, "num_inference_steps: True given, an integer in"),
        ({"num_inference_steps": "10"}, "num_inference_steps: '10' given, an integer in"),
        (
            {"timestep_spacing": "even"},
            "timestep_spacing: 'even' given, one of leading, linspace, trailing accepted",
        ),
        ({"prediction_type": "score"}, "prediction_type: .* given, one of epsilon, sample, v_prediction"),
        ({"clip_sample_range": 0.0}, "clip_sample_range: 0.0 given, a finite number above 0, or None"),
        ({"clip_sample_range": -1.0}, "clip_sample_range"),
        ({"clip_sample_range": float("nan")}, "clip_sample_range"),
        ({"timesteps": []}, "timesteps: .* given, at least one integer, strictly descending"),
        ({"timesteps": [3, 5]}, "timesteps: .* given, at least one integer, strictly descending"),
        ({"timesteps": [5, 5]}, "timesteps: .* given, at least one integer, strictly descending"),
        ({"timesteps": [1000, 5]}, r"strictly descending, in \[0, 999\]"),
        ({"timesteps": [5, -1]}, r"strictly descending, in \[0, 999\]"),
        ({"timesteps": [5.5, 1.0]}, "timesteps: .* given, at least one integer, strictly descending"),
        (
            {"timesteps": [5, 3], "num_inference_steps": 3},
            "3 given, None or the number of timesteps given, 2",
        ),
        ({"final_alpha_cumprod": 0.5}, "final_alpha_cumprod"),
        ({"final_alpha_cumprod": 1.5}, "final_alpha_cumprod"),
    ],
    ids=name_of,
)
def test_bad_arguments(build, options, message):
    with pytest.raises(ValueError, match=message):
        build(LINEAR, **options)


@pytest.mark.parametrize(
    ("build", "options", "message"),
    [
        (ddpm_plan, {"variance_type": "learned"}, "variance_type: .* given, one of"),
        (ddpm_plan, {"sigma_scale": -0.1}, "sigma_scale: -0.1 given, a finite number of at least 0"),
        (ddpm_plan, {"sigma_scale": float("inf")}, "sigma_scale"),
        (ddim_plan, {"eta": -0.1}, r"eta: -0.1 given, a finite number in \[0, 1\]"),
        (ddim_plan, {"eta": float("nan")}, "eta"),
        (ddim_plan, {"eta": 1.1}, "eta"),
        (ddim_plan, {"eta": "1"}, "eta"),
        (
            dpmpp_2m_plan,
            {"timesteps": [0], "final_alpha_cumprod": 0.9999},
            "final_alpha_cumprod: .* given, above",
        ),
    ],
    ids=name_of,
)
def test_bad_arguments_of_a_method(build, options, message):
    with pytest.raises(ValueError, match=message):
        build(LINEAR, **options)


# ---------------------------------------------------------------- methods by name


@pytest.mark.parametrize("clip", [None, 1.0, 0.3])
@pytest.mark.parametrize("eta", [0.0, 0.6])
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_ddim_by_name_keeps_x0_and_eps_consistent(prediction, eta, clip):
    """Where x0 is clipped, eps is what is left of x_t without it: x_t = alpha x0 + sigma eps in every row."""
    plan = make_plan(
        COSINE,
        method="ddim",
        num_inference_steps=10,
        eta=eta,
        prediction_type=prediction,
        clip_sample_range=clip,
    )
    x, m, z, _ = inputs(len(plan))
    for k, t in enumerate(plan.timesteps):
        last = k == len(plan) - 1
        abar, abar_prev = abar_of(COSINE, t), 1.0 if last else abar_of(COSINE, plan.timesteps[k + 1])
        x0, _ = clean_and_noise(prediction, x[k], m[k], abar)
        if clip is not None:
            x0 = np.clip(x0, -clip, clip)
        eps = (x[k] - math.sqrt(abar) * x0) / math.sqrt(1 - abar)
        sigma = eta * math.sqrt((1 - abar_prev) / (1 - abar) * (1 - abar / abar_prev))
        expected = math.sqrt(abar_prev) * x0 + math.sqrt(1 - abar_prev - sigma**2) * eps + sigma * z[k]
        size = np.abs(np.stack([x0, eps, x[k] / math.sqrt(abar)])).max()
        hold(step(plan, k, x[k], m[k], z=z[k])[0], expected, cancelled=size)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"variance_type": "bogus"}, "variance_type: .* given, one of"),
        ({"sigma_scale": float("nan")}, "sigma_scale"),
        ({"sigma_scale": -1.0}, "sigma_scale"),
        ({"sigma_scale": "1"}, "sigma_scale"),
        ({"eta": float("nan")}, "eta"),
        ({"eta": -1}, "eta"),
        ({"eta": "0"}, "eta"),
    ],
    ids=name_of,
)
def test_values_are_checked_with_every_method(method, options, message):
    with pytest.raises(ValueError, match=message):
        make_plan(LINEAR, method=method, num_inference_steps=5, **options)


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        ("ddpm", {"eta": 0.5}, "which belongs to ddim, sa_solver, .*, with method .* given, 0 accepted"),
        ("dpmpp_2m", {"eta": 0.5}, "which belongs to ddim, sa_solver, .*, with method .* given, 0 accepted"),
        ("ddim", {"sigma_scale": 0.5}, "which belongs to ddpm, with method .* given, 1 accepted"),
        ("dpmpp_2m", {"sigma_scale": 0.5}, "which belongs to ddpm, with method .* given, 1 accepted"),
        (
            "ddim",
            {"variance_type": "fixed_large"},
            "with method .* given, fixed_small or learned_range accepted",
        ),
        (
            "dpmpp_2m",
            {"variance_type": "fixed_large"},
            "with method .* given, fixed_small or learned_range accepted",
        ),
    ],
)
def test_options_of_another_method(method, options, message):
    with pytest.raises(ValueError, match=message):
        make_plan(LINEAR, method=method, num_inference_steps=5, **options)


@pytest.mark.parametrize("method", METHODS)
def test_neutral_values_go_with_every_method(method):
    for zero, one in ((0, 1), (np.float32(0), np.float32(1)), (np.int64(0), np.float64(1))):
        plan = make_plan(LINEAR, method=method, num_inference_steps=5, eta=zero, sigma_scale=one)
        assert (plan.method, plan.learned_range) == (method, False)
    learned = make_plan(LINEAR, method=method, num_inference_steps=5, variance_type="learned_range")
    assert learned.learned_range
