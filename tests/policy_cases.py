"""Policies of random configurations, and how far their actions by our loop are from those by their own."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import random
from collections.abc import Iterator
from typing import Any
from unittest import mock

import torch
from diffusers import DDIMScheduler, DDPMScheduler
from torch import Tensor

import fastddpm
from fastddpm.unet1d import UNet1D
from fastddpm_bench.peers.diffusion_policy import BasePolicy, LowdimPolicy, TimeEmbedding
from fastddpm_bench.peers.policy_transformer import TransformerForDiffusion, TransformerPolicy
from fastddpm_bench.peers.policy_unets import ConditionalUnet1D

SCHEDULES = ("squaredcos_cap_v2", "linear", "scaled_linear")
LARGEST = 1e3
"""Actions of chains that clip nothing may grow; beyond this a case says nothing."""


@dataclasses.dataclass(frozen=True)
class Case:
    """A policy and what it is asked.

    Attributes:
        policy: as published, in eval mode, of random weights.
        observations: ``(B, To, Do)``.
        is_unet: whether our `UNet1D` is to run in its network's place.
        words: the configuration.
    """

    policy: BasePolicy
    observations: Tensor
    is_unet: bool
    words: str

    def actions(self, policy: Any) -> Tensor:
        """Of the policy or its fast copy, from one seed."""
        torch.manual_seed(7)
        with torch.no_grad():
            actions: Tensor = policy.predict_action({"obs": self.observations})["action_pred"]
        return actions

    def difference(self) -> float:
        """Between both, relative to the largest action where that is above 1; 0 of actions beyond `LARGEST`.

        Raises:
            AssertionError: another network runs than is to.
        """
        wanted, found = self.actions(self.policy), self.actions(self._fast())
        assert found.shape == wanted.shape, self.words
        scale = max(1.0, float(wanted.abs().max()))
        return 0.0 if scale > LARGEST else float((found - wanted).abs().max()) / scale

    def from_exact(self) -> tuple[float, float]:
        """How far the policy's actions, and those of its fast copy, are from its own in float64."""
        exact = copy.deepcopy(self.policy).double()
        for part in exact.modules():
            if isinstance(part, TimeEmbedding):
                part.register_forward_hook(lambda module, given, out: out.double())
        observations = self.observations.double()
        with in_double():
            wanted = dataclasses.replace(self, observations=observations).actions(exact)
        both = self.actions(self.policy), self.actions(self._fast())
        theirs, ours = (float((one - wanted).abs().max()) for one in both)
        return theirs, ours

    def _fast(self) -> Any:
        fast = fastddpm.optimize(self.policy)
        assert isinstance(fast.conditional_sample._running().model, UNet1D) == self.is_unet, self.words
        return fast


@contextlib.contextmanager
def in_double() -> Iterator[None]:
    """New tensors are float64, and the noise is that of float32."""
    drawn = torch.randn

    def randn(*size: int, dtype: torch.dtype | None = None, **options: Any) -> Tensor:
        return drawn(*size, dtype=torch.float32, **options).double()

    torch.set_default_dtype(torch.float64)
    try:
        with mock.patch.object(torch, "randn", randn):
            yield
    finally:
        torch.set_default_dtype(torch.float32)


def random_case(seed: int) -> Case:
    """Of one seed: a U-Net for two of three, a transformer for the third."""
    draw = random.Random(seed)
    torch.manual_seed(seed)
    steps, scheduler, options = _scheduler(draw)
    obs_dim, action_dim, obs_steps = draw.choice((1, 3, 20)), draw.choice((1, 2, 7)), draw.choice((1, 2, 3))
    make = _transformer if draw.random() < 1 / 3 else _unet
    network, obs_as, horizon, words = make(draw, obs_dim, action_dim, obs_steps)
    kind = TransformerPolicy if make is _transformer else LowdimPolicy
    policy = kind(
        network, scheduler, horizon, obs_dim, action_dim, obs_steps, steps, obs_as=obs_as, **options
    )
    shown = {name: scheduler.config[name] for name in ("beta_schedule", "clip_sample", "prediction_type")}
    words = (
        f"seed {seed}: {type(scheduler).__name__} {steps} {shown} {options}, {obs_as} {obs_steps}, {words}"
    )
    observations = torch.randn(draw.choice((1, 1, 2, 5)), obs_steps, obs_dim)
    is_unet = make is _unet and obs_as != "local"
    return Case(policy.eval(), observations, is_unet, words)


def _scheduler(draw: random.Random) -> tuple[int, Any, dict[str, Any]]:
    shared: dict[str, Any] = {
        "beta_schedule": draw.choice(SCHEDULES),
        "clip_sample": draw.random() < 0.8,
        "prediction_type": draw.choice(("epsilon", "epsilon", "sample")),
    }
    if draw.random() < 0.5:
        return (
            100,
            DDPMScheduler(100, variance_type=draw.choice(("fixed_small", "fixed_large")), **shared),
            {},
        )
    options = draw.choice(({}, {"eta": 1.0}, {"eta": 0.5, "use_clipped_model_output": True}))
    steps, final = draw.choice((1, 3, 8, 16)), draw.random() < 0.7
    offset = draw.choice((0, 0, 1))
    return steps, DDIMScheduler(100, set_alpha_to_one=final, steps_offset=offset, **shared), options


def _unet(draw: random.Random, obs_dim: int, action_dim: int, obs_steps: int) -> Any:
    """Network, way of the observations, horizon and words."""
    obs_as, levels = draw.choice(("global", "global", "local", "known")), draw.choice((1, 2, 3, 4))
    groups = draw.choice((1, 2, 4))
    options: dict[str, Any] = {
        "local_cond_dim": obs_dim if obs_as == "local" else None,
        "global_cond_dim": obs_dim * obs_steps if obs_as == "global" else None,
        "diffusion_step_embed_dim": draw.choice((4, 6, 10, 32)),
        "down_dims": [8 * draw.choice((1, 2, 3, 5)) for _ in range(levels)],
        "kernel_size": draw.choice((1, 3, 3, 5, 5, 7)),
        "n_groups": groups,
        "cond_predict_scale": draw.random() < 0.5,
    }
    least = -(-obs_steps // 2 ** (levels - 1))
    # Places of the lowest level; a group of one number there is what norms refuse.
    lowest = max(least, draw.choice((2, 3, 5)))
    width = action_dim + (obs_dim if obs_as == "known" else 0)
    network = ConditionalUnet1D(width, **options)
    return network, obs_as, lowest * 2 ** (levels - 1), f"{lowest} places, {options}"


def _transformer(draw: random.Random, obs_dim: int, action_dim: int, obs_steps: int) -> Any:
    obs_as, horizon, heads = draw.choice(("cond", "cond", "known")), draw.choice((4, 7, 16)), 2
    options: dict[str, Any] = {
        "cond_dim": obs_dim if obs_as == "cond" else 0,
        "n_layer": draw.choice((1, 2, 4)),
        "n_head": heads,
        "n_emb": heads * draw.choice((4, 6, 8)),
        "causal_attn": draw.random() < 0.5,
        "n_cond_layers": draw.choice((0, 2)),
        "time_as_cond": obs_as == "cond" or draw.random() < 0.5,
    }
    width = action_dim + (obs_dim if obs_as == "known" else 0)
    network = TransformerForDiffusion(width, width, horizon, obs_steps, **options)
    with torch.no_grad():
        network.pos_emb.normal_()
    return network, obs_as, horizon, f"transformer of {horizon}, {options}"
