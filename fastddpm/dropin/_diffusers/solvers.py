"""diffusers' solvers whose step is one fused kernel: subclasses, so that all else is the original's.

Each walks the rows of a plan (`fastddpm.plans.diffusers.from_solver_scheduler`) from where its chain began.
The row is known on the host, as the original's step index is, so that a timestep on a GPU is read in the
first step of a chain alone, where its plan is made.
"""

from __future__ import annotations

import functools
import inspect
import math
import sys
from collections.abc import Callable
from typing import Any, ClassVar, cast

import diffusers
import numpy as np
import torch
from diffusers.schedulers.scheduling_utils import SchedulerOutput
from torch import Tensor

from fastddpm.checks import BadArgument, shortened
from fastddpm.dropin._diffusers.generators import Generators
from fastddpm.dropin._diffusers.rows import drawn
from fastddpm.dropin._diffusers.walk import Walk
from fastddpm.dropin.settings import Report
from fastddpm.plans import Plan
from fastddpm.plans.diffusers.churn import Churn
from fastddpm.plans.diffusers.solver_classes import STEPPED

OWN = ("_walk", "_options", "original")
# Arguments of steps with the only values that a plan has.
_PLAIN: dict[str, object] = {"order": 4, "pred_original_sample": None}
# Of those that compute in float32 and return the network's dtype; the first three an x0 of their own besides.
_IN_FLOAT32 = (
    "EulerDiscreteScheduler",
    "EulerAncestralDiscreteScheduler",
    "EDMEulerScheduler",
    "DPMSolverMultistepScheduler",
)
# Where the originals keep predictions; those that a caller puts there are for the original's step.
_HISTORIES = ("model_outputs", "derivatives", "ets")
# Of those whose second result is x0; of consistency models it is what is noised anew.
_SECOND = {"LCMScheduler": "denoised", "TCDScheduler": "pred_noised_sample"}


