"""Every argument of Stable Diffusion's calls: it runs as the original's, or is refused by name."""

import inspect
import types

import pytest
import torch

import fastddpm
from fastddpm.plans.diffusers.solver_classes import SOLVERS

diffusers = pytest.importorskip("diffusers")
pytest.importorskip("transformers")

from diffusers import StableDiffusionImg2ImgPipeline, StableDiffusionPipeline  # noqa: E402
from latent_pipelines import BETAS, TOLERANCE, embeds, forbid_steps, hold, text_pipeline, tokenizer  # noqa: E402

# NumPy's, of how diffusers makes arrays of tensors: hundreds of thousands.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

LATENT = {"output_type": "latent", **embeds()}
TIMES = [999, 719, 459, 259]  # of those that LCM and TCD were trained at
SIGMAS = [9.0, 3.0, 1.0, 0.3]
IMAGE = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(2))
NAMES = sorted([*SOLVERS, "DDIMScheduler", "DDPMScheduler"])


def made(name, **config):
    known = inspect.signature(getattr(diffusers, name).__init__).parameters
    options = {**BETAS, "timestep_spacing": "leading", "skip_prk_steps": True, "clip_sample": False, **config}
    return getattr(diffusers, name)(**{key: value for key, value in options.items() if key in known})


def takes(name):
    """What the set_timesteps of a scheduler takes besides a number of steps."""
    known = inspect.signature(getattr(diffusers, name).set_timesteps).parameters
    return [each for each in ("timesteps", "sigmas") if each in known and "UniPC" not in name]


def of(kind, name=""):
    if name == "EDMEulerScheduler":  # takes a tensor, of places between its ends
        return {"sigmas": torch.tensor([0.0, 0.2, 0.5, 1.0])}
    return {"timesteps": TIMES} if kind == "timesteps" else {"sigmas": SIGMAS}


@pytest.mark.parametrize("name", [name for name in NAMES if takes(name)])
def test_times_that_a_call_gives(name, monkeypatch):
    pipeline = text_pipeline(scheduler=made(name))
    image = text_pipeline(StableDiffusionImg2ImgPipeline, made(name), unet=pipeline.unet)
    for kind in takes(name):
        usual = hold(pipeline, num_inference_steps=4, **LATENT)
        given = hold(pipeline, **of(kind, name), **LATENT)
        assert (given - usual).abs().max() > 1e-3
        if name not in ("LCMScheduler", "TCDScheduler"):
            strength = 1.0 if pipeline.scheduler.order == 2 else 0.6
            hold(image, image=IMAGE, strength=strength, **of(kind, name), **LATENT)
    fast = fastddpm.optimize(pipeline)
    forbid_steps(monkeypatch, pipeline.scheduler)
    fast(**of(kind, name), **LATENT)


def test_times_that_a_scheduler_does_not_take():
    """The original's error, before the network is called."""
    pipeline = text_pipeline()
    fast = fastddpm.optimize(pipeline)
    pipeline.unet.register_forward_pre_hook(lambda *arguments: pytest.fail("too late"))
    for name in NAMES:
        pipeline.scheduler = made(name)
        for kind in {"timesteps", "sigmas"} - set(takes(name)):
            errors = []
            for each in (pipeline, fast):
                with pytest.raises(ValueError, match=kind.removesuffix("s")) as caught:
                    each(**of(kind), **LATENT)
                errors.append(str(caught.value))
            assert errors[0] == errors[1]


REFUSED = {
    "ip_adapter_image": IMAGE,
    "ip_adapter_image_embeds": [torch.zeros(2, 1, 32)],
    "cross_attention_kwargs": {"scale": 0.5},
}


def watched(seen):
    def watch(pipe, step, timestep, held):
        seen.append((step, int(timestep), pipe.num_timesteps, sorted(held)))
        return {"latents": held["latents"] * (0.5 if step == 1 else 1)}

    return watch


