"""Policies of images: their own encoder runs once a chunk, our loop after it, the actions stay the same.

Restated: real-stanford/diffusion_policy's diffusion_unet_image_policy.py and
diffusion_unet_hybrid_image_policy.py, and LeRobot's with cameras.
"""

from __future__ import annotations

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler
from dropin_checks import fingerprint
from tolerances import ACTIONS
from torch import nn

import fastddpm
from fastddpm.unet1d import UNet1D
from fastddpm_bench.peers import diffusion_policy, policy_unets

OPTIONS = {"beta_schedule": "squaredcos_cap_v2", "clip_sample": True, "prediction_type": "epsilon"}
SCHEDULERS = {"ddpm": (DDPMScheduler, 100), "ddim": (DDIMScheduler, 16)}


class ObservationEncoder(nn.Module):
    """As ``MultiImageObsEncoder``: a picture's features and the vectors beside it. Counts its calls."""

    def __init__(self):
        super().__init__()
        layers = nn.Conv2d(3, 6, 5, 2), nn.GroupNorm(2, 6), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten()
        self.image, self.calls = nn.Sequential(*layers), 0

    def forward(self, observations):
        self.calls += 1
        return torch.cat((self.image(observations["image"]), observations["agent_pos"]), dim=-1)


class Affine(nn.Module):
    """As ``SingleFieldLinearNormalizer``."""

    def __init__(self, scale, offset):
        super().__init__()
        self.scale, self.offset = nn.Parameter(torch.tensor(scale)), nn.Parameter(torch.tensor(offset))

    def normalize(self, x):
        return x * self.scale + self.offset

    def unnormalize(self, x):
        return (x - self.offset) / self.scale


class ImagePolicy(diffusion_policy.LowdimPolicy):
    """``DiffusionUnetImagePolicy``: observations as a vector, or as the known part of the trajectory."""

    def __init__(self, as_global, kind):
        torch.manual_seed(0)
        make, steps = SCHEDULERS[kind]
        width = 6 * 4 + 2
        network = policy_unets.ConditionalUnet1D(
            2 if as_global else 2 + width,
            None,
            2 * width if as_global else None,
            12,
            (16, 24),
            kernel_size=5,
            cond_predict_scale=True,
        )
        super().__init__(network, make(100, **OPTIONS), 16, width, 2, 2, steps)
        self.obs_encoder, self.obs_as_global_cond = ObservationEncoder(), as_global
        self.obs_feature_dim, self.n_action_steps = width, 8
        self.normalizer = nn.ModuleDict(
            {"image": Affine(2.0, -1.0), "agent_pos": Affine(0.5, 0.1), "action": Affine(1.25, -0.5)}
        )

    def predict_action(self, obs_dict):
        normalised = {name: self.normalizer[name].normalize(value) for name, value in obs_dict.items()}
        count, seen = len(normalised["image"]), self.n_obs_steps
        width = self.action_dim + (0 if self.obs_as_global_cond else self.obs_feature_dim)
        data = torch.zeros(count, self.horizon, width)
        mask = torch.zeros_like(data, dtype=torch.bool)
        global_cond = None
        steps = {name: value[:, :seen].flatten(0, 1) for name, value in normalised.items()}
        features = self.obs_encoder(steps)
        if self.obs_as_global_cond:
            global_cond = features.reshape(count, -1)
        else:
            data[:, :seen, self.action_dim :] = features.reshape(count, seen, -1)
            mask[:, :seen, self.action_dim :] = True
        drawn = self.conditional_sample(data, mask, local_cond=None, global_cond=global_cond, **self.kwargs)
        actions = self.normalizer["action"].unnormalize(drawn[..., : self.action_dim])
        start = seen - 1
        return {"action": actions[:, start : start + self.n_action_steps], "action_pred": actions}


class HybridImagePolicy(ImagePolicy):
    """``DiffusionUnetHybridImagePolicy``: the encoder is robomimic's, an object of its own."""

    def __init__(self, as_global, kind):
        super().__init__(as_global, kind)
        inside = self.obs_encoder
        del self.obs_encoder
        self.obs_encoder = nn.Sequential(inside)

    @property
    def calls(self):
        return self.obs_encoder[0].calls


