"""Drop-ins for diffusers' schedulers alone: a fused step for anyone's loop.

diffusers is imported when a scheduler is built or one of the classes is asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fastddpm.checks import BadArgument
from fastddpm.dropin._diffusers.fast import OWN
from fastddpm.dropin._diffusers.options import Options
from fastddpm.dropin._diffusers.scheduler_kinds import INVERSE, STEPS, exploding_kind, scheduler_kind
from fastddpm.dropin.overrides import check_published
from fastddpm.dropin.peer import Peer
from fastddpm.dropin.settings import PeerOptions, Settings
from fastddpm.extras import needed
from fastddpm.plans.diffusers import from_solver_scheduler
from fastddpm.plans.diffusers.solver_classes import STEPPED

if TYPE_CHECKING:
    from typing_extensions import Unpack

CHECKED_STEPS = (10, 4, 1)
"""Chains of so many steps show whether a solver's configuration has rows: one that has some is enough."""

DESCRIPTION = (
    "diffusers DDPMScheduler, DDIMScheduler, its solvers, the inverses of DDIM and DPMSolverMultistep, "
    "ScoreSdeVeScheduler and KarrasVeScheduler"
)


def recognises(obj: object) -> bool:
    """Whether an object has the step, the tables and the configuration of one of the schedulers."""
    return scheduler_kind(obj) is not None or exploding_kind(obj) is not None


def build(obj: Peer, settings: Settings, **options: Unpack[PeerOptions]) -> Any:
    """The scheduler's Fast... class, with its configuration, tables and timesteps.

    Args:
        obj: the scheduler; not changed by steps of the result.
        settings: a scheduler draws from torch generators and runs no network, so only the defaults and
            engine "eager" are accepted.
        **options: ``variance_type`` and ``previous_timestep``, of `Options`, for a DDPM or a DDIM scheduler.

    Raises:
        ValueError: an option is not as there; variance_type "fixed_large_log", which is NaN in diffusers; a
            solver's configuration that has no rows.
    """
    if settings.noise != "torch":
        raise BadArgument("noise", f"{settings.noise!r} for a scheduler alone", '"torch"')
    if settings.engine not in ("auto", "eager"):
        raise BadArgument("engine", f"{settings.engine!r} for a scheduler alone", '"auto" or "eager"')
    if settings.precision is not None:
        raise BadArgument("precision", f"{settings.precision!r} for a scheduler alone", "None")
    if settings.dtype is not None:
        raise BadArgument("dtype", f"{settings.dtype} for a scheduler alone", "None")
    check_published(obj, STEPS)
    habits = Options.of(options)
    if habits.network != "auto":
        raise BadArgument("network", f"{habits.network!r} for a scheduler alone", "none")
    name = scheduler_kind(obj)
    if name in STEPPED:
        return _solver(obj, name, habits)
    if name is None:
        return _exploding(obj, habits)
    if name == INVERSE and habits != Options():
        raise BadArgument("variance_type, previous_timestep", f"of a {INVERSE}", "neither")
    is_ddpm = name == "DDPMScheduler"
    kind: Any = __getattr__(f"Fast{name}")
    fast = kind.from_config(obj.config)
    kept = {name: value for name, value in vars(obj).items() if name not in OWN}
    vars(fast).update(kept, original=obj, _options=habits)
    if is_ddpm:
        variance_type = habits.variance_type or obj.config["variance_type"]
        if variance_type == "fixed_large_log":
            raise BadArgument(
                "variance_type",
                "'fixed_large_log', in diffusers NaN (the square root of a logarithm below 0),",
                "'fixed_large', which is what it means,",
            )
        fast.register_to_config(variance_type=variance_type)
        fast.variance_type = variance_type
    return fast


def _solver(obj: Peer, kind: str, habits: Options) -> Any:
    from fastddpm.dropin._diffusers import solvers

    if habits != Options():
        raise BadArgument("variance_type, previous_timestep", "of a solver", "neither")
    _check_rows(obj, kind)
    fast: Any = solvers.TWINS[kind].from_config(obj.config)  # type: ignore[attr-defined]
    kept = {name: value for name, value in vars(obj).items() if name not in solvers.OWN}
    vars(fast).update(kept, original=obj)
    return fast


def _exploding(obj: Peer, habits: Options) -> Any:
    from fastddpm.dropin._diffusers.exploding_twin import OWN

    kind = exploding_kind(obj)
    if habits != Options():
        raise BadArgument("variance_type, previous_timestep", f"of a {kind}", "neither")
    fast: Any = __getattr__(f"Fast{kind}").from_config(obj.config)
    kept = {name: value for name, value in vars(obj).items() if name not in OWN}
    vars(fast).update(kept, original=obj)
    return fast


def _check_rows(obj: Peer, kind: str) -> None:
    """ValueError, that of the first chain, unless a chain of `CHECKED_STEPS` has rows.

    Where the scheduler itself takes none of these numbers there is nothing to say before it is told another.
    """
    first: BadArgument | None = None
    for steps in CHECKED_STEPS:
        try:
            from_solver_scheduler(obj, steps, kind=kind)
        except BadArgument as error:
            first = first or error
        else:
            return
    if first is not None and first.argument != "num_inference_steps":
        raise first


def __getattr__(name: str) -> Any:
    if not name.startswith("Fast"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    needed("diffusers", by=name)
    from fastddpm.dropin._diffusers import inverse, schedulers, solvers

    if name == f"Fast{INVERSE}":
        return inverse.FastDDIMInverseScheduler
    if name in ("FastDDPMScheduler", "FastDDIMScheduler"):
        return getattr(schedulers, name)
    kind = name.removeprefix("Fast")
    if kind in STEPPED:
        return solvers.TWINS[kind]
    if kind == "ScoreSdeVeScheduler":
        from fastddpm.dropin._diffusers.score_sde_ve import FastScoreSdeVeScheduler

        return FastScoreSdeVeScheduler
    if kind == "KarrasVeScheduler":
        from fastddpm.dropin._diffusers.karras_ve import FastKarrasVeScheduler

        return FastKarrasVeScheduler
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
