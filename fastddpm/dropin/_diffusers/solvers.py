"""diffusers' solvers whose step is one fused kernel: subclasses, so that all else is the original's.

Each walks the rows of a plan (`fastddpm.plans.diffusers.from_solver_scheduler`) from where its chain began.
The row is known on the host, as the original's step index is, so that a timestep on a GPU is never read.
"""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable
from typing import Any, ClassVar, cast

import diffusers
import numpy as np
import torch
from diffusers.schedulers.scheduling_utils import SchedulerOutput
from torch import Tensor

from fastddpm.checks import BadArgument
from fastddpm.dropin._diffusers.generators import Generators
from fastddpm.dropin._diffusers.rows import drawn, take_row
from fastddpm.dropin.settings import Report
from fastddpm.plans import Plan
from fastddpm.plans.diffusers.solvers import SOLVERS, set_plan
from fastddpm.transfer import to_device
from fastddpm_kernels.table import Column

OWN = ("_walk", "_options", "original")
# Arguments of steps with the only values that a plan has.
_PLAIN = {"s_churn": 0.0, "order": 4, "variance_noise": None}
# Of those whose second result is x0; of consistency models it is what is noised anew.
_SECOND = {"LCMScheduler": "denoised", "TCDScheduler": "pred_noised_sample"}


class Walk:
    """A chain on its way: a plan from the row where it began, on a device, and what it keeps."""

    def __init__(self, plan: Plan, start: int) -> None:
        self.plan, self.start = plan, start
        self._tensors: dict[torch.device, tuple[Tensor, Tensor]] = {}
        self._kept: Tensor | None = None

    def tensors(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """The table and a counter of each row."""
        if device not in self._tensors:
            counters = np.zeros((len(self.plan), 2), np.int64)
            counters[:, 0] = np.arange(len(self.plan))
            table = torch.from_numpy(np.array(self.plan.table))
            self._tensors[device] = (
                to_device(table, device),
                to_device(torch.from_numpy(counters), device),
            )
        return self._tensors[device]

    def kept(self, sample: Tensor) -> Tensor | None:
        """Room for the predictions that later rows read."""
        if not self.plan.kept:
            return None
        shape = (self.plan.kept, *sample.shape)
        if self._kept is None or self._kept.shape != shape or self._kept.device != sample.device:
            self._kept = torch.zeros(shape, device=sample.device)
        return self._kept


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
        why = ["steps that need gradients, and s_churn, order or variance_noise: the original's step"]
        if self.config.get("thresholding"):
            why.append("dynamic thresholding: the quantile of |x0| is a pass of its own")
        return Report(
            peer=f"diffusers {self.kind}, alone",
            network="the caller's",
            engine="eager: one reverse_step a step, on a copy of the sample",
            noise="torch generators, drawn as the original draws",
            precision="the caller's",
            fused=("x0", "clip", "update with kept predictions", "noise"),
            not_fused=tuple(why),
        )

    def __reduce__(self) -> tuple[object, ...]:
        # By the public name: pickle would look for the original's class under the name that this one bears.
        state = {name: value for name, value in vars(self).items() if name != "_walk"}
        return _restored, (self.kind,), state

    def __repr__(self) -> str:
        return f"{self.public_name} in the place of {super().__repr__()}"

    def _fused(self, given: dict[str, Any]) -> Any:
        """A step with the arguments of the original's, which have been given names and defaults."""
        sample, model_output = given["sample"], given["model_output"]
        scheduler = cast("Any", self)
        if scheduler.num_inference_steps is None:
            raise BadArgument("num_inference_steps", "None", "a call of set_timesteps first")
        walk = self._walk_now(given)
        row = self._index() - walk.start
        if not 0 <= row < len(walk.plan):
            raise BadArgument("timestep", f"step {row} of {len(walk.plan)}", "a call of set_timesteps first")
        noise = None
        if walk.plan.draws is not None and walk.plan.draws[row]:
            noise = _noise(given.get("generator"), self.kind, model_output, sample)
        table, counters = walk.tensors(sample.device)
        x_next, x0 = take_row(
            walk.plan, table, counters[row], model_output, sample, noise, kept=walk.kept(sample)
        )
        self._advance(walk.plan, row, sample)
        return self._results(walk.plan, row, x_next, x0, sample, return_dict=given["return_dict"])

    def _walk_now(self, given: dict[str, Any]) -> Walk:
        walk = self.__dict__.get("_walk")
        if walk is None:
            start = self._begin(given["timestep"])
            plan = set_plan(self, kind=self.kind, eta=given.get("eta"), start=start)
            if SOLVERS[self.kind].in_sigmas:
                assert plan.alphas_cumprod is not None
                plan = plan.scaled(1 / np.sqrt(np.append(plan.alphas_cumprod, plan.final_alpha_cumprod)))
            walk = self.__dict__["_walk"] = Walk(plan, start)
        return cast("Walk", walk)

    def _begin(self, timestep: Any) -> int:
        """The row of a chain's first step, and the original's step index set to it."""
        scheduler = cast("Any", self)
        if self.kind == "PNDMScheduler":
            places = (self.timesteps == timestep).nonzero()
            return int(places[0]) if len(places) else 0
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

    def _results(
        self, plan: Plan, row: int, x_next: Tensor, x0: Tensor, sample: Tensor, *, return_dict: bool
    ) -> Any:
        module = sys.modules[_ORIGINALS[self.kind].__module__]
        made = getattr(module, f"{self.kind}Output", SchedulerOutput)
        if made is SchedulerOutput:
            return SchedulerOutput(prev_sample=x_next) if return_dict else (x_next,)
        name, second = _SECOND.get(self.kind, "pred_original_sample"), x0
        if self.kind in _SECOND:
            second = _before_noise(plan, row, x0, sample)
        return made(prev_sample=x_next, **{name: second}) if return_dict else (x_next, second)


def _before_noise(plan: Plan, row: int, x0: Tensor, sample: Tensor) -> Tensor:
    """Of a consistency model: the state without the noise that takes it to the next level."""
    columns = (Column.FROM_X0, Column.FROM_X, Column.FROM_NOISE)
    from_x0, from_x, noise = (float(plan.table[row, column]) for column in columns)
    scale = (1 - noise**2) ** 0.5
    before: Tensor = from_x0 / scale * x0 + from_x / scale * sample
    return before.to(x0.dtype)


def _step(original: type) -> Callable[..., Any]:
    """The step of a class's subclass, with the original's signature."""
    theirs: Callable[..., Any] = original.step  # type: ignore[attr-defined]
    signature = inspect.signature(theirs)

    @functools.wraps(theirs)
    def step(self: FastSolver, *args: object, **kwargs: object) -> Any:
        bound = signature.bind(self, *args, **kwargs)
        bound.apply_defaults()
        given = dict(bound.arguments)
        is_plain = all(name not in given or given[name] == value for name, value in _PLAIN.items())
        needs_gradient = torch.is_grad_enabled() and (
            given["sample"].requires_grad or given["model_output"].requires_grad
        )
        is_index = self.kind.startswith("Euler") and isinstance(given["timestep"], int)
        if not is_plain or needs_gradient or is_index:  # a whole number is the original's error
            return theirs(self, *args, **kwargs)
        return self._fused(given)

    return step


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


_ORIGINALS: dict[str, type] = {kind: getattr(diffusers, kind) for kind in SOLVERS}
TWINS: dict[str, type] = {kind: _twin(kind) for kind in SOLVERS}
"""The subclasses, by the names of the originals, which are also their own: they are what diffusers writes."""
