"""Peer-arithmetic plans against diffusers' own schedulers: one step at a time, and whole chains."""

import dataclasses
from collections.abc import Mapping

import numpy as np
import pytest
import torch

from fastddpm.plans import ddim_plan, dpmpp_2m_plan
from fastddpm.plans.diffusers import (
    from_ddim_scheduler,
    from_ddpm_scheduler,
    from_scheduler,
    from_solver_scheduler,
)
from fastddpm.plans.diffusers.config import COMMON_DEFAULTS, float32_alphas_cumprod
from fastddpm.schedule import NoiseSchedule
from fastddpm_kernels import reverse_step
from fastddpm_kernels.table import Column

diffusers = pytest.importorskip("diffusers")


def name_of(value):
    """Of a test's argument: the same in every process, unlike a function's address."""
    return getattr(value, "__name__", str(value))


def from_dpmsolver_scheduler(scheduler, steps):
    if isinstance(scheduler, Mapping):
        scheduler = {**scheduler, "_class_name": "DPMSolverMultistepScheduler"}
    return from_solver_scheduler(scheduler, steps)


TOLERANCE = 1e-5
"""Largest difference from diffusers' step over the step's largest absolute value."""

PREDICTIONS = ["epsilon", "sample", "v_prediction"]
SPACINGS = ["leading", "linspace", "trailing"]
STEPS = [(1000, 10), (1000, 50), (100, 100)]
SHAPE = (2, 3, 4, 5)


class Walker:
    """Applies a plan's rows with the operator, as a sampler would, drawing noise from a torch generator."""

    def __init__(self, plan):
        self.plan = plan
        self.table = torch.tensor(plan.table)
        self.kept = torch.full((1, *SHAPE), 7.0)  # left over from elsewhere: a first row must not use it

    def step(self, k, x, m, generator):
        plan, x = self.plan, x.clone()
        noise = torch.randn(SHAPE, generator=generator)[None] if plan.draws[k] else None
        reverse_step(
            x,
            m,
            self.table,
            torch.tensor([[k, 0]] * len(x)),
            noise=noise,
            threshold=self._threshold(k, x, m),
            kept=self.kept if plan.kept else None,
            clip=plan.clip,
            divide=plan.divides,
            rederive=plan.rederives,
        )
        return x

    def _threshold(self, k, x, m):
        if self.plan.thresholding is None:
            return None
        plan = self.plan
        ratio, largest = plan.thresholding
        p, q, d = (
            self.table[k, column] for column in (Column.X0_FROM_X, Column.X0_FROM_M, Column.X0_DIVISOR)
        )
        x0 = (p * x + q * m[:, : x.shape[1]]) / (d if plan.divides else 1)
        bound = torch.quantile(x0.abs().flatten(1), ratio, dim=1)
        return bound.clamp(min=1, max=largest)


def hold_steps(scheduler, plan, *, channels=3, scale=1.0, **step_options):
    """Every step of `plan` from a random x and m against scheduler.step; the largest relative difference."""
    assert scheduler.timesteps.tolist() == plan.timesteps.tolist()
    assert plan.model_time.tolist() == plan.timesteps.tolist()
    inputs = torch.Generator().manual_seed(0)
    walker, largest = Walker(plan), 0.0
    for k, t in enumerate(scheduler.timesteps):
        x = torch.randn(SHAPE, generator=inputs) * scale
        m = torch.randn((SHAPE[0], channels, *SHAPE[2:]), generator=inputs)
        theirs, ours = torch.Generator().manual_seed(k), torch.Generator().manual_seed(k)
        if not isinstance(scheduler, diffusers.DPMSolverMultistepScheduler):
            step_options["generator"] = theirs
        expected = scheduler.step(m, t, x, return_dict=False, **step_options)[0]
        got = walker.step(k, x, m, ours)
        assert torch.isfinite(expected).all()
        assert theirs.get_state().equal(ours.get_state()), f"row {k} draws differently"
        difference = float((got - expected).abs().max() / expected.abs().max())
        assert difference <= TOLERANCE, f"row {k}, timestep {t}: {difference:.1e}"
        largest = max(largest, difference)
    return largest


