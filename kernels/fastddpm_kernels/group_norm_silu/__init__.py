"""GroupNorm and SiLU in one pass, with what a residual block adds before and after the norm."""

from .op import add_group_norm_silu, cat_group_norm_silu, group_norm_silu

__all__ = ["add_group_norm_silu", "cat_group_norm_silu", "group_norm_silu"]
