"""Solvers: their orders on data with a known score, exact cases, and diffusers' schedulers of their names."""

import functools
import itertools
import math
import types

import numpy as np
import pytest
import torch

from fastddpm.checks import BadArgument
from fastddpm.plans import METHODS, Method, register_solver
from fastddpm.plans.points import CLEAN, Levels, points_at, spaced_points
from fastddpm.plans.solver import SolverOptions
from fastddpm.plans.tableau import Tableau, steps
from fastddpm.schedule import NoiseSchedule
from fastddpm_kernels.table import Column

diffusers = pytest.importorskip("diffusers")
integrate = pytest.importorskip("scipy.integrate")

SCHEDULE = NoiseSchedule.linear()
LEVELS = Levels.of(SCHEDULE)
SOLVERS = [name for name, entry in METHODS.items() if entry.solver is not None]
# The others evaluate between two.
BETWEEN = ("dpm2", "dpm2_ancestral", "dpmpp_2s", "dpmpp_2s_sde")
AT_TIMESTEPS = [name for name in SOLVERS if name not in (*BETWEEN, "lcm", "tcd")]
NOISY = ["dpmpp_2m_sde", "dpmpp_3m_sde", "dpmpp_2s_sde", "euler_ancestral", "dpm2_ancestral"]
FROM_KEPT = (Column.FROM_KEPT_1, Column.FROM_KEPT_2, Column.FROM_KEPT_3)


def plan_of(name, points, order=None, prediction_type="epsilon", bound=math.inf, eta=0.0):
    entry = METHODS[name]
    options = SolverOptions(order or entry.order, LEVELS.at_ratio, LEVELS.at_timestep, eta)
    tableau = entry.solver(points, options)
    return tableau.plan(name, prediction_type, bound)


def walk(plan, network, x, noise=lambda k: 0.0):
    """A plan's rows one after the other in float64, by the formula of `fastddpm_kernels.table`."""
    kept = np.full((3, *np.shape(x)), 7.0)  # left over from elsewhere: a first row must not use it
    for k, row in enumerate(plan.table.astype(np.float64)):
        m = network(x, plan.model_time[k])
        x0 = np.clip(row[Column.X0_FROM_X] * x + row[Column.X0_FROM_M] * m, -row[2], row[2])
        own = x0
        if plan.combines:
            own = row[Column.KEPT_FROM_X0] * x0 + row[Column.KEPT_FROM_X] * x + row[Column.KEPT_FROM_M] * m
        x_next = row[Column.FROM_X0] * x0 + row[Column.FROM_X] * x + row[Column.FROM_M] * m
        x_next += sum(row[column] * kept[place] for place, column in enumerate(FROM_KEPT))
        kept[int(row[Column.KEPT_SLOT])] = own
        x = x_next + row[Column.FROM_NOISE] * noise(k)
    return x


# ---------------------------------------------------------------- data with a known score

MEANS, DEVIATIONS, WEIGHTS = np.array([-1.2, 0.5, 1.0]), np.array([0.3, 0.25, 0.5]), np.array([0.3, 0.3, 0.4])


def mixture_eps(x, alpha, sigma):
    """Of a mixture of three Gaussians in one dimension: eps = -sigma * score."""
    variance = (alpha * DEVIATIONS) ** 2 + sigma**2
    logarithms = np.log(WEIGHTS / np.sqrt(variance)) - (x[:, None] - alpha * MEANS) ** 2 / (2 * variance)
    shares = np.exp(logarithms - logarithms.max(axis=1, keepdims=True))
    shares /= shares.sum(axis=1, keepdims=True)
    return sigma * (shares * (x[:, None] - alpha * MEANS) / variance).sum(axis=1)


def mixture(x, time):
    ratio = np.exp(np.interp(time, np.arange(1000), LEVELS.log_ratio))
    alpha = 1 / np.hypot(1, ratio)
    return mixture_eps(x, alpha, ratio * alpha)


STARTS = np.linspace(-2.5, 2.5, 21)
LAST = 100


def even_points(count):
    """Evenly in lambda, from the first timestep to one that is not the clean image."""
    ends = [LEVELS.log_ratio[999], LEVELS.log_ratio[LAST]]
    return [LEVELS.at_ratio(math.exp(value)) for value in np.linspace(*ends, count + 1)]


@functools.cache
def exact_ends():
    """du/dsigma = eps by scipy's Runge-Kutta method of order 8."""
    start, end = even_points(1)

    def slope(ratio, u):
        alpha = 1 / math.hypot(1, ratio)
        return mixture_eps(u * alpha, alpha, ratio * alpha)

    span = (start.ratio, end.ratio)
    solved = integrate.solve_ivp(slope, span, STARTS / start.alpha, method="DOP853", rtol=1e-11, atol=1e-11)
    return solved.y[:, -1] * end.alpha


