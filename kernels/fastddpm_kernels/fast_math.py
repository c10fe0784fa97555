# mypy: allow-untyped-defs, allow-untyped-decorators, allow-untyped-calls, allow-incomplete-defs
"""Functions of one instruction or two on a GPU, for kernels whose time is their instructions.

Triton's `exp` and `/` keep subnormal arguments and quotients by divisors above 2**126 apart: seven of the
eleven instructions of a SiLU. None of that matters here: where they differ, the result is below 1e-36.
"""

import triton
import triton.language as tl
from triton.language.extra import libdevice
from triton.language.target_info import is_cuda

COMPILED = tl.constexpr(not triton.knobs.runtime.interpret)
"""The interpreter has none of the library's functions."""
MINUS_LOG2_E = tl.constexpr(-1.4426950408889634)


@triton.jit
def log2(x):
    """The binary logarithm of a normal float32 number; on NVIDIA's cards `lg2.approx`."""
    if COMPILED and is_cuda():
        return libdevice.fast_log2f(x)
    else:
        return tl.log2(x)


@triton.jit
def sigmoid_factor(v, numerator):
    """numerator / (1 + exp(-v)), float32: with v itself the SiLU, with 1 the sigmoid.

    `ex2.approx` is off by 2**-22 at most and `rcp.approx` by one unit in the last place (PTX ISA).
    """
    if COMPILED:
        return libdevice.fast_dividef(numerator, 1.0 + tl.exp2(v * MINUS_LOG2_E))
    else:
        return numerator / (1.0 + tl.exp(-v))


@triton.jit
def mish(v):
    """v * tanh(log(1 + exp(v))), float32, with one exponential, of a number that is not positive.

    With u = exp(-|v|) the factor is (1 + 2u) / (1 + 2u + 2u^2) for v >= 0, and (u^2 + 2u) / (u^2 + 2u + 2)
    below, where nothing overflows and nothing cancels.
    """
    if COMPILED:
        u = tl.exp2(tl.abs(v) * MINUS_LOG2_E)
    else:
        u = tl.exp(-tl.abs(v))
    numerator = tl.where(v >= 0.0, 1.0 + 2.0 * u, u * (u + 2.0))
    denominator = numerator + tl.where(v >= 0.0, 2.0 * u * u, 2.0)
    if COMPILED:
        return libdevice.fast_dividef(v * numerator, denominator)
    else:
        return v * numerator / denominator