@pytest.mark.parametrize("total_and_steps", STEPS, ids=name_of)
@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("clip", [False, True], ids=["unclipped", "clipped"])
@pytest.mark.parametrize("variance", ["fixed_small", "fixed_small_log", "fixed_large", "learned_range"])
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_ddpm_steps(prediction, variance, clip, spacing, total_and_steps):
    total, steps = total_and_steps
    scheduler = diffusers.DDPMScheduler(
        num_train_timesteps=total,
        prediction_type=prediction,
        variance_type=variance,
        clip_sample=clip,
        timestep_spacing=spacing,
    )
    scheduler.set_timesteps(steps)
    plan = from_ddpm_scheduler(scheduler, steps)
    assert plan.clip is clip
    hold_steps(scheduler, plan, channels=6 if variance == "learned_range" else 3)


@pytest.mark.parametrize("total_and_steps", STEPS, ids=name_of)
@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("clip", ["unclipped", "clipped", "rederived"])
@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_ddim_steps(prediction, eta, clip, spacing, total_and_steps):
    total, steps = total_and_steps
    scheduler = diffusers.DDIMScheduler(
        num_train_timesteps=total,
        prediction_type=prediction,
        clip_sample=clip != "unclipped",
        timestep_spacing=spacing,
    )
    scheduler.set_timesteps(steps)
    options = {"eta": eta, "use_clipped_model_output": clip == "rederived"}
    hold_steps(scheduler, from_ddim_scheduler(scheduler, steps, **options), **options)


@pytest.mark.parametrize("total_and_steps", [(1000, 10), (1000, 50), (100, 49)], ids=name_of)
@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("final", ["zero", "sigma_min"])
@pytest.mark.parametrize("solver", [(1, "midpoint"), (2, "midpoint"), (2, "heun")], ids=name_of)
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_dpmsolver_steps(prediction, solver, final, spacing, total_and_steps):
    total, steps = total_and_steps
    scheduler = diffusers.DPMSolverMultistepScheduler(
        num_train_timesteps=total,
        prediction_type=prediction,
        solver_order=solver[0],
        solver_type=solver[1],
        final_sigmas_type=final,
        timestep_spacing=spacing,
    )
    scheduler.set_timesteps(steps)
    plan = from_dpmsolver_scheduler(scheduler, steps)
    assert plan.kept == (solver[0] == 2)
    hold_steps(scheduler, plan)


@pytest.mark.parametrize("schedule", ["scaled_linear", "squaredcos_cap_v2", "sigmoid", "laplace", "trained"])
def test_beta_schedules(schedule):
    betas = np.linspace(1e-3, 0.3, 40).tolist() if schedule == "trained" else None
    config = {
        "num_train_timesteps": 40,
        "beta_schedule": "linear" if betas else schedule,
        "trained_betas": betas,
        "timestep_spacing": "trailing",
    }
    ddpm = diffusers.DDPMScheduler(**config)
    ddpm.set_timesteps(20)
    hold_steps(ddpm, from_ddpm_scheduler(ddpm.config, 20))
    if schedule not in ("sigmoid", "laplace"):
        ddim = diffusers.DDIMScheduler(**config)
        ddim.set_timesteps(20)
        hold_steps(ddim, from_ddim_scheduler(ddim.config, 20))
        dpm = diffusers.DPMSolverMultistepScheduler(**config)
        dpm.set_timesteps(20)
        hold_steps(dpm, from_dpmsolver_scheduler(dpm.config, 20))


@pytest.mark.parametrize("schedule", ["linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid", "laplace"])
@pytest.mark.parametrize("rescale", [False, True])
def test_alphas_cumprod_bit_for_bit(schedule, rescale):
    options = {"beta_schedule": schedule, "rescale_betas_zero_snr": rescale}
    scheduler = diffusers.DDPMScheduler(**options)
    ours = float32_alphas_cumprod({**COMMON_DEFAULTS, **options}, (schedule,))
    assert ours.equal(scheduler.alphas_cumprod)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_zero_terminal_snr(prediction):
    config = {
        "prediction_type": prediction,
        "rescale_betas_zero_snr": True,
        "timestep_spacing": "trailing",
    }
    for cls, build in [
        (diffusers.DDPMScheduler, from_ddpm_scheduler),
        (diffusers.DDIMScheduler, from_ddim_scheduler),
        (diffusers.DPMSolverMultistepScheduler, from_dpmsolver_scheduler),
    ]:
        scheduler = cls(**config)
        scheduler.set_timesteps(10)
        hold_steps(scheduler, build(scheduler, 10))