@pytest.mark.parametrize(
    ("name", "order", "expected", "count"),
    [
        ("euler", 1, 1, 80),
        ("dpm_solver", 1, 1, 80),
        ("dpm_solver", 2, 2, 80),
        ("dpm_solver", 3, 3, 100),
        ("deis", 2, 2, 80),
        ("dpmpp_3m", 3, 3, 80),
        ("dpmpp_2s", 2, 2, 80),
        ("unipc", 1, 2, 80),  # the corrector adds one
        ("unipc", 2, 3, 60),
        ("unipc", 3, 4, 30),
        ("sa_solver", 1, 2, 80),  # likewise, without noise
        ("sa_solver", 2, 3, 60),
        ("sa_solver", 3, 4, 30),
        ("lms", 1, 1, 80),
        ("lms", 2, 2, 80),
        ("lms", 3, 3, 60),
        ("lms", 4, 3.8, 80),  # 3.4 from 40 steps, towards 4 as they become more: it starts with order 1
        ("pndm", 4, 2, 160),  # its paper proves 2
        ("heun", 2, 2, 60),
        ("dpm2", 2, 2, 60),
    ],
)
def test_order_of_convergence(name, order, expected, count):
    errors = [
        np.abs(walk(plan_of(name, even_points(n), order), mixture, STARTS) - exact_ends()).max()
        for n in (count, 2 * count)
    ]
    assert math.log2(errors[0] / errors[1]) == pytest.approx(expected, abs=0.2), errors


@pytest.mark.parametrize(
    ("name", "order", "expected", "eta"),
    [
        ("euler_ancestral", None, 1, 0.0),
        ("dpm2_ancestral", None, 2, 0.0),
        ("dpmpp_2s_sde", None, 1, 0.0),
        ("dpmpp_2m_sde", None, 2, 0.0),
        ("sa_solver", 1, 2, 0.6),  # its corrector adds one here too
    ],
)
def test_order_of_convergence_with_noise(name, order, expected, eta):
    """Of the deviation, for data N(0, 0.5^2): rows are linear then, and what a chain of them ends with is
    known from what becomes of its start and of each row's noise alone."""

    def network(x, time):
        ratio = np.exp(np.interp(time, np.arange(1000), LEVELS.log_ratio))
        alpha = 1 / np.hypot(1, ratio)
        return ratio * x / (alpha * (0.5**2 + ratio**2))

    errors = []
    for count in (160, 320):
        points = even_points(count)
        plan = plan_of(name, points, order, eta=eta)
        first, last = (point.alpha * math.hypot(0.5, point.ratio) for point in (points[0], points[-1]))
        alone = np.eye(len(plan) + 1)
        parts = walk(plan, network, first * alone[0], lambda k: alone[k + 1])  # noqa: B023
        errors.append(abs(np.linalg.norm(parts) - last))
    assert math.log2(errors[0] / errors[1]) == pytest.approx(expected, abs=0.2), errors


def test_evaluations_of_a_step():
    """Runge-Kutta methods evaluate twice a step, but onto the clean image; a chain begins at whole steps."""
    points = points_at(LEVELS, np.array([900, 600, 300]))
    for name in ("heun", *BETWEEN):
        plan = plan_of(name, points)
        assert plan.starts.tolist() == [True, False, True, False, True]
        assert plan.timesteps[[0, 2, 4]].tolist() == [900, 600, 300]
    plan = plan_of("pndm", points)
    assert plan.starts.tolist() == [True, False, True, True]
    assert plan.timesteps.tolist() == [900, 600, 600, 300]
    assert plan.row_of(700) == 2  # and not the second evaluation of the first step
    more = points_at(LEVELS, np.arange(900, 0, -100))
    kept = {name: plan_of(name, more).kept for name in ("euler", "heun", "unipc", "dpmpp_3m", "lms")}
    assert kept == {"euler": 0, "heun": 1, "unipc": 2, "dpmpp_3m": 2, "lms": 3}


# ---------------------------------------------------------------- exact cases


@pytest.mark.parametrize("prediction_type", ["epsilon", "sample", "v_prediction"])
@pytest.mark.parametrize("bound", [math.inf, 1.0])
@pytest.mark.parametrize("name", AT_TIMESTEPS)
def test_data_that_are_one_image_are_reached_exactly(name, bound, prediction_type):
    """What a network predicts then does not change along a chain, so that no solver makes an error."""
    image = np.array([0.8, -0.3])

    def network(x, time):
        abar = SCHEDULE.alphas_cumprod[int(time)]
        alpha, sigma = math.sqrt(abar), math.sqrt(1 - abar)
        eps = (x - alpha * image) / sigma
        return {"epsilon": eps, "sample": image, "v_prediction": alpha * eps - sigma * image}[prediction_type]

    points = points_at(LEVELS, np.array([990, 700, 450, 200, 60]))
    plan = plan_of(name, points, prediction_type=prediction_type, bound=bound)
    numbers = np.random.default_rng(1).standard_normal((len(plan), 2))
    assert walk(plan, network, np.array([1.1, 0.4]), lambda k: numbers[k]) == pytest.approx(image, abs=2e-5)


