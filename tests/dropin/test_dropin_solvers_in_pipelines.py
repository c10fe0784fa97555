"""Every solver of diffusers in its pipelines of latents: the same call, the same latents."""

import inspect

import pytest
import torch

from fastddpm.plans.diffusers.solver_classes import SOLVERS

diffusers = pytest.importorskip("diffusers")
pytest.importorskip("transformers")

from diffusers import LDMPipeline, StableDiffusionImg2ImgPipeline  # noqa: E402
from latent_pipelines import (  # noqa: E402
    BETAS,
    embeds,
    forbid_steps,
    hold,
    pixel_unet,
    quantizer,
    quiet,
    text_pipeline,
)

import fastddpm  # noqa: E402

# NumPy's, of how diffusers makes arrays of tensors: hundreds of thousands.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

NAMES = sorted(SOLVERS)
CALL = {"num_inference_steps": 7, "output_type": "latent", **embeds()}
VARIANTS = {
    "DPMSolverMultistepScheduler": {"algorithm_type": "sde-dpmsolver++", "use_karras_sigmas": True},
    "UniPCMultistepScheduler": {"solver_order": 3, "prediction_type": "v_prediction"},
    "DEISMultistepScheduler": {"solver_order": 3},
    "EulerDiscreteScheduler": {"use_karras_sigmas": True, "prediction_type": "v_prediction"},
    "EulerAncestralDiscreteScheduler": {"timestep_spacing": "trailing"},
    "LMSDiscreteScheduler": {"use_exponential_sigmas": True},
    "HeunDiscreteScheduler": {"use_karras_sigmas": True},
    "DPMSolverSinglestepScheduler": {"solver_order": 3},
}


def made(name, **config):
    known = inspect.signature(getattr(diffusers, name).__init__).parameters
    options = {**BETAS, "timestep_spacing": "leading", "skip_prk_steps": True, **config}
    return getattr(diffusers, name)(**{key: value for key, value in options.items() if key in known})


@pytest.mark.parametrize("name", NAMES)
def test_text_to_image(name):
    hold(text_pipeline(scheduler=made(name)), **CALL)
    if name in VARIANTS:
        hold(text_pipeline(scheduler=made(name, **VARIANTS[name])), **CALL)


@pytest.mark.parametrize("name", sorted(set(NAMES) - {"LCMScheduler", "TCDScheduler"}))
def test_image_to_image(name):
    """What a solver remembers begins anew at the row where the chain does."""
    image = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(2))
    pipeline = text_pipeline(StableDiffusionImg2ImgPipeline, scheduler=made(name, **VARIANTS.get(name, {})))
    hold(pipeline, image=image, strength=0.6, **CALL)


@pytest.mark.parametrize(
    "name",
    ["EulerDiscreteScheduler", "PNDMScheduler", "TCDScheduler", "HeunDiscreteScheduler", "EDMEulerScheduler"],
)
def test_unconditional_latents(name, monkeypatch):
    pipeline = quiet(LDMPipeline(quantizer(), pixel_unet(), made(name)))
    hold(pipeline, num_inference_steps=6, output_type="np")
    fast = fastddpm.optimize(pipeline)
    forbid_steps(monkeypatch, pipeline.scheduler)
    fast(num_inference_steps=3, output_type="np")
