"""The drop-in for diffusion policies, against their own loops restated: same seed, same actions."""

from __future__ import annotations

import pickle
import re
from pathlib import Path

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler
from dropin_checks import fingerprint
from policy_cases import random_case
from replay import RecordingBackend
from tolerances import ACTIONS, SAME_KERNELS, SAME_OPS
from torch import nn

import fastddpm
from fastddpm.engine import Loops, executors
from fastddpm_bench.peers import diffusion_policy as peers

OPTIONS = {"beta_schedule": "squaredcos_cap_v2", "clip_sample": True, "prediction_type": "epsilon"}
SCHEDULERS = {
    "ddpm": lambda: DDPMScheduler(100, variance_type="fixed_small", **OPTIONS),
    "ddim": lambda: DDIMScheduler(100, set_alpha_to_one=True, steps_offset=0, **OPTIONS),
}


def lowdim(obs_as="global", scheduler="ddpm", steps=100, **kwargs):
    """Of 2 observations of 4 numbers: 16 places of 3 actions."""
    torch.manual_seed(0)
    width = 3 + 4 * (obs_as == "known")
    network = peers.ConditionalUnet1D(
        width, 2 * 4 if obs_as == "global" else None, 4 if obs_as == "local" else None
    )
    options = {"horizon": 16, "obs_dim": 4, "action_dim": 3, "n_obs_steps": 2}
    return peers.LowdimPolicy(
        network, SCHEDULERS[scheduler](), num_inference_steps=steps, obs_as=obs_as, **options, **kwargs
    ).eval()


class Encoder(nn.Module):
    """Of each observation; counts its calls."""

    def __init__(self):
        super().__init__()
        self.layer, self.calls = nn.Linear(4, 5), 0

    def forward(self, state):
        self.calls += 1
        return torch.tanh(self.layer(state))


def lerobot(scheduler="ddpm", **changes):
    torch.manual_seed(0)
    config = peers.config(**changes)
    network = peers.ConditionalUnet1D(3, 2 * 5)
    return peers.Policy(peers.DiffusionModel(Encoder(), network, SCHEDULERS[scheduler](), config)).eval()


def observed(seed=0, count=2):
    return torch.randn(count, 4, 4, generator=torch.Generator().manual_seed(seed))


def same(theirs, ours):
    """The actions of both from one seed, after which torch's generator is in the same state."""
    torch.manual_seed(7)
    with torch.no_grad():
        wanted = theirs()
    state = torch.get_rng_state()
    torch.manual_seed(7)
    actions = ours()
    assert torch.equal(torch.get_rng_state(), state)
    assert wanted.std() > 0.05
    assert (actions.shape, actions.dtype) == (wanted.shape, wanted.dtype)
    assert (actions - wanted).abs().max() <= SAME_KERNELS
    return actions


@pytest.mark.parametrize("scheduler", SCHEDULERS)
@pytest.mark.parametrize("obs_as", ["global", "local", "known"])
def test_lowdim_policies(obs_as, scheduler):
    steps = 100 if scheduler == "ddpm" else 16
    theirs = lowdim(obs_as, scheduler, steps)
    before = fingerprint(theirs)
    ours = fastddpm.optimize(theirs)
    assert isinstance(ours, peers.LowdimPolicy)
    assert ours.original is theirs
    for seed in range(2):
        batch = {"obs": observed(seed)}
        drawn = same(
            lambda batch=batch: theirs.predict_action(batch)["action_pred"],
            lambda batch=batch: ours.predict_action(batch)["action_pred"],
        )
        if obs_as == "known":
            assert torch.equal(drawn[:, :2, 3:], batch["obs"][:, :2])
    assert fingerprint(theirs) == before
    assert "conditional_sample" not in vars(theirs)


def test_options_of_the_schedulers_step():
    theirs = lowdim(scheduler="ddim", steps=10, eta=1.0)
    ours = fastddpm.optimize(theirs)
    batch = {"obs": observed()}
    same(lambda: theirs.predict_action(batch)["action"], lambda: ours.predict_action(batch)["action"])
    with pytest.raises(ValueError, match="eta: unknown to the step of DDPMScheduler"):
        fastddpm.optimize(lowdim(eta=1.0, steps=4)).predict_action(batch)
    theirs.num_inference_steps = ours.num_inference_steps = 5  # read anew by each call
    same(lambda: theirs.predict_action(batch)["action"], lambda: ours.predict_action(batch)["action"])


