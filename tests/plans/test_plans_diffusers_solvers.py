"""Chains of every solver of diffusers against the scheduler itself, walked row by row with the operator."""

import copy
import functools
import inspect
import json

import numpy as np
import pytest
import torch

from fastddpm.plans.diffusers import from_solver_scheduler
from fastddpm.plans.diffusers.solver_classes import SOLVERS
from fastddpm_kernels import reverse_step
from fastddpm_kernels.table import Column

diffusers = pytest.importorskip("diffusers")

# NumPy's, of how diffusers makes arrays of tensors: hundreds of thousands.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

TOLERANCE = 1e-5
"""Largest difference at the end of a chain over its largest absolute value: float32 on both sides."""

SHAPE = (2, 3, 4, 4)
SPACINGS = ["linspace", "leading", "trailing"]
SIGMAS = [None, "use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas"]
OF_EPS_AND_V = {
    "PNDMScheduler",
    "EulerAncestralDiscreteScheduler",
    "KDPM2DiscreteScheduler",
    "KDPM2AncestralDiscreteScheduler",
    "EDMEulerScheduler",
    "EDMDPMSolverMultistepScheduler",
}


def network(x, t):
    """Of the state and of the time, not linear."""
    return torch.tanh(0.9 * x.double() + 0.1 * np.sin(float(t) / 200.0)).float()


def made(name, **config):
    """A scheduler with those of the options that its class has; Stable Diffusion's betas."""
    return copy.copy(_made(name, json.dumps(config)))


@functools.cache  # some set themselves to 1000 steps, which takes them half a second
def _made(name, config):
    config = json.loads(config)
    known = inspect.signature(getattr(diffusers, name).__init__).parameters
    options = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", **config}
    if name == "PNDMScheduler":
        options.setdefault("skip_prk_steps", True)
    return getattr(diffusers, name)(**{key: value for key, value in options.items() if key in known})


def theirs(scheduler, steps, start=0, **step_options):
    """(the first state in the scheduler's space, the last one)."""
    scheduler.set_timesteps(steps)
    u = torch.randn(SHAPE, generator=torch.Generator().manual_seed(1)) * float(scheduler.init_noise_sigma)
    first, generator = u, torch.Generator().manual_seed(2)
    if "generator" in inspect.signature(scheduler.step).parameters:
        step_options["generator"] = generator
    if start:
        scheduler.set_begin_index(start) if hasattr(scheduler, "set_begin_index") else None
    for t in scheduler.timesteps[start:]:
        m = network(scheduler.scale_model_input(u, t), t)
        u = scheduler.step(m, t, u, return_dict=False, **step_options)[0]
    return first, u, generator


def ours(plan, x):
    """The last state of a chain, and the generator after it."""
    table, generator, x = torch.tensor(plan.table), torch.Generator().manual_seed(2), x.clone()
    kept = torch.full((max(plan.kept, 1), *SHAPE), 7.0)  # left over from elsewhere
    for row in range(len(plan)):
        m = network(x, plan.model_time[row])
        noise = torch.randn(SHAPE, generator=generator)[None] if plan.draws[row] else None
        bound = None
        if plan.thresholding is not None:
            p, q = (table[row, column] for column in (Column.X0_FROM_X, Column.X0_FROM_M))
            bound = (p * x + q * m).abs().flatten(1).quantile(plan.thresholding[0], dim=1)
            bound = bound.clamp(1, plan.thresholding[1])
        reverse_step(
            x,
            m,
            table,
            torch.tensor([[row, 0]] * len(x)),
            noise=noise,
            threshold=bound,
            kept=kept if plan.kept else None,
            combine=plan.combines,
            clip=plan.clip,
            divide=plan.divides,
            rederive=plan.rederives,
        )
    return x, generator