@pytest.mark.parametrize("cls", [StableDiffusionPipeline, StableDiffusionImg2ImgPipeline])
def test_every_argument_runs_or_is_refused(cls, tmp_path):
    """One that a later diffusers adds is in neither of the two lists."""
    pipeline = text_pipeline(cls, made("EulerDiscreteScheduler"), words=tokenizer(tmp_path))
    pipeline.text_encoder.text_model = types.SimpleNamespace(  # where diffusers 0.42 looks for it
        final_layer_norm=pipeline.text_encoder.final_layer_norm
    )
    fast = fastddpm.optimize(pipeline)
    seen, known = [], inspect.signature(cls.__call__).parameters
    own = {"image": IMAGE, "strength": 0.6} if "image" in known else {"height": 24, "width": 32}
    rest = {} if "image" in known else {"guidance_rescale": 0.4}
    words = {"prompt": ["a cat", "dog"], "negative_prompt": ["rain", "a cat"], "clip_skip": 1, **own}
    if "image" not in known:
        rest["latents"] = torch.randn(4, 4, 6, 10, generator=torch.Generator().manual_seed(2))
    calls = [
        {"eta": 0.4, "num_images_per_prompt": 2, "guidance_scale": 3.0, **rest, **own, **embeds()},
        {"callback_on_step_end": watched(seen), "timesteps": TIMES, "output_type": "np", **own, **embeds()},
        {"sigmas": SIGMAS, **words},
    ]
    names = {"generator", "return_dict", "callback_on_step_end_tensor_inputs", "num_inference_steps"}
    for call in calls:
        names.update(call)
        hold(pipeline, fast, **{"output_type": "latent", "num_inference_steps": 5, **call})
    assert len(seen) >= 4
    assert seen[: len(seen) // 2] == seen[len(seen) // 2 :]
    inputs = {"callback_on_step_end_tensor_inputs": ["negative_prompt_embeds", "latents"]}
    pairs = []
    for each in (pipeline, fast):
        seen.clear()
        torch.manual_seed(3)
        images, flagged = each(**{**calls[1], **inputs}, return_dict=False)
        pairs.append((images, flagged, list(seen)))
    assert abs(pairs[0][0] - pairs[1][0]).max() < TOLERANCE
    assert pairs[0][1:] == pairs[1][1:]
    for name, value in REFUSED.items():
        with pytest.raises(ValueError, match=f"^{name}: .* given, None, or the original pipeline for it"):
            fast(**{name: value}, **own, **LATENT)
    kinds = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
    assert names | REFUSED.keys() == {k for k, p in known.items() if p.kind not in kinds} - {"self"}


def test_times_that_are_none():
    pipeline = text_pipeline(scheduler=made("DDPMScheduler"))
    fast = fastddpm.optimize(pipeline)
    for call, words in (
        ({"timesteps": []}, r"timesteps: \[\] given, a list of numbers, one or more, accepted"),
        ({"sigmas": 3}, "sigmas: 3 given, a list of numbers"),
        ({"timesteps": ["many"]}, r"timesteps: \['many'\] given, a list of numbers"),
        ({"timesteps": TIMES, "sigmas": SIGMAS}, "Only one of `timesteps` or `sigmas` can be passed"),
        ({"timesteps": [1000, 3]}, "`timesteps` must start before `self.config.train_timesteps`"),
        ({"timesteps": [900, 900, 3]}, "must be in descending order"),
    ):
        with pytest.raises(ValueError, match=words):
            fast(**call, **LATENT)
    pipeline.scheduler = made("EDMEulerScheduler")
    with pytest.raises(ValueError, match=r"sigmas: values at which EDMEulerScheduler says: .*'to'"):
        fast(sigmas=SIGMAS, **LATENT)
    pipeline.scheduler = made("HeunDiscreteScheduler")  # which begins at the second of the two
    with pytest.raises(ValueError, match="timesteps: the timestep 900 first and again given, others"):
        fast(timesteps=[900, 900, 3], **LATENT)


def test_an_image_of_which_no_timestep_is_left():
    """Heun's skips two rows for each of the timesteps that the original counts."""
    pipeline = text_pipeline(StableDiffusionImg2ImgPipeline, made("HeunDiscreteScheduler"))
    with pytest.raises(ValueError, match=r"strength: 0.4 of these timesteps, which is none, given, 1 "):
        fastddpm.optimize(pipeline)(image=IMAGE, strength=0.4, timesteps=TIMES, **LATENT)