@pytest.mark.parametrize(
    ("name", "eta"), [*((name, 0.0) for name in NOISY), ("sa_solver", 0.5), ("sa_solver", 1.0)]
)
def test_noise_keeps_the_variance_of_standard_normal_data(name, eta):
    """x is N(0, 1) at every level, eps is sigma*x: the variance of a chain's end tends to 1, as 1/S."""
    errors = [abs(variance_of_the_end(name, count, eta) - 1) for count in (50, 200)]
    assert errors[1] < 0.05
    assert errors[1] < 0.4 * errors[0] or errors[0] < 1e-3


def variance_of_the_end(name, count, eta):
    """For eps = sigma*x a chain is linear in its start and each row's noise."""
    ends = LEVELS.log_ratio[999], LEVELS.log_ratio[0]
    points = [LEVELS.at_ratio(math.exp(value)) for value in np.linspace(*ends, count)]
    plan = plan_of(name, points, eta=eta)
    assert plan.stochastic
    symbols = np.eye(len(plan) + 1)

    def eps(x, time):
        ratio = np.exp(np.interp(time, np.arange(1000), LEVELS.log_ratio))
        return ratio / np.hypot(1, ratio) * x

    return (walk(plan, eps, symbols[0], lambda k: symbols[k + 1]) ** 2).sum()


def test_a_chain_from_the_middle_forgets_what_was_before():
    """Every kept prediction that is not there is taken to be the row's own: Euler's step comes of it."""
    points = points_at(LEVELS, np.array([900, 700, 500, 300, 100]))
    x, first = np.array([0.3, -0.9]), []
    for name in ("euler", "lms", "pndm", "dpmpp_3m", "unipc", "deis"):
        plan = plan_of(name, points)
        row = plan.row_of(550)
        plan, seen = plan.restarted(row), []
        rest = types.SimpleNamespace(
            table=plan.table[row:], model_time=plan.model_time[row:], combines=plan.combines
        )
        walk(rest, functools.partial(straight, seen), x)
        first.append(seen[1])
        assert plan_of(name, points).restarted(0).table == pytest.approx(
            plan_of(name, points).table, abs=1e-7
        )
    for state in first[1:]:
        assert state == pytest.approx(first[0], rel=1e-5)


def straight(seen, x, time):
    """A network that notes where it was evaluated."""
    seen.append(x)
    return 0.5 * x + 0.1


# ---------------------------------------------------------------- diffusers


def toy(x, time):
    return 0.6 * x + 0.2 * torch.sin(3 * x) + 1e-4 * float(time)


def diffusers_chain(scheduler, steps_of_it, start, dtype):
    """The end of a chain, from a state with variance 1, and the times that the network was told."""
    scheduler.set_timesteps(steps_of_it)
    sample = torch.tensor(start, dtype=dtype) * (
        1 if scheduler.init_noise_sigma == 1 else ve_scale(scheduler)
    )
    times = [float(t) for t in scheduler.timesteps]
    for t in scheduler.timesteps:
        m = toy(scheduler.scale_model_input(sample, t), t)
        sample = scheduler.step(m, t, sample).prev_sample
    return sample.numpy(), times


def ve_scale(scheduler):
    """From x to x/alpha, which is the state of the schedulers after Karras et al."""
    return math.hypot(1, float(scheduler.sigmas[0]))


def points_of(scheduler):
    """Those that it steps through, from its noise levels or, of PNDM's, its timesteps."""
    if not hasattr(scheduler, "sigmas"):
        return points_at(LEVELS, np.unique(scheduler.timesteps.numpy())[::-1])
    ratios = [float(ratio) for ratio in scheduler.sigmas]
    distinct = [ratio for ratio, before in zip(ratios, [None, *ratios], strict=False) if ratio != before]
    points = [LEVELS.at_ratio(ratio) for ratio in distinct if ratio > 0]
    return [*points, CLEAN] if distinct[-1] == 0 else points


PEERS = {
    "euler": ("EulerDiscreteScheduler", {}),
    "heun": ("HeunDiscreteScheduler", {}),
    "dpm2": ("KDPM2DiscreteScheduler", {}),
    "lms": ("LMSDiscreteScheduler", {}),
    "pndm": ("PNDMScheduler", {"skip_prk_steps": True, "set_alpha_to_one": True}),
    "unipc": ("UniPCMultistepScheduler", {"solver_type": "bh2"}),
    "dpm_solver": (
        "DPMSolverMultistepScheduler",
        {"algorithm_type": "dpmsolver", "solver_type": "heun", "final_sigmas_type": "sigma_min"}
        | {"lower_order_final": False},
    ),
    "deis": ("DEISMultistepScheduler", {"solver_order": 3, "lower_order_final": False}),
}


# Those that pass fractional times on; the others round them, or step by 0 at the end.
FRACTIONAL = ("euler", "heun", "lms")
LIMITS = {"deis": 1e-4}
"""Of values up to 2: diffusers' has float32 differences of logarithms. 1e-5 of the others."""


