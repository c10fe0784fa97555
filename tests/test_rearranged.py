"""The form of a UNet that engine `compile` runs on a CPU: the same function, following the weights."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from networks import TINY, make_unet
from torch import nn

from fastddpm.network import TabulatedUNet, bind
from fastddpm.unet.blocks import Upsample
from fastddpm.unet.rearranged import PhaseUpsample, Rearranged, TwoPassGroupNorm, can_be_rearranged

CONFIGS = {
    "tiny": TINY,
    "three levels, InstanceNorm": dataclasses.replace(TINY, channel_mults=(1, 2, 3), norm="in"),
    "scale and shift, one channel": dataclasses.replace(
        TINY, in_channels=1, time_conditioning="scale_shift", num_classes=None, null_class=False
    ),
}


@pytest.mark.parametrize("channels", [1, 3, 8])
@pytest.mark.parametrize("size", [(1, 1), (2, 3), (7, 4)])
def test_phases_are_the_upsampling_and_its_convolution(channels, size):
    upsample = Upsample(channels).double()
    phases = PhaseUpsample(upsample.conv)
    phases.refresh(upsample.conv)
    x = torch.randn(2, channels, *size, dtype=torch.float64)
    torch.testing.assert_close(phases(x), upsample(x), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("groups", "channels", "size"), [(1, 1, 1), (1, 6, 3), (4, 8, 5), (8, 8, 2)])
@pytest.mark.parametrize("mean", [0.0, 1e4])
def test_group_norm_is_no_less_exact_than_torch_s(groups, channels, size, mean):
    norm = nn.GroupNorm(groups, channels)
    with torch.no_grad():
        norm.weight.normal_()
        norm.bias.normal_()
        x = torch.randn(3, channels, size, size + 1) + mean
        exact = nn.functional.group_norm(
            x.double(), groups, norm.weight.double(), norm.bias.double(), norm.eps
        )
        ours, theirs = ((f(x) - exact).abs().max().item() for f in (TwoPassGroupNorm(norm), norm))
    assert ours <= 2 * theirs + 1e-6


@pytest.mark.parametrize("name", CONFIGS)
def test_it_is_the_same_function(name):
    unet = make_unet(CONFIGS[name]).double()
    form = Rearranged(unet).unet
    if CONFIGS[name].norm == "gn":
        assert any(isinstance(module, TwoPassGroupNorm) for module in form.modules())
    x = torch.randn(2, unet.config.in_channels, 8, 8, dtype=torch.float64)
    bias = torch.randn(2, unet.bias_width, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(
            form.forward_biased(x, bias), unet.forward_biased(x, bias), rtol=1e-10, atol=1e-10
        )


def test_it_follows_weights_changed_in_place():
    unet = make_unet()
    form = Rearranged(unet)
    x, bias = torch.randn(1, 3, 8, 8), torch.zeros(1, unet.bias_width)
    with torch.no_grad():
        for parameter in unet.parameters():
            parameter.data.mul_(1.1).add_(0.01)  # .data: counted by no version counter
        form.refresh()
        torch.testing.assert_close(
            form.unet.forward_biased(x, bias), unet.forward_biased(x, bias), rtol=1e-4, atol=1e-5
        )


def test_the_given_network_is_left_alone():
    unet = make_unet()
    before = {name: value.clone() for name, value in unet.state_dict().items()}
    strides = {name: value.stride() for name, value in unet.state_dict().items()}
    Rearranged(unet).refresh()
    assert {name: value.stride() for name, value in unet.state_dict().items()} == strides
    assert all(torch.equal(before[name], value) for name, value in unet.state_dict().items())
    assert all(parameter.requires_grad for parameter in unet.parameters())


def exchanged(unet):
    unet.conv_out = nn.Sequential(unet.conv_out)


def hooked(unet):
    unet.mid[0].register_forward_hook(lambda *_: None)


def parametrised(unet):
    nn.utils.parametrizations.weight_norm(unet.conv_in)


@pytest.mark.parametrize("change", [exchanged, hooked, parametrised])
def test_a_changed_network_runs_as_it_is(change):
    unet = make_unet()
    assert can_be_rearranged(unet)
    change(unet)
    assert not can_be_rearranged(unet)
    buffers = {"device": torch.device("cpu"), "dtype": torch.float32, "capacity": 4, "guided": False}
    labels = torch.tensor([0])
    network = bind(
        unet,
        cond={"class_labels": labels},
        condition=None,
        time_dtype=torch.int64,
        rearrange=True,
        **buffers,
    )
    assert isinstance(network, TabulatedUNet)
    assert not network.is_private
