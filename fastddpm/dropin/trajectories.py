"""Drop-in for jannerm/diffuser (Janner et al. 2022): its diffusion of trajectories, and its policies.

Known by what they hold, in both forms that were published: of 2022, whose loop gives tensors, and of the main
branch, whose loop gives a ``Sample`` and takes the function of a step, by which a value guides it.
"""

from __future__ import annotations

import copy
from typing import Any

from fastddpm.checks import BadArgument, check_choice
from fastddpm.dropin.alterations import warn_if_random
from fastddpm.dropin.overrides import check_published
from fastddpm.dropin.peer import Peer, holds, parameters_of
from fastddpm.dropin.settings import NETWORK_CHOICES, NetworkChoice, Settings
from fastddpm.dropin.trajectory_loops import FastTrajectories
from fastddpm.plans.lucidrains import BUFFERS

DESCRIPTION = "jannerm/diffuser's GaussianDiffusion, and the policies around it"
_HELD = ("horizon", "transition_dim", "action_dim", "n_timesteps", "predict_epsilon", "conditional_sample")
_STEPS = (
    "conditional_sample",
    "p_sample_loop",
    "p_sample",
    "p_mean_variance",
    "predict_start_from_noise",
    "q_posterior",
)
_INSIDE = "diffusion_model"
# Parameters of the published loops. Those of others, such as Decision Diffuser's, are told returns too, and
# begin from another noise.
_LOOPS = (
    ("shape", "cond", "verbose", "return_diffusion"),
    ("shape", "cond", "verbose", "return_chain", "sample_fn", "sample_kwargs"),
)


def recognises(obj: Peer) -> bool:
    """Whether an object is such a diffusion, or a policy that holds one."""
    return _is_diffusion(obj) or _is_policy(obj)


def build(obj: Peer, settings: Settings, *, network: NetworkChoice = "auto", **options: object) -> Any:
    """The drop-in for an object that `recognises`.

    Args:
        obj: a diffusion, or a policy around one, which stays as it was.
        settings: noise, engine and dtype (the network's, under autocast).
        network: ``auto``, ``original`` or ``ours``.
        **options: none.

    Returns:
        `FastTrajectories`; or of a policy a copy, with ``original`` and ``report()``, that holds it.

    Raises:
        ValueError: an option, or a loop that is not the published one.
    """
    if options:
        raise BadArgument(", ".join(options), "an option", "network for a diffusion of trajectories")
    check_choice("network", network, NETWORK_CHOICES)
    if _is_diffusion(obj):
        check_published(obj, _STEPS)
        taken = parameters_of(obj.p_sample_loop)
        if taken not in _LOOPS:
            given = f"{type(obj).__name__}, whose p_sample_loop takes {', '.join(taken)},"
            raise BadArgument("obj", given, "one of jannerm/diffuser, of 2022 or the main branch,")
        warn_if_random(obj.model, "model")
        return FastTrajectories(obj, settings, network)
    fast = copy.copy(obj)
    inner = build(getattr(obj, _INSIDE), settings, network=network)
    fast.__dict__.update({_INSIDE: inner, "original": obj, "report": inner.report})
    return fast


def _is_diffusion(obj: Peer) -> bool:
    return holds(obj, modules=("model",), tensors=BUFFERS, anything=_HELD)


def _is_policy(obj: Peer) -> bool:
    return holds(obj, anything=("normalizer", "__call__", _INSIDE)) and _is_diffusion(getattr(obj, _INSIDE))