def test_finite_where_diffusers_is_nan():
    """DDIM with eta = 1 from zero SNR: 1 - abar_prev - sigma^2 rounds below 0 under its square root."""
    scheduler = diffusers.DDIMScheduler(
        rescale_betas_zero_snr=True, timestep_spacing="trailing", prediction_type="v_prediction"
    )
    scheduler.set_timesteps(10)
    # (On some processors the same sums round to 0, and diffusers' step is finite.)
    plan = from_ddim_scheduler(scheduler, 10, eta=1.0)
    # Nothing of the direction is left, or what rounding leaves: x_next = sqrt(abar_prev) x0 + sigma z.
    assert abs(plan.table[0, Column.FROM_M]) < 1e-3
    assert np.isclose(
        plan.table[0, Column.FROM_X0] ** 2 + plan.table[0, Column.FROM_NOISE] ** 2, 1, rtol=1e-6
    )


def test_epsilon_at_zero_snr_needs_a_bound():
    config = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing", "clip_sample": False}
    with pytest.raises(ValueError, match="clip_sample_range"):
        from_ddim_scheduler(config, 10)
    assert np.isfinite(
        from_ddim_scheduler(config | {"thresholding": True}, 10).table[:, Column.X0_FROM_X]
    ).all()
    assert np.isfinite(from_ddim_scheduler(config | {"timestep_spacing": "leading"}, 10).table[:, 0]).all()


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_thresholding(prediction):
    config = {
        "prediction_type": prediction,
        "thresholding": True,
        "dynamic_thresholding_ratio": 0.8,
        "sample_max_value": 1.5,
    }
    for cls, build in [
        (diffusers.DDPMScheduler, from_ddpm_scheduler),
        (diffusers.DDIMScheduler, from_ddim_scheduler),
        (diffusers.DPMSolverMultistepScheduler, from_dpmsolver_scheduler),
    ]:
        scheduler = cls(**config)
        scheduler.set_timesteps(10)
        plan = build(scheduler, 10)
        assert plan.thresholding == (0.8, 1.5)
        hold_steps(scheduler, plan)


def test_clip_range_offset_and_final_alpha():
    ddpm = diffusers.DDPMScheduler(clip_sample_range=0.4, steps_offset=1)
    ddpm.set_timesteps(50)
    plan = from_ddpm_scheduler(ddpm, 50)
    assert plan.timesteps[-1] == 1
    assert plan.draws[-1]
    hold_steps(ddpm, plan)
    ddim = diffusers.DDIMScheduler(clip_sample_range=0.4, steps_offset=1, set_alpha_to_one=False)
    ddim.set_timesteps(50)
    hold_steps(ddim, from_ddim_scheduler(ddim, 50, eta=0.5), eta=0.5)


def test_custom_timesteps_and_all_of_them():
    ddpm = diffusers.DDPMScheduler(num_train_timesteps=60)
    hold_steps(ddpm, from_ddpm_scheduler(ddpm))
    ddpm.set_timesteps(timesteps=[59, 40, 33, 2])
    hold_steps(ddpm, from_ddpm_scheduler(ddpm, timesteps=[59, 40, 33, 2]))


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize(
    "options",
    [
        {"lower_order_final": False, "final_sigmas_type": "sigma_min"},
        {"euler_at_final": True, "final_sigmas_type": "sigma_min"},
        {"lambda_min_clipped": -2.0, "beta_schedule": "squaredcos_cap_v2"},
        {"steps_offset": 1},
        {"algorithm_type": "deis", "solver_type": "logrho", "final_sigmas_type": "sigma_min"},
    ],
    ids=name_of,
)
def test_dpmsolver_options(options, spacing):
    scheduler = diffusers.DPMSolverMultistepScheduler(timestep_spacing=spacing, **options)
    for steps in (7, 20):
        scheduler.set_timesteps(steps)
        hold_steps(scheduler, from_dpmsolver_scheduler(scheduler, steps))


