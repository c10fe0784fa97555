"""The UNet: options, the tabulated time path, layouts, and clear errors."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from networks import TINY, fill, make_unet
from tolerances import NETWORK

from fastddpm import UNet, UNetConfig
from fastddpm.tabulated import bind
from fastddpm.unet.blocks import Attention, per_pixel, pixel_product, sinusoidal_embedding


def inputs(batch: int = 3, size: int = 8):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(batch, 3, size, size, generator=generator)
    return x, torch.tensor([0, 500, 999])[:batch], torch.tensor([0, 3, 4])[:batch]


@torch.no_grad()
def test_tabulated_time_path_is_the_forward_pass(unet):
    x, _, y = inputs()
    buffers = {"capacity": 5, "guided": False, "time_dtype": torch.int64, "condition": None}
    buffers |= {"device": torch.device("cpu"), "dtype": torch.float32}
    network = bind(unet, cond={"class_labels": y}, **buffers)
    fill(network, torch.tensor([999, 500, 0]), {"class_labels": y})
    for row, time in enumerate((999, 500, 0)):
        expected = unet(x, torch.full((3,), time), y)
        assert (network(x, torch.tensor([row])) - expected).abs().max() <= NETWORK


@torch.no_grad()
def test_time_and_class_reach_every_block(unet):
    x, t, y = inputs()
    base = unet.time_biases(t) + unet.class_biases(y)
    widths = [block.out_channels for block in unet.residual_blocks]
    reference = unet.forward_biased(x, base)
    start = 0
    for width in widths:
        changed = base.clone()
        # Not the same for all channels: GroupNorm would take that away.
        changed[:, start : start + width] += torch.linspace(-0.5, 0.5, width)
        assert (unet.forward_biased(x, changed) - reference).abs().max() > 1e-3
        start += width
    assert start == base.shape[1]
    assert (unet(x, t + 1, y) - reference).abs().max() > 1e-4
    assert (unet(x, t, (y + 1) % 5) - reference).abs().max() > 1e-3


@torch.no_grad()
def test_channels_last_gives_the_same_output(unet):
    x, t, y = inputs()
    expected = unet(x, t, y)
    last = unet.to(memory_format=torch.channels_last)(x.to(memory_format=torch.channels_last), t, y)
    assert (last - expected).abs().max() <= NETWORK


@torch.no_grad()
@pytest.mark.parametrize("channels_last", [False, True])
def test_attention_is_softmax_of_scaled_dot_products(channels_last):
    torch.manual_seed(0)
    attention = Attention(8, TINY)
    x = torch.randn(2, 8, 4, 5)
    if channels_last:
        x = x.to(memory_format=torch.channels_last)
    q, k, v = attention.qkv(attention.norm(x)).double().flatten(2).chunk(3, dim=1)
    weights = torch.softmax(torch.einsum("bci,bcj->bij", q, k) / math.sqrt(8), dim=-1)
    mixed = torch.einsum("bij,bcj->bci", weights, v).reshape(x.shape)
    expected = x.double() + F.conv2d(mixed, attention.proj.weight.double(), attention.proj.bias.double())
    assert (attention(x) - expected).abs().max() <= NETWORK


def test_sinusoidal_embedding_against_its_formula():
    t = torch.tensor([0, 1, 10, 999])
    out = sinusoidal_embedding(t, 8, scale=2.0)
    for i, time in enumerate(t.tolist()):
        for j in range(4):
            angle = 2.0 * time * math.exp(-math.log(10000) * j / 4)
            assert out[i, j].item() == pytest.approx(math.sin(angle), abs=2e-4)
            assert out[i, j + 4].item() == pytest.approx(math.cos(angle), abs=2e-4)


@torch.no_grad()
@pytest.mark.parametrize("norm", ["gn", "bn", "in", "none"])
@pytest.mark.parametrize("activation", ["silu", "relu", "gelu"])
def test_options_change_the_network_and_keep_the_shape(norm, activation):
    config = UNetConfig(
        in_channels=3, base_channels=8, channel_mults=(1, 2), norm=norm, activation=activation, num_groups=4
    )
    x, t, _ = inputs()
    out = make_unet(config)(x, t)
    assert out.shape == x.shape
    plain = make_unet(UNetConfig(in_channels=3, base_channels=8, channel_mults=(1, 2), num_groups=4))(x, t)
    assert torch.equal(out, plain) == (norm == "gn" and activation == "silu")


@torch.no_grad()
def test_initial_pad_fits_sizes_that_do_not_halve():
    config = UNetConfig(
        in_channels=3, base_channels=8, channel_mults=(1, 1, 1, 1), num_groups=4, initial_pad=2
    )
    x, t, _ = inputs(size=28)
    assert make_unet(config)(x, t).shape == x.shape
    with pytest.raises(ValueError, match=r"30x30 given.*multiples of 8"):
        make_unet(config)(torch.zeros(1, 3, 30, 30), t[:1])


def test_dropout_acts_in_training_only():
    unet = make_unet(UNetConfig(**{**TINY.to_dict(), "dropout": 0.5}))
    x, t, y = inputs()
    assert torch.equal(unet(x, t, y), unet(x, t, y))
    unet.train()
    assert not torch.equal(unet(x, t, y), unet(x, t, y))


def test_config_round_trip_and_errors():
    assert UNetConfig.from_dict(TINY.to_dict()) == TINY
    with pytest.raises(ValueError, match=r"unknown field 'num_class' given, num_classes, .* accepted"):
        UNetConfig.from_dict({"num_class": 3})
    with pytest.raises(ValueError, match=r"unknown field .k+.*k. given, the fields of UNetConfig"):
        UNetConfig.from_dict({"k" * 9000: 3})
    for field, value in {
        "base_channels": 7,
        "channel_mults": (),
        "num_groups": 3,
        "norm": "ln",
        "activation": "tanh",
        "dropout": 1.0,
        "attention_levels": (3,),
        "initial_pad": -1,
        "num_classes": 0,
        "in_channels": True,
        "time_conditioning": "film",
        "class_conditioning": "row",
        "mid_attention": "yes",
        "attention_head_dim": 3,
        "attention_heads": 3,
        "attention_bias": 1,
        "norm_eps": 0.0,
        "downsample_padding": 2,
        "time_frequency_shift": 16,
        "time_hidden": 0,
    }.items():
        with pytest.raises(ValueError, match=f"{field}: .* given, .* accepted"):
            UNetConfig(**{field: value})
    with pytest.raises(ValueError, match="attention_heads: 2 given, None with attention_head_dim accepted"):
        UNetConfig(attention_head_dim=8, attention_heads=2)
    with pytest.raises(ValueError, match="null_class"):
        UNetConfig(null_class=True)
    with pytest.raises(ValueError, match="null_class"):
        UNetConfig(num_classes=3, null_class=True, class_conditioning="timestep")


def test_folders_from_before_an_option_have_its_default():
    old = {name: value for name, value in TINY.to_dict().items() if name not in LATER}
    assert len(old) == len(TINY.to_dict()) - len(LATER)
    assert UNetConfig.from_dict(old) == TINY


DIALECTS = {
    "sr3": {"time_hidden": 32, "time_activation": False, "attention_bias": False, "out_channels": 1},
    "diffusers": {
        "num_classes": 5,
        "class_conditioning": "embedding",
        "time_conditioning": "scale_shift",
        "attention_head_dim": 4,
        "downsample_padding": 0,
        "time_frequency_shift": 1,
        "time_cosine_first": True,
        "mid_attention": "plain",
        "center_input": True,
    },
    "classes as times, blocks that change the size": {
        "num_classes": 5,
        "class_conditioning": "timestep",
        "time_conditioning": "affine",
        "resblock_updown": True,
        "attention_heads": 2,
    },
}
LATER = {*(name for options in DIALECTS.values() for name in options), "norm_eps"} - {
    "num_classes",
    "out_channels",
}


@torch.no_grad()
@pytest.mark.parametrize("dialect", DIALECTS)
def test_dialects_export_and_keep_layouts(dialect):
    """No step depends on data, times are float too, and channels_last gives the same numbers."""
    config = UNetConfig(
        in_channels=3, base_channels=8, channel_mults=(1, 2), num_groups=4, time_dim=16, **DIALECTS[dialect]
    )
    unet = make_unet(config)
    x, _, y = inputs()
    given = (x, torch.tensor([0.1, 0.55, 0.99]), y if config.num_classes else None)
    expected = unet(*given)
    assert (expected[0] - unet(x, given[1].flip(0), given[2])[0]).abs().max() > 1e-5
    exported = torch.export.export(unet, given).module()
    assert (exported(*given) - expected).abs().max() <= NETWORK
    last = unet.to(memory_format=torch.channels_last)(x.to(memory_format=torch.channels_last), *given[1:])
    assert (last - expected).abs().max() <= NETWORK


@torch.no_grad()
@pytest.mark.parametrize("dialect", DIALECTS)
def test_dialects_tabulated(dialect):
    unet = make_unet(
        UNetConfig(
            in_channels=3,
            base_channels=8,
            channel_mults=(1, 2),
            num_groups=4,
            time_dim=16,
            **DIALECTS[dialect],
        )
    )
    x, _, y = inputs()
    cond = {"class_labels": y} if unet.config.num_classes else {}
    levels = torch.tensor([0.99, 0.55, 0.1])
    buffers = {"capacity": 5, "guided": False, "time_dtype": torch.float32, "condition": None}
    tabulated = bind(unet, cond=cond, device=torch.device("cpu"), dtype=torch.float32, **buffers)
    fill(tabulated, levels, cond)
    for row in range(3):
        expected = unet(x, levels[row].expand(3), y if cond else None)
        assert (tabulated(x, torch.tensor([row])) - expected).abs().max() <= NETWORK


def test_labels_and_shapes_are_checked(unet):
    x, t, y = inputs()
    with pytest.raises(ValueError, match="class_labels: none to a class-conditional network given"):
        unet(x, t)
    with pytest.raises(ValueError, match="class_labels: labels to a network without classes"):
        make_unet(UNetConfig(in_channels=3))(x, t, y)
    with pytest.raises(ValueError, match=r"x: shape \(3, 1, 8, 8\) given, \(B, 3, H, W\)"):
        unet(x[:, :1], t, y)
    for sides, size in (((7, 8), "7x8"), ((8, 7), "8x7")):
        with pytest.raises(ValueError, match=f"x: size {size} given, multiples of 2, with 0"):
            unet(torch.zeros(3, 3, *sides), t, y)


@pytest.mark.parametrize("conditioning", ["bias", "scale_shift"])
def test_the_fused_path_of_a_block_is_the_same_function(conditioning):
    """What runs on CUDA, here through the operator's reference."""
    config = UNetConfig(
        in_channels=3, base_channels=8, num_groups=4, time_dim=16, time_conditioning=conditioning
    )
    torch.manual_seed(0)
    block = UNet(config).double().residual_blocks[0]
    with torch.no_grad():
        for parameter in block.parameters():
            parameter.normal_()
        h = torch.randn(2, 8, 5, 6, dtype=torch.float64)
        bias = torch.randn(2, block.bias_width, dtype=torch.float64)
        expected = torch.nn.functional.silu(block.conditioned(block.conv1(h), bias[:, :, None, None]))
        torch.testing.assert_close(block.fused(h, bias), expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_a_convolution_of_pixels_is_a_matrix_product(layout):
    conv = torch.nn.Conv2d(6, 9, 1).double().to(memory_format=layout)
    x = torch.randn(2, 6, 3, 5, dtype=torch.float64).to(memory_format=layout)
    torch.testing.assert_close(pixel_product(conv, x), per_pixel(conv, x), rtol=1e-12, atol=1e-12)
