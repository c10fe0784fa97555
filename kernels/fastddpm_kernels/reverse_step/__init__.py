"""One row of a sampler's table applied to the state, in place: one fused pass for every method."""

from .op import reverse_step

__all__ = ["reverse_step"]
