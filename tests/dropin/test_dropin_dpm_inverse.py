"""FastDPMSolverMultistepInverseScheduler against diffusers': steps, chains, there and back, refusals."""

from __future__ import annotations

import json
import pickle

import pytest
import torch

import fastddpm

diffusers = pytest.importorskip("diffusers")

from fastddpm.dropin.diffusers_schedulers import FastDPMSolverMultistepInverseScheduler  # noqa: E402

# NumPy's, of how diffusers makes arrays of tensors.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

# As tests/dropin/test_dropin_diffusers_solvers.py has them: of a step, and of a chain.
STEP = 1e-5
CHAIN = 1e-4
SHAPE = (2, 3, 4, 5)
CONFIGS = [
    {},
    {"solver_order": 1, "lower_order_final": False, "euler_at_final": True},
    {"solver_order": 3, "timestep_spacing": "leading", "prediction_type": "v_prediction"},
    {"solver_order": 3, "timestep_spacing": "trailing", "prediction_type": "sample", "solver_type": "heun"},
    {"algorithm_type": "dpmsolver", "solver_type": "heun", "beta_schedule": "scaled_linear"},
    {"algorithm_type": "dpmsolver", "solver_order": 3, "use_exponential_sigmas": True},
    {"use_karras_sigmas": True},
    {"thresholding": True, "sample_max_value": 1.5},
    {"beta_schedule": "squaredcos_cap_v2", "lambda_min_clipped": -5.1},
]


def network(x, t):
    weight = torch.randn((3, 3, 3, 3), generator=torch.Generator().manual_seed(1), dtype=x.dtype) * 0.1
    return torch.tanh(torch.nn.functional.conv2d(x, weight, padding=1) + t / 1000)


def begun(steps=10, **config):
    """The original and its twin, which is held to be one."""
    original = diffusers.DPMSolverMultistepInverseScheduler(**config)
    fast = fastddpm.optimize(original)
    assert type(fast) is FastDPMSolverMultistepInverseScheduler
    for scheduler in (original, fast):
        scheduler.set_timesteps(steps)
    return original, fast


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_steps_and_chains(config):
    steps = 12 if config else 16  # from 15 on the last step is of the full order
    original, fast = begun(steps, **config)
    assert fast.timesteps.equal(original.timesteps)
    x = y = start = torch.randn(SHAPE, generator=torch.Generator().manual_seed(7))
    for k, t in enumerate(fast.timesteps):
        m = network(x, t)
        theirs, ours = original.step(m, t, x), fast.step(m, t, y)
        assert type(ours) is type(theirs)
        assert (ours.prev_sample - theirs.prev_sample).abs().max() <= STEP * theirs.prev_sample.abs().max()
        x = y = theirs.prev_sample
        assert fast.step_index == original.step_index == k + 1
    ends = []
    for scheduler in (original, fast):
        scheduler.set_timesteps(steps)
        x = start
        for t in scheduler.timesteps:
            x = scheduler.step(network(x, t), t, x, return_dict=False)[0]
        ends.append(x)
    assert not isinstance(fast.__dict__["_walk"], str)  # and not by the original's step
    assert (ends[1] - ends[0]).abs().max() <= CHAIN * ends[0].abs().max()


def test_nearer_to_float64_than_the_original():
    """The original's first step far up is the difference of numbers a thousand times as large."""
    original, fast = begun(4, use_beta_sigmas=True)
    exact = diffusers.DPMSolverMultistepInverseScheduler(use_beta_sigmas=True)
    exact.set_timesteps(4)
    x, m = torch.randn(2, *SHAPE, generator=torch.Generator().manual_seed(3))
    t = fast.timesteps[0]
    wanted = exact.step(m.double(), t, x.double()).prev_sample
    off = [(each.step(m, t, x).prev_sample - wanted).abs().max() for each in (original, fast)]
    assert 0 < off[1] <= 1.5 * off[0]


def test_the_way_back():
    """DPM-Solver++ of many steps undoes what its inverse did, for a network that changes slowly."""
    back = fastddpm.optimize(diffusers.DPMSolverMultistepScheduler())
    there = FastDPMSolverMultistepInverseScheduler.from_config(back.config)
    assert type(fastddpm.optimize(diffusers.DPMSolverMultistepInverseScheduler.from_config(back.config))) is (
        FastDPMSolverMultistepInverseScheduler
    )
    x = image = torch.randn(SHAPE, generator=torch.Generator().manual_seed(3)).clamp(-1, 1)
    for scheduler in (there, back):
        scheduler.set_timesteps(200)
        for t in scheduler.timesteps:
            x = scheduler.step(0.3 * x, t, x).prev_sample
    assert (x - image).abs().max() < 0.02


def test_where_the_originals_step_is_taken():
    """Gradients, and levels that come twice, which the original's trailing spacing leaves at the end."""
    original, fast = begun(20, timestep_spacing="trailing", solver_order=3)
    x, m = torch.randn(2, *SHAPE, generator=torch.Generator().manual_seed(3))
    t = fast.timesteps[0]
    assert fast.step(m, t, x).prev_sample.equal(original.step(m, t, x).prev_sample)
    assert "two points of the chain are at one noise level" in str(fast.report())
    fast = begun()[1]
    fast.step(m.clone().requires_grad_(), fast.timesteps[0], x).prev_sample.sum().backward()


def test_saved_under_the_originals_name(tmp_path):
    fast = FastDPMSolverMultistepInverseScheduler(beta_end=0.013)
    fast.save_pretrained(tmp_path)
    written = json.loads((tmp_path / "scheduler_config.json").read_text())
    assert written["_class_name"] == "DPMSolverMultistepInverseScheduler"
    copied = pickle.loads(pickle.dumps(fast))
    assert type(copied) is FastDPMSolverMultistepInverseScheduler
    assert repr(fast).startswith("FastDPMSolverMultistepInverseScheduler in the place of ")


def test_refused():
    """Noise towards noise is the root of a negative number there; and it draws nothing by itself."""
    with pytest.raises(ValueError, match="scheduler: DPMSolverMultistepInverseScheduler at 10 timesteps, "):
        fastddpm.optimize(diffusers.DPMSolverMultistepInverseScheduler(algorithm_type="sde-dpmsolver++"))
    with pytest.raises(ValueError, match="variance_type, previous_timestep: of a solver given, neither"):
        fastddpm.optimize(diffusers.DPMSolverMultistepInverseScheduler(), previous_timestep="consistent")
    with pytest.raises(ValueError, match="scheduler: 'DPMSolverMultistepInverseScheduler' given, one"):
        fastddpm.plans.diffusers.from_scheduler(diffusers.DPMSolverMultistepInverseScheduler(), 4)
    unet = diffusers.UNet2DModel(
        sample_size=8, block_out_channels=(8, 8), layers_per_block=1, norm_num_groups=4,
        down_block_types=("DownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "UpBlock2D"),
    )  # fmt: skip
    with pytest.raises(
        ValueError, match="scheduler: DPMSolverMultistepInverseScheduler given, DDPMScheduler"
    ):
        fastddpm.optimize(diffusers.DDPMPipeline(unet, diffusers.DPMSolverMultistepInverseScheduler()))