def test_a_generator_of_the_callers():
    theirs = lowdim("known", steps=5)
    ours = fastddpm.optimize(theirs)
    data, mask = torch.zeros(2, 16, 7), torch.zeros(2, 16, 7, dtype=torch.bool)
    of_places = torch.arange(16).expand(2, 16) < 3  # whole places, as indexing takes it
    for given in (mask, of_places):
        drawn = []
        for policy in (theirs, ours):
            generator = torch.Generator().manual_seed(5)
            with torch.no_grad():
                drawn.append(policy.conditional_sample(data, given, generator=generator))
        assert (drawn[1] - drawn[0]).abs().max() <= SAME_KERNELS
    nobody = ours.conditional_sample(data[:0], mask[:0])
    assert nobody.shape == theirs.conditional_sample(data[:0], mask[:0]).shape == (0, 16, 7)


# Of a U-Net: kernels of 7 and 3 unequal levels; 4 levels with a known part; one level and a kernel of 1;
# conditions of each place. Of a transformer: causal, its conditions encoded or not, the time a place.
HARD = {
    9: "unet",
    14: "unet",
    52: "unet",
    33: "unet",
    18: "transformer",
    19: "transformer",
    34: "transformer",
}


@pytest.mark.parametrize(("seed", "network"), HARD.items())
def test_random_configurations(seed, network):
    case = random_case(seed)
    assert ("transformer" in case.words) == (network == "transformer")
    assert case.difference() <= ACTIONS, case.words


def test_a_network_that_passes_rounding_on_is_no_further_from_float64():
    theirs, ours = random_case(110).from_exact()
    assert ACTIONS < theirs < 1e-3
    assert ours <= 3 * theirs


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_lerobots_policy(scheduler):
    theirs = lerobot(scheduler, num_inference_steps=100 if scheduler == "ddpm" else 10)
    ours = fastddpm.optimize(theirs)
    for name, policy in (("original", theirs), ("fast", ours)):
        assert type(policy) is peers.Policy, name
    states = observed(count=10).transpose(0, 1)  # over time, (4, 10, 4)

    def acted(policy):
        policy.reset()
        return torch.stack([policy.select_action({"observation.state": state[:2]}) for state in states])

    same(lambda: acted(theirs), lambda: acted(ours))
    # Observations are encoded once a call of the loop, and every 8th action calls it.
    before = theirs.diffusion.encoder.calls
    acted(ours)
    assert theirs.diffusion.encoder.calls == before + 1
    # Each keeps its own observations and actions.
    theirs.reset()
    assert len(ours._queues["action"]) > 0
    noise = observed(count=2)[:, :, :3].repeat(1, 4, 1)
    for policy in (theirs, ours):
        policy.reset()
        policy._queues["observation.state"].extend([states[0][:2]] * 2)
    same(
        lambda: theirs.predict_action_chunk({}, noise=noise),
        lambda: ours.predict_action_chunk({}, noise=noise),
    )


def test_weights_and_networks_exchanged_are_used():
    theirs = lowdim(steps=6)
    ours = fastddpm.optimize(theirs)
    batch = {"obs": observed()}

    def both():
        return same(
            lambda: theirs.predict_action(batch)["action"], lambda: ours.predict_action(batch)["action"]
        )

    first = both()
    with torch.no_grad():
        theirs.model.final_conv[1].bias.add_(0.3)
    second = both()
    theirs.model = lowdim("global", steps=6).model
    assert (both() - second).abs().max() > 0.01
    assert (first - second).abs().max() > 0.01