@pytest.mark.filterwarnings("ignore")  # of NumPy's and torch's, from diffusers
@pytest.mark.parametrize(
    ("name", "karras"), [*((name, False) for name in PEERS), *((name, True) for name in FRACTIONAL)]
)
def test_diffusers_scheduler_of_that_name(name, karras):
    kind, options = PEERS[name]
    if karras:
        options = {**options, "use_karras_sigmas": True}
    scheduler = getattr(diffusers, kind)(beta_start=1e-4, beta_end=0.02, beta_schedule="linear", **options)
    start = np.linspace(-2, 2, 9).reshape(1, 9)
    dtype = torch.float32 if name == "unipc" else torch.float64
    wanted, times = diffusers_chain(scheduler, 12, start, dtype)
    plan = plan_of(name, points_of(scheduler))
    assert plan.model_time == pytest.approx(np.array(times), abs=2e-3)
    given = walk(plan, lambda x, time: toy(torch.tensor(x), time).numpy(), start)
    assert given == pytest.approx(wanted, abs=LIMITS.get(name, 1e-5))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["EulerAncestralDiscreteScheduler", "KDPM2AncestralDiscreteScheduler"])
def test_diffusers_ancestral_schedulers(kind):
    """The same numbers in the place of theirs: the noise of a step enters as there."""
    name = {"E": "euler_ancestral", "K": "dpm2_ancestral"}[kind[0]]
    scheduler = getattr(diffusers, kind)(beta_start=1e-4, beta_end=0.02, beta_schedule="linear")
    start = np.linspace(-2, 2, 9).reshape(1, 9)
    torch.manual_seed(4)
    wanted, times = diffusers_chain(scheduler, 12, start, torch.float64)
    plan = plan_of(name, points_of(scheduler))
    torch.manual_seed(4)
    # At the end of each step, of one evaluation or two.
    drawn = {int(k): torch.randn(1, 9, dtype=torch.float64).numpy() for k in np.flatnonzero(plan.draws)}
    given = walk(plan, lambda x, time: toy(torch.tensor(x), time).numpy(), start, lambda k: drawn.get(k, 0.0))
    assert len(plan) == len(times)
    assert given == pytest.approx(wanted, abs=2e-5)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("order", [1, 2])
def test_diffusers_dpm_solver_of_the_sde(order):
    scheduler = diffusers.DPMSolverMultistepScheduler(
        beta_start=1e-4,
        beta_end=0.02,
        beta_schedule="linear",
        algorithm_type="sde-dpmsolver++",
        solver_type="heun",
        solver_order=order,
    )
    start = np.linspace(-2, 2, 9).reshape(1, 9)
    torch.manual_seed(4)
    wanted, times = diffusers_chain(scheduler, 12, start, torch.float32)
    plan = plan_of("dpmpp_2m_sde", points_of(scheduler), order)
    torch.manual_seed(4)
    drawn = [torch.randn(1, 9).numpy() for _ in times]
    given = walk(plan, lambda x, time: toy(torch.tensor(x), time).numpy(), start, lambda k: drawn[k])
    assert given == pytest.approx(wanted, abs=2e-5)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("lower", [False, True])
@pytest.mark.parametrize("tau", [0.0, 0.6, 1.0])
@pytest.mark.parametrize("order", [1, 2, 3])
def test_diffusers_sa_solver(order, tau, lower):
    """Whose orders count the values of a polynomial: the paper's corrector has one more than its predictor.

    Of noise levels in float64, since it subtracts close exponentials of those that it has.
    """
    scheduler = diffusers.SASolverScheduler(
        beta_start=1e-4,
        beta_end=0.02,
        beta_schedule="linear",
        predictor_order=order,
        corrector_order=order + 1,
        tau_func=lambda t: tau,
        lower_order_final=lower,
    )
    scheduler.set_timesteps(12)
    scheduler.sigmas = scheduler.sigmas.double()
    x = torch.linspace(-2, 2, 9, dtype=torch.float64).reshape(1, 9)
    start, generator = x.numpy(), torch.Generator().manual_seed(4)
    for t in scheduler.timesteps:
        x = scheduler.step(toy(x, t), t, x, generator=generator).prev_sample
    told = SolverOptions(order, LEVELS.at_ratio, LEVELS.at_timestep, tau, lower)
    plan = METHODS["sa_solver"].solver(points_of(scheduler), told).plan("sa_solver", "epsilon", math.inf)
    assert plan.stochastic == (tau > 0)
    again = torch.Generator().manual_seed(4)
    drawn = [torch.randn(1, 9, dtype=torch.float64, generator=again).numpy() for _ in scheduler.timesteps]
    given = walk(plan, lambda x, time: toy(torch.tensor(x), time).numpy(), start, lambda k: drawn[k])
    wanted = x.numpy()
    assert np.abs(given - wanted).max() <= 1e-5 * max(1.0, np.abs(wanted).max())


