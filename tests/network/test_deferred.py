"""The form of a UNet that runs on a GPU: the same function in float64, following the weights."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from networks import TINY, fill, make_unet
from replay import RecordingBackend
from torch import nn

from fastddpm import UNet
from fastddpm.engine import Loops, executors, loops
from fastddpm.tabulated import TabulatedUNet, bind, is_as_built
from fastddpm.unet import abarankab, diffusers
from fastddpm.unet.deferred import Deferred
from fastddpm.unet.phases import phase_kernels, phases_interleaved

DIFFUSERS = diffusers.config(
    {
        "in_channels": 3,
        "out_channels": 6,
        "block_out_channels": [8, 16],
        "layers_per_block": 2,
        "norm_num_groups": 4,
        "attention_head_dim": 4,
        "down_block_types": ["AttnDownBlock2D", "DownBlock2D"],
        "up_block_types": ["UpBlock2D", "AttnUpBlock2D"],
        "downsample_padding": 0,
    }
)
UNCONDITIONAL = dataclasses.replace(TINY, num_classes=None, null_class=False)
CONFIGS = {
    "tiny": TINY,
    "diffusers": DIFFUSERS,
    "abarankab": abarankab.config(
        {"img_channels": 3, "base_channels": 8, "channel_mults": (1, 2), "time_emb_dim": 16, "num_groups": 4}
    ),
    "three levels, heads": dataclasses.replace(
        TINY, channel_mults=(1, 2, 3), num_res_blocks=2, attention_levels=(1, 2), attention_heads=2
    ),
    "BatchNorm": dataclasses.replace(TINY, norm="bn"),
    "InstanceNorm, scale and shift": dataclasses.replace(TINY, norm="in", time_conditioning="scale_shift"),
    "no norm": dataclasses.replace(TINY, norm="none"),
    "scale and shift": dataclasses.replace(UNCONDITIONAL, time_conditioning="scale_shift"),
    "affine, as in SR3": dataclasses.replace(TINY, time_conditioning="affine", mid_attention="plain"),
    "class in the embedding": dataclasses.replace(TINY, class_conditioning="embedding"),
    "class as a timestep": dataclasses.replace(TINY, class_conditioning="timestep", null_class=False),
    "time not activated": dataclasses.replace(
        TINY, class_conditioning="embedding", time_activation=False, activation="mish"
    ),
    "gelu": dataclasses.replace(TINY, activation="gelu", time_conditioning="scale_shift"),
    "no attention": dataclasses.replace(TINY, mid_attention="none", attention_levels=()),
    "heads, no bias": dataclasses.replace(TINY, attention_head_dim=4, attention_bias=False),
    "blocks that change the size": dataclasses.replace(
        TINY, channel_mults=(1, 2, 3), resblock_updown=True, time_conditioning="scale_shift"
    ),
    "the same, no norm": dataclasses.replace(TINY, resblock_updown=True, norm="none"),
    "padded and centred": dataclasses.replace(TINY, initial_pad=2, center_input=True),
}
SIZES = {
    "blocks that change the size": (8, 12),
    "padded and centred": (12, 4),
    "three levels, heads": (8, 12),
}


def arguments(unet: UNet, size: tuple[int, int], seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """x and the bias of time and class, in the network's dtype."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(2, unet.config.in_channels, *size, generator=generator).to(unet.dtype)
    bias = unet.time_biases(torch.tensor([3, 700]))
    if unet.config.num_classes is not None:
        bias = bias + unet.class_biases(torch.tensor([1, 2]))
    return x, bias


