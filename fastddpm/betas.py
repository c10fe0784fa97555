"""The betas of the named noise schedules: formulas from parameters to a float64 array [T].

`NoiseSchedule` has a constructor for each; parameters that make no sense raise ValueError here.
"""

from __future__ import annotations

import math
import textwrap
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import numpy.typing as npt

from fastddpm.checks import BadArgument, check_number, whole

if TYPE_CHECKING:
    from torch import Tensor

Array = npt.NDArray[np.float64]
T = TypeVar("T", float, Array)
MAX_STEPS = 1_000_000
"""Training timesteps: a file may ask for any number of them, and networks are trained with a few thousand."""


def linear(num_train_timesteps: int, beta_start: float, beta_end: float) -> Array:
    """beta evenly spaced from beta_start to beta_end (Ho et al. 2020, section 4)."""
    count, start, end = _range(num_train_timesteps, beta_start, beta_end)
    return np.linspace(start, end, count)


def scaled_linear(num_train_timesteps: int, beta_start: float, beta_end: float) -> Array:
    """sqrt(beta) evenly spaced."""
    count, start, end = _range(num_train_timesteps, beta_start, beta_end)
    betas: Array = np.linspace(start**0.5, end**0.5, count) ** 2
    return betas


quad = scaled_linear
"""The SR3 repository's name for it."""


def cosine(num_train_timesteps: int, s: float, max_beta: float) -> Array:
    """min(1 - f(t+1)/f(t), max_beta), f(i) = cos((i/T + s)/(1 + s) * pi/2)^2.

    Nichol and Dhariwal 2021, equation 17.
    """
    count = _count(num_train_timesteps)
    s = check_number("s", s, low=0)
    f = np.cos((np.arange(count + 1) / count + s) / (1 + s) * math.pi / 2) ** 2
    betas: Array = np.minimum(1 - f[1:] / f[:-1], _unit("max_beta", max_beta))
    return betas


def sigmoid(num_train_timesteps: int, start: float, end: float, tau: float, max_beta: float) -> Array:
    """min(1 - abar(t+1)/abar(t), max_beta) with a sigmoid abar (Jabri et al. 2022, figure 8).

    abar(i) = (v - sigmoid((i/T*(end - start) + start)/tau)) / (v - sigmoid(start/tau)), v = sigmoid(end/tau).
    denoising-diffusion-pytorch rounds the two constant sigmoids to float32; as abar falls to v - v = 0 at the
    end, that moves its last values by 1e-4 relative, so it is repeated here.
    """
    count = _count(num_train_timesteps)
    start = check_number("start", start)
    end = check_number("end", end)
    tau = check_number("tau", tau, above=0)
    if not start < end:
        raise BadArgument("start, end", f"{start!r}, {end!r}", "start < end")
    v_start, v_end = (float(np.float32(_sigmoid(v / tau))) for v in (start, end))
    i = np.arange(count + 1) / count
    abar = (v_end - _sigmoid((i * (end - start) + start) / tau)) / (v_end - v_start)
    betas: Array = np.minimum(1 - abar[1:] / abar[:-1], _unit("max_beta", max_beta))
    return betas


def warmup(fraction: float, num_train_timesteps: int, beta_start: float, beta_end: float) -> Array:
    """Linear from beta_start to beta_end over the first int(T * fraction) steps, then beta_end."""
    count, start, end = _range(num_train_timesteps, beta_start, beta_end)
    rising = int(count * check_number("fraction", fraction, low=0, high=1))
    return np.concatenate([np.linspace(start, end, rising), np.full(count - rising, end)])


def const(num_train_timesteps: int, beta: float) -> Array:
    """beta, T times."""
    return np.full(_count(num_train_timesteps), _unit("beta", beta))


def jsd(num_train_timesteps: int) -> Array:
    """1/T, 1/(T-1), ..., 1 (Sohl-Dickstein et al. 2015, section 2.4.1)."""
    count = _count(num_train_timesteps)
    return 1.0 / np.linspace(count, 1, count)


def rescaled_zero_terminal_snr(alphas_cumprod: Array) -> Array:
    """The betas for which sqrt(abar) is shifted and scaled to end at 0 and keep its first value.

    Lin et al. 2023, algorithm 1.
    """
    if len(alphas_cumprod) < 2:
        raise BadArgument(
            "num_train_timesteps", str(len(alphas_cumprod)), "at least 2 with zero terminal SNR"
        )
    root = np.sqrt(alphas_cumprod)
    root = (root - root[-1]) * (root[0] / (root[0] - root[-1]))
    abar = root**2
    return 1 - np.concatenate([abar[:1], abar[1:] / abar[:-1]])


def checked(betas: npt.ArrayLike | Tensor) -> Array:
    """A read-only float64 copy of any given betas, or ValueError with the first that is out of range."""
    try:
        # A tensor gives its numbers from any device, and with or without a gradient, through tolist.
        array = np.array(betas.tolist() if hasattr(betas, "tolist") else betas, dtype=np.float64)
    except (TypeError, ValueError) as error:
        given = textwrap.shorten(repr(betas), 200)
        raise BadArgument("betas", given, "a one-dimensional sequence of numbers") from error
    if array.ndim != 1 or not 0 < len(array) <= MAX_STEPS:
        raise BadArgument(
            "betas", f"shape {array.shape}", f"a non-empty one-dimensional sequence of at most {MAX_STEPS:,}"
        )
    allowed = (array > 0.0) & (array < 1.0)
    allowed[-1] |= array[-1] == 1.0
    allowed[0] &= 1.0 - array[0] < 1.0  # a first step that adds no noise divides 0 by 0
    if not allowed.all():
        i = int(np.argmin(allowed))
        raise BadArgument(
            "betas",
            f"betas[{i}] = {array[i]} of {len(array)}",
            "numbers in (0, 1], 1 only as the last, and the first above 1e-16",
        )
    array.setflags(write=False)
    return array


def _sigmoid(x: T) -> T:
    value: T = 1.0 / (1.0 + np.exp(-x))
    return value


def _unit(name: str, value: object) -> float:
    """`value` as a float in (0, 1]."""
    return check_number(name, value, above=0, high=1)


def _count(value: object) -> int:
    return whole("num_train_timesteps", value, least=1, most=MAX_STEPS)


def _range(count: object, beta_start: object, beta_end: object) -> tuple[int, float, float]:
    return _count(count), _unit("beta_start", beta_start), _unit("beta_end", beta_end)
