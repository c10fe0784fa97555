"""Fixtures that more than one test file uses."""

from __future__ import annotations

import pytest
import torch
from networks import make_unet

from fastddpm import NoiseSchedule, Sampler, UNet

# The tensors here are tiny: more threads only wait for each other.
torch.set_num_threads(1)


@pytest.fixture
def unet() -> UNet:
    return make_unet()


@pytest.fixture
def sampler(unet: UNet) -> Sampler:
    """Ten DDPM steps of a tiny three-channel network, clipped so that values stay of order 1."""
    return Sampler(
        unet,
        NoiseSchedule.linear(1000),
        num_inference_steps=10,
        clip_sample_range=1.0,
        shape=(3, 8, 8),
        engine="eager",
    )
