"""Which of the T training timesteps a plan of S steps visits.

leading, linspace and trailing are the three of Lin et al. 2023, table 2, under the names of diffusers and
with its rounding (half to even). All return int64 [S], descending.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt

from fastddpm.checks import BadArgument, check_choice, falling, quoted, whole
from fastddpm.schedule import NoiseSchedule
from fastddpm.signatures import checked

TimestepSpacing = Literal["leading", "linspace", "trailing", "karras", "exponential", "log_snr", "beta"]
SPACINGS: tuple[TimestepSpacing, ...] = ("leading", "linspace", "trailing")
"""Of timesteps; the others are of noise levels (`fastddpm.plans.points`)."""
SIGMA_SPACINGS: tuple[TimestepSpacing, ...] = ("karras", "exponential", "log_snr", "beta")

Int64 = npt.NDArray[np.int64]
Float64 = npt.NDArray[np.float64]
Timesteps = Sequence[int] | npt.ArrayLike
Sigmas = Sequence[float] | npt.ArrayLike

SIGNAL_LEFT = 0.1
"""Of the image that a chain may begin without: what sqrt(alphas_cumprod) is at its start beyond that at T-1.
The mean of the images shrinks by about as much. 50 leading steps of 1000 lose 0.001 on the linear schedule,
0.03 on the cosine one; 600 steps, which start at 599, 0.15 and 0.58."""


@checked
def spaced_timesteps(
    num_train_timesteps: int, num_inference_steps: int, spacing: TimestepSpacing, *, skip_last: bool = False
) -> Int64:
    """S of the timesteps T-1 .. 0.

    leading:  i * (T // S), i = S-1 .. 0. It ends at 0 and starts below T-1 (at T - T//S when S divides T).
    linspace: round(i * (T-1)/(S-1)). Both ends are kept; a single step starts at T-1.
    trailing: round(T - i * T/S) - 1, i = 0 .. S-1. It starts at T-1 and ends near T/S - 1.

    With `skip_last`, leading and linspace are made for S+1 steps and lose the last one, 0: what
    DPM-Solver uses, whose last step goes from the last timestep to the clean image. S = T is always
    every timestep.
    """
    total, steps = num_train_timesteps, num_inference_steps
    whole("num_train_timesteps", total, least=1)
    check_steps(total, steps)
    check_choice("spacing", spacing, SPACINGS)
    if steps == total:
        return np.arange(total - 1, -1, -1, dtype=np.int64)
    if spacing == "trailing":
        # Each value from exact integers: a running float sum can yield an extra -1 (S = 61 of T = 1000).
        trailing: Int64 = np.round(total * np.arange(steps, 0, -1) / steps).astype(np.int64) - 1
        return trailing
    points = steps + 1 if skip_last else steps
    if spacing == "leading":
        ascending = np.arange(points) * (total // points)
    elif points == 1:
        ascending = np.array([total - 1])
    else:
        ascending = np.linspace(0, total - 1, points).round()
    descending: Int64 = ascending[::-1][:steps].astype(np.int64)
    return descending


def resolve_timesteps(
    schedule: NoiseSchedule,
    num_inference_steps: int | None,
    spacing: TimestepSpacing,
    timesteps: Timesteps | None,
    *,
    skip_last: bool = False,
) -> Int64:
    """The timesteps asked for: a given list, or a spacing of num_inference_steps (None: all T of them)."""
    total = schedule.num_train_timesteps
    check_choice("timestep_spacing", spacing, SPACINGS)
    if timesteps is None:
        steps = total if num_inference_steps is None else num_inference_steps
        return spaced_timesteps(total, steps, spacing, skip_last=skip_last)
    visited = check_timesteps(total, timesteps)
    if num_inference_steps is not None and num_inference_steps != len(visited):
        raise BadArgument(
            "num_inference_steps",
            repr(num_inference_steps),
            f"None or the number of timesteps given, {len(visited)}",
        )
    return visited


def warn_if_late(schedule: NoiseSchedule, visited: Int64, *, stacklevel: int = 3) -> None:
    """UserWarning for timesteps of the spacing ``leading`` that start too far below T-1.

    A chain starts from noise alone, which is what a state at T-1 is; at a timestep where more than
    `SIGNAL_LEFT` of the image would be in the state, images come out too near to 0. That is so where S is
    small, and where it does not divide T: i * (T // S) then stops short of T by as much as half.
    """
    signal, first, last = schedule.sqrt_alphas_cumprod, int(visited[0]), len(schedule) - 1
    missing = float(signal[first] - signal[last])
    if missing > SIGNAL_LEFT:
        warnings.warn(
            f"timestep_spacing: 'leading' has {len(visited)} steps of {last + 1} start at timestep {first} "
            f"and not at {last}: from noise alone, where states hold {missing:.2f} more of the image; "
            "'trailing' or 'linspace' start at the last",
            UserWarning,
            stacklevel=stacklevel,
        )


def check_steps(num_train_timesteps: int, num_inference_steps: object) -> None:
    """ValueError unless num_inference_steps is an integer in 1 .. T."""
    whole("num_inference_steps", num_inference_steps, least=1, most=num_train_timesteps)


def check_timesteps(num_train_timesteps: int, timesteps: npt.ArrayLike) -> Int64:
    """`timesteps` as int64, or ValueError unless strictly descending integers in 0 .. T-1."""
    return falling("timesteps", timesteps, least=0, most=num_train_timesteps - 1)


def check_sigmas(sigmas: npt.ArrayLike) -> Float64:
    """Noise levels without a 0 behind them, float64 [S].

    Raises:
        ValueError: anything but finite numbers above 0, strictly descending, with or without a last 0.
    """
    try:
        listed = np.asarray(sigmas)
    except ValueError:  # rows of different lengths
        listed = np.empty(0)
    are_numbers = listed.ndim == 1 and listed.dtype.kind in "iuf"
    levels: Float64 = listed.astype(np.float64) if are_numbers else np.empty(0)
    if len(levels) > 1 and levels[-1] == 0:
        levels = levels[:-1]
    falls = len(levels) > 0 and bool(np.isfinite(levels).all() and np.all(np.diff(levels) < 0))
    if not falls or levels[-1] <= 0:
        accepted = "numbers above 0, strictly descending, and perhaps a last 0,"
        raise BadArgument("sigmas", quoted(sigmas), accepted)
    return levels
