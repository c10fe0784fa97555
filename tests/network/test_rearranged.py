"""The form of a UNet that engine `compile` runs on a CPU: the same function, following the weights."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from networks import TINY, make_unet
from torch import nn

from fastddpm.tabulated import TabulatedUNet, bind
from fastddpm.unet.blocks import Upsample
from fastddpm.unet.packed import CopiedConv2d, PackedConv2d, following
from fastddpm.unet.rearranged import PhaseUpsample, Rearranged, TwoPassGroupNorm, can_be_rearranged

CONFIGS = {
    "tiny": TINY,
    "three levels, InstanceNorm": dataclasses.replace(TINY, channel_mults=(1, 2, 3), norm="in"),
    "as in the DDPM code": dataclasses.replace(TINY, downsample_padding=0, channel_mults=(1, 2, 2)),
    "scale and shift, one channel": dataclasses.replace(
        TINY, in_channels=1, time_conditioning="scale_shift", num_classes=None, null_class=False
    ),
}


@pytest.mark.parametrize("channels", [1, 3, 8])
@pytest.mark.parametrize("size", [(1, 1), (2, 3), (7, 4)])
def test_phases_are_the_upsampling_and_its_convolution(channels, size):
    upsample = Upsample(channels).double()
    phases = PhaseUpsample(upsample.conv)
    x = torch.randn(2, channels, *size, dtype=torch.float64)
    torch.testing.assert_close(phases(x), upsample(x), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("options", [{}, {"bias": False}, {"stride": 2}, {"padding": 0}, {"kernel_size": 1}])
def test_packed_convolutions(options):
    conv = nn.Conv2d(5, 7, **{"kernel_size": 3, "padding": 1, **options})
    form = following(conv)
    assert isinstance(form, PackedConv2d)
    with torch.no_grad():
        for size in ((2, 5, 6, 7), (1, 5, 9, 8), (2, 5, 6, 7)):  # packed anew for each
            x = torch.randn(size)
            torch.testing.assert_close(form(x), conv(x), rtol=1e-5, atol=1e-5)
            assert form(x).shape == conv(x).shape
            assert form(x).is_contiguous(memory_format=torch.channels_last)
        conv.weight.data.mul_(2)
        form.refresh()
        torch.testing.assert_close(form(x), conv(x), rtol=1e-5, atol=1e-5)


def test_a_weight_is_packed_once_for_each_shape():
    form = following(nn.Conv2d(5, 7, 3, padding=1))
    one, other = torch.Size((2, 5, 6, 7)), torch.Size((2, 5, 9, 8))
    packed = form.packed(one)
    assert form.packed(one) is packed
    assert form.packed(other) is not packed
    assert form.packed(one) is not packed
    packed = form.packed(one)
    form.refresh()
    assert form.packed(one) is not packed


def test_the_operator_is_well_formed():
    conv = nn.Conv2d(5, 7, 3, padding=1)
    form = following(conv)
    arguments = (torch.randn(2, 5, 6, 7), form.number, form.bias, [1, 1], [1, 1], 7, 3)
    torch.library.opcheck(torch.ops.fastddpm.packed_conv2d.default, arguments)


def test_what_cannot_be_packed_is_copied():
    assert isinstance(following(nn.Conv2d(2, 2, 3).double()), CopiedConv2d)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert isinstance(following(nn.Conv2d(2, 2, 3)), CopiedConv2d)


@pytest.mark.parametrize(("groups", "channels", "size"), [(1, 1, 1), (1, 6, 3), (4, 8, 5), (8, 8, 2)])
@pytest.mark.parametrize("mean", [0.0, 1e4])
def test_group_norm_is_no_less_exact_than_torch_s(groups, channels, size, mean):
    torch.manual_seed(0)
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
    assert isinstance(form.unet.conv_in, PackedConv2d)
    x, bias = torch.randn(1, 3, 8, 8), torch.zeros(1, unet.bias_width)
    with torch.no_grad():
        before = form.unet.forward_biased(x, bias)
        for parameter in unet.parameters():
            parameter.data.mul_(1.1).add_(0.01)  # .data: counted by no version counter
        form.refresh()
        assert not torch.allclose(form.unet.forward_biased(x, bias), before, atol=1e-3)
        torch.testing.assert_close(
            form.unet.forward_biased(x, bias), unet.forward_biased(x, bias), rtol=1e-4, atol=1e-5
        )


def test_the_given_network_is_left_alone():
    unet = make_unet()
    before = {name: value.clone() for name, value in unet.state_dict().items()}
    strides = {name: value.stride() for name, value in unet.state_dict().items()}
    random = torch.get_rng_state()
    assert can_be_rearranged(unet)
    Rearranged(unet).refresh()
    assert torch.equal(torch.get_rng_state(), random)
    assert {name: value.stride() for name, value in unet.state_dict().items()} == strides
    assert all(torch.equal(before[name], value) for name, value in unet.state_dict().items())
    assert all(parameter.requires_grad for parameter in unet.parameters())


def test_its_memory_counts():
    unet = make_unet()
    form = Rearranged(unet)
    upsampled = sum(
        4 * up.conv.weight[..., :2, :2].numel() + 4 * len(up.conv.bias)
        for up in unet.up
        if isinstance(up, Upsample)
    )
    assert sum(t.numel() for t in form.tensors()) == upsampled
    with torch.no_grad():
        form.unet.forward_biased(torch.randn(1, 3, 8, 8), torch.zeros(1, unet.bias_width))
    convolutions = sum(m.weight.numel() for m in unet.modules() if isinstance(m, nn.Conv2d))
    # Now also packed, all but the upsampling's own 3x3 weights.
    assert sum(t.numel() for t in form.tensors()) > convolutions


def exchanged(unet):
    unet.conv_out = nn.Sequential(unet.conv_out)


def hooked(unet):
    unet.mid[0].register_forward_hook(lambda *_: None)


def hooked_before(unet):
    unet.mid[0].register_forward_pre_hook(lambda *_: None)


def parametrised(unet):
    nn.utils.parametrizations.weight_norm(unet.conv_in)


@pytest.mark.parametrize("change", [exchanged, hooked, hooked_before, parametrised])
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
        form="rearranged",
        **buffers,
    )
    assert isinstance(network, TabulatedUNet)
    assert network._form is None
