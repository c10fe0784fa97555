"""Subclasses and objects with a step of their own: never the published class's images without a word."""

from __future__ import annotations

import types
import warnings

import numpy as np
import pytest

import fastddpm
from fastddpm_bench.peers import abarankab, guided_diffusion, sr3
from fastddpm_bench.peers.guided_diffusion import ModelMeanType, ModelVarType

diffusers = pytest.importorskip("diffusers")
lucidrains = pytest.importorskip("denoising_diffusion_pytorch")

UNET = {
    "sample_size": 8,
    "block_out_channels": (8, 16),
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "down_block_types": ("DownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "UpBlock2D"),
}


def pipeline(kind=diffusers.DDPMPipeline, scheduler=diffusers.DDPMScheduler):
    return kind(diffusers.UNet2DModel(**UNET), scheduler(num_train_timesteps=20))


def scheduler_of(kind):
    return kind(num_train_timesteps=20)


def lucid(kind=lucidrains.GaussianDiffusion, **options):
    return kind(lucidrains.Unet(8, dim_mults=(1, 2), flash_attn=False, **options), image_size=8, timesteps=20)


def guided(kind=guided_diffusion.GaussianDiffusion, **options):
    types_of = {"model_mean_type": ModelMeanType.EPSILON, "model_var_type": ModelVarType.FIXED_SMALL}
    return kind(betas=np.linspace(1e-3, 0.1, 20), **types_of, **options)


def noise_remover(kind=abarankab.Diffusion):
    network = abarankab.Network(1, 8, num_res_blocks=1, num_groups=4)
    return kind(network.eval(), (8, 8), 1, abarankab.linear_betas(9))


def super_resolution(kind=sr3.Diffusion):
    network = sr3.Network("sr3", 6, 3, 8, norm_groups=4)
    made = kind(network, image_size=8)
    made.set_new_noise_schedule(
        {"schedule": "linear", "n_timestep": 10, "linear_start": 1e-3, "linear_end": 0.2}
    )
    return made


def overriding(base, name):
    """A subclass in this module that has a method of its own; it does what the other does."""

    def method(self, *args, **kwargs):
        return getattr(super(kind, self), name)(*args, **kwargs)

    kind = type("Quiet", (base,), {name: method, "__module__": __name__})
    return kind


CASES = {
    "diffusers step": (lambda kind: scheduler_of(kind), diffusers.DDPMScheduler, "step"),
    "diffusers variance": (lambda kind: scheduler_of(kind), diffusers.DDPMScheduler, "_get_variance"),
    "diffusers thresholds": (lambda kind: scheduler_of(kind), diffusers.DDIMScheduler, "_threshold_sample"),
    "diffusers timesteps": (lambda kind: scheduler_of(kind), diffusers.DDIMScheduler, "set_timesteps"),
    "lucidrains mean": (lucid, lucidrains.GaussianDiffusion, "p_mean_variance"),
    "lucidrains predictions": (lucid, lucidrains.GaussianDiffusion, "model_predictions"),
    "guided-diffusion": (guided, guided_diffusion.GaussianDiffusion, "p_sample_loop"),
    "abarankab": (noise_remover, abarankab.Diffusion, "remove_noise"),
    "sr3": (super_resolution, sr3.Diffusion, "p_sample"),
}


@pytest.mark.parametrize("name", CASES)
def test_an_override_is_refused_by_its_name(name):
    make, base, method = CASES[name]
    words = rf"obj: Quiet, whose {method} takes the place of {base.__name__}'s, given, an object of the pub"
    with pytest.raises(ValueError, match=words) as refused:
        fastddpm.optimize(make(overriding(base, method)))
    assert len(str(refused.value)) < 300
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fastddpm.optimize(make(base))
        # What a step is not made of may be anybody's.
        fastddpm.optimize(make(overriding(base, "__init__")))


def test_a_scheduler_in_a_pipeline_and_a_call():
    quiet = overriding(diffusers.DDPMScheduler, "_get_variance")
    with pytest.raises(ValueError, match=r"scheduler: Quiet, whose _get_variance takes the place of DDPMSch"):
        fastddpm.optimize(pipeline(scheduler=quiet))
    fast = fastddpm.optimize(pipeline())
    fast.original.scheduler = scheduler_of(quiet)
    with pytest.raises(ValueError, match="scheduler: Quiet, whose _get_variance"):
        fast(1, num_inference_steps=2)

    class Own(diffusers.DDPMPipeline):
        def __call__(
            self,
            batch_size=1,
            generator=None,
            num_inference_steps=1000,
            output_type="pil",
            return_dict=True,
        ):
            return super().__call__(batch_size, generator, num_inference_steps, output_type, return_dict)

    with pytest.raises(ValueError, match=r"obj: Own, whose __call__ takes the place of DDPMPipeline's"):
        fastddpm.optimize(pipeline(Own))


def test_the_libraries_own_subclasses_are_known():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fastddpm.optimize(guided(guided_diffusion.SpacedDiffusion, use_timesteps=range(0, 20, 2)))
        fastddpm.optimize(scheduler_of(diffusers.DDPMParallelScheduler))
        fastddpm.optimize(lucid(lucidrains.LearnedGaussianDiffusion, learned_variance=True))
        # Nor is a twin anything else than what it stands for.
        fastddpm.optimize(fastddpm.optimize(scheduler_of(diffusers.DDPMScheduler)))

    class Further(guided_diffusion.SpacedDiffusion):
        def asked(self, function, x, t, kwargs):
            return super().asked(function, x, t, kwargs)

        def p_sample(self, *args, **kwargs):
            return super().p_sample(*args, **kwargs)

    with pytest.raises(ValueError, match="Further, whose p_sample takes the place of GaussianDiffusion's"):
        fastddpm.optimize(guided(Further, use_timesteps=range(0, 20, 2)))


def test_a_method_set_on_an_object():
    diffusion = guided()
    diffusion.p_sample = types.MethodType(lambda self, model, x, t: None, diffusion)
    with pytest.raises(ValueError, match="GaussianDiffusion with a p_sample of its own set on it"):
        fastddpm.optimize(diffusion)
    counted = scheduler_of(diffusers.DDPMScheduler)
    step = counted.step
    counted.step = lambda *args, **kwargs: step(*args, **kwargs)
    with pytest.warns(UserWarning, match="obj: the step set on this DDPMScheduler is not called"):
        fastddpm.optimize(counted)


def test_a_copy_in_another_package_is_as_the_published_class():
    """By what it holds; a changed copy cannot be told from it (docs/dropin.md)."""
    body = vars(guided_diffusion.GaussianDiffusion).items()
    copied = type("Copied", (), {k: v for k, v in body if k not in ("__dict__", "__weakref__")})
    assert type(fastddpm.optimize(guided(copied))).__name__ == "FastGuidedDiffusion"
