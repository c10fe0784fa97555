"""The network: its options, its parts, and what other implementations call them."""

from fastddpm.unet.config import UNetConfig
from fastddpm.unet.unet import UNet

__all__ = ["UNet", "UNetConfig"]