class FastSolver:
    """What they share; ``step`` has the original's arguments and results, new tensors each time."""

    kind: ClassVar[str]
    public_name: ClassVar[str]
    # The original's.
    config: Any
    timesteps: Tensor

    def set_timesteps(self, *args: object, **kwargs: object) -> None:
        """As the original's; a chain begins anew."""
        self.__dict__["_walk"] = None
        cast("Any", super()).set_timesteps(*args, **kwargs)

    def report(self) -> Report:
        """What a step is made of."""
        why = ["chains that begin with gradients, order or given predictions: the original's step"]
        held = self.__dict__.get("_walk")
        if isinstance(held, str):
            why.append(f"this chain, by the original's step: {held}")
        is_written = isinstance(held, Walk) and held.plan.in_sigmas
        if is_written:
            why.append(
                "this chain, at levels where the original's rounding is seen: its operations, one by one"
            )
        if self.config.get("thresholding"):
            why.append("dynamic thresholding: the quantile of |x0| is a pass of its own")
        return Report(
            peer=f"diffusers {self.kind}, alone",
            network="the caller's",
            engine="eager: one reverse_step a step, on a copy of the sample",
            noise="torch generators, drawn as the original draws",
            precision="the caller's",
            fused=() if is_written else ("x0", "clip", "update with kept predictions", "noise"),
            not_fused=tuple(why),
        )

    def __reduce__(self) -> tuple[object, ...]:
        # By the public name: pickle would look for the original's class under the name that this one bears.
        return _restored, (self.kind,), dict(vars(self))

    def __repr__(self) -> str:
        return f"{self.public_name} in the place of {super().__repr__()}"

    def _fused(self, walk: Walk, given: dict[str, Any]) -> Any:
        """A step with the arguments of the original's, which have been given names and defaults."""
        sample, model_output = given["sample"], given["model_output"]
        row = self._index() - walk.start
        if not 0 <= row < len(walk.plan):
            raise BadArgument("timestep", f"step {row} of {len(walk.plan)}", "a call of set_timesteps first")
        noise = None
        if walk.plan.draws is not None and walk.plan.draws[row]:
            noise = given.get("variance_noise")
            if noise is None:
                noise = _noise(given.get("generator"), self.kind, model_output, sample)
        state = sample.to(torch.float32) if self.kind in _IN_FLOAT32 else sample
        x_next, x0 = walk.take(row, model_output, state, noise)
        if self.kind in _IN_FLOAT32:
            x_next = x_next.to(model_output.dtype)
            x0 = x0 if walk.plan.prediction_type != "sample" else x0.to(model_output.dtype)
        self._advance(walk.plan, row, sample)
        second = x0
        if self.kind in _SECOND:
            second = self._before_noise(walk, row, x0, sample, given.get("eta"))
        return self._results(x_next, second, return_dict=given["return_dict"])

    def _walk_for(self, given: dict[str, Any]) -> Walk | None:
        """The chain that a step goes on with, or begins; None where the original's step takes it.

        A chain that remembers is one or the other to its end, since each keeps its own memory.
        """
        scheduler, solver = cast("Any", self), STEPPED[self.kind]
        if scheduler.num_inference_steps is None and not solver.in_sigmas:
            raise BadArgument("num_inference_steps", "None", "a call of set_timesteps first")
        if "Euler" in self.kind and isinstance(given["timestep"], (int, torch.IntTensor, torch.LongTensor)):
            return None  # the original's error
        held = self.__dict__.get("_walk")
        if isinstance(held, str):
            return None
        why = self._why_original(given)
        if held is not None:
            if why is None:
                return self._placed(self._churned(cast("Walk", held), given), given["timestep"])
            if held.remembers:
                raise BadArgument("step", f"one with {why} in a chain begun without,", "all steps with it")
            return None
        if why is None:
            why = "predictions were given" if self._has_history() else None
        start = None if why is not None else self._begin(given["timestep"])
        if why is None and start is None:
            why = "it begins at none of the timesteps"
        if start is not None:
            try:
                made = Walk.of(self, self.kind, eta=given.get("eta"), churn=_churn(given), start=start)
            except ValueError as error:
                why = str(error)
            else:
                self.__dict__["_walk"] = made
                return made
        self.__dict__["_walk"] = why
        return None

    def _churned(self, held: Walk, given: dict[str, Any]) -> Walk:
        """The walk for a step's churn, which may be another than that of the step before."""
        churn = _churn(given)
        if held.churn != churn:
            held = Walk.of(self, self.kind, eta=None, churn=churn, start=self._index())
            self.__dict__["_walk"] = held
        return held

    def _placed(self, held: Walk, timestep: Any) -> Walk:
        """The walk for where a chain began: PNDM's second timestep comes twice, and a chain that begins there
        says with its next one at which of the two."""
        times = held.plan.model_time
        is_first = self.kind == "PNDMScheduler" and cast("Any", self).counter == 1
        if not is_first or len(times) < 2 or times[0] != times[1] or int(timestep) == times[1]:
            return held
        later = Walk.of(self, self.kind, eta=None, start=held.start + 1)
        later.go_on_from(held)
        self.__dict__["_walk"] = later
        return later

    def _why_original(self, given: dict[str, Any]) -> str | None:
        """What of a step's arguments only the original's step knows, or None."""
        sample, model_output = given["sample"], given["model_output"]
        if cast("Any", self).num_inference_steps is None:
            return "the timesteps of the constructor"
        for name, plain in _PLAIN.items():
            if name in given and given[name] is not plain and not _equals(given[name], plain):
                return f"{name}={shortened(repr(given[name]))}"
        if torch.is_grad_enabled() and (sample.requires_grad or model_output.requires_grad):
            return "a gradient"
        if sample.dim() < 2:
            return f"{sample.dim()} dimensions"
        learned = self.config.get("variance_type") in ("learned", "learned_range")
        cuts = learned and self.config["prediction_type"] == "epsilon"  # takes the first three channels
        splits = cuts and STEPPED[self.kind].splits
        if splits and (sample.shape[1] != 3 or model_output.shape[1] == 3):
            return "a variance_type that the network does not have"
        if cuts and self.kind == "SASolverScheduler" and model_output.shape[1] > 3:
            return "a variance_type for more than three channels"
        return None

    def _has_history(self) -> bool:
        histories = [getattr(self, name, None) or () for name in _HISTORIES]
        return any(value is not None for history in histories for value in history)

    def _begin(self, timestep: Any) -> int | None:
        """The row of a chain's first step, and the original's step index set to it; None of PNDM where it has
        no such timestep, which the original steps from all the same."""
        scheduler = cast("Any", self)
        if self.kind == "PNDMScheduler":
            places = (self.timesteps == timestep).nonzero()
            return int(places[0]) if len(places) else None
        if scheduler.step_index is None:
            scheduler._init_step_index(timestep)
        return int(scheduler.step_index)

    def _index(self) -> int:
        scheduler = cast("Any", self)
        if self.kind == "PNDMScheduler":
            return int(self.__dict__["_walk"].start + scheduler.counter)
        return int(scheduler.step_index)

    def _advance(self, plan: Plan, row: int, sample: Tensor) -> None:
        """What the original's scale_model_input and index look at."""
        scheduler = cast("Any", self)
        if self.kind == "PNDMScheduler":
            scheduler.counter += 1
            return
        scheduler._step_index += 1
        starts = np.asarray(plan.starts)
        is_within = row + 1 < len(plan) and not starts[row + 1]
        if self.kind.startswith("KDPM2"):
            scheduler.sample = sample if is_within else None
        elif self.kind == "HeunDiscreteScheduler":
            scheduler.dt = 0.0 if is_within else None

    def _before_noise(self, walk: Walk, row: int, x0: Tensor, sample: Tensor, eta: float | None) -> Tensor:
        """Of a consistency model: the state without the noise that takes it to the next level.

        Not from the row, which has it times a factor that vanishes at high levels.
        """
        plan, before = walk.plan, sample
        if eta is None:  # LCM
            skip, out = cast("Any", self).get_scalings_for_boundary_condition_discrete(
                int(plan.timesteps[row])
            )
            before = out * x0 + skip * sample
        else:
            abar, levels = plan.alphas_cumprod, walk.levels
            assert abar is not None
            assert levels is not None
            reached = int(plan.timesteps[row + 1]) if row + 1 < len(plan) else 0
            level = float(levels[math.floor((1 - eta) * reached)])
            weight = math.sqrt((1 - level) / (1 - float(abar[row])))
            before = (math.sqrt(level) - weight * math.sqrt(float(abar[row]))) * x0 + weight * sample
        return before.to(x0.dtype)

    def _results(self, x_next: Tensor, second: Tensor, *, return_dict: bool) -> Any:
        module = sys.modules[_ORIGINALS[self.kind].__module__]
        made = getattr(module, f"{self.kind}Output", SchedulerOutput)
        if made is SchedulerOutput:
            return SchedulerOutput(prev_sample=x_next) if return_dict else (x_next,)
        name = _SECOND.get(self.kind, "pred_original_sample")
        return made(prev_sample=x_next, **{name: second}) if return_dict else (x_next, second)


