"""GroupNorm and SiLU in one pass, with what a residual block adds before and after the norm."""

from .dispatch import group_norm_silu

__all__ = ["group_norm_silu"]
