"""Our network of actions against the published ones, restated: same weights, same outputs."""

from __future__ import annotations

import copy

import pytest
import torch
from tolerances import EXACT_SPLIT
from torch.utils._python_dispatch import TorchDispatchMode

from fastddpm.tabulated import bind
from fastddpm.unet1d import UNet1DConfig, names
from fastddpm.unet1d.buffered import Buffered
from fastddpm.unet1d.rows import Rows
from fastddpm.unet1d.unfolded import Unfolded, is_small
from fastddpm_bench.peers import diffusion_policy, policy_unets

NETWORKS = {
    "diffusion_policy": {"global_cond_dim": 11, "kernel_size": 5, "cond_predict_scale": True},
    "shifts alone": {"global_cond_dim": 11, "kernel_size": 3, "n_groups": 4},
    "no condition": {"kernel_size": 3, "cond_predict_scale": True},
    "one level": {"global_cond_dim": 3, "down_dims": (16,), "cond_predict_scale": True},
}
LEROBOT = {
    "diffusion_step_embed_dim": 12,
    "down_dims": (16, 24, 32),
    "kernel_size": 5,
    "n_groups": 8,
    "use_film_scale_modulation": True,
}


def published(name):
    torch.manual_seed(0)
    if name == "lerobot":
        return policy_unets.DiffusionConditionalUnet1d(diffusion_policy.config(**LEROBOT), 11).eval()
    options = {"down_dims": (16, 24, 32), "diffusion_step_embed_dim": 12} | NETWORKS[name]
    return policy_unets.ConditionalUnet1D(3, **options).eval()


@pytest.fixture
def in_float64():
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


def given(unet, batch=3, places=16):
    x, t = torch.randn(batch, places, unet.config.action_dim), torch.arange(batch) * 33
    cond = {"global_cond": torch.randn(batch, unet.config.cond_dim)} if unet.config.cond_dim else {}
    return x, t, cond


@pytest.mark.parametrize("name", [*NETWORKS, "lerobot"])
def test_same_outputs_in_float64(name, in_float64):
    theirs = published(name)
    ours = names.from_module(theirs)
    x, t, cond = given(ours)
    with torch.no_grad():
        wanted = theirs(x, t, **cond)
        assert wanted.std() > 0.05
        assert (ours(x, t, **cond) - wanted).abs().max() <= EXACT_SPLIT
        # As products of matrices, and with FiLM's numbers computed apart.
        bias = ours.time_biases(t) + (ours.condition_biases(**cond) if cond else 0)
        assert (Unfolded(ours).forward_biased(x, bias) - wanted).abs().max() <= EXACT_SPLIT
        buffered = Buffered(ours, len(x), x.shape[1])
        for _ in range(2):  # what the first left in its buffers is nothing to the second
            assert (buffered.forward_biased(x, bias) - wanted).abs().max() <= EXACT_SPLIT
            x, t = x.flip(0), t.flip(0)
            cond = {name: value.flip(0) for name, value in cond.items()}
            wanted, bias = theirs(x, t, **cond), bias.flip(0)


@pytest.mark.parametrize("name", ["diffusion_policy", "lerobot"])
def test_what_film_gives_is_the_sum_of_two_parts(name, in_float64):
    theirs = published(name)
    ours = names.from_module(theirs)
    _, t, cond = given(ours)
    encoded = torch.cat((theirs.diffusion_step_encoder(t), cond["global_cond"]), dim=1)
    # In the order in which the blocks run.
    parts = [*theirs.down_modules, theirs.mid_modules, *theirs.up_modules]
    wanted = torch.cat(
        [block.cond_encoder(encoded).flatten(1) for pair in parts for block in pair[:2]], dim=1
    )
    split = ours.time_biases(t) + ours.condition_biases(cond["global_cond"])
    assert (split - wanted).abs().max() <= EXACT_SPLIT


def test_weights_are_shared_and_the_options_read():
    theirs = published("diffusion_policy")
    ours = names.from_module(theirs)
    places = {value.data_ptr() for value in theirs.state_dict().values()}
    assert {value.data_ptr() for value in ours.state_dict().values()} == places
    assert ours.config == UNet1DConfig(3, 11, (16, 24, 32), 5, 8, 8, 12, True)
    assert names.from_module(published("shifts alone")).config.film_scale is False