def _step(original: type) -> Callable[..., Any]:
    """The step of a class's subclass, with the original's signature."""
    theirs: Callable[..., Any] = original.step  # type: ignore[attr-defined]
    signature = inspect.signature(theirs)

    @functools.wraps(theirs)
    def step(self: FastSolver, *args: object, **kwargs: object) -> Any:
        bound = signature.bind(self, *args, **kwargs)
        bound.apply_defaults()
        given = dict(bound.arguments)
        walk = self._walk_for(given)
        return theirs(self, *args, **kwargs) if walk is None else self._fused(walk, given)

    return step


def _churn(given: dict[str, Any]) -> Churn | None:
    """Of a step's arguments; None of a step without."""
    if not given.get("s_churn"):
        return None
    return Churn(*(float(given[name]) for name in ("s_churn", "s_tmin", "s_tmax", "s_noise")))


def _equals(value: object, plain: object) -> bool:
    return not isinstance(value, Tensor) and value == plain


def _noise(generator: Generators, kind: str, model_output: Tensor, sample: Tensor) -> Tensor:
    dtype = torch.float32 if kind == "DPMSolverMultistepScheduler" else None
    return drawn(generator, model_output, sample, dtype)


def _twin(kind: str) -> type:
    original = _ORIGINALS[kind]
    members = {
        "kind": kind,
        "public_name": f"Fast{kind}",
        "step": _step(original),
        "__doc__": f"A {kind} with a fused step.",
        "__module__": original.__module__,
    }
    twin = type(kind, (FastSolver, original), members)
    twin.__qualname__ = original.__qualname__
    return twin


def _restored(kind: str) -> Any:
    twin: Any = TWINS[kind]
    return twin.__new__(twin)


_ORIGINALS: dict[str, type] = {kind: getattr(diffusers, kind) for kind in STEPPED}
TWINS: dict[str, type] = {kind: _twin(kind) for kind in STEPPED}
"""The subclasses, by the names of the originals, which are also their own: they are what diffusers writes."""