@pytest.mark.filterwarnings("ignore")
def test_diffusers_singlestep_solver_of_the_sde():
    """Its timesteps evenly in log sigma, so that every second one is in the middle of a step of ours."""
    scheduler = diffusers.DPMSolverSinglestepScheduler(
        beta_start=1e-4,
        beta_end=0.02,
        beta_schedule="linear",
        algorithm_type="sde-dpmsolver++",
        use_exponential_sigmas=True,
        lower_order_final=True,
    )

    def network(x):
        return 0.6 * x + 0.2 * torch.sin(3 * x)

    scheduler.set_timesteps(13)
    assert list(scheduler.order_list) == [1, 2] * 6 + [1]
    start = np.linspace(-2, 2, 9).reshape(1, 9)
    sample, generator = torch.tensor(start).float(), torch.Generator().manual_seed(4)
    for t in scheduler.timesteps:
        sample = scheduler.step(network(sample), t, sample, generator=generator).prev_sample
    levels = scheduler.sigmas.double()
    points = [LEVELS.at_ratio(float(ratio)) for ratio in levels[:13:2]]
    plan = plan_of("dpmpp_2s_sde", [*points, CLEAN])
    assert plan.kept == 1
    assert plan.starts.tolist() == [True, False] * 6 + [True]
    again = torch.Generator().manual_seed(4)
    drawn = [torch.randn(1, 9, generator=again).numpy() for _ in range(13)]
    got = walk(plan, lambda x, time: network(torch.tensor(x)).numpy(), start, lambda k: drawn[k])
    assert np.abs(got - sample.numpy()).max() <= 1e-5 * max(1.0, float(sample.abs().max()))


@pytest.mark.parametrize("eta", [0.4, 1.0])
def test_churn_is_algorithm_2(eta):
    """Karras et al. 2022, algorithm 2 written out in u = x/alpha, with the same numbers."""
    points = points_at(LEVELS, np.array([999, 800, 500, 200, 40]))
    plan = plan_of("heun", points, eta=eta)
    numbers = np.random.default_rng(2).standard_normal((len(plan), 9))
    x = np.linspace(-2, 2, 9)

    def eps(u, ratio):
        time = np.interp(math.log(ratio), LEVELS.log_ratio, np.arange(1000))
        return toy(torch.tensor(u / np.hypot(1, ratio)), np.float32(time)).numpy()

    drawn = iter(numbers[plan.draws])
    u = x * np.hypot(1, points[0].ratio)
    for number, (s, t) in enumerate(itertools.pairwise(points)):
        sigma, end = s.ratio, t.ratio
        if number:
            higher = min(sigma * (1 + eta * (math.sqrt(2) - 1)), points[0].ratio)
            u = u + math.sqrt(higher**2 - sigma**2) * next(drawn)
            sigma = higher
        slope = eps(u, sigma)
        following = u + (end - sigma) * slope
        if end > 0:
            following = u + (end - sigma) * (slope + eps(following, end)) / 2
        u = following
    given = walk(plan, lambda x, time: toy(torch.tensor(x), time).numpy(), x, lambda k: numbers[k])
    assert given == pytest.approx(u, rel=2e-4, abs=2e-5)
    assert plan.draws.sum() == len(points) - 2
    assert next(drawn, None) is None


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("name", "eta"), [("lcm", 0.0), ("tcd", 0.0), ("tcd", 0.3), ("tcd", 1.0)])
def test_diffusers_schedulers_of_consistency_models(name, eta):
    options = {"beta_start": 1e-4, "beta_end": 0.02, "beta_schedule": "linear"}
    scheduler = getattr(diffusers, f"{name.upper()}Scheduler")(**options)
    given_times = [999, 759, 499, 259]
    scheduler.set_timesteps(timesteps=given_times)
    x = torch.linspace(-2, 2, 9, dtype=torch.float64).reshape(1, 9)
    start, generator = x.numpy(), torch.Generator().manual_seed(4)
    for t in scheduler.timesteps:
        step_options = {"generator": generator, **({"eta": eta} if name == "tcd" else {})}
        x = scheduler.step(toy(x, int(t)), t, x, **step_options).prev_sample
    method = Method(method=name, timesteps=given_times, **({"eta": eta} if eta else {}))
    plan, again = method.plan(SCHEDULE), torch.Generator().manual_seed(4)
    numbers = {
        int(k): torch.randn(1, 9, dtype=torch.float64, generator=again) for k in np.flatnonzero(plan.draws)
    }
    got = walk(
        plan,
        lambda x, time: toy(torch.tensor(x), int(time)).numpy(),
        start,
        lambda k: numbers[k].numpy() if k in numbers else 0.0,
    )
    assert got == pytest.approx(x.numpy(), rel=1e-5, abs=1e-5)
    assert generator.get_state().equal(again.get_state())


# ---------------------------------------------------------------- points and options


