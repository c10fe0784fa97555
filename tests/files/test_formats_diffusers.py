"""diffusers' UNet2DModel, live: our UNet with its weights gives its outputs, and its weights back."""

from __future__ import annotations

import pytest
import torch
from networks import fill
from tolerances import NETWORK

from fastddpm.tabulated import bind
from fastddpm.unet import diffusers as dialect

UNet2DModel = pytest.importorskip("diffusers").UNet2DModel

TINY = {
    "sample_size": 8,
    "block_out_channels": (8, 16),
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
    "attention_head_dim": 8,
}
CONFIGS = {
    # google/ddpm-cifar10-32's options, with fewer channels and two levels less
    "ddpm-cifar10-32": {
        "act_fn": "silu",
        "attention_head_dim": None,
        "block_out_channels": (8, 16, 16, 16),
        "center_input_sample": False,
        "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
        "downsample_padding": 0,
        "flip_sin_to_cos": False,
        "freq_shift": 1,
        "layers_per_block": 2,
        "mid_block_scale_factor": 1,
        "norm_eps": 1e-06,
        "norm_num_groups": 4,
        "sample_size": 32,
        "time_embedding_type": "positional",
    },
    "two layers, several heads": {**TINY, "layers_per_block": 2, "attention_head_dim": 4},
    "scale and shift": {**TINY, "resnet_time_scale_shift": "scale_shift"},
    "scale and shift, normed attention": {
        **TINY,
        "resnet_time_scale_shift": "scale_shift",
        "attn_norm_num_groups": 4,
    },
    "no attention in the middle": {**TINY, "add_attention": False},
    "centred input, learned variance": {**TINY, "center_input_sample": True, "out_channels": 6},
    "classes by label": {**TINY, "num_class_embeds": 5},
    "classes as times": {**TINY, "class_embed_type": "timestep"},
    "one channel, wide time": {**TINY, "in_channels": 1, "out_channels": 1, "time_embedding_dim": 20},
    "attention everywhere": {
        **TINY,
        "down_block_types": ("AttnDownBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("AttnUpBlock2D", "AttnUpBlock2D"),
        "downsample_padding": 0,
    },
}


@pytest.fixture(params=CONFIGS)
def theirs(request):
    torch.manual_seed(0)
    module = UNet2DModel(**CONFIGS[request.param])
    with torch.no_grad():
        # Scales of 1 and shifts of 0 would not show whether they are taken over.
        for parameter in module.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return module.eval()


def ours_of(theirs):
    classes = 5 if theirs.config.class_embed_type else None
    unet = dialect.from_module(theirs, num_classes=classes)
    assert unet is not None
    return unet


def inputs(unet, size=16):
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(3, unet.config.in_channels, size, size, generator=generator)
    labels = None if unet.config.num_classes is None else torch.tensor([4, 0, 2])
    return x, torch.tensor([999, 0, 437]), labels


@torch.no_grad()
def test_network(theirs):
    unet = ours_of(theirs)
    x, t, labels = inputs(unet)
    expected = theirs(x, t, class_labels=labels).sample
    given = unet(x, t, labels)
    assert given.shape == expected.shape
    assert (given - expected).abs().max() <= NETWORK * expected.abs().max().clamp(min=1)


@torch.no_grad()
def test_tabulated_time_path_is_the_forward_pass(theirs):
    unet = ours_of(theirs)
    x, times, labels = inputs(unet)
    cond = {} if labels is None else {"class_labels": labels}
    buffers = {"capacity": 5, "guided": False, "time_dtype": torch.int64, "condition": None}
    tabulated = bind(unet, cond=cond, device=torch.device("cpu"), dtype=torch.float32, **buffers)
    fill(tabulated, times, cond)
    for row in range(len(times)):
        expected = unet(x, times[row].expand(len(x)), labels)
        difference = (tabulated(x, torch.tensor([row])) - expected).abs().max()
        assert difference <= NETWORK * expected.abs().max().clamp(min=1)


def test_state_dict_round_trip_bit_for_bit(theirs):
    state = theirs.state_dict()
    back = dialect.their_state_dict(ours_of(theirs))
    assert set(back) == set(state)
    assert all(torch.equal(back[name], value) for name, value in state.items())


@torch.no_grad()
def test_their_config_makes_their_network(theirs):
    unet = ours_of(theirs)
    again = UNet2DModel(**dialect.their_config(unet.config)).eval()
    again.load_state_dict(dialect.their_state_dict(unet))
    x, t, labels = inputs(unet)
    expected = theirs(x, t, class_labels=labels).sample
    assert torch.equal(again(x, t, class_labels=labels).sample, expected)


def test_old_names_of_attention():
    torch.manual_seed(0)
    theirs = UNet2DModel(**TINY).eval()
    state = theirs.state_dict()
    config = dialect.config(TINY)
    new = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    old = {}
    for name, value in state.items():
        for modern, former in new.items():
            name = name.replace(f".{modern}.", f".{former}.")
        old[name] = value
    assert set(old) != set(state)
    expected = dialect.state_dict(state, config)
    given = dialect.state_dict(old, config)
    assert set(given) == set(expected)
    assert all(torch.equal(given[name], value) for name, value in expected.items())


MISFITS = {
    "time_embedding_type": "fourier",
    "act_fn": "gelu",
    "downsample_type": "resnet",
    "upsample_type": "resnet",
    "mid_block_scale_factor": 2,
    "block_out_channels": (8, 12),
    "up_block_types": ("UpBlock2D", "UpBlock2D"),
    "down_block_types": ("DownBlock2D", "ResnetDownsampleBlock2D"),
    "mid_block_type": None,
    "class_embed_type": "identity",
    "attn_norm_num_groups": 2,
}


@pytest.mark.parametrize("name", MISFITS)
def test_what_does_not_fit_is_named(name):
    options = {**TINY, name: MISFITS[name]}
    with pytest.raises(ValueError, match=name):
        dialect.config(options)
    assert dialect.from_module(UNet2DModel(**options)) is None


def test_another_computation_under_the_same_names_is_not_taken():
    theirs = UNet2DModel(**TINY)
    assert dialect.from_module(theirs) is not None
    theirs.conv_act = torch.nn.Tanh()
    assert dialect.from_module(theirs) is None


def test_the_module_is_left_as_it_was():
    theirs = UNet2DModel(**TINY, dropout=0.5).train()
    theirs.mid_block.eval()
    modes = [part.training for part in theirs.modules()]
    before = {name: value.clone() for name, value in theirs.state_dict().items()}
    random_state = torch.get_rng_state()
    assert dialect.from_module(theirs) is not None
    assert torch.equal(torch.get_rng_state(), random_state)
    assert [part.training for part in theirs.modules()] == modes
    assert all(torch.equal(theirs.state_dict()[name], value) for name, value in before.items())
