"""`fuse_norms` on networks of other libraries: what it replaces, that nothing changes, how it is undone."""

from __future__ import annotations

import copy

import pytest
import torch
from networks import make_unet
from torch import nn

import fastddpm
from fastddpm import fusion
from fastddpm_bench.peers import sr3 as peers_sr3
from fastddpm_bench.peers.guided_unet import UNetModel
from fastddpm_kernels import group_norm_silu as reference

diffusers = pytest.importorskip("diffusers")


def diffusers_unet(**options):
    torch.manual_seed(0)
    blocks = {"down_block_types": ("DownBlock2D", "AttnDownBlock2D")}
    blocks |= {"up_block_types": ("AttnUpBlock2D", "UpBlock2D")}
    sizes = {"sample_size": 8, "block_out_channels": (16, 32), "norm_num_groups": 8, "layers_per_block": 1}
    unet = diffusers.UNet2DModel(**sizes, **blocks, attention_head_dim=8, **options)
    with torch.no_grad():
        for parameter in unet.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return unet.eval()


def sr3_block():
    torch.manual_seed(0)
    return nn.Sequential(peers_sr3.Block(8, 16, 4), peers_sr3.Block(16, 8, 8, dropout=0.5)).eval()


NETWORKS = {
    "default": lambda: diffusers_unet(),
    "scale_shift": lambda: diffusers_unet(resnet_time_scale_shift="scale_shift"),
    "resampling": lambda: diffusers_unet(downsample_type="resnet", upsample_type="resnet"),
}


def output(network):
    x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(3))
    return network(x, torch.tensor([7, 800])).sample


@pytest.fixture
def calls(monkeypatch):
    """The fused calls, by what they were given."""
    seen = []

    def record(*arguments, **options):
        given = {name for name in ("pre_bias", "scale") if options.get(name) is not None}
        seen.append((options.get("activation", "silu"), *sorted(given)))
        return reference(*arguments, **options)

    monkeypatch.setattr(fusion, "group_norm_silu", record)
    return seen


@pytest.mark.parametrize("name", NETWORKS)
def test_every_norm_of_a_diffusers_unet_is_fused_and_nothing_changes(name, calls):
    network = NETWORKS[name]()
    expected, keys = output(network), list(network.state_dict())
    fused = fastddpm.fuse_norms(network)
    calls.clear()
    assert torch.equal(output(network), expected)
    n_norms = sum(isinstance(module, nn.GroupNorm) for module in network.modules())
    n_attentions = sum(getattr(module, "group_norm", None) is not None for module in network.modules())
    assert len(calls) == n_norms
    assert calls.count(("none",)) == n_attentions > 0
    blocks = (n_norms - n_attentions - 1) // 2
    assert calls.count(("silu", "scale" if name == "scale_shift" else "pre_bias")) == blocks
    assert list(network.state_dict()) == keys
    assert len(fused.replaced) == blocks + n_attentions + 2
    fused.undo()
    calls.clear()
    assert torch.equal(output(network), expected)
    assert calls == []
    assert not any("forward" in vars(module) for module in network.modules())
    fused.undo()


def test_blocks_of_sr3(calls):
    network = sr3_block()
    x = torch.randn(2, 8, 8, 8)
    expected = network(x)
    fused = fastddpm.fuse_norms(network)
    calls.clear()
    torch.testing.assert_close(network(x), expected, rtol=0, atol=1e-6)  # x*sigmoid(x) there
    assert calls == [("silu",), ("silu",)]
    assert fused.replaced == ["0.block.0", "0.block.1", "1.block.0", "1.block.1"]
    fused.undo()
    assert torch.equal(network(x), expected)


def test_our_unet_needs_no_switch():
    assert fastddpm.fuse_norms(make_unet()).replaced == []


def test_a_wrong_result_raises_and_restores(monkeypatch):
    network = diffusers_unet()
    expected = output(network)

    def wrong(x, *rest, **options):
        return reference(x, *rest, **options) + (1e-3 if options.get("activation") == "none" else 0)

    monkeypatch.setattr(fusion, "group_norm_silu", wrong)
    with pytest.raises(RuntimeError, match=r"attentions\.0\.group_norm: another output once fused"):
        fastddpm.fuse_norms(network)
    assert torch.equal(output(network), expected)
    assert not any("forward" in vars(module) for module in network.modules())


def test_training_mode_gradients_and_random_numbers_are_left_alone():
    network = diffusers_unet(dropout=0.3).train()
    torch.manual_seed(5)
    output(network).square().mean().backward()
    expected = {name: p.grad.clone() for name, p in network.named_parameters()}
    network.zero_grad()
    torch.manual_seed(5)
    fastddpm.fuse_norms(network)
    assert all(module.training for module in network.modules())
    output(network).square().mean().backward()
    for name, parameter in network.named_parameters():
        assert torch.equal(parameter.grad, expected[name]), name


def test_a_deep_copy_runs_on_its_own_weights():
    network = diffusers_unet()
    expected = output(network)
    fastddpm.fuse_norms(network)
    copied = copy.deepcopy(network)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.zero_()
    assert torch.equal(output(copied), expected)


def test_what_has_hooks_or_serves_twice_is_left_alone():
    silu = nn.SiLU()
    shared = nn.Sequential(nn.GroupNorm(2, 4), silu, nn.GroupNorm(2, 4), silu)
    assert fastddpm.fuse_norms(shared).replaced == ["0", "2"]
    for register in ("register_forward_hook", "register_forward_pre_hook"):
        hooked = nn.Sequential(nn.GroupNorm(2, 4), nn.SiLU())
        getattr(hooked[0], register)(lambda *_: None)
        assert fastddpm.fuse_norms(hooked).replaced == []
    other = nn.Sequential(nn.GroupNorm(2, 4), nn.GELU())
    assert fastddpm.fuse_norms(other).replaced == ["0"]


@torch.no_grad()
@pytest.mark.parametrize("scale_shift", [True, False])
def test_a_norm_that_is_called_without_its_silu_keeps_it(scale_shift):
    """guided-diffusion's blocks scale and shift between the two, which lie in one Sequential all the same."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = UNetModel(width=32, scale_shift=scale_shift).eval()
        for parameter in network.parameters():
            torch.nn.init.normal_(parameter, std=0.1)
        x, t = torch.randn(2, 3, 8, 8), torch.tensor([1, 9])
    expected = network(x, t)
    assert fusion.fuse_norms(network).replaced
    torch.testing.assert_close(network(x, t), expected, rtol=0, atol=1e-5)
