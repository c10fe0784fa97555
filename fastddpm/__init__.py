"""fastddpm: fast DDPM sampling with the images unchanged.

    import fastddpm

    sampler = fastddpm.load()                       # the MNIST model in the box
    images = sampler.sample(seeds=range(10), class_labels=3)
    fast = fastddpm.optimize(pipeline)              # another library's pipeline, the same images

A trained network of your own: ``fastddpm.Sampler(model, fastddpm.NoiseSchedule.linear(1000))``.

Names are loaded when they are first used, so that what needs no torch (`fastddpm.onnx`) does not wait for it.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fastddpm.checkpoint import CheckpointError, load
    from fastddpm.checks import BadArgument
    from fastddpm.dropin import optimize
    from fastddpm.engine import EngineUnavailable
    from fastddpm.export import export_onnx
    from fastddpm.finite import NonFiniteSamples
    from fastddpm.fusion import fuse_norms
    from fastddpm.model_folder import save_folder
    from fastddpm.plans import Method, Plan, ddim_plan, ddpm_plan, dpmpp_2m_plan
    from fastddpm.policy.policy import load_policy
    from fastddpm.publishing import push_to_hub
    from fastddpm.sampler import Sampler
    from fastddpm.schedule import NoiseSchedule
    from fastddpm.unet import UNet, UNetConfig

__version__ = "0.2.0"

__all__ = [
    "BadArgument",
    "CheckpointError",
    "EngineUnavailable",
    "Method",
    "NoiseSchedule",
    "NonFiniteSamples",
    "Plan",
    "Sampler",
    "UNet",
    "UNetConfig",
    "ddim_plan",
    "ddpm_plan",
    "dpmpp_2m_plan",
    "export_onnx",
    "fuse_norms",
    "load",
    "load_policy",
    "optimize",
    "push_to_hub",
    "save_folder",
]

_HOMES = {
    "BadArgument": "checks",
    "CheckpointError": "checkpoint",
    "EngineUnavailable": "engine",
    "Method": "plans",
    "NoiseSchedule": "schedule",
    "NonFiniteSamples": "finite",
    "Plan": "plans",
    "Sampler": "sampler",
    "UNet": "unet",
    "UNetConfig": "unet",
    "ddim_plan": "plans",
    "ddpm_plan": "plans",
    "dpmpp_2m_plan": "plans",
    "export_onnx": "export",
    "fuse_norms": "fusion",
    "load": "checkpoint",
    "load_policy": "policy.policy",
    "optimize": "dropin",
    "push_to_hub": "publishing",
    "save_folder": "model_folder",
}


def __getattr__(name: str) -> Any:
    if name in ("onnx", "score"):
        return importlib.import_module(f"fastddpm.{name}")
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"fastddpm.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