def hold(name, steps, *, start=0, tolerance=TOLERANCE, **config):
    """A chain of ours against the scheduler's, and the numbers drawn."""
    scheduler = made(name, **config)
    plan = from_solver_scheduler(scheduler, steps, start=start)
    u, expected, drawn = theirs(scheduler, steps, start)
    in_sigmas, data = SOLVERS[name].in_sigmas, scheduler.config.get("sigma_data", 1.0)
    x = u / data * np.sqrt(plan.alphas_cumprod[0]) if in_sigmas else u
    got, generator = ours(plan, x.float())
    if in_sigmas:
        got = got * float((data**2 + scheduler.sigmas[len(scheduler.timesteps)] ** 2) ** 0.5)
    assert torch.isfinite(expected).all()
    assert drawn.get_state().equal(generator.get_state()), "draws differently"
    assert float((got - expected).abs().max() / expected.abs().max()) <= tolerance


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("name", sorted(SOLVERS))
def test_chains(name, prediction):
    """Every spacing and sigma that the class has."""
    if prediction == "sample" and name in OF_EPS_AND_V:
        pytest.skip("not of this class")
    known = inspect.signature(getattr(diffusers, name).__init__).parameters
    spacings = SPACINGS if "timestep_spacing" in known else [None]
    if name.startswith("KDPM2"):
        spacings = ["leading"]  # see `_made`
    for spacing in spacings:
        for sigmas in SIGMAS:
            if sigmas is not None and sigmas not in known:
                continue
            config = {"prediction_type": prediction, "timestep_spacing": spacing}
            config |= {} if sigmas is None else {sigmas: True}
            if sigmas is not None and spacing != spacings[0]:
                continue  # levels between the same ends, whatever the timesteps were
            # DEIS puts differences of close logarithms into weights of order 100 that cancel.
            loose = {"tolerance": 1e-4} if name.startswith("DEIS") else {}
            hold(name, 12 if sigmas is None else 9, **loose, **config)


@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("solver_type", ["midpoint", "heun"])
@pytest.mark.parametrize("algorithm", ["dpmsolver++", "dpmsolver", "sde-dpmsolver++", "sde-dpmsolver"])
def test_algorithms_of_dpm_solver(algorithm, solver_type, order):
    if (algorithm, order) == ("sde-dpmsolver", 3):
        with pytest.raises(ValueError, match="solver_order: 3 with algorithm_type 'sde-dpmsolver'"):
            hold(
                "DPMSolverMultistepScheduler",
                10,
                algorithm_type=algorithm,
                solver_order=3,
                final_sigmas_type="sigma_min",
            )
        return
    config = {"algorithm_type": algorithm, "solver_type": solver_type, "solver_order": order}
    for last in ("sigma_min", "zero") if algorithm.endswith("++") else ("sigma_min",):
        for others in ({}, {"lower_order_final": False}, {"euler_at_final": True}):
            hold("DPMSolverMultistepScheduler", 9, final_sigmas_type=last, **others, **config)
            hold("DPMSolverMultistepScheduler", 16, final_sigmas_type=last, **others, **config)
            if algorithm == "sde-dpmsolver++" and order == 3:
                continue  # see `test_refused`
            if algorithm != "sde-dpmsolver":  # which the singlestep class has not
                hold("DPMSolverSinglestepScheduler", 9, final_sigmas_type=last, **others, **config)
                hold("DPMSolverSinglestepScheduler", 12, final_sigmas_type=last, **others, **config)


@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("solver_type", ["bh1", "bh2"])
@pytest.mark.parametrize("predict_x0", [True, False])
def test_forms_of_unipc(predict_x0, solver_type, order):
    config = {"predict_x0": predict_x0, "solver_type": solver_type, "solver_order": order}
    for others in ({}, {"disable_corrector": [0, 3]}, {"lower_order_final": False}):
        hold("UniPCMultistepScheduler", 9, final_sigmas_type="sigma_min", **others, **config)
        # bh1 is infinite in the last step there, times 0.
        if predict_x0 and solver_type == "bh2" and "lower_order_final" not in others:
            hold("UniPCMultistepScheduler", 9, **others, **config)


@pytest.mark.parametrize("algorithm", ["data_prediction", "noise_prediction"])
@pytest.mark.parametrize("orders", [(1, 1), (2, 2), (3, 4), (4, 4), (4, 3), (3, 3), (1, 2)])
def test_orders_of_sa_solver(orders, algorithm):
    """Beyond the second diffusers' float32 polynomials in lambda lose digits."""
    config = {"predictor_order": orders[0], "corrector_order": orders[1], "algorithm_type": algorithm}
    loose = {"tolerance": 1e-4} if max(orders) > 2 else {}
    for others in ({}, {"lower_order_final": False}):
        hold("SASolverScheduler", 12, **loose, **others, **config)


@pytest.mark.parametrize("tau", [0.0, 0.5])
def test_tau_of_sa_solver(tau):
    scheduler = diffusers.SASolverScheduler(beta_start=0.00085, beta_end=0.012, tau_func=lambda t: tau)
    plan = from_solver_scheduler(scheduler, 9)
    x, expected, _ = theirs(scheduler, 9)
    assert (ours(plan, x)[0] - expected).abs().max() <= TOLERANCE * expected.abs().max()
    assert plan.stochastic == (tau > 0)


@pytest.mark.parametrize("order", [1, 2, 3])
def test_orders_of_deis(order):
    for others in ({}, {"lower_order_final": False}, {"use_beta_sigmas": True}):
        for steps in (9, 20):
            hold("DEISMultistepScheduler", steps, solver_order=order, tolerance=1e-4, **others)