@pytest.mark.parametrize("spacing", ["karras", "exponential", "beta"])
def test_spacings_of_noise_levels_are_those_of_diffusers(spacing):
    scheduler = diffusers.EulerDiscreteScheduler(
        beta_start=1e-4, beta_end=0.02, beta_schedule="linear", **{f"use_{spacing}_sigmas": True}
    )
    scheduler.set_timesteps(9)
    points = spaced_points(LEVELS, 9, spacing)
    # diffusers' first noise level is of 1 - alphas_cumprod in float32.
    assert np.array([point.ratio for point in points]) == pytest.approx(scheduler.sigmas.numpy(), rel=5e-4)
    times = np.array([point.time for point in points[:-1]])
    assert times == pytest.approx(scheduler.timesteps.numpy(), abs=1e-2)


def test_options_of_solvers():
    plan = Method(method="unipc", num_inference_steps=8, timestep_spacing="karras").plan(SCHEDULE)
    assert plan.model_time.dtype == np.float32
    assert plan.timesteps[0] == 999
    assert plan.timesteps[-1] == 0
    given = Method(method="heun", timesteps=[800, 400], time_input="noise_level").plan(SCHEDULE)
    assert given.model_time == pytest.approx(np.sqrt(SCHEDULE.alphas_cumprod[[800, 400, 400]]), rel=1e-6)
    assert Method(method="lms", num_inference_steps=5, solver_order=1).plan(SCHEDULE).kept == 0
    with pytest.raises(BadArgument, match=r"timestep_spacing: 'karras', which belongs to dpmpp_3m, .* given"):
        Method(method="ddim", timestep_spacing="karras")
    with pytest.raises(BadArgument, match="solver_order: 4 with method 'unipc' given, 1 or 2 or 3 accepted"):
        Method(method="unipc", solver_order=4)
    with pytest.raises(BadArgument, match="num_inference_steps: 1 with timestep_spacing 'karras' given"):
        Method(method="euler", num_inference_steps=1, timestep_spacing="karras").plan(SCHEDULE)
    karras = Method(method="unipc", timestep_spacing="karras", num_inference_steps=8, solver_order=3)
    other = karras.adapted(method="ddim")
    assert (other.timestep_spacing, other.solver_order) == ("leading", None)


def test_a_solver_of_ones_own():
    """The midpoint rule in sigma, of ten lines: of order 2."""

    def midpoint(points, options):
        tableau, state = Tableau("eps"), None
        for _, s, t in steps(points):
            x, eps = tableau.evaluate(s, state)
            u, middle = x / s.alpha, options.at_ratio((s.ratio + t.ratio) / 2)
            _, eps = tableau.evaluate(
                middle, middle.alpha * (u + (middle.ratio - s.ratio) * eps), is_start=False
            )
            state = t.alpha * (u + (t.ratio - s.ratio) * eps)
        return tableau.ended(state)

    register_solver("midpoint", midpoint)
    try:
        errors = [
            np.abs(walk(plan_of("midpoint", even_points(n)), mixture, STARTS) - exact_ends()).max()
            for n in (80, 160)
        ]
        assert math.log2(errors[0] / errors[1]) == pytest.approx(2, abs=0.2)
        assert len(Method(method="midpoint", num_inference_steps=4).plan(SCHEDULE)) == 8
        with pytest.raises(BadArgument, match="name: 'midpoint' given"):
            register_solver("midpoint", midpoint)
    finally:
        del METHODS["midpoint"]


def test_what_no_plan_can_hold_is_said():
    tableau = Tableau("eps")
    first, second, third = points_at(LEVELS, np.array([900, 600, 300]))[:3]
    x, eps = tableau.evaluate(first, None)
    tableau.evaluate(second, 0.5 * x + eps, noise=0.1)
    tableau.evaluate(third, x + 2.0 * eps, noise=0.1)
    tableau.ended(3.0 * x + 6.0 * eps)
    table = tableau.plan("one sum", "epsilon", math.inf).table
    assert table[0, [Column.KEPT_FROM_X, Column.KEPT_FROM_M]].tolist() == [1.0, 2.0]
    assert table[1:, Column.FROM_KEPT_1].tolist() == [1.0, 3.0]
    tableau.ended(x + eps)
    with pytest.raises(
        ValueError, match=r"row 2 needs the state of row 0, .*, in another sum than a row before"
    ):
        tableau.plan("two sums", "epsilon", math.inf)
    tableau = Tableau("eps")
    state, known = None, []
    for point in points_at(LEVELS, np.arange(900, 100, -100))[:8]:
        state, eps = tableau.evaluate(point, state)
        known.append(eps)
    for eps in known[:-1]:
        state = state + eps
    with pytest.raises(ValueError, match="row 5 would be one more prediction kept; there are 5 places"):
        tableau.ended(state).plan("seven", "epsilon", math.inf)


# ---------------------------------------------------------------- levels of one's own, last steps, thresholds

