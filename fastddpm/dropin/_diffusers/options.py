"""What a caller of `optimize` may change about a diffusers object, and the plan that follows."""

from __future__ import annotations

import copy
import dataclasses

import torch
from torch import Tensor

from fastddpm.checks import BadArgument, check_choice, check_known
from fastddpm.dropin._diffusers.scheduler_kinds import KINDS, scheduler_kind
from fastddpm.dropin._diffusers.times import Times
from fastddpm.dropin.peer import Peer
from fastddpm.dropin.settings import NETWORK_CHOICES, NetworkChoice, PeerOptions
from fastddpm.plans import Plan
from fastddpm.plans.diffusers import from_ddim_scheduler, from_ddpm_scheduler
from fastddpm.plans.diffusers.chain import with_timesteps
from fastddpm.plans.diffusers.config import Scheduler
from fastddpm.plans.diffusers.ddim import PREVIOUS_TIMESTEPS
from fastddpm.plans.diffusers.solvers import set_rows


@dataclasses.dataclass(frozen=True)
class Options:
    """Where the original's habits are not wanted.

    Attributes:
        variance_type: in place of a DDPMScheduler's; None for its own.
        previous_timestep: of DDIM: ``original``: the step from t goes to t - T//S, as in diffusers;
            ``consistent``: to the next timestep visited.
        network: ``auto``: our UNet with the original's weights on a GPU, and where chains are compiled, if
            its outputs are the original's; else the original, on a GPU in channels_last with its norms fused.
            ``original``: as it is. ``ours``: our UNet, or an error.

    Raises:
        ValueError: naming the option, what was given and what is accepted.
    """

    variance_type: str | None = None
    previous_timestep: str = "original"
    network: NetworkChoice = "auto"

    def __post_init__(self) -> None:
        check_choice("network", self.network, NETWORK_CHOICES)
        check_choice("previous_timestep", self.previous_timestep, PREVIOUS_TIMESTEPS)

    @classmethod
    def of(cls, given: PeerOptions) -> Options:
        """The options given to `optimize`; ValueError for names that are none."""
        names = [field.name for field in dataclasses.fields(cls)]
        check_known(given, names, of="this drop-in")
        return cls(**given)  # type: ignore[misc]  # of other names there is none


def variance_type_of(scheduler: Scheduler, options: Options) -> str:
    """The variance_type that a DDPMScheduler's steps have."""
    return options.variance_type or str(scheduler.config["variance_type"])


@dataclasses.dataclass(frozen=True)
class Steps:
    """Which steps of a scheduler a call takes.

    Attributes:
        count: as of the scheduler's ``set_timesteps``.
        eta: of a step; None where the pipeline's is not told it.
        use_clipped_model_output: likewise.
        start: the row at which a chain of a solver begins; its plan has the rows from there on.
        times: set instead of a number of steps.
        as_written: as of `set_rows`.
    """

    count: int
    eta: float | None = None
    use_clipped_model_output: bool = False
    start: int = 0
    times: Times | None = None
    as_written: bool = False


def plan_of(scheduler: Scheduler, steps: Steps, options: Options) -> Plan:
    """The plan of a scheduler's steps; it is not touched.

    Raises:
        ValueError: another scheduler, or a configuration or times that cannot be reproduced.
    """
    kind = scheduler_kind(scheduler)
    if kind not in KINDS:
        raise BadArgument("scheduler", str(type(scheduler).__name__), ", ".join(KINDS))
    ready: Peer = None
    if steps.times is not None:
        ready = copy.copy(scheduler)
        steps.times.set(ready)
    if kind == "DDPMScheduler":
        return from_ddpm_scheduler(
            scheduler if ready is None else ready,
            steps.count if ready is None else None,
            timesteps=None if ready is None else ready.timesteps.tolist(),
            variance_type=variance_type_of(scheduler, options),
            log_variance=True,
        )
    if kind == "DDIMScheduler":  # which takes no times
        return from_ddim_scheduler(
            scheduler,
            steps.count,
            eta=steps.eta or 0.0,
            use_clipped_model_output=steps.use_clipped_model_output,
            previous_timestep=options.previous_timestep,
        )
    if ready is None:
        ready = with_timesteps(scheduler, steps.count)
    rows = set_rows(ready, kind=kind, eta=steps.eta, start=steps.start, as_written=steps.as_written)
    return rows.plan


# Of tensors that a scheduler holds and plans are made from.
_READ = ("alphas_cumprod", "final_alpha_cumprod")
_KEPT_PLANS = 8


class Plans:
    """Plans made for a scheduler, kept while what they were made from is the same.

    A loop knows a plan that it holds already; an equal one made anew would be sent again.
    """

    def __init__(self) -> None:
        self._kept: list[tuple[tuple[object, ...], object, dict[str, Tensor], Plan]] = []

    def get(self, scheduler: Scheduler, steps: Steps, options: Options, *, kind: str | None) -> Plan:
        """The plan of :func:`plan_of`, with its arguments and errors; ``kind`` is the scheduler's."""
        request = (kind, steps, options)
        config, tensors = getattr(scheduler, "config", None), _tensors(scheduler)
        for kept in self._kept:
            if kept[0] == request and _same(kept[1], config) and _equal(kept[2], tensors):
                return kept[3]
        plan = plan_of(scheduler, steps, options)
        held = {name: value.clone() for name, value in tensors.items()}
        self._kept = [(request, copy.deepcopy(config), held, plan), *self._kept[: _KEPT_PLANS - 1]]
        return plan


def _tensors(scheduler: object) -> dict[str, Tensor]:
    found = {name: getattr(scheduler, name, None) for name in _READ}
    return {name: value.detach() for name, value in found.items() if isinstance(value, Tensor)}


def _same(before: object, now: object) -> bool:
    """Whether two configurations are equal; arrays in them, which do not compare to one truth, never are."""
    try:
        return bool(before == now)
    except (ValueError, RuntimeError):
        return False


def _equal(before: dict[str, Tensor], now: dict[str, Tensor]) -> bool:
    return before.keys() == now.keys() and all(
        (value.dtype, value.device) == (now[name].dtype, now[name].device) and torch.equal(value, now[name])
        for name, value in before.items()
    )