@pytest.mark.parametrize(("steps", "is_few"), [(14, True), (15, False)])
def test_the_last_of_few_steps_is_first_order(steps, is_few):
    """Above zero noise, where nothing but the number of steps decides."""
    scheduler = diffusers.DPMSolverMultistepScheduler(final_sigmas_type="sigma_min")
    scheduler.set_timesteps(steps)
    plan = from_dpmsolver_scheduler(scheduler, steps)
    hold_steps(scheduler, plan)
    native = dpmpp_2m_plan(NoiseSchedule.linear(), steps, final_alpha_cumprod=0.9999)
    for one in (plan, native):
        assert (one.table[-1, Column.FROM_KEPT_1] == 0) == is_few
        assert (one.table[1:-1, Column.FROM_KEPT_1] != 0).all()


@pytest.mark.parametrize("variance", ["learned", "learned_range"])
def test_dpmsolver_ignores_the_learned_variance(variance):
    scheduler = diffusers.DPMSolverMultistepScheduler(variance_type=variance)
    scheduler.set_timesteps(10)
    plan = from_dpmsolver_scheduler(scheduler, 10)
    assert plan.learned_range
    hold_steps(scheduler, plan, channels=6)


@pytest.mark.parametrize(
    ("cls", "options"),
    [
        ("DDPMScheduler", {}),
        ("DDPMScheduler", {"beta_schedule": "squaredcos_cap_v2", "timestep_spacing": "trailing"}),
        ("DDIMScheduler", {"timestep_spacing": "linspace"}),
        ("DPMSolverMultistepScheduler", {}),
    ],
    ids=name_of,
)
def test_chain(cls, options):
    """50 steps on each side's own x, with a network of fixed random weights."""
    scheduler = getattr(diffusers, cls)(**options)
    scheduler.set_timesteps(50)
    plan = from_scheduler(scheduler, 50)
    weight = torch.randn((3, 3, 3, 3), generator=torch.Generator().manual_seed(1)) * 0.2

    def network(x, t):
        return torch.tanh(torch.nn.functional.conv2d(x, weight, padding=1) + t / 1000)

    theirs, ours = torch.Generator().manual_seed(5), torch.Generator().manual_seed(5)
    x = torch.randn(SHAPE, generator=theirs)
    y = torch.randn(SHAPE, generator=ours)
    walker = Walker(plan)
    for k, t in enumerate(scheduler.timesteps):
        x = scheduler.step(network(x, t), t, x, generator=theirs, return_dict=False)[0]
        y = walker.step(k, y, network(y, int(plan.model_time[k])), ours)
    assert (x - y).abs().max() <= 1e-4 * x.abs().max()


def test_previous_timestep_is_the_peers():
    """diffusers' DDIM goes to t - T//S; the native plan goes to the next timestep it visits."""
    config = {"timestep_spacing": "linspace", "clip_sample": False}
    peer = from_ddim_scheduler(config, 50)
    native = ddim_plan(NoiseSchedule.linear(), 50, timestep_spacing="linspace")
    assert (peer.timesteps == native.timesteps).all()
    a_peer, a_native = (plan.table[:, Column.FROM_X0].astype(np.float64) ** 2 for plan in (peer, native))
    off = peer.timesteps - 20 != np.append(native.timesteps[1:], -1)
    assert off.sum() == 19 + 1
    np.testing.assert_allclose(a_peer[~off], a_native[~off], rtol=1e-5)
    # The last step is off as well, but both of them end at alphas_cumprod = 1.
    assert (np.abs(a_peer / a_native - 1)[off][:-1] > 1e-4).all()