STABLE_DIFFUSION = NoiseSchedule.scaled_linear(1000, 0.00085, 0.012)
# Published for Stable Diffusion by Sabour et al. 2024, rounded so that both ends lie outside its levels.
ALIGNED = [14.615, 6.475, 3.861, 2.697, 1.886, 1.396, 0.963, 0.652, 0.399, 0.152, 0.029]


@pytest.mark.parametrize("ending", [[], [0.0]], ids=["without 0", "with 0"])
def test_sigmas_of_ones_own_are_those_of_diffusers(ending):
    options = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    scheduler = diffusers.EulerDiscreteScheduler(**options)
    scheduler.set_timesteps(sigmas=[*ALIGNED, 0.0])
    start = np.linspace(-2, 2, 9).reshape(1, 9)
    sample = torch.tensor(start) * ve_scale(scheduler)
    for t in scheduler.timesteps:
        m = toy(scheduler.scale_model_input(sample, t), t)
        sample = scheduler.step(m, t, sample).prev_sample
    method = Method(method="euler", sigmas=[*ALIGNED, *ending])
    plan = method.plan(STABLE_DIFFUSION)
    assert len(plan) == len(ALIGNED)
    assert plan.model_time == pytest.approx(scheduler.timesteps.numpy(), abs=1e-2)
    got = walk(plan, lambda x, time: toy(torch.tensor(x), time).numpy(), start)
    assert got == pytest.approx(sample.numpy(), abs=1e-5)
    again = Method.from_dict(method.to_dict())
    assert again == method
    assert again.sigmas == (*ALIGNED, *ending)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"sigmas": [1.0, 2.0]}, r"sigmas: \[1.0, 2.0\] given, numbers above 0, strictly descending"),
        ({"sigmas": [2.0, 2.0]}, "strictly descending"),
        ({"sigmas": [0]}, "numbers above 0"),
        ({"sigmas": [2.0, 0, 0]}, "strictly descending"),
        ({"sigmas": [2.0, -1.0]}, "numbers above 0"),
        ({"sigmas": [math.inf, 1.0]}, "numbers above 0"),
        ({"sigmas": [[2.0], [1.0, 0.5]]}, "numbers above 0"),
        ({"sigmas": "2,1"}, "sigmas: '2,1' given"),
        ({"sigmas": [True]}, r"sigmas: \[True\] given"),
        (
            {"sigmas": [16.0, 1.0]},
            "sigmas: 16 among them given, levels of training, 0.02917 to 14.61, accepted",
        ),
        ({"sigmas": [1.0, 0.02]}, "sigmas: 0.02 among them given"),
        ({"sigmas": [1.0], "timesteps": [3]}, "sigmas, timesteps: both given, one of the two accepted"),
        ({"sigmas": [1.0], "num_inference_steps": 2}, "num_inference_steps: 2 given, None or .*, 1 accepted"),
        ({"sigmas": np.linspace(2, 1, 1001)}, "sigmas: 1001 numbers given, at most T, 1000 accepted"),
        (
            {"sigmas": [1.0], "method": "ddim"},
            r"sigmas: \[1.0\], which belongs to dpmpp_3m, .* None accepted",
        ),
        ({"lower_order_final": True, "method": "heun"}, "lower_order_final: True, which belongs to dpmpp_3m"),
        ({"lower_order_final": 1}, "lower_order_final: 1 given, one of True, False accepted"),
        ({"thresholding": "yes"}, "thresholding: 'yes' given, one of True, False accepted"),
        (
            {"thresholding": True, "clip_sample_range": 1.0},
            "thresholding: True with clip_sample_range 1.0 given",
        ),
        ({"thresholding": True, "sample_max_value": 0.5}, "sample_max_value: 0.5 given"),
        ({"thresholding": True, "dynamic_thresholding_ratio": 1.5}, "dynamic_thresholding_ratio: 1.5 given"),
        (
            {"sample_max_value": 2.0},
            "sample_max_value: 2.0 without thresholding given, 1, or thresholding=True",
        ),
    ],
    ids=str,
)
def test_levels_and_options_that_are_refused(options, said):
    with pytest.raises(BadArgument, match=said):
        Method(**{"method": "unipc", **options}).plan(STABLE_DIFFUSION)


def test_a_list_and_a_spacing_take_the_place_of_each_other():
    method = Method(method="unipc", sigmas=np.array([9.0, 1.0, 0.0]), lower_order_final=True)
    assert method.sigmas == (9.0, 1.0, 0.0)
    assert method.adapted(num_inference_steps=7).sigmas is None
    assert method.adapted(timesteps=[5, 1]).sigmas is None
    assert (
        Method(method="unipc", num_inference_steps=7).adapted(sigmas=[2.0, 1.0]).num_inference_steps is None
    )
    plain = method.adapted(method="ddim")
    assert (plain.sigmas, plain.num_inference_steps, plain.lower_order_final) == (None, 2, False)
    bounded = Method(method="unipc", clip_sample_range=1.0).adapted(thresholding=True, sample_max_value=2.0)
    assert bounded.clip_sample_range is None
    assert bounded.adapted(clip_sample_range=1.0) == Method(method="unipc", clip_sample_range=1.0)
    assert hash(method) == hash(Method(method="unipc", sigmas=(9, 1, 0), lower_order_final=True))


