"""x_t from x_0 in one pass, the noise drawn in the kernel or given."""

from .op import q_sample

__all__ = ["q_sample"]
