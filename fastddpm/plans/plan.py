"""A plan: a sampling method written down as a table, one row of coefficients per step.

    x0     = clip(p*x + q*m, -r, r)
    x_next = a*x0 + b*x + e*m + h1*k1 + ... + h5*k5 + c*z            z ~ N(0, I), m the network's output

k1 to k5 are predictions of earlier rows, x0 or a sum such as eps. Plans that repeat a library divide where it
does: x0 by d, and eps, in the place of m, by w (`fastddpm_kernels.table`).

The functions of this package go from a `NoiseSchedule` (or a diffusers scheduler's configuration) to a
`Plan`; a sampler walks its rows with `fastddpm_kernels.reverse_step`. Nothing here needs a network or torch.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from fastddpm.checks import BadArgument, check_choice, check_number, falling, is_whole, quoted
from fastddpm.plans.in_sigmas import places
from fastddpm.plans.time_input import LEVEL_INPUTS, LevelInput, level_told
from fastddpm.signatures import check_fields, checked
from fastddpm_kernels.table import EPS, FROM_KEPT, KEPT, N_COLUMNS, X0, X_NEXT, Column

if TYPE_CHECKING:
    from fastddpm.schedule import NoiseSchedule

PredictionType = Literal["epsilon", "sample", "v_prediction"]
PREDICTION_TYPES: tuple[PredictionType, ...] = ("epsilon", "sample", "v_prediction")

Float64 = npt.NDArray[np.float64]

# Of x0, x and m: what a kept sum is made of, in the order of its columns.
KEPT_X_NEXT = [Column.FROM_X0, Column.FROM_X, Column.FROM_M]


@dataclass(frozen=True, eq=False)
class Plan:
    """What to do at each of S steps. Arrays are read-only copies; a plan holds no NaN.

    Attributes:
        method: the method's name, such as "ddpm".
        timesteps: int64 [S], the training timesteps visited, descending, none below 0. Where a step takes
            several rows, or the network is told times between these, two rows may be at one.
        model_time: the network's time input: int64 [S] timesteps, or float32 [S] noise levels or
            alphas_cumprod, or timesteps between two of training.
        table: float32 [S, 32]; columns as in `fastddpm_kernels.table.Column`.
        prediction_type: what the network returns.
        clip: whether column X0_BOUND bounds x0. False, and no divisions: the collapsed LINEAR_X, LINEAR_M
            form is exact.
        learned_range: whether the network returns 2C channels, the second half steering the variance between
            LOG_VAR_MIN and LOG_VAR_MAX. With both columns 0 the second half changes nothing.
        thresholding: (ratio, largest bound) of dynamic thresholding, or None. Excludes clip.
        wraps: the last timestep may be -1, where a spacing of diffusers can end; it stands for T-1, as
            an index does.
        draws: bool [S], the rows at which the method draws from a sequential random generator. Left out, it
            is where c is not 0; some libraries draw noise that they then multiply by 0.
        alphas_cumprod: float64 [S], where each row begins; None where its timestep says it.
        starts: bool [S], the rows at which a chain may begin: not between those of one step. Left out, all.
        rises: timesteps ascend instead: a chain from an image to noise (`fastddpm.plans.inversion`).
        final_alpha_cumprod: alphas_cumprod behind the last row, where it is told; 1 is the clean image.
        langevin: (r, passes) of a predictor and corrector (Song et al. 2021, algorithm 4), or None: each row
            of the predictor comes after so many along the score m, of eps m + sqrt(2 eps) z with
            eps = 2 (r |z|/|m|)^2, where norms are means over the batch. Their columns e and c are 1.
        in_sigmas: the state is x0 + sigma eps, and the rows are those of `fastddpm.plans.in_sigmas`.
    """

    method: str
    timesteps: npt.NDArray[np.int64]
    model_time: npt.NDArray[np.int64] | npt.NDArray[np.float32]
    table: npt.NDArray[np.float32]
    prediction_type: PredictionType
    clip: bool
    learned_range: bool = False
    thresholding: tuple[float, float] | None = None
    wraps: bool = False
    draws: npt.NDArray[np.bool_] | None = None
    alphas_cumprod: Float64 | None = None
    starts: npt.NDArray[np.bool_] | None = None
    rises: bool = False
    final_alpha_cumprod: float = 1.0
    langevin: tuple[float, int] | None = None
    in_sigmas: bool = False

    def __post_init__(self) -> None:
        """Freezes the arrays and refuses timesteps, shapes and numbers that no chain can walk."""
        check_fields(self)
        check_choice("prediction_type", self.prediction_type, PREDICTION_TYPES)
        several = self.starts is not None and not np.all(np.asarray(self.starts))
        between = np.asarray(self.model_time).dtype.kind == "f"
        least = -1 if self.wraps else 0
        visited = np.asarray(self.timesteps)[::-1] if self.rises else self.timesteps
        falling("timesteps", visited, least=least, strictly=not (several or between))
        steps = len(self.timesteps)
        time_dtype = np.float32 if np.asarray(self.model_time).dtype.kind == "f" else np.int64
        self._freeze("timesteps", self.timesteps, np.int64, (steps,))
        self._freeze("model_time", self.model_time, time_dtype, (steps,))
        self._freeze("table", self.table, np.float32, (steps, N_COLUMNS))
        draws = self.table[:, Column.FROM_NOISE] != 0 if self.draws is None else self.draws
        self._freeze("draws", draws, np.bool_, (steps,))
        if self.alphas_cumprod is not None:
            self._freeze("alphas_cumprod", self.alphas_cumprod, np.float64, (steps,))
        self._freeze("starts", np.ones(steps) if self.starts is None else self.starts, np.bool_, (steps,))
        for divisor in (Column.X0_DIVISOR, Column.EPS_DIVISOR):
            divides = self.table[:, divisor] != 0
            if divides.any() and not divides.all():
                raise ValueError(
                    f"{self.method} divides by zero at timestep {self.timesteps[np.argmin(divides)]}: column "
                    f"{_column_name(divisor)} is 0 there and not in every row"
                )
        if not np.isfinite(self.model_time).all():
            raise BadArgument("model_time", repr(self.model_time), "finite numbers")
        if self.clip and self.thresholding is not None:
            raise BadArgument("clip, thresholding", "both", "one of the two")
        finite = np.isfinite(self.table)
        # Infinity is no bound.
        finite[:, Column.X0_BOUND] = self.table[:, Column.X0_BOUND] > 0  # NaN compares as False
        if not finite.all():
            row, column = (int(i) for i in np.argwhere(~finite)[0])
            raise ValueError(
                f"{self.method} has no finite row at timestep {self.timesteps[row]}: "
                f"column {_column_name(column)} is {self.table[row, column]}"
            )

    def __len__(self) -> int:
        return len(self.timesteps)

    @functools.cached_property
    def stochastic(self) -> bool:
        """Whether any row adds noise."""
        return bool(np.any(self.table[:, Column.FROM_NOISE] != 0))

    @functools.cached_property
    def divides(self) -> bool:
        """Whether x0 has a divisor; one of 1 keeps x0 a sum of its own in a plan without clip."""
        return bool(self.table[0, Column.X0_DIVISOR] != 0)

    @functools.cached_property
    def rederives(self) -> bool:
        """Whether column FROM_M takes eps = (b*x + f*x0 + g*m) / w in the place of m."""
        return bool(self.table[0, Column.EPS_DIVISOR] != 0)

    @functools.cached_property
    def kept(self) -> int:
        """Places for predictions of earlier rows: 0, where no row uses one, to 5."""
        if self.in_sigmas:
            return places(self.table)
        if not np.any(self.table[:, FROM_KEPT]):
            return 0
        return 1 + int(self.table[:, Column.KEPT_SLOT].max())

    @functools.cached_property
    def combines(self) -> bool:
        """Whether what is kept is a sum of x0, x and m, instead of x0."""
        return bool(np.any(self.table[:, KEPT]))

    def levels(self, schedule: NoiseSchedule) -> Float64:
        """alphas_cumprod where each row begins, float64 [S]."""
        if self.alphas_cumprod is not None:
            return self.alphas_cumprod
        return schedule.alphas_cumprod[self.timesteps]

    def row_of(self, timestep: int) -> int:
        """The first row whose timestep is <= `timestep`: where a chain from an image noised to it begins."""
        last = self.timesteps[-1]
        if not is_whole(timestep) or timestep < last:
            raise BadArgument("timestep", quoted(timestep), f"at least the plan's last, {last}")
        return int(np.flatnonzero((self.timesteps <= timestep) & np.asarray(self.starts))[0])

    def restarted(self, row: int) -> Plan:
        """The plan for a chain that begins at `row`, without the predictions of the rows before.

        Where a row would use one of those it takes its own, which turns a second-order row of DPM-Solver++
        into its first-order one, and keeps any linear multistep method consistent. Plans that keep nothing
        come back as they are.
        """
        if not is_whole(row) or not 0 <= row < len(self):
            raise BadArgument("row", quoted(row), f"in 0 .. {len(self) - 1}")
        if not self.kept:
            return self
        table = self.table.astype(np.float64)
        own = KEPT_X_NEXT if self.combines else [Column.FROM_X0]
        filled: set[int] = set()
        for values in table[row:]:
            for place, column in enumerate(FROM_KEPT):
                if place not in filled:
                    values[own] += values[column] * (values[KEPT] if self.combines else 1.0)
                    values[column] = 0.0
            filled.add(int(values[Column.KEPT_SLOT]))
        changed = np.any(table != self.table, axis=1)
        table[changed] = _with_linear(table[changed])
        return replace(self, table=table.astype(np.float32))

    def scaled(self, scales: Float64) -> Plan:
        """The plan of the state s*x in the place of x; the network's input and what is kept stay.

        Args:
            scales: s where each row begins and behind the last, [S + 1].
        """
        here, there = np.asarray(scales)[:-1, None], np.asarray(scales)[1:, None]
        table = self.table.astype(np.float64)
        table[:, [Column.X0_FROM_X, Column.FROM_X, Column.KEPT_FROM_X]] /= here
        table[:, [*KEPT_X_NEXT, *FROM_KEPT, Column.FROM_NOISE]] *= there
        return replace(self, table=_with_linear(table).astype(np.float32))

    def with_thresholding(self, ratio: float = 0.995, max_value: float = 1.0) -> Plan:
        """The plan with dynamic thresholding of x0 instead of a fixed clip.

        Saharia et al. 2022 (Imagen), section 2.3: s = the `ratio` quantile of |x0| in each sample, kept
        within [1, max_value]; x0 = clamp(x0, -s, s) / s. ratio in [0, 1], max_value >= 1.
        """
        check_number("ratio", ratio, low=0.0, high=1.0)
        check_number("max_value", max_value, low=1.0)
        table = self.table.copy()
        table[:, Column.X0_BOUND] = np.inf
        return replace(self, table=table, clip=False, thresholding=(float(ratio), float(max_value)))

    @checked
    def with_noise_levels(self, schedule: NoiseSchedule, time_input: LevelInput = "noise_level") -> Plan:
        """The plan for a network that is told a level, float32, instead of t.

        Args:
            schedule: the noise schedule.
            time_input: "noise_level", sqrt(alphas_cumprod[t]) (SR3), or "alphas_cumprod", which Palette calls
                gamma.

        Raises:
            ValueError: another word.
        """
        check_choice("time_input", time_input, LEVEL_INPUTS)
        return replace(self, model_time=level_told(time_input, self.levels(schedule)))

    def _freeze(self, name: str, values: Any, dtype: Any, shape: tuple[int, ...]) -> None:
        try:
            array = np.array(values, dtype=dtype)
        except (TypeError, ValueError):
            raise BadArgument(name, quoted(values), f"numbers of shape {shape}") from None
        if array.shape != shape:
            raise BadArgument(name, f"shape {array.shape}", f"shape {shape}")
        array.setflags(write=False)
        object.__setattr__(self, name, array)


def build_table(n_steps: int, **columns: npt.ArrayLike) -> npt.NDArray[np.float32]:
    """A float32 [n_steps, 32] table from columns, scalars or [n_steps] in float64.

    They have the names of `Column`, in lower case. Those left out are 0, and x0_bound infinity. The collapsed
    columns LINEAR_X and LINEAR_M are computed here.
    """
    table = np.zeros((n_steps, N_COLUMNS))
    table[:, Column.X0_BOUND] = np.inf
    for name, values in columns.items():
        table[:, Column[name.upper()]] = values
    with np.errstate(over="ignore", invalid="ignore"):  # a Plan refuses what is not finite, with its timestep
        return _with_linear(table).astype(np.float32)


def _with_linear(table: Float64) -> Float64:
    """The table with its collapsed columns computed."""
    p, q, _ = table[:, X0].T
    a, b, e = table[:, X_NEXT].T
    f, g, w = table[:, EPS].T
    d = table[:, Column.X0_DIVISOR]
    divisor = np.where(d == 0, 1.0, d)
    p, q = p / divisor, q / divisor
    rederived, divisor = w != 0, np.where(w == 0, 1.0, w)
    b, e = (
        np.where(rederived, e * (b + f * p) / divisor, b),
        np.where(rederived, e * (f * q + g) / divisor, e),
    )
    table[:, Column.LINEAR_X], table[:, Column.LINEAR_M] = collapsed(p, q, a, b, e)
    return table


def collapsed(p: Float64, q: Float64, a: Float64, b: Float64, e: Float64) -> tuple[Float64, Float64]:
    """a*x0 + b*x + e*m with x0 = p*x + q*m put in: what x is multiplied by there, and what m is."""
    return a * p + b, a * q + e


def check_clip_range(clip_sample_range: Any) -> float:
    """The bound r of the clip: `clip_sample_range`, a finite number above 0, or infinity for None."""
    if clip_sample_range is None:
        return math.inf
    return check_number("clip_sample_range", clip_sample_range, above=0, otherwise="None for no clip")


def _column_name(column: int) -> str:
    return Column(column).name.lower() if column in list(Column) else str(column)
