"""A sum of maps and a bias, and the zeros that a strided convolution wants behind it, in one pass."""

from .op import pad_sum

__all__ = ["pad_sum"]