def test_a_captured_loop_takes_other_observations(monkeypatch):
    monkeypatch.setattr(executors, "CudaGraphBackend", RecordingBackend)
    theirs = lowdim("known", steps=8)
    ours = fastddpm.optimize(theirs)
    ours.conditional_sample._running().loops = Loops("cudagraph")
    eager = fastddpm.optimize(theirs)
    for seed in range(3):
        batch = {"obs": observed(seed)}
        drawn = []
        for policy in (ours, eager):
            torch.manual_seed(seed)
            drawn.append(policy.predict_action(batch)["action_pred"])
        assert (drawn[0] - drawn[1]).abs().max() <= SAME_OPS
        torch.manual_seed(seed)
        with torch.no_grad():
            assert (theirs.predict_action(batch)["action_pred"] - drawn[0]).abs().max() <= SAME_KERNELS


def test_philox_and_reports():
    theirs = lowdim(steps=4)
    ours = fastddpm.optimize(theirs, noise="philox")
    batch = {"obs": observed()}
    torch.manual_seed(3)
    first = ours.predict_action(batch)["action"]
    torch.manual_seed(3)
    assert torch.equal(ours.predict_action(batch)["action"], first)
    text = str(ours.report())
    assert "LowdimPolicy, its conditional_sample alone" in text
    assert "philox" in text
    assert "4 steps of its DDPMScheduler" in text
    assert "DiffusionModel" in str(fastddpm.optimize(lerobot()).report())


class Other(peers.LowdimPolicy):
    def conditional_sample(self, condition_data, condition_mask, generator=None, **kwargs):
        return condition_data


def test_what_is_refused():
    with pytest.raises(ValueError, match="repair: an option given, network for a policy accepted"):
        fastddpm.optimize(lowdim(), repair=True)
    solver = lowdim()
    solver.noise_scheduler = DPMSolverMultistepScheduler(100)
    with pytest.raises(ValueError, match="noise_scheduler: DPMSolverMultistepScheduler given"):
        fastddpm.optimize(solver)
    with pytest.raises(ValueError, match="global_cond: list given, a tensor or None accepted"):
        fastddpm.optimize(lerobot()).diffusion.conditional_sample(1, global_cond=[1.0])
    loop, zeros = fastddpm.optimize(lowdim("known")).conditional_sample, torch.zeros(2, 16, 7)
    for data, mask, words in (
        (None, zeros.bool(), "condition_data: None given, a tensor (B, T, A) accepted"),
        (zeros, None, "condition_mask: None given, a bool tensor (2, 16, 7) accepted"),
        (zeros, zeros, "condition_mask: torch.float32 of shape (2, 16, 7) given, a bool tensor"),
        (zeros, zeros.bool()[..., :1], "condition_mask: torch.bool of shape (2, 16, 1) given, a bool tensor"),
    ):
        with pytest.raises(ValueError, match=re.escape(words)):
            loop(data, mask)
    overridden = lowdim()
    overridden.__class__ = Other
    with pytest.raises(ValueError, match="Other, whose conditional_sample takes the place of LowdimPolicy's"):
        fastddpm.optimize(overridden)
    strange = lerobot()

    def conditional_sample(batch_size, global_cond=None, guidance=1.0):
        raise AssertionError

    class Strange(nn.Module):
        pass

    kind = type("DiffusionModel", (nn.Module,), {"conditional_sample": staticmethod(conditional_sample)})
    strange.diffusion.__class__ = kind
    with pytest.raises(ValueError, match="takes batch_size, global_cond, guidance, given, the loop of"):
        fastddpm.optimize(strange)


def test_the_original_is_still_saved_and_loaded():
    theirs = lowdim(steps=4)
    ours = fastddpm.optimize(theirs)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    again = pickle.loads(pickle.dumps(theirs))
    assert list(again.state_dict()) == list(theirs.state_dict())


def test_what_the_page_says_runs(capsys):
    text = (Path(__file__).parents[2] / "docs" / "policies.md").read_text()
    names = {"fastddpm": fastddpm, "policy": lowdim(steps=4), "observations": observed()}
    blocks = re.findall(r"```python\n(.*?)```", text, re.S)
    # The others are run by test_formats_lerobot.py and test_dropin_trajectories.py.
    for block in (one for one in blocks if "load_policy" not in one and "batch_size=64" not in one):
        exec(block, names)
    assert names["action"].shape == (2, 15, 3)
    assert "conditional_sample" in capsys.readouterr().out
