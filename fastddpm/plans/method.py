"""A method: the options that say how a chain is sampled, and the plan that they give on a schedule.

`Method` holds them checked, for a sampler and the files of models, exports and jobs;
`fastddpm.plans.method_options.MethodOptions` are the same as keyword arguments.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import numpy as np

from fastddpm.checks import BadArgument, check_choice, check_known, check_number
from fastddpm.inputs import Fields
from fastddpm.plans.formula import VARIANCE_TYPES, FormulaOptions, VarianceType, formula_plan
from fastddpm.plans.method_options import MethodName, MethodOptions
from fastddpm.plans.owned import MAX_VALUE, RATIO, check_owned
from fastddpm.plans.plan import PREDICTION_TYPES, Plan, PredictionType, check_clip_range
from fastddpm.plans.points import Levels, points_at, points_of_sigmas, spaced_points
from fastddpm.plans.registry import METHODS
from fastddpm.plans.scheduler import PRECONDITIONED, SCHEDULER, clip_range, held, scheduler_plan
from fastddpm.plans.solver import SolverOptions
from fastddpm.plans.spacing import (
    SIGMA_SPACINGS,
    SPACINGS,
    Sigmas,
    Timesteps,
    TimestepSpacing,
    check_sigmas,
    check_steps,
    resolve_timesteps,
    warn_if_late,
)
from fastddpm.plans.tableau import Point
from fastddpm.plans.time_input import TIME_INPUTS, TimeInput
from fastddpm.schedule import NoiseSchedule
from fastddpm.signatures import checked

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from fastddpm.plans.diffusers.config import SchedulerOrConfig

LISTS = ("timesteps", "sigmas")
"""Fields that say where a chain evaluates, one by one."""


@dataclass(frozen=True)
class Method:
    """How a chain is sampled: everything but the network and its schedule that a `Plan` is made from.

    Two of the same values are equal, and have the same hash. NumPy's numbers become Python's.

    Attributes:
        method: "ddpm" (Ho et al. 2020), "ddim" (Song et al. 2021), "dpmpp_2m" (DPM-Solver++(2M), Lu et al.
            2022) or another of `fastddpm.plans.METHODS`; docs/math.md has them all.
        num_inference_steps: S in 1 .. T; None is T, or as many as the timesteps given. Runge-Kutta methods
            run the network twice in all but the last.
        prediction_type: what the network predicts: "epsilon", "sample" or "v_prediction".
        variance_type: "fixed_small" (the posterior variance), "fixed_large" (beta) or "learned_range" (2C
            output channels). "fixed_large" belongs to ddpm; "learned_range" describes the network too, and
            other methods leave its second half unused.
        sigma_scale: factor on ddpm's sigma, >= 0; 1 with another method.
        clip_sample_range: bound of |x0|, above 0; None for no clip.
        timestep_spacing: "leading", "linspace" or "trailing"; see `spaced_timesteps`. Of solvers also
            "karras", "exponential" or "log_snr", which are one, or "beta", by noise levels
            (`fastddpm.plans.points`): the network is then told times between those of training.
        timesteps: the timesteps themselves instead, strictly descending integers in 0 .. T-1; held as a tuple
            of Python's integers.
        eta: of ddim, in [0, 1]: 0 deterministic, 1 as noisy as ddpm. Of heun the churn, 1 the most that
            Karras et al. take; of tcd its gamma, of sa_solver its tau. 0 with another method.
        time_input: what the network is told: "timestep" t, int64, or a level, float32: "noise_level"
            sqrt(alphas_cumprod[t]) (SR3), or "alphas_cumprod" (Palette).
        solver_order: of a solver that can have several; None for its own.
        lower_order_final: of a multistep solver in lambda: the last of fewer than 15 steps is of order 1, the
            one before of order 2 at most. unipc, sa_solver: of any number of steps the last k are of order k
            at most.
        sigmas: of a solver, its noise levels sqrt((1 - abar)/abar) (the sigma of Karras et al. 2022) in the
            place of timesteps: strictly descending, above 0, a last 0 being the clean image, where chains end
            with or without it. Within those of the schedule, or 5% from its ends. Held as a tuple.
        thresholding: dynamic thresholding of x0 (Saharia et al. 2022) in the place of ``clip_sample_range``.
        dynamic_thresholding_ratio: which quantile of |x0| is the bound, in [0, 1].
        sample_max_value: the most that the bound can be, 1 or more.
        scheduler: of "diffusers", a scheduler of that library or its configuration, whose steps are taken: of
            DDPM, DDIM, PNDM, Euler, DPM-Solver, UniPC and others (docs/dropin.md). It says everything but
            the number of steps; ``prediction_type`` and a learned variance are then its own. Held as a
            mapping of JSON values, without betas: these are the schedule's.

    Raises:
        ValueError: naming the field, what was given and what is accepted; an option that belongs to another
            method. What depends on T is checked by `plan`.
    """

    method: MethodName = "ddpm"
    num_inference_steps: int | None = None
    prediction_type: PredictionType = "epsilon"
    variance_type: VarianceType = "fixed_small"
    sigma_scale: float = 1.0
    clip_sample_range: float | None = None
    timestep_spacing: TimestepSpacing = "leading"
    timesteps: Timesteps | None = None
    eta: float = 0.0
    time_input: TimeInput = "timestep"
    solver_order: int | None = None
    lower_order_final: bool = False
    sigmas: Sigmas | None = None
    thresholding: bool = False
    dynamic_thresholding_ratio: float = RATIO
    sample_max_value: float = MAX_VALUE
    scheduler: SchedulerOrConfig | None = dataclasses.field(default=None, hash=False)

    def __post_init__(self) -> None:
        """Checks what no schedule is needed for, and makes the values those that JSON and a hash can take."""
        check_choice("method", self.method, (*METHODS, SCHEDULER))
        self._take_scheduler()
        check_choice("prediction_type", self.prediction_type, PREDICTION_TYPES)
        check_choice("variance_type", self.variance_type, VARIANCE_TYPES)
        check_choice("timestep_spacing", self.timestep_spacing, (*SPACINGS, *SIGMA_SPACINGS))
        check_choice("time_input", self.time_input, TIME_INPUTS)
        check_owned(vars(self))
        check_number("eta", self.eta, low=0.0, high=1.0)
        check_number("sigma_scale", self.sigma_scale, low=0.0)
        check_clip_range(self.clip_sample_range)
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, np.generic):
                object.__setattr__(self, field.name, value.item())
        for name in LISTS:
            values = getattr(self, name)
            if values is not None and np.ndim(values) == 1:
                object.__setattr__(self, name, tuple(np.asarray(values).tolist()))

    @classmethod
    @checked
    def from_dict(cls, options: Mapping[str, object]) -> Method:
        """A method from values that a file holds; what is left out is as in the constructor.

        Raises:
            ValueError: a name that is no field, or a value as in the constructor.
        """
        check_known(sorted(set(options) - set(FIELDS)), FIELDS, of="a method")
        return cls(**cast("MethodOptions", options))

    def to_dict(self) -> MethodOptions:
        """All fields as JSON values, which are keyword arguments too; timesteps are a list."""
        options = cast("MethodOptions", {name: getattr(self, name) for name in FIELDS})
        if self.timesteps is not None:
            options["timesteps"] = np.asarray(self.timesteps).tolist()
        if self.sigmas is not None:
            options["sigmas"] = np.asarray(self.sigmas).tolist()
        if self.scheduler is not None:
            options["scheduler"] = {**self.fields}
        return options

    def adapted(self, **changes: Unpack[MethodOptions]) -> Method:
        """The method with some fields changed, and what does not go with them.

        A method of another name begins at neutral values of the options that belong to a method: eta 0,
        sigma_scale 1, and fixed_small in the place of fixed_large. Timesteps, a number of steps or spacing,
        or sigmas exclude each other, and so do a clip and thresholding: those that are given take the place
        of the others.

        Raises:
            ValueError: as the constructor.
        """
        options = self.to_dict()
        name = changes.get("method", self.method)
        check_choice("method", name, (*METHODS, SCHEDULER))
        if name != SCHEDULER == self.method and self.fields["_class_name"] in PRECONDITIONED:
            given = f"{name!r} for a network of {self.fields['_class_name']}, which is told no timesteps,"
            raise BadArgument("method", given, f"{SCHEDULER!r}, with one of {' and '.join(PRECONDITIONED)},")
        if name == SCHEDULER != self.method:  # which leaves nothing else open
            options = {"num_inference_steps": options["num_inference_steps"]}
        elif name != self.method:
            options |= {"eta": 0.0, "sigma_scale": 1.0, "solver_order": None, "scheduler": None}
            options |= {"clip_sample_range": self.clip, "lower_order_final": False}
            if METHODS[name].solver is None:
                options |= self._without_levels()
            if self.variance_type == "fixed_large":  # learned_range is the network's, not the method's
                options["variance_type"] = "fixed_small"
        if set(LISTS) & set(changes):
            options |= {"num_inference_steps": None, "timesteps": None, "sigmas": None}
        elif {"num_inference_steps", "timestep_spacing"} & set(changes):
            options |= {"timesteps": None, "sigmas": None}
        if changes.get("clip_sample_range") is not None:
            options |= {"thresholding": False, "dynamic_thresholding_ratio": RATIO}
            options["sample_max_value"] = MAX_VALUE
        elif changes.get("thresholding"):
            options["clip_sample_range"] = None
        return Method.from_dict({**options, **changes})

    @checked
    def plan(self, schedule: NoiseSchedule) -> Plan:
        """The plan on a schedule.

        Raises:
            ValueError: steps or timesteps that the schedule has not, or an x0 that would be infinite
                (epsilon, no clip, alphas_cumprod 0).
        """
        if self.scheduler is not None:
            steps = self.num_inference_steps
            check_steps(len(schedule), len(schedule) if steps is None else steps)
            return scheduler_plan(self.fields, schedule, steps or len(schedule))
        entry, bound = METHODS[self.method], check_clip_range(self.clip_sample_range)
        if entry.solver is not None:
            levels = Levels.of(schedule)
            points = self._points(schedule, levels, entry.skips_last)
            order = self.solver_order or entry.order
            options = SolverOptions(
                order, levels.at_ratio, levels.at_timestep, self.eta, self.lower_order_final
            )
            return entry.solver(points, options).plan(
                self.method,
                self.prediction_type,
                bound,
                time_input=self.time_input,
                learned_range=self.variance_type == "learned_range",
                thresholding=self.threshold,
            )
        assert entry.formula is not None
        visited = resolve_timesteps(
            schedule,
            self.num_inference_steps,
            self.timestep_spacing,
            self.timesteps,
            skip_last=entry.skips_last,
        )
        plan = formula_plan(self.method, entry.formula, schedule, visited, self.formula_options, bound=bound)
        plan = plan if self.threshold is None else plan.with_thresholding(*self.threshold)
        return plan if self.time_input == "timestep" else plan.with_noise_levels(schedule, self.time_input)

    def warn_if_late(self, schedule: NoiseSchedule, plan: Plan, *, stacklevel: int = 4) -> None:
        """UserWarning where the spacing has a plan of this method start far below T-1; see
        `fastddpm.plans.spacing.warn_if_late`. Timesteps that were given are as they were wanted, and those of
        a preconditioned network count rows."""
        if self.scheduler is not None and self.fields["_class_name"] in PRECONDITIONED:
            return
        if self.timesteps is None and self.sigmas is None and self.timestep_spacing == "leading":
            warn_if_late(schedule, plan.timesteps[np.asarray(plan.starts)], stacklevel=stacklevel)

    @property
    def has_formula(self) -> bool:
        """Whether a formula gives its plans, which an exported file computes itself."""
        return self.scheduler is None and METHODS[self.method].formula is not None

    @property
    def fields(self) -> Fields:
        """The scheduler's, checked."""
        assert isinstance(self.scheduler, Mapping)
        return self.scheduler

    @property
    def clip(self) -> float | None:
        """``clip_sample_range``; where a scheduler samples, that of a formula in its place."""
        return self.clip_sample_range if self.scheduler is None else clip_range(self.fields)

    @property
    def threshold(self) -> tuple[float, float] | None:
        """The ratio and the largest bound of dynamic thresholding; None for none."""
        return (self.dynamic_thresholding_ratio, self.sample_max_value) if self.thresholding else None

    @property
    def formula_options(self) -> FormulaOptions:
        """What the method's formula is told."""
        return FormulaOptions(
            self.prediction_type,
            bounded=self.clip is not None or self.thresholding,
            variance_type=self.variance_type,
            sigma_scale=self.sigma_scale,
            eta=self.eta,
        )

    def _points(self, schedule: NoiseSchedule, levels: Levels, skip_last: bool) -> list[Point]:
        """Those of a solver's chain, the clean image behind them."""
        steps = self.num_inference_steps
        if self.sigmas is not None:
            return points_of_sigmas(levels, check_sigmas(self.sigmas))
        if self.timesteps is None and self.timestep_spacing in SIGMA_SPACINGS:
            total = len(schedule)
            check_steps(total, total if steps is None else steps)
            return spaced_points(levels, steps or total, self.timestep_spacing)
        spacing: TimestepSpacing = "leading" if self.timesteps is not None else self.timestep_spacing
        visited = resolve_timesteps(schedule, steps, spacing, self.timesteps, skip_last=skip_last)
        return points_at(levels, visited)

    def _without_levels(self) -> MethodOptions:
        """What takes the place of a spacing by noise levels, or of a list of them, with a formula."""
        changes: MethodOptions = {"sigmas": None}
        if self.timestep_spacing in SIGMA_SPACINGS:
            changes["timestep_spacing"] = "leading"
        if self.sigmas is not None:
            changes["num_inference_steps"] = len(check_sigmas(self.sigmas))
        return changes

    def _take_scheduler(self) -> None:
        """Holds the scheduler's configuration, and what that says of the network; ValueError as of `held`."""
        if self.scheduler is None and self.method == SCHEDULER:
            accepted = "another, or with scheduler= a scheduler of diffusers,"
            raise BadArgument("method", f"{SCHEDULER!r} without a scheduler", accepted)
        if self.scheduler is not None and self.method != SCHEDULER:
            raise BadArgument(
                "scheduler", f"one with method {self.method!r}", f"None, or method {SCHEDULER!r}"
            )
        if self.scheduler is not None:
            neutral = {field.name: field.default for field in dataclasses.fields(self)}
            for name, value in held(vars(self), neutral).items():
                object.__setattr__(self, name, value)


FIELDS = tuple(field.name for field in dataclasses.fields(Method))


@checked
def make_plan(schedule: NoiseSchedule, **options: Unpack[MethodOptions]) -> Plan:
    """The plan on a schedule for the options of a `Method`: `Method(**options).plan(schedule)`.

    Raises:
        ValueError: as of `Method` and its `plan`; a name that is no field of it.
    """
    return Method.from_dict(options).plan(schedule)
