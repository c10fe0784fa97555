"""Drop-in for policies that draw actions by diffusion: real-stanford/diffusion_policy's and LeRobot's.

Known by what they hold: a network, ``noise_scheduler``, ``num_inference_steps`` and ``conditional_sample``.
That loop alone is replaced, on a copy of the policy's object that shares its modules: whatever encodes
observations, normalises and keeps actions is the policy's own, and runs outside of the loop, as there.
"""

from __future__ import annotations

import copy
from typing import Any

from fastddpm.checks import BadArgument, check_choice
from fastddpm.dropin._diffusers.scheduler_kinds import STEPS, scheduler_kind
from fastddpm.dropin.alterations import warn_if_random
from fastddpm.dropin.overrides import check_published
from fastddpm.dropin.peer import Peer, holds, parameters_of
from fastddpm.dropin.policy_loops import ActionLoop
from fastddpm.dropin.settings import NETWORK_CHOICES, NetworkChoice, Settings

DESCRIPTION = "policies of real-stanford/diffusion_policy, and LeRobot's DiffusionPolicy"
LOOP = "conditional_sample"
_HELD = ("noise_scheduler", "num_inference_steps", LOOP)
# Parameters of the loops: of a policy around condition_data, and of LeRobot's, whose shape its config has.
_GIVEN_PART = {"condition_data", "condition_mask", "generator"}
_CONDITIONS = {"local_cond", "global_cond", "cond"}
_BY_CONFIG = {"batch_size", "global_cond", "generator", "noise"}
_SCHEDULERS = ("DDPMScheduler", "DDIMScheduler")


def recognises(obj: Peer) -> bool:
    """Whether an object is such a policy, or holds LeRobot's ``diffusion``."""
    return _network_of(obj) is not None or _holds_diffusion(obj)


def build(obj: Peer, settings: Settings, *, network: NetworkChoice = "auto", **options: object) -> Any:
    """A policy of the same class whose actions are drawn by our loop.

    Args:
        obj: a policy; it stays as it was. Its modules are shared, its queues of observations are not.
        settings: noise, engine and dtype (the network's, under autocast).
        network: ``auto``, ``original`` or ``ours``.
        **options: none.

    Returns:
        The policy, with ``original``, ``report()`` and ``sampler()`` (of `ActionLoop`). Weights and modules
        are the original's, whenever they change; other attributes, such as ``num_inference_steps``, are its
        own from here on.

    Raises:
        ValueError: an option; a loop, scheduler or network that is not the published one.
    """
    if options:
        raise BadArgument(", ".join(options), "an option", "network for a policy")
    check_choice("network", network, NETWORK_CHOICES)
    fast = copy.copy(obj)
    if _holds_diffusion(obj):
        inner = build(obj.diffusion, settings, network=network)
        fast.__dict__["_modules"] = {**obj._modules, "diffusion": inner}
        if hasattr(fast, "reset"):
            fast.reset()
    else:
        inner = fast.__dict__[LOOP] = _loop(obj, fast, settings, network)
    # Past what a module does with attributes: the original is no part of it.
    fast.__dict__.update(original=obj, report=inner.report, sampler=inner.sampler)
    return fast


def _network_of(obj: Peer) -> str | None:
    """The attribute that holds the network of a loop; None of an object that has no such loop."""
    for name, further in (("unet", ("config",)), ("model", ("horizon", "action_dim"))):
        if holds(obj, modules=(name,), anything=(*_HELD, *further)):
            return name
    return None


def _holds_diffusion(obj: Peer) -> bool:
    return holds(obj, modules=("diffusion",)) and _network_of(obj.diffusion) is not None


def _loop(obj: Peer, fast: Peer, settings: Settings, choice: NetworkChoice) -> ActionLoop:
    """What takes the place of the loop of ``obj``, in ``fast``."""
    name = _network_of(obj)
    assert name is not None
    check_published(obj, (LOOP,))
    check_published(obj.noise_scheduler, STEPS, "noise_scheduler")
    if scheduler_kind(obj.noise_scheduler) not in _SCHEDULERS:
        given = type(obj.noise_scheduler).__name__
        raise BadArgument("noise_scheduler", given, f"diffusers' {' or '.join(_SCHEDULERS)}")
    taken = set(parameters_of(getattr(obj, LOOP)))
    by_config = {"batch_size", "global_cond"} <= taken <= _BY_CONFIG
    if not by_config and not _GIVEN_PART <= taken <= _GIVEN_PART | _CONDITIONS | {"kwargs"}:
        given = f"{type(obj).__name__}, whose {LOOP} takes {', '.join(sorted(taken))},"
        raise BadArgument("obj", given, "the loop of real-stanford/diffusion_policy or LeRobot")
    warn_if_random(getattr(obj, name), name)
    return ActionLoop(fast, name, getattr(obj, LOOP), settings, choice)