def test_other_networks_are_none_of_these():
    assert names.from_module(torch.nn.Linear(3, 3)) is None
    assert names.from_module(diffusion_policy.ConditionalUnet1D(3, 8)) is None
    local = policy_unets.ConditionalUnet1D(3, 4, 11, 12, (16, 24), 3)
    assert names.from_module(local) is None
    mixed = copy.deepcopy(published("lerobot"))
    mixed.mid_modules[0].conv1.block[1] = torch.nn.GroupNorm(4, 32)
    assert names.from_module(mixed) is None


def test_errors_name_the_argument():
    ours = names.from_module(published("diffusion_policy"))
    x, t, cond = given(ours)
    for odd in (x[:, :15], x[:, :, :2], x[0]):
        with pytest.raises(
            ValueError, match=r"x: shape .* given, \(B, T, 3\) with T a multiple of 4 accepted"
        ):
            ours(odd, t, **cond)
    with pytest.raises(ValueError, match="global_cond: none given, 11 numbers accepted"):
        ours(x, t)
    plain = names.from_module(published("no condition"))
    with pytest.raises(ValueError, match="global_cond: a vector given, none accepted"):
        plain(x, t, **cond)
    for options, name in (
        ({"down_dims": ()}, "down_dims"),
        ({"down_dims": (12,)}, "num_groups"),
        ({"kernel_size": 4}, "kernel_size"),
        ({"time_dim": 5}, "time_dim"),
        ({"final_groups": 3}, "final_groups"),
        ({"action_dim": 0}, "action_dim"),
    ):
        with pytest.raises(ValueError, match=f"^{name}"):
            UNet1DConfig(**{"action_dim": 3, "cond_dim": 11, **options})
    state = names.state_dict(published("lerobot").state_dict())
    del state["mid.first.norm1.weight"]
    with pytest.raises(ValueError, match=r"mid\.first\.norm1\.weight has shape none \(missing\)"):
        names.from_state(state, num_groups=8)


def test_products_are_for_small_networks():
    ours = names.from_module(published("diffusion_policy"))
    assert is_small(ours)
    with torch.device("meta"):
        large = policy_unets.ConditionalUnet1D(3, global_cond_dim=11, down_dims=(512, 1024))
    assert not is_small(names.from_module(large))


@pytest.mark.parametrize("name", [*NETWORKS, "lerobot"])
def test_as_maps_of_height_1(name, in_float64):
    """As on a card: the same outputs, and no map that a norm or convolution would have to copy first."""
    theirs = published(name)
    ours = names.from_module(theirs)
    x, t, cond = given(ours)
    buffers = {"device": torch.device("cpu"), "capacity": 100, "condition": None, "guided": False}
    buffers |= {"dtype": torch.float64, "time_dtype": torch.int64}
    network = bind(ours, cond=cond, form="deferred", **buffers)
    assert isinstance(network._in_rows, Rows)
    network.time[:3] = t
    for key, value in cond.items():
        network.given[key].copy_(value)
    with torch.no_grad():
        for _ in range(2):
            network.begin(3)
            with Convolved() as seen:
                drawn = network(x, torch.arange(3))
            wanted = theirs(x, t, **cond)
            assert (drawn - wanted).abs().max() <= EXACT_SPLIT * wanted.abs().max()
            assert len(seen.layouts) == sum(isinstance(part, CONVOLUTIONS) for part in ours.modules())
            assert all(seen.layouts)
            for weight in theirs.parameters():  # which are ours: the copies follow
                weight.mul_(1.1)


CONVOLUTIONS = (torch.nn.Conv1d, torch.nn.ConvTranspose1d)


class Convolved(TorchDispatchMode):
    """Whether each convolution is of a map and a weight whose channels are neighbours; nothing is copied."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.layouts = getattr(self, "layouts", [])
        assert func not in (torch.ops.aten.clone.default, torch.ops.aten._to_copy.default), func
        if func is torch.ops.aten.convolution.default:
            in_order = [one.is_contiguous(memory_format=torch.channels_last) for one in args[:2]]
            self.layouts.append(all(in_order) and args[0].stride(1) == 1)
        return func(*args, **(kwargs or {}))
