"""abarankab/DDPM's own outputs on tiny networks, through our UNet, formulas, plans and loop.

The networks are untrained and their chains are not clipped, so values grow to thousands: tolerances are
relative to the largest value.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from tolerances import GOLDEN_RELATIVE

from fastddpm import NoiseSchedule, Sampler, UNet
from fastddpm.unet import abarankab
from fastddpm_kernels import q_sample, reverse_step

GOLDEN = Path(__file__).parents[1] / "golden"


@pytest.fixture(params=["linear", "cosine"])
def golden(request):
    with safe_open(GOLDEN / f"abarankab_{request.param}_public.safetensors", "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        tensors["config"] = json.loads(file.metadata()["config"])
    return tensors


@pytest.fixture
def schedule(golden) -> NoiseSchedule:
    return NoiseSchedule.from_betas(golden["io.betas64"].numpy())


def network(golden, which: str) -> UNet:
    unet = UNet(abarankab.config(golden["config"]["unet"], golden["config"]["activation"]))
    unet.load_state_dict(abarankab.state_dict(golden, prefix=f"state.{which}."))
    return unet.eval()


def relative(value: torch.Tensor, expected: torch.Tensor) -> float:
    assert value.shape == expected.shape
    return ((value - expected).abs().max() / expected.abs().max()).item()


def test_schedules_by_name(golden):
    name, steps = golden["config"]["schedule"], golden["config"]["T"]
    betas = golden["io.betas64"].numpy()
    # abarankab scales the linear ends by 1000 / T.
    scale = 1000 / steps
    ours = {
        "linear": lambda: NoiseSchedule.linear(steps, 1e-4 * scale, 0.02 * scale),
        "cosine": lambda: NoiseSchedule.cosine(steps),
    }[name]()
    assert abs(ours.betas - betas).max() < 1e-12


@pytest.mark.parametrize(("which", "output"), [("model", "io.eps"), ("ema_model", "io.eps_ema")])
def test_network(golden, which, output):
    with torch.no_grad():
        eps = network(golden, which)(golden["io.x"], golden["io.t"], golden["io.y"])
    assert relative(eps, golden[output]) <= GOLDEN_RELATIVE


def test_perturb_x(golden, schedule):
    tables = [
        torch.tensor(table, dtype=torch.float32)
        for table in (schedule.sqrt_alphas_cumprod, schedule.sqrt_one_minus_alphas_cumprod)
    ]
    x_t = q_sample(golden["io.x"], golden["io.t"], *tables, noise=golden["io.noise"])
    assert relative(x_t, golden["io.x_t"]) <= GOLDEN_RELATIVE


def test_remove_noise(golden, schedule):
    """One step without its noise: (x - beta/sqrt(1-abar)*eps)/sqrt(alpha), each sample at its own t."""
    plan = Sampler(network(golden, "ema_model"), schedule).plan
    for i, t in enumerate(golden["io.t"].tolist()):
        x = golden["io.x"][i : i + 1].clone()
        counter = torch.tensor([[plan.timesteps.tolist().index(t), 0]])
        reverse_step(x, golden["io.eps_ema"][i : i + 1], torch.tensor(plan.table), counter)
        assert relative(x, golden["io.remove_noise_ema"][i : i + 1]) <= GOLDEN_RELATIVE


def test_sample_with_the_same_torch_seed(golden, schedule):
    sampler = Sampler(network(golden, "ema_model"), schedule, variance_type="fixed_large", shape=(1, 16, 16))
    torch.manual_seed(123)
    images = sampler.sample(3, class_labels=golden["io.y"], noise="torch", progress=False)
    assert relative(images, golden["io.sample_seed123_ema"]) <= GOLDEN_RELATIVE


def test_sample_diffusion_sequence(golden, schedule):
    sampler = Sampler(network(golden, "model"), schedule, variance_type="fixed_large", shape=(1, 16, 16))
    torch.manual_seed(123)
    sequence = sampler.sample_trajectory(3, class_labels=golden["io.y"], noise="torch", progress=False)
    expected = golden["io.sequence_seed123_model"]
    for ours, theirs in zip(sequence, expected, strict=True):
        assert relative(ours, theirs) <= GOLDEN_RELATIVE


def test_state_dict_keys_map_one_to_one(golden):
    theirs = [name[len("state.model.") :] for name in golden if name.startswith("state.model.")]
    assert len({abarankab.our_key(name) for name in theirs}) == len(theirs) > 100
