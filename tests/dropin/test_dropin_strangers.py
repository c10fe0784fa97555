"""Objects without a drop-in are named with what to give instead, and that gives their images."""

from __future__ import annotations

import pytest
import torch
from tolerances import DROP_IN, NETWORK
from torch import nn

import fastddpm
from fastddpm import NoiseSchedule
from fastddpm.dropin import Unrecognised
from fastddpm.score import VESDE, NetworkScore
from fastddpm_bench.peers import palette, pytorch_ddpm


def named(obj, words):
    with pytest.raises(Unrecognised, match=words) as refused:
        fastddpm.optimize(obj)
    assert len(str(refused.value)) < 300


class GaussianDiffusionSampler(nn.Module):
    """What w86763777's holds."""

    def __init__(self, model, betas):
        super().__init__()
        self.model, self.T, self.mean_type, self.var_type = model, len(betas), "epsilon", "fixedlarge"
        for name in ("betas", "posterior_mean_coef1", "posterior_mean_coef2"):
            self.register_buffer(name, betas)


@torch.no_grad()
def test_w86763777s_sampler():
    torch.manual_seed(0)
    model = pytorch_ddpm.Network(T=12).eval()
    obj = GaussianDiffusionSampler(model, torch.linspace(1e-3, 0.3, 12, dtype=torch.float64))
    named(obj, r"GaussianDiffusionSampler given, w86763777's sampler; fastddpm\.optimize\(obj\.model, sche")
    sampler = fastddpm.optimize(
        obj.model, schedule=NoiseSchedule.from_betas(obj.betas), variance_type="fixed_large"
    )
    torch.manual_seed(5)
    images = sampler.sample(2, shape=(3, 8, 8), noise="torch", progress=False)
    torch.manual_seed(5)
    expected = pytorch_ddpm.sample(model, obj.betas, torch.randn(2, 3, 8, 8))
    assert (images - expected).abs().max() / expected.abs().max() <= DROP_IN


def test_palettes_network():
    torch.manual_seed(0)
    obj = palette.Network(palette.GammaUNet().eval(), NoiseSchedule.linear(12).betas)
    named(obj, r"Network given, Palette's network; fastddpm\.load\(obj\.state_dict\(\), config=\.\.\.\)")
    given = {"image_size": 8, "num_heads": 2, "schedule": NoiseSchedule.linear(12)}
    assert fastddpm.load(obj.state_dict(), config=given).shape == (3, 8, 8)


@torch.no_grad()
def test_elucidated_diffusion():
    """s = (D(x; sigma) - x) / sigma^2, Karras et al. 2022, equation 3."""
    library = pytest.importorskip("denoising_diffusion_pytorch")
    torch.manual_seed(0)
    net = library.Unet(8, dim_mults=(1, 2), flash_attn=False, random_fourier_features=True)
    obj = library.ElucidatedDiffusion(net.eval(), image_size=8)
    named(obj, r"ElucidatedDiffusion given, lucidrains' EDM; fastddpm\.score\.NetworkScore\(sde, model")
    sde = VESDE(sigma_min=0.002, sigma_max=80.0)
    score = NetworkScore(
        sde,
        lambda x, t: obj.preconditioned_network_forward(x, sde.sigma(t)),
        prediction_type="sample",
    )
    x, t = torch.randn(2, 3, 8, 8), torch.tensor([0.3, 0.9], dtype=torch.float64)
    sigma = sde.sigma(t).float()
    expected = (obj.preconditioned_network_forward(x, sigma) - x) / sigma[:, None, None, None] ** 2
    assert (score(x, t) - expected).abs().max() / expected.abs().max() <= 10 * NETWORK


def test_a_wrapper_of_another_name_is_looked_into():
    library = pytest.importorskip("denoising_diffusion_pytorch")
    net = library.Unet(8, dim_mults=(1, 2), flash_attn=False)
    wrapper = library.XMWrapper(library.GaussianDiffusion(net, image_size=8, timesteps=9))
    named(wrapper, r"obj: XMWrapper given, what it holds at \.flow_model accepted")


def test_azulas_objects():
    denoiser = nn.Module()
    denoiser.backbone, denoiser.schedule = nn.Conv2d(3, 3, 1), nn.Module()
    named(denoiser, r"azula's denoiser; its own loop, or fastddpm\.Sampler\(model, schedule\)")
    sampler = nn.Module()
    sampler.denoiser, sampler.start, sampler.stop, sampler.steps = denoiser, 1.0, 0.0, 64
    named(sampler, r"azula's sampler; its own loop, or fastddpm\.Sampler\(model, schedule\)")
