"""The tiny network that tests of samplers and engines share."""

from fastddpm_bench.tiny import TINY, make_unet

__all__ = ["TINY", "make_unet"]