def test_from_scheduler_picks_by_class():
    for cls in ("DDPMScheduler", "DDIMScheduler", "DPMSolverMultistepScheduler"):
        scheduler = getattr(diffusers, cls)()
        by_object = from_scheduler(scheduler, 10)
        by_config = from_scheduler({**scheduler.config, "_class_name": cls}, 10)
        assert by_object.method == by_config.method
        assert np.array_equal(by_object.table, by_config.table)
    assert from_scheduler({"_class_name": "DDIMScheduler"}, 10, eta=0.5).stochastic
    assert from_scheduler(diffusers.EulerDiscreteScheduler(), 10).method == "euler"
    with pytest.raises(ValueError, match="ScoreSdeVeScheduler"):
        from_scheduler(diffusers.ScoreSdeVeScheduler(), 10)
    with pytest.raises(ValueError, match=r"scheduler: .* given, a diffusers scheduler"):
        from_scheduler(3, 10)


@pytest.mark.parametrize(
    ("build", "config", "message"),
    [
        (from_ddpm_scheduler, {"variance_type": "fixed_large_log"}, "NaN"),
        (from_ddpm_scheduler, {"variance_type": "learned"}, "variance itself"),
        (from_ddpm_scheduler, {"variance_type": "huge"}, "variance_type: .* given, one of"),
        (from_ddpm_scheduler, {"prediction_type": "score"}, "prediction_type: .* given, one of"),
        (from_ddpm_scheduler, {"beta_schedule": "quad"}, "beta_schedule: .* given, one of"),
        (
            from_ddpm_scheduler,
            {"trained_betas": [0.1, 0.2]},
            r"trained_betas: shape \(2,\) given, 1000 numbers",
        ),
        (from_ddpm_scheduler, {"timestep_spacing": "even"}, "timestep_spacing: .* given, one of"),
        (from_ddpm_scheduler, {"clip_sample_range": -1.0}, "clip_sample_range"),
        (from_ddpm_scheduler, {"steps_offset": 200}, "steps_offset=200"),
        (from_ddim_scheduler, {"beta_schedule": "laplace"}, "beta_schedule: .* given, one of"),
        (from_dpmsolver_scheduler, {"use_flow_sigmas": True}, "use_flow_sigmas: True: flow matching"),
        (from_dpmsolver_scheduler, {"final_sigmas_type": "none"}, "final_sigmas_type"),
    ],
)
def test_refused_configurations(build, config, message):
    with pytest.raises(ValueError, match=message):
        build(config, 10)


def test_refused_arguments():
    for steps in (0, -1, 1001, 2.5, True):
        with pytest.raises(ValueError, match="num_inference_steps"):
            from_ddpm_scheduler({}, steps)
        with pytest.raises(ValueError, match="num_inference_steps"):
            from_ddim_scheduler({}, steps)
    for eta in (float("nan"), float("inf"), 1.5):
        with pytest.raises(ValueError, match="eta"):
            from_ddim_scheduler({}, 10, eta=eta)
    with pytest.raises(ValueError, match=r"previous_timestep: .* given, one of original, consistent"):
        from_ddim_scheduler({}, 10, previous_timestep="next")
    for timesteps in ([3, 3], [2, 3], [3, -2], [1000, 3], [3.5, 1.0], []):
        with pytest.raises(ValueError, match=r"timesteps: .* given, strictly descending"):
            from_ddpm_scheduler({}, timesteps=timesteps)
    with pytest.raises(ValueError, match="num_inference_steps, timesteps: both given"):
        from_ddpm_scheduler({}, 10, timesteps=[3, 2])


@pytest.mark.parametrize("total_and_steps", [(1000, 61), (1000, 103), (100, 97), (60, 13)], ids=name_of)
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_trailing_that_ends_below_zero(prediction, total_and_steps):
    """Its float sum yields S + 1 timesteps for some S, the last -1: a step from alphas_cumprod[-1]."""
    total, steps = total_and_steps
    config = {
        "num_train_timesteps": total,
        "timestep_spacing": "trailing",
        "prediction_type": prediction,
    }
    ddpm = diffusers.DDPMScheduler(**config)
    ddpm.set_timesteps(steps)
    assert ddpm.timesteps[-1] == -1
    assert len(ddpm.timesteps) == steps + 1
    hold_steps(ddpm, from_ddpm_scheduler(ddpm, steps))
    for options in ({}, {"eta": 0.7}, {"use_clipped_model_output": True}):
        ddim = diffusers.DDIMScheduler(**config, set_alpha_to_one=False)
        ddim.set_timesteps(steps)
        hold_steps(ddim, from_ddim_scheduler(ddim, steps, **options), **options)
    dpm = diffusers.DPMSolverMultistepScheduler(**config, final_sigmas_type="sigma_min", solver_order=1)
    plan = from_dpmsolver_scheduler(dpm, steps)
    assert plan.timesteps[-1] == plan.model_time[-1] == -1
    dpm.set_timesteps(steps)
    hold_steps(dpm, plan)


