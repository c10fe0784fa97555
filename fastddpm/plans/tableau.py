"""A solver written down as in its paper, made into the rows of a plan.

A solver is a function that walks the points of a chain: at each it is given the state and the network's
prediction there, and says what the next state is made of, in sums of these and of earlier ones. The symbols
that go into such a sum are followed through: the state of an earlier row is what it was made into since, less
what was added, so that no row reads it; predictions of earlier rows are put into places, as many as are
needed at a time, as a compiler puts values into registers. An earlier state that noise has covered since is
kept in the place of that row's prediction, in one sum with it, as whatever reads it needs it.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, SupportsFloat

import numpy as np
import numpy.typing as npt

from fastddpm.plans.formula import check_recoverable, epsilon_columns, prediction_columns
from fastddpm.plans.plan import Float64, Plan, PredictionType, build_table
from fastddpm.plans.time_input import TimeInput, level_told
from fastddpm_kernels.table import FROM_KEPT, MOST_KEPT, Column

Prediction = Literal["x0", "eps", "m"]
# The state or the prediction of a row.
Symbol = tuple[Literal["x", "prediction"], int]

SMALLEST_WEIGHT = 1e-13
"""Of a sum's largest: what is left where numbers cancel, and is no weight."""


class Sum:
    """A linear combination of symbols."""

    def __init__(self, weights: dict[Symbol, float]) -> None:
        self.weights = weights

    def __add__(self, other: Sum) -> Sum:
        names = [*self.weights, *(name for name in other.weights if name not in self.weights)]
        return Sum({name: self.weights.get(name, 0.0) + other.weights.get(name, 0.0) for name in names})

    def __mul__(self, factor: SupportsFloat) -> Sum:
        return Sum({name: weight * float(factor) for name, weight in self.weights.items()})

    def __sub__(self, other: Sum) -> Sum:
        return self + other * -1.0

    def __truediv__(self, divisor: SupportsFloat) -> Sum:
        return self * (1.0 / float(divisor))

    __rmul__ = __mul__


@dataclass(frozen=True)
class Point:
    """Where a chain is: x = alpha*x0 + sigma*eps, alpha^2 + sigma^2 = 1.

    Attributes:
        time: training timestep that the network is told, perhaps between two; NaN at the clean image.
        alpha: sqrt(alphas_cumprod) there.
        sigma: sqrt(1 - alphas_cumprod); 0 at the clean image.
    """

    time: float
    alpha: float
    sigma: float

    @property
    def ratio(self) -> float:
        """sigma/alpha: the sigma of Karras et al. 2022, whose state is x/alpha."""
        return self.sigma / self.alpha

    @property
    def log_snr(self) -> float:
        """lambda = log(alpha/sigma), half of the log signal-to-noise ratio; infinite at the clean image."""
        return math.inf if self.sigma == 0 else math.log(self.alpha / self.sigma)

    @property
    def is_clean(self) -> bool:
        """Whether this is the image, without noise."""
        return self.sigma == 0


@dataclass
class Row:
    """One evaluation of the network.

    Attributes:
        point: where.
        is_start: whether a chain may begin here, and no step is under way.
        following: what the next state is made of, noise aside.
        noise: standard deviation of the noise added to it.
        borrowed: how much of the state's weight stands for an earlier state, from which this one was made.
    """

    point: Point
    is_start: bool
    following: Sum = dataclasses.field(default_factory=lambda: Sum({}))
    noise: float = 0.0
    borrowed: float = 0.0