def run(form: Deferred, x: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    return form.forward_biased(x, bias if form.table_offset is None else bias + form.table_offset)


def trained(unet: UNet) -> UNet:
    """Statistics of BatchNorm as after training: others than zero and one."""
    for module in unet.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(generator=torch.Generator().manual_seed(1))
            module.running_var.uniform_(0.5, 2.0, generator=torch.Generator().manual_seed(2))
    return unet


@torch.no_grad()
@pytest.mark.parametrize("name", CONFIGS)
def test_it_is_the_same_function(name):
    unet = trained(make_unet(CONFIGS[name])).double()
    form = Deferred(unet)
    for seed in range(2):
        x, bias = arguments(unet, SIZES.get(name, (8, 4)), seed)
        expected = unet.forward_biased(x, bias)
        assert expected.std() > 1e-3
        torch.testing.assert_close(
            run(form, x, bias), expected, rtol=1e-9, atol=1e-11 * float(expected.std())
        )
        for tensor in (*unet.parameters(), *unet.buffers()):
            if tensor.is_floating_point():
                tensor.data.mul_(1.1)  # .data: counted by no version counter
        form.refresh()


@torch.no_grad()
def test_rounding_is_no_worse_than_of_the_plain_network():
    """What a map owes is kept in float32; in bfloat16 maps are rounded as often, or less."""
    unet = make_unet(CONFIGS["diffusers"])
    x, bias = arguments(unet, (16, 16))
    exact = unet.double().forward_biased(x.double(), bias.double())
    half = unet.bfloat16()
    errors = [
        float((out.double() - exact).square().mean().sqrt())
        for out in (
            run(Deferred(half), x.bfloat16(), bias.bfloat16()),
            half.forward_biased(x.bfloat16(), bias.bfloat16()),
        )
    ]
    assert errors[0] <= 1.1 * errors[1]


@torch.no_grad()
@pytest.mark.parametrize("size", [(1, 1), (2, 3), (7, 4)])
def test_phases_are_the_upsampling_and_its_convolution(size):
    conv = nn.Conv2d(3, 5, 3, padding=1, bias=False).double()
    x = torch.randn(2, 3, *size, dtype=torch.float64)
    phases = nn.functional.conv2d(x, phase_kernels(conv.weight), padding=1)
    expected = conv(nn.functional.interpolate(x, scale_factor=2.0, mode="nearest"))
    torch.testing.assert_close(phases_interleaved(phases), expected, rtol=1e-12, atol=1e-12)


def test_the_given_network_is_left_alone():
    unet = make_unet()
    before = {name: value.clone() for name, value in unet.state_dict().items()}
    strides = {name: value.stride() for name, value in unet.state_dict().items()}
    random = torch.get_rng_state()
    Deferred(unet).refresh()
    assert torch.equal(torch.get_rng_state(), random)
    assert {name: value.stride() for name, value in unet.state_dict().items()} == strides
    assert all(torch.equal(before[name], value) for name, value in unet.state_dict().items())
    assert all(parameter.requires_grad for parameter in unet.parameters())


def test_weights_in_channels_last_order_are_shared():
    unet = make_unet()
    copied = sum(t.numel() for t in Deferred(unet).tensors())
    shared = sum(t.numel() for t in Deferred(unet.to(memory_format=torch.channels_last)).tensors())
    convolutions = sum(m.weight.numel() for m in unet.modules() if isinstance(m, nn.Conv2d))
    assert shared < copied - convolutions // 2


def network_of(unet: UNet, **options) -> TabulatedUNet:
    given = {"device": torch.device("cpu"), "dtype": unet.dtype, "capacity": 4, "time_dtype": torch.int64}
    given |= {"guided": False, "condition": None, "form": "deferred"} | options
    return bind(unet, **given)


@torch.no_grad()
@pytest.mark.parametrize("name", ["tiny", "class in the embedding"])
def test_conditions_classes_and_guidance_go_through_it(name):
    config = dataclasses.replace(CONFIGS[name], in_channels=5, out_channels=3)
    unet = make_unet(config).double()
    cond, condition = {"class_labels": torch.tensor([4, 4, 1, 3])}, torch.randn(4, 2, 8, 8).double()
    outputs = []
    for form in ("plain", "deferred"):
        network = network_of(unet, cond=cond, condition=condition, guided=True, form=form)
        fill(network, torch.tensor([10, 500, 900]), cond, condition)
        x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0)).double()
        outputs.append(network(x, torch.tensor([1])))
    torch.testing.assert_close(outputs[1], outputs[0], rtol=1e-9, atol=1e-11)


@pytest.fixture
def as_on_cuda(monkeypatch):
    """Makes a sampler's loops as on CUDA: of this form, captured, by the recording backend."""
    monkeypatch.setattr(executors, "CudaGraphBackend", RecordingBackend)
    monkeypatch.setattr(RecordingBackend, "captures", 0)
    monkeypatch.setattr(loops, "form_for", lambda *_: "deferred")
    monkeypatch.setattr(executors, "is_captured", lambda engine, device: engine != "eager")

    def convert(sampler, engine):
        made = sampler.replace()
        made.runner.loops = Loops(engine)
        return made

    return convert


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["cudagraph", "compile", "max"])
def test_it_is_captured_and_replayed_by_every_engine_of_cuda(sampler, unet, as_on_cuda, engine, monkeypatch):
    """Seeds, plan, labels, weights are buffers' contents; `compile` and `max` compile the network alone."""
    compiled, compile_ = [], torch.compile

    def counting(function, *, mode=None, **options):
        compiled.append(mode)
        return compile_(function, backend="eager", **options)

    monkeypatch.setattr(torch, "compile", counting)
    fast = as_on_cuda(sampler, engine)
    call = {"class_labels": [0, 3], "guidance_scale": 2.0, "progress": False}
    for seed, steps in ((0, 10), (1, 10), (1, 7)):
        unet.load_state_dict(make_unet(TINY, seed=seed).state_dict())
        expected = sampler.replace(num_inference_steps=steps)
        fast.plan = expected.plan
        image, plain = fast.sample(seeds=[seed, 9], **call), expected.sample(seeds=[seed, 9], **call)
        assert plain.std() > 0.05
        assert (image - plain).abs().max() <= 1e-3
    assert compiled == {"cudagraph": [], "compile": [None], "max": ["max-autotune-no-cudagraphs"]}[engine]
    assert RecordingBackend.captures == 2  # ten steps, and one


@pytest.mark.parametrize("register", ["register_forward_hook", "register_forward_pre_hook"])
def test_a_hooked_network_runs_as_it_is(unet, register):
    class Cuda:
        type = "cuda"

    held = Loops("cudagraph").inventories(unet)
    assert loops.form_for(Cuda(), held) == "deferred"
    getattr(unet.mid[0], register)(lambda *_: None)
    assert loops.form_for(Cuda(), held) == "plain"


def exchanged(unet):
    unet.conv_out = nn.Sequential(unet.conv_out)


def hooked(unet):
    unet.mid[0].register_forward_hook(lambda *_: None)


def hooked_before(unet):
    unet.mid[0].register_forward_pre_hook(lambda *_: None)


def parametrised(unet):
    nn.utils.parametrizations.weight_norm(unet.conv_in)


@pytest.mark.parametrize("change", [exchanged, hooked, hooked_before, parametrised])
def test_a_changed_network_runs_as_it_is(unet, change):
    assert is_as_built(unet)
    change(unet)
    assert not is_as_built(unet)
    labels = {"class_labels": torch.tensor([0])}
    network = network_of(unet, cond=labels, condition=None, guided=False, form="deferred")
    assert not any(isinstance(value, Deferred) for value in vars(network).values())
