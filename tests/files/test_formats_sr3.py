"""The SR3 repository's networks, both variants: its own outputs through our UNet, plans and loop."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from networks import fill
from safetensors import safe_open
from tolerances import GOLDEN_RELATIVE, NETWORK

from fastddpm import NoiseSchedule, Sampler, UNet
from fastddpm.tabulated import bind
from fastddpm.unet import sr3
from fastddpm.unet.inference import assemble, infer

GOLDEN = Path(__file__).parents[1] / "golden"
PREFIX = "denoise_fn."


@pytest.fixture(params=["sr3", "ddpm"])
def golden(request):
    with safe_open(GOLDEN / f"sr3repo_{request.param}_public.safetensors", "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        tensors["config"] = json.loads(file.metadata()["config"])
    return tensors


def state_of(golden) -> dict[str, torch.Tensor]:
    return {k.removeprefix("state."): v for k, v in golden.items() if k.startswith("state.")}


def network(golden) -> UNet:
    ours = sr3.state_dict(state_of(golden), PREFIX)
    options, kind = golden["config"]["unet"], golden["config"]["kind"]
    return assemble(sr3.our_config(infer(ours), kind, num_groups=options["norm_groups"]), ours)


def relative(value: torch.Tensor, expected: torch.Tensor) -> float:
    assert value.shape == expected.shape
    return ((value - expected).abs().max() / expected.abs().max()).item()


def test_options_are_read_from_the_tensors(golden):
    options, config = golden["config"]["unet"], network(golden).config
    assert config.in_channels == options["in_channel"]
    assert config.image_channels == options["out_channel"]
    assert config.base_channels == options["inner_channel"]
    assert list(config.channel_mults) == options["channel_mults"]
    assert config.num_res_blocks == options["res_blocks"]
    # 16 pixels, halved once: level 1 has the attended size 8.
    assert config.attention_levels == (1,)


@torch.no_grad()
def test_network(golden):
    x = torch.cat((golden["io.cond"], golden["io.x"]), dim=1)
    eps = network(golden)(x, golden["io.time"].flatten())
    assert relative(eps, golden["io.eps"]) <= GOLDEN_RELATIVE


@torch.no_grad()
def test_tabulated_time_path_is_the_forward_pass(golden):
    unet = network(golden)
    x = torch.cat((golden["io.cond"], golden["io.x"]), dim=1)
    time = golden["io.time"].flatten()
    buffers = {"capacity": 5, "guided": False, "time_dtype": time.dtype, "condition": None}
    tabulated = bind(unet, cond={}, device=torch.device("cpu"), dtype=torch.float32, **buffers)
    fill(tabulated, time, {})
    for row in range(len(time)):
        expected = unet(x, time[row].expand(len(x)))
        assert (tabulated(x, torch.tensor([row])) - expected).abs().max() <= NETWORK


def test_super_resolution_chain(golden):
    """p_sample for the whole batch, clipped to +-1, the posterior variance, noise levels in variant sr3."""
    options = golden["config"]["schedule"]
    schedule = NoiseSchedule.linear(options["n_timestep"], options["linear_start"], options["linear_end"])
    unet = network(golden)
    plan = Sampler(unet, schedule, clip_sample_range=1.0).plan
    if golden["config"]["kind"] == "sr3":
        plan = plan.with_noise_levels(schedule)
    sampler = Sampler.from_plan(unet, schedule, plan, shape=(1, 16, 16))
    torch.manual_seed(123)
    images = sampler.sample(3, condition=golden["io.cond"], noise="torch", progress=False)
    assert relative(images, golden["io.sample_seed123_all"]) <= GOLDEN_RELATIVE
    assert relative(images[-1], golden["io.super_resolution_seed123_as_returned"]) <= GOLDEN_RELATIVE


def test_state_dict_round_trip_bit_for_bit(golden):
    theirs = {k: v for k, v in state_of(golden).items() if k.startswith(PREFIX)}
    back = sr3.their_state_dict(network(golden), PREFIX)
    assert set(back) == set(theirs)
    assert all(torch.equal(back[name], value) for name, value in theirs.items())


def test_options_their_network_has_not(golden):
    unet = network(golden)
    unet.config = dataclasses.replace(unet.config, initial_pad=2)
    with pytest.raises(ValueError, match="initial_pad: 2, which their network has not, given"):
        sr3.their_state_dict(unet)
