"""Fixtures that more than one test file uses."""

from __future__ import annotations

from collections.abc import Iterator

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


@pytest.fixture
def fake_cuda() -> Iterator[torch.device]:
    """Tensors made in it are fake CUDA tensors: shapes and devices without data."""
    from kernel_build import TARGETS, pretended
    from torch._subclasses.fake_tensor import FakeTensorMode

    with pretended(TARGETS["sm_90"]), FakeTensorMode(), torch.no_grad():
        yield torch.device("cuda")