def drawn(policy, seed, count=2):
    generator = torch.Generator().manual_seed(seed)
    observations = {
        "image": torch.rand(count, 2, 3, 20, 24, generator=generator),
        "agent_pos": torch.randn(count, 2, 2, generator=generator),
    }
    torch.manual_seed(seed)
    with torch.no_grad():
        return policy.predict_action(observations)["action"]


@pytest.mark.parametrize("kind", SCHEDULERS)
@pytest.mark.parametrize("as_global", [True, False])
@pytest.mark.parametrize("policy", [ImagePolicy, HybridImagePolicy])
def test_image_policies(policy, as_global, kind):
    theirs = policy(as_global, kind).eval()
    before = fingerprint(theirs)
    ours = fastddpm.optimize(theirs)
    assert isinstance(ours.conditional_sample._running().model, UNet1D)
    encoder = theirs.obs_encoder if policy is ImagePolicy else theirs.obs_encoder[0]
    for seed in range(2):
        wanted, calls = drawn(theirs, seed), encoder.calls
        actions = drawn(ours, seed)
        assert encoder.calls == calls + 1
        assert wanted.std() > 0.05
        assert actions.shape == (2, 8, 2)
        assert (actions - wanted).abs().max() <= ACTIONS
    assert fingerprint(theirs) == before


def test_an_encoder_that_is_trained_on_is_followed():
    theirs = ImagePolicy(True, "ddim").eval()
    ours = fastddpm.optimize(theirs)
    first = drawn(ours, 0)
    with torch.no_grad():
        theirs.obs_encoder.image[0].weight.add_(0.3)
        theirs.normalizer["action"].offset.add_(0.2)
    assert (drawn(ours, 0) - drawn(theirs, 0)).abs().max() <= ACTIONS
    assert (drawn(ours, 0) - first).abs().max() > 0.01


def lerobot(**changes):
    pytest.importorskip("torchvision")
    from fastddpm_bench.peers import lerobot_policy as peers

    torch.manual_seed(0)
    camera = ("VISUAL", (3, 40, 48))
    inputs = {"observation.state": ("STATE", (3,)), "observation.images.a": camera}
    return peers.DiffusionPolicy(peers.config(inputs, 2, crop_shape=(32, 32), **changes)).eval()


def chunk(policy, seed=1):
    generator = torch.Generator().manual_seed(seed)
    batch = {
        "observation.state": torch.randn(2, 2, 3, generator=generator),
        "observation.images.a": torch.rand(2, 2, 3, 40, 48, generator=generator),
    }
    torch.manual_seed(seed)
    return policy.predict_action_chunk(batch)


@pytest.mark.parametrize("changes", [{}, {"noise_scheduler_type": "DDIM", "num_inference_steps": 16}])
def test_lerobots_policy_of_images(changes):
    theirs = lerobot(**changes)
    ours = fastddpm.optimize(theirs)
    assert isinstance(ours.diffusion.conditional_sample._running().model, UNet1D)
    wanted, calls = chunk(theirs), theirs.diffusion.rgb_encoder.calls
    actions = chunk(ours)
    assert theirs.diffusion.rgb_encoder.calls == calls + 1
    assert wanted.std() > 0.05
    assert (actions - wanted).abs().max() <= ACTIONS


def test_a_network_that_the_policy_compiles():
    """``compile_model``: ours takes the place of the one inside; "original" runs what was compiled."""
    theirs = lerobot(num_inference_steps=4)
    wanted = chunk(theirs)
    theirs.diffusion.unet = torch.compile(theirs.diffusion.unet)
    ours = fastddpm.optimize(theirs)
    assert isinstance(ours.diffusion.conditional_sample._running().model, UNet1D)
    assert (chunk(ours) - wanted).abs().max() <= ACTIONS
    as_it_is = fastddpm.optimize(theirs, network="original").diffusion.conditional_sample
    assert as_it_is._chosen().source is theirs.diffusion.unet
