"""Kernels of fastddpm: fused Triton operators for CUDA and ROCm, with plain torch for every other device.

    normal        counter-based noise (noise spec v1)
    reverse_step  one row of a sampler's table applied to the state, in place
    q_sample      x_t from x_0
    Column        the columns of such a table, N_COLUMNS wide

Importing this package imports neither triton nor a GPU runtime: a kernel is loaded when a CUDA tensor first
reaches it.
"""

from .noise import normal
from .q_sample import q_sample
from .reverse_step import reverse_step
from .table import N_COLUMNS, Column

__all__ = ["N_COLUMNS", "Column", "normal", "q_sample", "reverse_step"]
