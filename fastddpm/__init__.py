"""fastddpm: fast DDPM sampling with the images unchanged.

    import fastddpm

    sampler = fastddpm.load()                       # the MNIST model in the box
    images = sampler.sample(seeds=range(10), class_labels=3)

A trained network of your own: ``fastddpm.Sampler(model, fastddpm.NoiseSchedule.linear(1000))``.
"""

from fastddpm.checkpoint import CheckpointError, load, save_folder
from fastddpm.dropin import optimize
from fastddpm.engine import EngineUnavailable
from fastddpm.plans import Plan, ddim_plan, ddpm_plan, dpmpp_2m_plan
from fastddpm.sampler import Sampler
from fastddpm.schedule import NoiseSchedule
from fastddpm.unet import UNet, UNetConfig

__version__ = "0.1.0"

__all__ = [
    "CheckpointError",
    "EngineUnavailable",
    "NoiseSchedule",
    "Plan",
    "Sampler",
    "UNet",
    "UNetConfig",
    "ddim_plan",
    "ddpm_plan",
    "dpmpp_2m_plan",
    "load",
    "optimize",
    "save_folder",
]
