"""The drop-in for GaussianDiffusion1D, against the library itself: same seed, same sequences."""

from __future__ import annotations

import pytest
import torch
from dropin_checks import fingerprint
from tolerances import DROP_IN
from torch import nn

import fastddpm

library = pytest.importorskip("denoising_diffusion_pytorch")


def diffusion(network=None, **options):
    torch.manual_seed(0)
    network = network or library.Unet1D(dim=8, dim_mults=(1, 2), channels=3, attn_dim_head=4, attn_heads=2)
    return library.GaussianDiffusion1D(network, **{"seq_length": 16, "timesteps": 25} | options).eval()


def same(theirs, ours, *args, **kwargs):
    """Ours of one call of each; both leave torch's generator in the same state."""
    torch.manual_seed(11)
    expected = theirs(*args, **kwargs)
    state = torch.get_rng_state()
    torch.manual_seed(11)
    drawn = ours(*args, **kwargs)
    assert torch.equal(torch.get_rng_state(), state)
    pairs = zip(drawn, expected, strict=True) if isinstance(expected, tuple) else [(drawn, expected)]
    for given, wanted in pairs:
        assert (given.shape, given.dtype) == (wanted.shape, wanted.dtype)
        assert wanted.std() > 0.01
        assert (given - wanted).abs().max() <= DROP_IN * max(1.0, float(wanted.abs().max()))
    return drawn


CHAINS = {
    "ddpm": {"beta_schedule": "linear"},
    "ddim": {"timesteps": 1000, "sampling_timesteps": 12},
    "ddim, eta 1": {"timesteps": 100, "sampling_timesteps": 20, "ddim_sampling_eta": 1.0},
}


@pytest.mark.parametrize("objective", ["pred_noise", "pred_x0", "pred_v"])
@pytest.mark.parametrize("chain", CHAINS)
def test_sequences(chain, objective):
    theirs = diffusion(objective=objective, **CHAINS[chain])
    ours = fastddpm.optimize(theirs)
    before = fingerprint(theirs)
    drawn = same(theirs.sample, ours.sample, 2)
    assert drawn.shape == (2, 3, 16)
    torch.manual_seed(11)
    again, noise = ours.sample(2, return_noise=True)
    assert torch.equal(again, drawn)
    torch.manual_seed(11)
    assert torch.equal(noise, torch.randn(2, 3, 16))
    if chain == "ddpm":
        same(theirs.sample, ours.sample, 2, True)
    assert fingerprint(theirs) == before
    assert "GaussianDiffusion1D" in str(ours.report())


@pytest.mark.parametrize("chain", ["ddpm", "ddim"])
def test_self_conditioning(chain):
    torch.manual_seed(0)
    network = library.Unet1D(dim=8, dim_mults=(1, 2), channels=2, self_condition=True)
    theirs = diffusion(network, auto_normalize=False, **CHAINS[chain])
    ours = fastddpm.optimize(theirs)
    drawn = same(theirs.sample, ours.sample, 2)
    torch.manual_seed(11)
    assert torch.equal(ours.sample(2), drawn)  # nothing is left of the chain before
    x = torch.linspace(-1, 1, 64).reshape(2, 2, 16)
    same(theirs.interpolate, ours.interpolate, x, -x, t=9, lam=0.3)


class Told(nn.Module):
    """Of (B, T, C), and of whatever it is told."""

    self_condition, channels = False, 3

    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.layer = nn.Linear(3, 3)

    def forward(self, x, t, *, goal):
        return torch.tanh(self.layer(x)) + goal[:, None] + (t / 1000)[:, None, None]


@pytest.mark.parametrize("chain", CHAINS)
def test_channels_last_and_arguments_by_name(chain):
    theirs = diffusion(Told(), channel_first=False, **CHAINS[chain])
    ours = fastddpm.optimize(theirs)
    goal = torch.tensor([[0.1, 0.2, -0.3], [0.5, 0.0, 0.4]])
    drawn = same(theirs.sample, ours.sample, 2, model_forward_kwargs={"goal": goal})
    assert drawn.shape == (2, 16, 3)
    other = same(theirs.sample, ours.sample, 2, model_forward_kwargs={"goal": -goal})
    assert (other - drawn).abs().max() > 0.01
    with pytest.raises(ValueError, match=r"model_forward_kwargs\['goal'\]: float given, a tensor accepted"):
        ours.sample(2, model_forward_kwargs={"goal": 0.5})


@pytest.mark.parametrize("objective", ["pred_noise", "pred_v"])
def test_ddim_without_a_clip(objective):
    theirs = diffusion(objective=objective, beta_schedule="linear", sampling_timesteps=10)
    ours = fastddpm.optimize(theirs)
    same(theirs.ddim_sample, ours.ddim_sample, (2, 3, 16), clip_denoised=False)


def test_a_sequence_of_a_seed_is_the_same_in_any_batch():
    ours = fastddpm.optimize(diffusion(), noise="philox")
    both, noise = ours.sample(2, seeds=[4, 2**40], return_noise=True)
    alone = ours.sample(1, seeds=[2**40])
    assert (both[1:] - alone).abs().max() <= DROP_IN
    assert noise.shape == both.shape


class Earlier(library.GaussianDiffusion1D):
    """As in versions that give the network the last x0 by its place."""

    __module__ = "denoising_diffusion_pytorch.earlier"

    def model_predictions(self, x, t, x_self_cond=None, clip_x_start=False, rederive_pred_noise=False):
        return super().model_predictions(x, t, x_self_cond, clip_x_start, rederive_pred_noise)


def test_earlier_versions_call_the_network_by_place():
    class ByPlace(nn.Module):
        self_condition, channels = True, 3

        def __init__(self):
            super().__init__()
            self.layer = nn.Conv1d(6, 3, 3, padding=1)

        def forward(self, x, time, before=None):
            before = torch.zeros_like(x) if before is None else before
            return torch.tanh(self.layer(torch.cat((before, x), dim=1)))

    torch.manual_seed(0)
    network = ByPlace()
    named = library.GaussianDiffusion1D(_Renamed(network), seq_length=16, timesteps=20)
    ours = fastddpm.optimize(Earlier(network, seq_length=16, timesteps=20))
    same(named.sample, ours.sample, 2)


class _Renamed(nn.Module):
    self_condition, channels = True, 3

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, x, t, x_self_cond=None):
        return self.network(x, t, x_self_cond)
