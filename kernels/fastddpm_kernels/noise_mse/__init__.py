"""The training loss of a predicted noise, which is drawn again rather than read."""

from .op import noise_mse

__all__ = ["noise_mse"]
