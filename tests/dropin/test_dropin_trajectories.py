"""The drop-in for jannerm/diffuser, against its loops restated: same seed, same trajectories."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from dropin_checks import fingerprint
from tolerances import SAME_KERNELS
from torch import nn

import fastddpm
from fastddpm.unet1d import UNet1D
from fastddpm_bench.peers import trajectories as peers


class ReadsConditions(nn.Module):
    """A network that looks at the conditions, which the published one does not."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(5, 5)

    def forward(self, x, cond, time):
        return torch.tanh(self.layer(x)) + 0.1 * cond[0].mean(-1)[:, None, None] + 1e-3 * time[:, None, None]


def diffusion(kind=peers.Diffusion, network=None, steps=20, **options):
    """Of 8 places: 2 numbers of actions, 3 of observations."""
    torch.manual_seed(0)
    if network is None:
        network = peers.TemporalUnet(8, 5, 3, dim=16, dim_mults=options.pop("dim_mults", (1, 2)))
    return kind(network, 8, 3, 2, n_timesteps=steps, **options).eval()


def given(count=2):
    drawn = torch.randn(2, count, 3, generator=torch.Generator().manual_seed(1))
    return {0: drawn[0], -1: drawn[1]}


class Value(nn.Module):
    """Of a trajectory."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(40, 1)

    def forward(self, x, cond, t):
        return torch.sin(self.layer(x.flatten(1))) * (1 + t[:, None] / 100) + cond[0].mean()


def same(theirs, ours, call):
    """What both give from one seed, after which torch's generator is in the same state."""
    torch.manual_seed(7)
    wanted = call(theirs)
    state = torch.get_rng_state()
    torch.manual_seed(7)
    found = call(ours)
    assert torch.equal(torch.get_rng_state(), state)
    wanted, found = (tuple(one) if isinstance(one, tuple) else (one,) for one in (wanted, found))
    assert len(wanted) == len(found)
    for one, other in zip(wanted, found, strict=True):
        if one is not None:
            assert (other.shape, other.dtype) == (one.shape, one.dtype)
            assert float((other - one).abs().max()) <= SAME_KERNELS * max(1.0, float(one.abs().max()))
        else:
            assert other is None
    return found


@pytest.mark.parametrize("kind", [peers.Diffusion, peers.Diffusion2022])
@pytest.mark.parametrize("clip", [True, False])
@pytest.mark.parametrize("epsilon", [True, False])
def test_trajectories(kind, clip, epsilon):
    theirs = diffusion(kind, clip_denoised=clip, predict_epsilon=epsilon)
    before = fingerprint(theirs)
    ours = fastddpm.optimize(theirs)
    assert "our UNet" in str(ours.report())
    drawn = same(theirs, ours, lambda one: one(given()))
    assert torch.equal(drawn[0][:, 0, 2:], given()[0])
    assert torch.equal(drawn[0][:, -1, 2:], given()[-1])
    keeps = "return_chain" if kind is peers.Diffusion else "return_diffusion"
    states = same(theirs, ours, lambda one: one.conditional_sample(given(), horizon=16, **{keeps: True}))[-1]
    assert states.shape == (2, 21, 16, 5)
    assert fingerprint(theirs) == before
    with torch.no_grad():
        theirs.model.final_conv[1].bias.add_(0.5)  # used by the next call
    same(theirs, ours, lambda one: one.p_sample_loop((2, 8, 5), given(), False))


