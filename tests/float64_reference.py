"""An independent restatement, in float64 NumPy, of what the kernels compute: written from the formulas, one
sample at a time, with nothing taken from the package. Philox works on Python integers.
"""

from __future__ import annotations

import math

import numpy as np


def philox_words(seed: int, block: int, step: int, stream: int, repeat: int) -> tuple[int, int, int, int]:
    """Philox4x32-10 of one counter, on Python integers."""
    low = 2**32 - 1
    left, right = [block, stream], [step, repeat]
    key = [seed & low, seed >> 32]
    for _ in range(10):
        a, b = 0xD2511F53 * left[0], 0xCD9E8D57 * left[1]
        left, right = [(b >> 32) ^ right[0] ^ key[0], (a >> 32) ^ right[1] ^ key[1]], [b & low, a & low]
        key = [(key[0] + 0x9E3779B9) & low, (key[1] + 0xBB67AE85) & low]
    return left[0], right[0], left[1], right[1]


def sample_noise(
    seed: int, step: int, shape: tuple[int, ...], stream: int = 0, repeat: int = 0
) -> np.ndarray:
    """The noise of one sample by the noise spec, element by element."""
    n = math.prod(shape)
    q = 16 * math.ceil(n / 64)
    z = np.empty(n)
    drawn: dict[int, list[float]] = {}
    for element in range(n):
        lane, block = divmod(element, q)
        if block not in drawn:
            u = [((word >> 9) + 0.5) / 2**23 for word in philox_words(seed, block, step, stream, repeat)]
            drawn[block] = [
                math.sqrt(-2 * math.log(u[pair])) * turn(2 * math.pi * u[pair + 1])
                for pair in (0, 2)
                for turn in (math.cos, math.sin)
            ]
        z[element] = drawn[block][lane]
    return z.reshape(shape)


def reverse_step(
    x: np.ndarray,
    m: np.ndarray,
    row: dict[str, float],
    *,
    z: np.ndarray | None = None,
    kept: np.ndarray | None = None,
    w: np.ndarray | None = None,
    s: np.ndarray | None = None,
    clip: bool = False,
    divide: bool = False,
    combine: bool = False,
    rederive: bool = False,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(x_next, x0, the prediction to keep) of a step, sample by sample; `row` has the coefficients by name.

    m may have twice the channels (learned range) and, with w, twice the rows (unconditional first).
    """
    batch, channels = x.shape[:2]
    out, clean, own = np.empty(x.shape), np.empty(x.shape), np.empty(x.shape)
    for i in range(batch):
        conditional = m[batch + i] if w is not None else m[i]
        output = conditional[:channels].astype(np.float64)
        if w is not None:
            plain = m[i][:channels].astype(np.float64)
            output = plain + float(w[i]) * (output - plain)
        state = x[i].astype(np.float64)
        x0 = (row["p"] * state + row["q"] * output) / (row["d"] if divide else 1.0)
        if s is not None:
            x0 = np.clip(x0, -float(s[i]), float(s[i])) / float(s[i])
        elif clip:
            x0 = np.clip(x0, -row["r"], row["r"])
        from_x, direction = row["b"] * state, output
        if rederive:
            direction = (from_x + row["f"] * x0 + row["g"] * output) / row["w"]
            from_x = 0.0
        following = row["a"] * x0 + from_x + row["e"] * direction
        for weight, earlier in zip(("h", "h2", "h3", "h4", "h5"), () if kept is None else kept, strict=False):
            following = following + row[weight] * earlier[i]
        own[i] = row["i"] * x0 + row["j"] * state + row["n"] * output if combine else x0
        if z is not None:
            sigma: float | np.ndarray = row["c"]
            if conditional.shape[0] == 2 * channels:
                fraction = (conditional[channels:].astype(np.float64) + 1) / 2
                log_variance = fraction * row["log_var_max"] + (1 - fraction) * row["log_var_min"]
                sigma = row["c"] * np.sqrt(np.exp(log_variance))
            following = following + sigma * z[i]
        out[i], clean[i] = following, x0
    return out, clean, own
