"""What a type checker says of sampling options. `make lint` checks this file; nothing runs it.

An ignore that hides no error is an error itself (`warn_unused_ignores`), so every one below holds that its
mistake is seen, and every call without one that it is none.
"""

from pathlib import Path

import torch
from torch import Tensor
from typing_extensions import assert_type

import fastddpm
from fastddpm import Method, NoiseSchedule, Sampler
from fastddpm.onnx import OnnxSampler
from fastddpm.options import SamplerOptions
from fastddpm.plans import Plan, make_plan
from fastddpm.restoration import load_restorer


def construction(model: torch.nn.Module, schedule: NoiseSchedule) -> None:
    Sampler(model, schedule, method="ddim", num_inference_steps=5, timesteps=None, engine="eager")
    Sampler(model, schedule, method="dimm")  # type: ignore[arg-type]
    Sampler(model, schedule, prediction_type="eps")  # type: ignore[arg-type]
    Sampler(model, schedule, variance_type="fixed")  # type: ignore[arg-type]
    Sampler(model, schedule, timestep_spacing="even")  # type: ignore[arg-type]
    Sampler(model, schedule, time_input="level")  # type: ignore[arg-type]
    Sampler(model, schedule, num_inference_steps="5")  # type: ignore[arg-type]
    Sampler(model, schedule, num_inference_stepz=5)  # type: ignore[call-arg]
    Sampler(model, schedule, method=Method())  # type: ignore[arg-type]
    Method(method="dimm")  # type: ignore[arg-type]
    Method().adapted(methd="ddim")  # type: ignore[call-arg]
    Method().eta = 1.0  # type: ignore[misc]
    make_plan(schedule, method="dimm")  # type: ignore[arg-type]
    make_plan(schedule, stepz=5)  # type: ignore[call-arg]
    assert_type(make_plan(schedule, method="ddim", timesteps=[5, 1]), Plan)


def replacement(sampler: Sampler, plan: Plan) -> None:
    sampler.replace(method="ddim", num_inference_steps=5, precision="bf16", shape=(3, 8, 8))
    sampler.replace(num_inference_stepz=5)  # type: ignore[call-arg]
    sampler.replace(method="dimm")  # type: ignore[arg-type]
    sampler.replace(engine="egaer")  # type: ignore[arg-type]
    sampler.replace(**sampler.options)
    assert_type(sampler.options, SamplerOptions)
    assert_type(sampler.method, Method | None)
    sampler.options["etta"]  # type: ignore[typeddict-item]
    Sampler.from_plan(sampler.model, sampler.schedule, plan, engine="eager", device="cpu")
    Sampler.from_plan(sampler.model, sampler.schedule, plan, eta=0.0)  # type: ignore[call-arg]


def sampling(sampler: Sampler, image: Tensor) -> None:
    sampler.sample(seeds=[1], noise="torhc")  # type: ignore[arg-type]
    sampler.sample_trajectory(2, seeds=[1, 2], class_labels=3, frames=4, x_T=image)
    sampler.sample_trajectory(seedz=[1])  # type: ignore[call-arg]
    sampler.sample_from(image, 400, class_labels=3, guidance_scale=2.0)
    sampler.sample_from(image, 400, guidance_scale="2")  # type: ignore[arg-type]
    sampler.sample_from(image, 400, x_T=image)  # type: ignore[call-arg]
    sampler.interpolate(image, image, 400, class_labels=3)
    sampler.interpolate(image, image, 400, seeds=[1])  # type: ignore[call-arg]


def files(folder: Path, sampler: Sampler) -> None:
    fastddpm.load("mnist", method="ddim", device="cpu", dtype=torch.float32, shape=(1, 28, 28))
    fastddpm.load("mnist", method="dimm")  # type: ignore[arg-type]
    fastddpm.load("mnist", steps=5)  # type: ignore[call-arg]
    load_restorer("photo_sr", method="ddim", ema=False)
    load_restorer("photo_sr", methd="ddim")  # type: ignore[call-arg]
    fastddpm.export_onnx(sampler, folder, method="ddim", null_label=3)
    fastddpm.export_onnx(sampler, folder, method="dimm")  # type: ignore[arg-type]
    OnnxSampler(folder).plan(method="ddim", eta=None)
    OnnxSampler(folder).plan(steps=5)  # type: ignore[call-arg]
    OnnxSampler(folder).sample(seeds=[1], method="dimm")  # type: ignore[arg-type]
