"""Which pipeline of diffusers an object is, by what it holds and how it is called.

Neither its class's name nor its module is looked at, and diffusers is not imported.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from fastddpm.dropin.peer import Peer

PipelineKind = Literal[
    "DDPMPipeline",
    "DDIMPipeline",
    "KarrasVePipeline",
    "ScoreSdeVePipeline",
    "PNDMPipeline",
    "LDMPipeline",
    "LDMSuperResolutionPipeline",
    "DiTPipeline",
    "RePaintPipeline",
    "StableDiffusionPipeline",
    "StableDiffusionImg2ImgPipeline",
]

_RESULT = "output_type return_dict"
_PROMPT = "timesteps sigmas guidance_scale negative_prompt num_images_per_prompt eta generator"
_EMBEDS = "prompt_embeds negative_prompt_embeds ip_adapter_image ip_adapter_image_embeds"
_CALLBACKS = "clip_skip callback_on_step_end callback_on_step_end_tensor_inputs"
_TEXT_PARTS = (
    "vae text_encoder tokenizer unet scheduler image_processor vae_scale_factor "
    "encode_prompt prepare_latents check_inputs run_safety_checker"
)
# Of pipelines that are called as another, what their schedulers have; the others' have a step.
_SCHEDULERS: dict[PipelineKind, str] = {
    "KarrasVePipeline": "step step_correct add_noise_to_input",
    "ScoreSdeVePipeline": "step_pred step_correct set_sigmas",
}
# Parameters of the call, in order, and attributes.
_PIPELINES: dict[PipelineKind, tuple[str, str]] = {
    "DDPMPipeline": (
        f"batch_size generator num_inference_steps {_RESULT}",
        "unet scheduler numpy_to_pil",
    ),
    "DDIMPipeline": (
        f"batch_size generator eta num_inference_steps use_clipped_model_output {_RESULT}",
        "unet scheduler numpy_to_pil",
    ),
    **dict.fromkeys(
        ("KarrasVePipeline", "ScoreSdeVePipeline", "PNDMPipeline"),
        (f"batch_size num_inference_steps generator {_RESULT}", "unet scheduler numpy_to_pil"),
    ),
    "LDMPipeline": (
        f"batch_size generator eta num_inference_steps {_RESULT}",
        "unet vqvae scheduler numpy_to_pil",
    ),
    "LDMSuperResolutionPipeline": (
        f"image batch_size num_inference_steps eta generator {_RESULT}",
        "unet vqvae scheduler numpy_to_pil",
    ),
    "DiTPipeline": (
        f"class_labels guidance_scale generator num_inference_steps {_RESULT}",
        "transformer vae scheduler numpy_to_pil",
    ),
    "RePaintPipeline": (
        f"image mask_image num_inference_steps eta jump_length jump_n_sample generator {_RESULT}",
        "unet scheduler numpy_to_pil",
    ),
    "StableDiffusionPipeline": (
        f"prompt height width num_inference_steps {_PROMPT} latents {_EMBEDS} {_RESULT} "
        f"cross_attention_kwargs guidance_rescale {_CALLBACKS}",
        _TEXT_PARTS,
    ),
    "StableDiffusionImg2ImgPipeline": (
        f"prompt image strength num_inference_steps {_PROMPT} {_EMBEDS} {_RESULT} "
        f"cross_attention_kwargs {_CALLBACKS}",
        f"{_TEXT_PARTS} get_timesteps",
    ),
}
# Of pipelines that are called as one of these and draw something else (depth beside the image).
_FOREIGN_PROCESSOR = "depth_pil_to_numpy"


def pipeline_kind(obj: Peer) -> PipelineKind | None:
    """Which of the pipelines an object is, whatever its scheduler; or None. Never raises."""
    try:
        if isinstance(obj, type) or not callable(obj):
            return None
        call = _ordered(obj.__call__)
        for kind, (parameters, parts) in _PIPELINES.items():
            if call != parameters.split() or not all(hasattr(obj, name) for name in parts.split()):
                continue
            network = obj.transformer if "transformer" in parts else obj.unet
            is_foreign = hasattr(getattr(obj, "image_processor", None), _FOREIGN_PROCESSOR)
            steps = _SCHEDULERS.get(kind, "step").split()
            has_steps = all(hasattr(obj.scheduler, name) for name in steps)
            if callable(network) and has_steps and not is_foreign:
                return kind
    except Exception:
        pass
    return None


def _ordered(function: Callable[..., object]) -> list[str]:
    """Names of a function's parameters in order, without self and the starred ones."""
    starred = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    parameters = inspect.signature(function).parameters.values()
    return [one.name for one in parameters if one.kind not in starred and one.name != "self"]