def test_log_snr_is_even_in_it():
    plan = Method(method="euler", num_inference_steps=9, timestep_spacing="log_snr").plan(SCHEDULE)
    log_snr = np.log(plan.alphas_cumprod / (1 - plan.alphas_cumprod))
    assert np.diff(log_snr) == pytest.approx(np.full(8, (log_snr[-1] - log_snr[0]) / 8), rel=1e-6)
    assert Method(timestep_spacing="log_snr", method="euler").to_dict()["timestep_spacing"] == "log_snr"


def thresholded(sample, ratio=0.995, largest=1.0):
    """Imagen's: Saharia et al. 2022, section 2.3."""
    bound = np.clip(np.quantile(np.abs(sample), ratio, axis=(1, 2), keepdims=True), 1, largest)
    return np.clip(sample, -bound, bound) / bound


def threshold_walk(plan, network, x):
    """`walk` with the bound of `Plan.thresholding`."""
    rows, kept = plan.table.astype(np.float64), np.full((5, *x.shape), 7.0)
    for k, row in enumerate(rows):
        m = network(x, plan.model_time[k])
        x0 = row[Column.X0_FROM_X] * x + row[Column.X0_FROM_M] * m
        x0 = x0 if plan.thresholding is None else thresholded(x0, *plan.thresholding)
        own = row[Column.KEPT_FROM_X0] * x0 + row[Column.KEPT_FROM_X] * x + row[Column.KEPT_FROM_M] * m
        x_next = row[Column.FROM_X0] * x0 + row[Column.FROM_X] * x + row[Column.FROM_M] * m
        x_next += sum(row[column] * kept[place] for place, column in enumerate(FROM_KEPT))
        kept[int(row[Column.KEPT_SLOT])] = own if plan.combines else x0
        x = x_next
    return x


LOWERED = {
    "dpmpp_3m": (
        "DPMSolverMultistepScheduler",
        {"solver_order": 2, "solver_type": "heun", "final_sigmas_type": "sigma_min"},
        2,
    ),
    "dpm_solver": (
        "DPMSolverMultistepScheduler",
        {"algorithm_type": "dpmsolver", "solver_type": "heun", "final_sigmas_type": "sigma_min"},
        2,
    ),
    "deis": ("DEISMultistepScheduler", {"solver_order": 3}, 3),
    "unipc": ("UniPCMultistepScheduler", {"solver_order": 3, "solver_type": "bh2"}, 3),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("thresholding", [False, True])
@pytest.mark.parametrize("lower", [False, True])
@pytest.mark.parametrize("name", LOWERED)
def test_lower_order_final_and_thresholding_are_those_of_diffusers(name, lower, thresholding):
    kind, options, order = LOWERED[name]
    betas = {"beta_start": 1e-4, "beta_end": 0.02, "beta_schedule": "linear"}
    if name == "unipc" and not lower:  # which divides by 0 onto the clean image
        options = {**options, "final_sigmas_type": "sigma_min"}
    extra = {"thresholding": True, "sample_max_value": 1.5} if thresholding and name != "dpm_solver" else {}
    scheduler = getattr(diffusers, kind)(lower_order_final=lower, **betas, **options, **extra)
    start = np.linspace(-2, 2, 18).reshape(2, 3, 3)
    wanted, _ = diffusers_chain(scheduler, 12, start, torch.float32)
    entry, points = METHODS[name], points_of(scheduler)
    told = SolverOptions(order, LEVELS.at_ratio, LEVELS.at_timestep, 0.0, lower)
    if name == "dpmpp_3m" and thresholding:
        assert Method(method=name, thresholding=True, sample_max_value=1.5).threshold == (0.995, 1.5)
    plan = entry.solver(points, told).plan(
        name, "epsilon", math.inf, thresholding=(0.995, 1.5) if extra else None
    )
    got = threshold_walk(plan, lambda x, time: toy(torch.tensor(x), time).numpy(), start)
    assert np.abs(got - wanted).max() <= LIMITS.get(name, 1e-5) * max(1.0, np.abs(wanted).max())


@pytest.mark.parametrize(("count", "lowered"), [(14, True), (15, False)])
@pytest.mark.parametrize("name", ["dpmpp_3m", "dpmpp_3m_sde", "deis"])
def test_the_last_but_one_of_few_steps_is_of_second_order(name, count, lowered):
    """It reads one earlier prediction, where one of third order reads two."""
    method = Method(method=name, num_inference_steps=count, lower_order_final=True)
    reads = [np.count_nonzero(row[list(FROM_KEPT)]) for row in method.plan(SCHEDULE).table]
    assert reads == [0, 1, *(2 for _ in range(count - 4)), 1 if lowered else 2, 0]
