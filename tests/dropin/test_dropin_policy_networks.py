"""Policies with the published networks: ours runs around their weights, and the actions stay the same."""

from __future__ import annotations

import re

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler
from dropin_checks import fingerprint
from replay import RecordingBackend
from tolerances import ACTIONS, SAME_OPS
from torch import nn

import fastddpm
from fastddpm.engine import Loops, executors
from fastddpm.unet1d import UNet1D
from fastddpm_bench.peers import diffusion_policy as peers
from fastddpm_bench.peers import policy_unets

OPTIONS = {"beta_schedule": "squaredcos_cap_v2", "clip_sample": True, "prediction_type": "epsilon"}
STEPS = {"ddpm": 100, "ddim": 16}


def scheduler(kind):
    return {"ddpm": DDPMScheduler, "ddim": DDIMScheduler}[kind](100, **OPTIONS)


def lowdim(kind="ddpm", steps=None, *, local_cond_dim=None, down_dims=(16, 24), **network):
    torch.manual_seed(0)
    unet = policy_unets.ConditionalUnet1D(
        3, local_cond_dim, 8, 12, down_dims, 5, cond_predict_scale=True, **network
    )
    options = {"horizon": 16, "obs_dim": 4, "action_dim": 3, "n_obs_steps": 2}
    return peers.LowdimPolicy(
        unet, scheduler(kind), num_inference_steps=steps or STEPS[kind], **options
    ).eval()


def lerobot(kind="ddpm"):
    torch.manual_seed(0)
    config = peers.config(
        diffusion_step_embed_dim=12,
        down_dims=(16, 24, 32),
        kernel_size=5,
        n_groups=8,
        use_film_scale_modulation=True,
        num_inference_steps=STEPS[kind],
    )
    unet = policy_unets.DiffusionConditionalUnet1d(config, 2 * 5)
    encoder = nn.Sequential(nn.Linear(4, 5), nn.Tanh())
    return peers.Policy(peers.DiffusionModel(encoder, unet, scheduler(kind), config)).eval()


def observed(seed=0, count=1):
    return {"obs": torch.randn(count, 4, 4, generator=torch.Generator().manual_seed(seed))}


def acted(policy, batch, seed=7):
    torch.manual_seed(seed)
    with torch.no_grad():
        return policy.predict_action(batch)["action_pred"]


def check_same(theirs, ours, batch, limit=ACTIONS):
    wanted, drawn = acted(theirs, batch), acted(ours, batch)
    assert wanted.std() > 0.05
    assert (drawn - wanted).abs().max() <= limit
    return drawn


@pytest.mark.parametrize("kind", STEPS)
@pytest.mark.parametrize("count", [1, 5])
def test_actions_of_lowdim_policies(kind, count):
    theirs = lowdim(kind)
    before = fingerprint(theirs)
    ours = fastddpm.optimize(theirs)
    for seed in range(2):
        check_same(theirs, ours, observed(seed, count))
    assert fingerprint(theirs) == before
    assert "our UNet with its weights, outputs within" in str(ours.report())
    assert isinstance(ours.conditional_sample._running().model, UNet1D)


@pytest.mark.parametrize("kind", STEPS)
def test_actions_of_lerobots(kind):
    theirs = lerobot(kind)
    ours = fastddpm.optimize(theirs)
    assert isinstance(ours.diffusion.conditional_sample._running().model, UNet1D)
    drawn = []
    for policy in (theirs, ours):
        policy.reset()
        torch.manual_seed(3)
        states = torch.randn(10, 2, 4, generator=torch.Generator().manual_seed(1))
        drawn.append(torch.stack([policy.select_action({"observation.state": one}) for one in states]))
    assert drawn[0].std() > 0.05
    assert (drawn[1] - drawn[0]).abs().max() <= ACTIONS


def test_weights_are_followed_however_they_change():
    theirs = lowdim("ddim", 6)
    ours = fastddpm.optimize(theirs)
    batch = observed()
    last = check_same(theirs, ours, batch)

    def changed():
        nonlocal last
        before, last = last, check_same(theirs, ours, batch)
        assert (last - before).abs().max() > 0.01

    with torch.no_grad():
        theirs.model.mid_modules[0].cond_encoder[1].weight.add_(0.1)
    changed()
    theirs.model.final_conv[1].bias.data += 0.3  # moves no version counter
    changed()
    other = lowdim("ddim", 6)
    with torch.no_grad():
        other.model.final_conv[1].bias.sub_(0.2)
    theirs.model.load_state_dict(other.model.state_dict(), assign=True)
    changed()
    theirs.model.final_conv[1].bias = nn.Parameter(torch.full((3,), 0.4))
    changed()
    theirs.model = lowdim("ddim", 6, down_dims=(16, 32)).model
    changed()
    assert isinstance(ours.conditional_sample._running().model, UNet1D)


def test_a_network_with_hooks_runs_as_it_is():
    theirs = lowdim("ddim", 4)
    ours = fastddpm.optimize(theirs)
    check_same(theirs, ours, observed())
    handle = theirs.model.mid_modules[0].register_forward_hook(lambda module, given, out: out + 0.2)
    check_same(theirs, ours, observed())
    assert "it has hooks" in str(ours.report())
    handle.remove()
    check_same(theirs, ours, observed())
    assert "our UNet" in str(ours.report())