@pytest.mark.parametrize(
    "options", [{}, {"n_guide_steps": 2, "t_stopgrad": 3, "scale": 0.5, "scale_grad_by_std": False}]
)
def test_a_value_guides(options):
    theirs, guide = diffusion(clip_denoised=True), peers.ValueGuide(Value())
    ours = fastddpm.optimize(theirs)
    options = {"scale": 5.0, **options, "sample_fn": peers.n_step_guided_p_sample, "guide": guide}
    found = same(theirs, ours, lambda one: one(given(3), **options, return_chain=True))
    torch.manual_seed(7)
    unguided = ours(given(3))
    assert (found[0] - unguided.trajectories).abs().max() > 1e-2
    text = (Path(__file__).parents[2] / "docs" / "policies.md").read_text()
    [block] = [one for one in re.findall(r"```python\n(.*?)```", text, re.S) if "batch_size=64" in one]
    guided = peers.GuidedPolicy(guide, theirs, 1.0, sample_fn=options["sample_fn"])
    names = {"fastddpm": fastddpm, "policy": guided, "observation": np.zeros(3)}
    exec(block, names)
    assert names["plans"].observations.shape == (64, 8, 3)
    policies = [peers.GuidedPolicy(guide, theirs, 2.0, sample_fn=options["sample_fn"], scale=2.0)]
    policies.append(fastddpm.optimize(policies[0]))
    assert policies[1].original is policies[0]
    assert policies[0].diffusion_model is theirs
    actions = []
    for policy in policies:
        torch.manual_seed(3)
        action, plans = policy({0: np.ones(3)}, batch_size=4)
        actions.append(torch.as_tensor(np.concatenate([action, plans.actions.ravel(), plans.values])))
    assert (actions[0] - actions[1]).abs().max() <= 2 * SAME_KERNELS  # in units of the normaliser


def test_networks():
    four = diffusion(dim_mults=(1, 2, 2, 4), steps=5, clip_denoised=True)
    assert isinstance(fastddpm.optimize(four)._running().model, UNet1D)
    attends = peers.TemporalUnet(8, 5, 3, dim=16, dim_mults=(1, 2), attention=True)
    for network in (ReadsConditions(), attends):
        theirs = diffusion(network=network, clip_denoised=True, steps=5)
        ours = fastddpm.optimize(theirs)
        assert "the original module" in str(ours.report())
        same(theirs, ours, lambda one: one(given()))
    torch.manual_seed(0)
    seeds = fastddpm.optimize(four, noise="philox")
    both = seeds(given(), seeds=[1, 2]).trajectories
    alone = seeds({place: value[1:] for place, value in given().items()}, seeds=[2]).trajectories
    assert (both[1:] - alone).abs().max() <= SAME_KERNELS


def other_step(model, x, cond, t):
    return x, torch.zeros(len(x))


def test_what_is_refused():
    theirs = diffusion(steps=2)
    ours, cond = fastddpm.optimize(theirs), given()
    step, guide = peers.n_step_guided_p_sample, peers.ValueGuide(Value())
    older = fastddpm.optimize(diffusion(peers.Diffusion2022))
    refused = [
        (ValueError, "cond: .* 0 among them", lambda: ours({1: cond[0]})),
        (ValueError, r"cond\[3\]: .*a tensor \(2, 3\)", lambda: ours({**cond, 3: torch.zeros(2, 4)})),
        (ValueError, "cond: 8 given", lambda: ours({**cond, 8: cond[0]})),
        (ValueError, "horizon: 0", lambda: ours(cond, horizon=0)),
        (ValueError, "T a multiple of 2", lambda: ours(cond, horizon=7)),
        (ValueError, "sample_fn: .*n_step_guided_p_sample", lambda: ours(cond, sample_fn=other_step)),
        (ValueError, "guide: None given", lambda: ours(cond, sample_fn=step)),
        (TypeError, "'guide'", lambda: ours(cond, guide=object())),
        (
            TypeError,
            "'scales'",
            lambda: ours(cond, sample_fn=step, guide=guide, scales=1),
        ),
        (
            TypeError,
            "'return_chain'",
            lambda: older(cond, return_chain=1),
        ),
        (ValueError, "repair", lambda: fastddpm.optimize(theirs, repair=True)),
    ]
    for kind, words, call in refused:
        with pytest.raises(kind, match=words):
            call()

    class Other(peers.Diffusion):
        def p_mean_variance(self, x, cond, t):
            return super().p_mean_variance(x, cond, t)

    with pytest.raises(ValueError, match="p_mean_variance"):
        fastddpm.optimize(diffusion(Other))

    class DecisionDiffuser(peers.Tables):  # a class of its own, which holds the same
        def conditional_sample(self, cond, returns=None, horizon=None):
            return self.p_sample_loop((1, 8, 5), cond, returns)

        def p_sample_loop(self, shape, cond, returns=None, verbose=True, return_diffusion=False):
            return 0.5 * torch.randn(shape)

    with pytest.raises(ValueError, match="takes shape, cond, returns, verbose, return_diffusion, given"):
        fastddpm.optimize(diffusion(DecisionDiffuser))
