"""EDM schedulers: chains against diffusers' own, by the operator and by `Sampler`."""

import numpy as np
import pytest
import torch

from fastddpm import NoiseSchedule, Sampler
from fastddpm.plans.diffusers import from_edm_scheduler

diffusers = pytest.importorskip("diffusers")

pytestmark = pytest.mark.filterwarnings("ignore")
SHAPE = (2, 3, 4, 4)
CONFIGURATIONS = [
    ("EDMEulerScheduler", {}),
    ("EDMEulerScheduler", {"prediction_type": "v_prediction", "sigma_data": 1.0}),
    ("EDMEulerScheduler", {"sigma_schedule": "exponential", "final_sigmas_type": "sigma_min"}),
    ("EDMEulerScheduler", {"sigma_min": 0.4, "final_sigmas_type": "sigma_min"}),
    ("EDMDPMSolverMultistepScheduler", {}),
    ("EDMDPMSolverMultistepScheduler", {"solver_order": 3, "sigma_data": 0.3}),
    ("EDMDPMSolverMultistepScheduler", {"solver_type": "heun", "lower_order_final": False}),
    ("EDMDPMSolverMultistepScheduler", {"prediction_type": "v_prediction", "euler_at_final": True}),
    ("EDMDPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}),
    ("EDMDPMSolverMultistepScheduler", {"thresholding": True, "sigma_data": 1.3}),
    (
        "EDMDPMSolverMultistepScheduler",
        {"thresholding": True, "dynamic_thresholding_ratio": 0.7, "sample_max_value": 2.0, "sigma_data": 1.3},
    ),
]


def network(x, t):
    """F, of the scaled state and of the noise level that it is told."""
    return torch.tanh(0.9 * x + 0.3 * torch.sin(torch.as_tensor(t)).reshape(-1, 1, 1, 1).to(x))


@pytest.mark.parametrize(("name", "config"), CONFIGURATIONS, ids=str)
@pytest.mark.parametrize("steps", [7, 18])
def test_chains_are_those_of_diffusers(name, config, steps):
    scheduler = getattr(diffusers, name)(**config)
    plan = from_edm_scheduler(scheduler, steps)
    assert scheduler.num_inference_steps is None  # it is not changed
    start = torch.randn(SHAPE, generator=torch.Generator().manual_seed(1))
    scheduler.set_timesteps(steps)
    sigma, data = float(scheduler.sigmas[0]), scheduler.config.sigma_data
    u, generator = start * (sigma**2 + data**2) ** 0.5, torch.Generator().manual_seed(2)
    for t in scheduler.timesteps:
        m = network(scheduler.scale_model_input(u, t), t)
        u = scheduler.step(m, t, u, generator=generator).prev_sample
    sampler = Sampler.from_plan(network, NoiseSchedule.linear(), plan, shape=SHAPE[1:], device="cpu")
    again = torch.Generator().manual_seed(2)
    got = sampler.sample(2, x_T=start, noise="torch", generator=again, progress=False)
    assert float((got - u).abs().max() / u.abs().max()) <= 1e-5
    assert plan.model_time == pytest.approx(scheduler.timesteps.numpy(), rel=1e-6)
    assert again.get_state().equal(generator.get_state())


def test_a_perfect_network_gives_its_image_from_any_number_of_steps():
    """F = (x0 - c_skip u)/c_out of one image x0: table 1 of Karras et al. 2022."""
    image, data = 0.7, 0.5

    def perfect(x, t):
        sigma = torch.exp(4 * t.double()).reshape(-1, 1, 1, 1)
        u = x.double() * (sigma**2 + data**2).sqrt()
        skip, out = data**2 / (sigma**2 + data**2), sigma * data / (sigma**2 + data**2).sqrt()
        return ((image - skip * u) / out).float()

    for name in ("EDMEulerScheduler", "EDMDPMSolverMultistepScheduler"):
        plan = from_edm_scheduler(getattr(diffusers, name)(sigma_data=data), 6)
        sampler = Sampler.from_plan(perfect, NoiseSchedule.linear(), plan, shape=SHAPE[1:], device="cpu")
        drawn = sampler.sample(seeds=[3, 4], progress=False)
        assert drawn.numpy() == pytest.approx(np.full(drawn.shape, image), abs=1e-5)


def test_of_a_configuration():
    config = dict(diffusers.EDMEulerScheduler(sigma_max=40.0).config, _class_name="EDMEulerScheduler")
    plan = from_edm_scheduler(config, 5)
    assert plan.model_time[0] == pytest.approx(np.log(40.0) / 4)


@pytest.mark.parametrize(
    ("scheduler", "config", "message"),
    [
        ("DDIMScheduler", {}, "scheduler: 'DDIMScheduler' given, one of EDMEulerScheduler, EDMDPMSolver"),
        (
            "EDMDPMSolverMultistepScheduler",
            {"algorithm_type": "sde-dpmsolver++", "solver_order": 3},
            "solver_order: 3 with an SDE of EDM, which diffusers has not, given, 1 or 2 accepted",
        ),
        (
            "EDMDPMSolverMultistepScheduler",
            {"prediction_type": "sample"},
            "prediction_type: 'sample' given, one of epsilon, v_prediction accepted",
        ),
    ],
)
def test_refused(scheduler, config, message):
    with pytest.raises(ValueError, match=message):
        from_edm_scheduler(getattr(diffusers, scheduler)(**config), 5)