@pytest.mark.parametrize(
    ("name", "config"),
    [
        *((name, {"thresholding": True, "dynamic_thresholding_ratio": 0.8, "sample_max_value": 1.5})
          for name, solver in SOLVERS.items() if solver.thresholds),
        ("HeunDiscreteScheduler", {"clip_sample": True, "clip_sample_range": 0.8}),
        ("LCMScheduler", {"clip_sample": True, "clip_sample_range": 0.8}),
        ("PNDMScheduler", {"set_alpha_to_one": True, "steps_offset": 1}),
        ("EulerDiscreteScheduler", {"final_sigmas_type": "sigma_min", "steps_offset": 1}),
        ("EulerDiscreteScheduler", {"interpolation_type": "log_linear"}),
        ("DPMSolverMultistepScheduler", {"use_lu_lambdas": True}),
        ("DPMSolverMultistepScheduler", {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing",
                                         "prediction_type": "v_prediction"}),
        ("TCDScheduler", {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction"}),
    ],
    ids=lambda value: value if isinstance(value, str) else ",".join(value),
)  # fmt: skip
def test_options(name, config):
    hold(name, 8, **config)


@pytest.mark.parametrize("name", sorted(set(SOLVERS) - {"LCMScheduler", "TCDScheduler"}))
def test_chains_that_start_later(name):
    """Image-to-image: what a solver remembers begins anew."""
    hold(name, 20, start=8)
    if name in ("DPMSolverMultistepScheduler", "UniPCMultistepScheduler", "DEISMultistepScheduler"):
        hold(name, 20, start=11, solver_order=3)


def test_eta_of_tcd():
    for eta in (0.0, 0.5, 1.0):
        scheduler = made("TCDScheduler")
        plan = from_solver_scheduler(scheduler, 5, eta=eta)
        x, expected, _ = theirs(scheduler, 5, eta=eta)
        assert (ours(plan, x)[0] - expected).abs().max() <= TOLERANCE * expected.abs().max()
    with pytest.raises(ValueError, match="eta"):
        from_solver_scheduler(scheduler, 5, eta=1.5)


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_pndm_begun_by_runge_kutta(prediction, spacing):
    """Its third step has five predictions to remember: three for the multistep rows, two of its own."""
    for options in ({}, {"steps_offset": 1}, {"set_alpha_to_one": True}):
        config = {"prediction_type": prediction, "timestep_spacing": spacing, **options}
        if spacing == "leading" or not options:
            hold("PNDMScheduler", 12, skip_prk_steps=False, **config)
    plan = from_solver_scheduler(made("PNDMScheduler", skip_prk_steps=False), 5)
    assert (len(plan), plan.kept) == (14, 5)
    assert plan.starts.tolist() == [True, False, False, False] * 3 + [True, True]
    with pytest.raises(ValueError, match="num_inference_steps: 21 rows from row 3 on, within a Runge-Kutta"):
        from_solver_scheduler(made("PNDMScheduler", skip_prk_steps=False), 12, start=3)


@pytest.mark.parametrize(
    ("name", "config", "steps", "message"),
    [
        ("PNDMScheduler", {"skip_prk_steps": False}, 3, "num_inference_steps: 3, at which"),
        ("EulerDiscreteScheduler", {"prediction_type": "score"}, 10, "prediction_type: 'score' given"),
        (
            "DPMSolverSinglestepScheduler",
            {"algorithm_type": "sde-dpmsolver++", "solver_order": 3},
            10,
            "solver_order: 3 with an algorithm with noise",
        ),
        ("DPMSolverMultistepScheduler", {"num_train_timesteps": 100}, 100, "cannot be repeated .* one noise"),
        ("UniPCMultistepScheduler", {"predict_x0": False}, 10, "final_sigmas_type: 'zero'"),
        ("DDPMScheduler", {}, 10, "scheduler: 'DDPMScheduler' given"),
        ("LCMScheduler", {}, 60, "num_inference_steps: 60, at which the scheduler says"),
    ],
)  # fmt: skip
def test_refused(name, config, steps, message):
    with pytest.raises(ValueError, match=message):
        from_solver_scheduler(getattr(diffusers, name)(**config), steps)


def test_the_scheduler_is_left_as_it_was():
    scheduler = made("UniPCMultistepScheduler")
    scheduler.set_timesteps(7)
    before = {name: repr(value) for name, value in vars(scheduler).items()}
    from_solver_scheduler(scheduler, 12)
    assert {name: repr(value) for name, value in vars(scheduler).items()} == before