def test_dpmsolver_refuses_a_timestep_visited_twice():
    with pytest.raises(ValueError, match="cannot be repeated"):
        from_dpmsolver_scheduler({"num_train_timesteps": 100}, 100)


@pytest.mark.parametrize(("eta", "steps"), [(-0.1, 10), (-1.0, 50), (1.2, 1000)])
def test_eta_outside_its_range(eta, steps):
    """Finite in diffusers, which warns: below 0 nothing is drawn but the direction shrinks."""
    scheduler = diffusers.DDIMScheduler()
    scheduler.set_timesteps(steps)
    plan = from_ddim_scheduler(scheduler, steps, eta=eta)
    assert plan.draws.all() == plan.draws.any() == (eta > 0)
    hold_steps(scheduler, plan, eta=eta)


def test_what_a_scheduler_object_holds_is_used():
    """Scripts assign alphas_cumprod; trained_betas may be longer than num_train_timesteps."""
    scheduler = diffusers.DDIMScheduler()
    scheduler.alphas_cumprod = torch.linspace(0.99, 0.01, 1000)
    scheduler.final_alpha_cumprod = torch.tensor(0.995)
    scheduler.set_timesteps(20)
    hold_steps(scheduler, from_ddim_scheduler(scheduler, 20, eta=0.4), eta=0.4)
    betas = np.linspace(1e-4, 0.02, 150).tolist()
    ddpm = diffusers.DDPMScheduler(num_train_timesteps=100, trained_betas=betas)
    ddpm.set_timesteps(10)
    hold_steps(ddpm, from_ddpm_scheduler(ddpm, 10))


def test_learned_variance_by_its_logarithm():
    """variance_type "learned": the network's second half is the variance itself."""
    scheduler = diffusers.DDPMScheduler(variance_type="learned")
    scheduler.set_timesteps(20)
    plan = from_ddpm_scheduler(scheduler, 20, log_variance=True)
    walker = Walker(plan)
    inputs = torch.Generator().manual_seed(3)
    for k, t in enumerate(scheduler.timesteps):
        x, m = torch.randn((2, *SHAPE), generator=inputs)
        variance = torch.rand(SHAPE, generator=inputs) * 0.1
        theirs, ours = torch.Generator().manual_seed(k), torch.Generator().manual_seed(k)
        expected = scheduler.step(torch.cat([m, variance], 1), t, x, generator=theirs, return_dict=False)[0]
        got = walker.step(k, x, torch.cat([m, variance.log()], 1), ours)
        assert (got - expected).abs().max() <= TOLERANCE * expected.abs().max()


def test_variance_type_in_place_of_the_configurations():
    scheduler = diffusers.DDPMScheduler(variance_type="fixed_large_log")
    assert from_ddpm_scheduler(scheduler, 1).timesteps.tolist() == [0]  # no noise, so nothing is NaN
    meant = diffusers.DDPMScheduler(variance_type="fixed_large")
    meant.set_timesteps(10)
    hold_steps(meant, from_ddpm_scheduler(scheduler, 10, variance_type="fixed_large"))