class Tableau:
    """The rows of a solver on its way.

    Args:
        prediction: what of a prediction the solver uses, and is kept: x0, eps, or what the network returned.
    """

    def __init__(self, prediction: Prediction) -> None:
        self.prediction = prediction
        self.rows: list[Row] = []

    def evaluate(
        self, point: Point, state: Sum | None, *, noise: float = 0.0, is_start: bool = True
    ) -> tuple[Sum, Sum]:
        """The state and the prediction at a point, for sums to come.

        Args:
            point: where the state is.
            state: what it is made of; None for where the chain starts.
            noise: standard deviation of the noise that is added on the way there.
            is_start: whether a step begins here.
        """
        if state is not None:
            self.ended(state, noise=noise)
        self.rows.append(Row(point, is_start))
        here = len(self.rows) - 1
        return Sum({("x", here): 1.0}), Sum({("prediction", here): 1.0})

    def ended(self, state: Sum | None, *, noise: float = 0.0) -> Tableau:
        """The tableau, with where its last row leads: see `evaluate`."""
        assert state is not None, "a chain has at least one point before the clean image"
        last = len(self.rows) - 1
        own: Symbol = ("x", last)
        row = self.rows[last]
        row.following, row.noise = self._without_earlier_states(state, last), noise
        row.borrowed = row.following.weights.get(own, 0.0) - state.weights.get(own, 0.0)
        return self

    def plan(
        self,
        method: str,
        prediction_type: PredictionType,
        bound: float,
        *,
        time_input: TimeInput = "timestep",
        learned_range: bool = False,
        thresholding: tuple[float, float] | None = None,
    ) -> Plan:
        """The plan of these rows.

        Args:
            method: its name.
            prediction_type: what the network returns.
            bound: of |x0|; infinity for none.
            time_input: what the network is told.
            learned_range: the network returns 2C channels; the second half changes nothing.
            thresholding: as of `Plan`, in the place of a bound.

        Raises:
            ValueError: x0 would be infinite, or a row is not finite.
        """
        alpha = np.array([row.point.alpha for row in self.rows])
        sigma = np.array([row.point.sigma for row in self.rows])
        time = np.array([row.point.time for row in self.rows])
        is_bounded = bound != math.inf or thresholding is not None
        p, q = prediction_columns(prediction_type, alpha, sigma, bounded=is_bounded)
        check_recoverable(p)
        kept: tuple[Float64 | float, ...] = (1.0, 0.0, 0.0)
        if self.prediction == "eps":
            kept = epsilon_columns(prediction_type, alpha, sigma, rederived=is_bounded)
        elif self.prediction == "m":
            kept = (0.0, 0.0, 1.0)
        own = np.stack([np.broadcast_to(column, len(self.rows)) for column in kept], axis=1)
        reads, sums = self._reads()
        held = own * sums[:, 1:]  # what each row keeps, of x0, x and m
        held[:, 1] += sums[:, 0]
        columns = {name: np.zeros(len(self.rows)) for name in ("from_x0", "from_x", "from_noise")}
        columns["from_m"] = np.zeros(len(self.rows))
        for here, row in enumerate(self.rows):
            weights = dict(row.following.weights)
            mine = weights.pop(("prediction", here), 0.0) * own[here]
            columns["from_x0"][here] = mine[0]
            columns["from_x"][here] = weights.pop(("x", here), 0.0) + mine[1]
            columns["from_m"][here] = mine[2]
            columns["from_noise"][here] = row.noise
        places = _places(reads)
        if any(reads):
            columns["kept_slot"] = np.array(places, dtype=float)
            for place, column in enumerate(FROM_KEPT):
                name = Column(column).name.lower()
                columns[name] = np.array(
                    [sum(w for of, w in read.items() if places[of] == place) for read in reads]
                )
            if self.prediction != "x0" or np.any(sums != [0.0, 1.0]):
                columns |= {"kept_from_x0": held[:, 0], "kept_from_x": held[:, 1], "kept_from_m": held[:, 2]}
        falls = bool(np.all(np.diff(time[[row.is_start for row in self.rows]]) < 0))
        whole = falls and bool(np.all(time == np.round(time)))
        model_time: npt.NDArray[np.int64] | npt.NDArray[np.float32]
        if time_input == "timestep":
            model_time = time.astype(np.int64) if whole else time.astype(np.float32)
        else:
            model_time = level_told(time_input, alpha**2)
        return Plan(
            method=method,
            timesteps=np.minimum.accumulate(np.round(time)).astype(np.int64),
            model_time=model_time,
            table=build_table(len(self.rows), x0_from_x=p, x0_from_m=q, x0_bound=bound, **columns),
            prediction_type=prediction_type,
            clip=bound != math.inf,
            learned_range=learned_range,
            thresholding=thresholding,
            wraps=bool(time[-1] < 0),
            alphas_cumprod=None if whole else alpha**2,
            starts=np.array([row.is_start for row in self.rows]),
        )

    def _reads(self) -> tuple[list[dict[int, float]], Float64]:
        """Of each row, the weights of what earlier ones kept; and what each keeps: [S, 2], the weights of its
        state and of its prediction.

        Raises:
            ValueError: two rows need two sums of one row's state and prediction.
        """
        sums = np.tile([0.0, 1.0], (len(self.rows), 1))
        reads: list[dict[int, float]] = []
        kept: dict[int, tuple[float, float]] = {}
        for here, row in enumerate(self.rows):
            read: dict[int, float] = {}
            for of in sorted({of for _, of in row.following.weights if of < here}):
                x, value = (row.following.weights.get((kind, of), 0.0) for kind in ("x", "prediction"))
                first = kept.setdefault(of, (x, value))
                if not _same_ratio(first, (x, value)):
                    raise ValueError(
                        f"row {here} needs the state of row {of}, which noise has covered since, and its "
                        "prediction, in another sum than a row before"
                    )
                if x or first[0]:
                    sums[of] = first
                    read[of] = (x * first[0] + value * first[1]) / (first[0] ** 2 + first[1] ** 2)
                else:
                    read[of] = value
            reads.append(read)
        return reads, sums

    def _without_earlier_states(self, total: Sum, here: int) -> Sum:
        """The sum with states before that of row ``here`` taken from what they were made into."""
        if not all(map(math.isfinite, total.weights.values())):
            raise ValueError(f"row {here} is not finite: two points of the chain are at one noise level")
        for of, row in enumerate(self.rows[:here]):
            weight = total.weights.get(("x", of), 0.0)
            if not weight:
                continue
            if row.noise or not row.following.weights.get(("x", of)):
                continue  # it is kept
            # x_next = w*x + rest, so that x = (x_next - rest) / w.
            scale = row.following.weights["x", of]
            rest = Sum({name: value for name, value in row.following.weights.items() if name != ("x", of)})
            without = Sum({name: value for name, value in total.weights.items() if name != ("x", of)})
            total = without + (Sum({("x", of + 1): 1.0}) - rest) * (weight / scale)
        largest = max(map(abs, total.weights.values()), default=0.0)
        return Sum({k: v for k, v in total.weights.items() if abs(v) > SMALLEST_WEIGHT * largest})


def _same_ratio(one: tuple[float, float], other: tuple[float, float]) -> bool:
    """Whether two pairs are the same but for a factor."""
    size = math.hypot(*one) * math.hypot(*other)
    return abs(one[0] * other[1] - one[1] * other[0]) <= SMALLEST_WEIGHT * size


def _places(reads: list[dict[int, float]]) -> list[int]:
    """Where each row's prediction goes: into a place that no later row reads another from.

    Args:
        reads: of each row, the weights of earlier rows' predictions.

    Raises:
        ValueError: more predictions are needed at a time than there are places.
    """
    last = {of: here for here, read in enumerate(reads) for of in read}
    held: dict[int, int] = {}
    places = []
    for here in range(len(reads)):
        held = {place: of for place, of in held.items() if last.get(of, -1) > here}
        free = next((place for place in range(MOST_KEPT) if place not in held), None)
        if free is None:
            raise ValueError(f"row {here} would be one more prediction kept; there are {MOST_KEPT} places")
        held[free] = here
        places.append(free)
    return places


def steps(points: list[Point]) -> Iterator[tuple[int, Point, Point]]:
    """Each step of a chain: its number, where it begins and where it ends."""
    for number, (start, end) in enumerate(itertools.pairwise(points)):
        yield number, start, end
