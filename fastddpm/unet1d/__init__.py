"""The network of diffusion policies: sequences of actions, conditioned on a vector of observations."""

from fastddpm.unet1d.config import UNet1DConfig
from fastddpm.unet1d.unet1d import UNet1D

__all__ = ["UNet1D", "UNet1DConfig"]