@pytest.mark.parametrize(("spacing", "steps"), [("linspace", 50), ("trailing", 30), ("leading", 10)])
@pytest.mark.parametrize("eta", [0.0, 0.6])
def test_consistent_previous_timestep(eta, spacing, steps):
    """Song et al. 2021, equation 12, between consecutive timesteps of the list, in float64."""
    config = {"timestep_spacing": spacing, "clip_sample": False}
    plan = from_ddim_scheduler(config, steps, eta=eta, previous_timestep="consistent")
    abar = NoiseSchedule.linear().alphas_cumprod
    for k, t in enumerate(plan.timesteps):
        prev = abar[plan.timesteps[k + 1]] if k + 1 < len(plan) else 1.0
        sigma = eta * np.sqrt((1 - prev) / (1 - abar[t]) * (1 - abar[t] / prev))
        x, m = 0.7, -1.3
        x0 = (x - np.sqrt(1 - abar[t]) * m) / np.sqrt(abar[t])
        expected = np.sqrt(prev) * x0 + np.sqrt(1 - prev - sigma**2) * m
        row = plan.table[k].astype(np.float64)
        got = row[Column.LINEAR_X] * x + row[Column.LINEAR_M] * m
        # float32 tables of diffusers against float64: 8e-5 in one step.
        assert got == pytest.approx(expected, rel=2e-4)
        assert row[Column.FROM_NOISE] == pytest.approx(sigma, rel=1e-3, abs=1e-6)


@pytest.mark.parametrize(
    ("build", "config"),
    [
        (from_ddpm_scheduler, {}),
        (from_ddpm_scheduler, {"beta_schedule": "sigmoid"}),
        (from_ddpm_scheduler, {"beta_schedule": "laplace", "variance_type": "learned_range"}),
        (from_ddim_scheduler, {"set_alpha_to_one": True}),
        (from_ddim_scheduler, {"set_alpha_to_one": False, "beta_schedule": "scaled_linear"}),
        (from_dpmsolver_scheduler, {"final_sigmas_type": "zero"}),
        (from_dpmsolver_scheduler, {"final_sigmas_type": "sigma_min", "lambda_min_clipped": -5.1}),
    ],
    ids=name_of,
)
def test_the_default_dtype_of_torch_changes_nothing(build, config):
    expected = build(config, 25)
    torch.set_default_dtype(torch.float64)
    try:
        plan = build(config, 25)
    finally:
        torch.set_default_dtype(torch.float32)
    assert plan.table.tobytes() == expected.table.tobytes()
    assert plan.timesteps.tolist() == expected.timesteps.tolist()


@pytest.mark.parametrize("options", [{}, {"use_clipped_model_output": True}])
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_collapsed_columns_of_rows_with_divisions(prediction, options):
    """What a row without a bound comes to, in float64 and from the formulas of DDIM with divisions."""
    plan = from_ddim_scheduler({"prediction_type": prediction, "clip_sample": False}, 20, **options)
    assert plan.divides
    assert plan.rederives is (prediction != "epsilon" or bool(options))
    rng = np.random.default_rng(0)
    for row in plan.table.astype(np.float64):
        x, m = rng.standard_normal(2)
        x0 = (row[Column.X0_FROM_X] * x + row[Column.X0_FROM_M] * m) / row[Column.X0_DIVISOR]
        eps = m
        if plan.rederives:
            eps = (row[Column.FROM_X] * x + row[Column.EPS_FROM_X0] * x0 + row[Column.EPS_FROM_M] * m) / row[
                Column.EPS_DIVISOR
            ]
        expected = row[Column.FROM_X0] * x0 + row[Column.FROM_M] * eps
        got = row[Column.LINEAR_X] * x + row[Column.LINEAR_M] * m
        # float32 rounds the collapsed columns, which are up to 1/alpha = 157 and cancel.
        assert got == pytest.approx(expected, rel=1e-5, abs=1e-4)


@pytest.mark.parametrize("column", [Column.X0_DIVISOR, Column.EPS_DIVISOR])
def test_a_divisor_of_zero_is_refused(column):
    plan = from_ddim_scheduler({}, 10, use_clipped_model_output=True)
    table = plan.table.copy()
    table[4, column] = 0
    with pytest.raises(ValueError, match=f"timestep {plan.timesteps[4]}: column {column.name.lower()} is 0"):
        dataclasses.replace(plan, table=table)


def test_only_plans_that_repeat_a_library_divide():
    plan = ddim_plan(NoiseSchedule.linear(), 10)
    assert not plan.divides
    assert not plan.rederives