def test_which_network_runs():
    theirs = lowdim("ddim", 4)
    plain = fastddpm.optimize(theirs, network="original")
    assert "the original module (as asked for)" in str(plain.report())
    assert torch.equal(acted(plain, observed()), acted(theirs, observed()))
    assert "our UNet" in str(fastddpm.optimize(lerobot(), network="ours").diffusion.report())
    local = lowdim("ddim", 4, local_cond_dim=4)
    assert "of another architecture" in str(fastddpm.optimize(local).report())
    with pytest.raises(
        ValueError, match="network: 'ours', but of another architecture than our UNet's, given"
    ):
        fastddpm.optimize(local, network="ours")
    with pytest.raises(ValueError, match="network: 'theirs' given"):
        fastddpm.optimize(theirs, network="theirs")


def test_a_network_that_only_looks_like_it_runs_as_it_is():
    theirs = lowdim("ddim", 4)
    theirs.model.mid_modules[0].cond_encoder[0] = nn.SiLU()
    ours = fastddpm.optimize(theirs)
    assert "our UNet's outputs differ by" in str(ours.report())
    check_same(theirs, ours, observed())


def test_what_the_network_refuses_is_named():
    theirs = lowdim("ddim", 2, down_dims=(8, 16, 8), n_groups=4)
    ours = fastddpm.optimize(theirs)

    def drawn(policy, places=16, width=3, **cond):
        data = torch.zeros(2, places, width)
        with torch.no_grad():
            return policy.conditional_sample(data, data.bool(), **cond)

    vector = torch.ones(2, 8)
    for words, call in {
        "condition_data: shape (2, 18, 3) given, (B, T, 3) with T a multiple of 4": {"places": 18},
        "condition_data: shape (2, 0, 3) given": {"places": 0},
        "condition_data: shape (2, 16, 4) given": {"width": 4},
        "global_cond: shape (2, 7) given, (B, 8) accepted": {"global_cond": vector[:, :7]},
        "global_cond: shape (2, 2, 4) given, (B, 8) accepted": {"global_cond": vector.view(2, 2, 4)},
        "global_cond: shape (3, 8) given, a tensor (2 or 1, ...)": {"global_cond": torch.ones(3, 8)},
        "cond: local_cond, global_cond to a network of 8": {"local_cond": torch.ones(2, 16, 4)},
    }.items():
        given = {"global_cond": vector} | call
        with pytest.raises((RuntimeError, TypeError)):
            drawn(theirs, **given)
        with pytest.raises(ValueError, match=re.escape(words)):
            drawn(ours, **given)
    sampler = ours.sampler()
    with pytest.raises(ValueError, match=r"global_cond: shape \(1, 7\) given, \(B, 8\) accepted"):
        sampler.sample(seeds=[1], cond={"global_cond": vector[:1, :7]}, progress=False)
    with pytest.raises(ValueError, match=r"x: shape \(1, 18, 3\) given, \(B, T, 3\) with T a multiple of 4"):
        sampler.sample(seeds=[1], shape=(18, 3), cond={"global_cond": vector[:1]}, progress=False)
    # Eight groups of the last norm, of a channel each: one place and trajectory leave one number.
    single = lowdim("ddim", 2, down_dims=(8,), n_groups=8)
    single.horizon = 1
    for policy in (single, fastddpm.optimize(single)):
        with pytest.raises(
            ValueError, match=r"more than 1 value per channel|groups of a norm have one number"
        ):
            acted(policy, observed())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_other_dtypes(dtype):
    theirs = lowdim("ddim", 6)
    ours = fastddpm.optimize(theirs, dtype=dtype)
    limit = ACTIONS if dtype == torch.float32 else 0.1
    check_same(theirs, ours, observed(), limit)
    with torch.no_grad():
        theirs.model.final_conv[1].bias.add_(0.3)
    check_same(theirs, ours, observed(), limit)


def test_onnx_runtime_runs_it():
    pytest.importorskip("onnxruntime")
    theirs = lowdim("ddim", 6)
    ours = fastddpm.optimize(theirs, engine="onnxruntime")
    for seed in range(2):
        check_same(theirs, ours, observed(seed))


@pytest.mark.slow
def test_a_compiled_step_runs_it():
    theirs = lowdim("ddim", 4, down_dims=(16,))
    ours = fastddpm.optimize(theirs, engine="compile")
    for seed in range(2):
        check_same(theirs, ours, observed(seed))


def test_a_captured_loop_takes_other_observations_and_weights(monkeypatch):
    monkeypatch.setattr(executors, "CudaGraphBackend", RecordingBackend)
    theirs = lowdim("ddim", 8)
    ours, eager = fastddpm.optimize(theirs), fastddpm.optimize(theirs)
    ours.conditional_sample._running().loops = Loops("cudagraph")
    for seed in range(3):
        batch = observed(seed)
        assert (acted(ours, batch) - acted(eager, batch)).abs().max() <= SAME_OPS
        check_same(theirs, ours, batch)
        with torch.no_grad():
            theirs.model.up_modules[0][0].cond_encoder[1].bias.mul_(1.1)
