"""diffusers' schedulers at the edges: what the original refuses, repeats or draws for nothing."""

import copy
import inspect

import numpy as np
import pytest
import torch

import fastddpm
from fastddpm.checks import BadArgument

diffusers = pytest.importorskip("diffusers")
pytest.importorskip("transformers")
from diffusers import DDIMPipeline, DDIMScheduler, LDMPipeline  # noqa: E402
from latent_pipelines import drawn, embeds, hold, pixel_unet, quantizer, quiet, text_pipeline  # noqa: E402

# NumPy's, of how diffusers makes arrays of tensors: hundreds of thousands.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

SHAPE = (2, 3, 4, 4)
NO_SAMPLE = [
    "PNDMScheduler",
    "EulerAncestralDiscreteScheduler",
    "KDPM2DiscreteScheduler",
    "KDPM2AncestralDiscreteScheduler",
]


def chain(scheduler, steps=None, *, wide=1, dtype=torch.float32, **options):
    """The results of a loop with one generator, and the state that this is left in."""
    scheduler.set_timesteps(**(steps or {"num_inference_steps": 6}))
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(SHAPE, generator=torch.Generator().manual_seed(3)) * scheduler.init_noise_sigma
    x, results = x.to(dtype), []
    draws = "generator" in inspect.signature(scheduler.step).parameters
    given = {**options, "generator": generator} if draws else options
    for t in scheduler.timesteps:
        m = torch.tanh(0.7 * scheduler.scale_model_input(x, t).float() + 1e-3 * float(t)).to(dtype)
        m = torch.cat([m] * wide, 1)
        results.append(scheduler.step(m, t, x, return_dict=False, **given))
        x = results[-1][0]
    return results, generator.get_state()


def pair(name, **config):
    original = getattr(diffusers, name)(**config)
    return original, fastddpm.optimize(copy.deepcopy(original))


def same(name, steps=None, tolerance=1e-4, config=None, **options):
    """Every result of a loop, and the generator's state."""
    original, twin = pair(name, **(config or {}))
    (expected, theirs), (got, ours) = chain(original, steps, **options), chain(twin, steps, **options)
    assert theirs.equal(ours), "the random stream differs"
    assert not isinstance(twin.__dict__.get("_walk"), str), "the original's step"
    for mine, other in zip(got, expected, strict=True):
        for a, b in zip(mine, other, strict=True):
            assert a.dtype == b.dtype
            assert b.isfinite().all()
            assert (a.double() - b.double()).abs().max() <= tolerance * max(1, b.abs().max())


@pytest.mark.parametrize("name", NO_SAMPLE)
def test_a_prediction_that_the_class_does_not_take(name):
    scheduler = getattr(diffusers, name)(prediction_type="sample")
    with pytest.raises((NotImplementedError, ValueError)):
        chain(scheduler)
    with pytest.raises(BadArgument, match="prediction_type: 'sample' given"):
        fastddpm.optimize(scheduler)


def test_a_threshold_in_the_other_algorithm():
    scheduler = diffusers.SASolverScheduler(thresholding=True, algorithm_type="noise_prediction")
    with pytest.raises(RuntimeError):
        chain(scheduler)
    with pytest.raises(BadArgument, match="thresholding: True with algorithm_type 'noise_prediction'"):
        fastddpm.optimize(scheduler)


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("DPMSolverMultistepScheduler", {"prediction_type": "sample"}),
        ("DPMSolverSinglestepScheduler", {"prediction_type": "v_prediction"}),
        ("SASolverScheduler", {}),
    ],
)
def test_learned_variances_that_the_class_does_not_cut_off(name, config):
    original, twin = pair(name, variance_type="learned_range", **config)
    for scheduler in (original, twin):
        with pytest.raises((RuntimeError, ValueError)):
            chain(scheduler, wide=2)
    same(name, config={"variance_type": "learned_range", **config})


def test_noise_that_counts_for_nothing_is_drawn():
    """By TCD in a step to timestep 0, where it is multiplied by 0."""
    config = {"num_train_timesteps": 10, "timestep_spacing": "linspace", "original_inference_steps": 10}
    same("TCDScheduler", {"num_inference_steps": 10}, config=config, eta=1.0)
    pipeline = text_pipeline(scheduler=diffusers.LCMScheduler())
    hold(pipeline, num_inference_steps=4, output_type="latent", eta=0.0, **embeds())


@pytest.mark.parametrize("name", ["LCMScheduler", "TCDScheduler"])
def test_the_second_result_where_nothing_of_the_image_is_left(name):
    """alphas_cumprod goes down to 1e-20, and the noise is 1 in float32."""
    config = {"trained_betas": np.linspace(1e-3, 0.1, 1000).tolist(), "prediction_type": "sample"}
    same(name, config=config, **({"eta": 1.0} if name[0] == "T" else {}))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
@pytest.mark.parametrize("prediction", ["epsilon", "sample"])
def test_dtypes_of_the_second_result(dtype, prediction):
    names = ["EulerDiscreteScheduler", "HeunDiscreteScheduler"]
    names += ["EulerAncestralDiscreteScheduler"] if prediction == "epsilon" else []
    for name in names:
        rounding = 0.1 if dtype == torch.bfloat16 else 1e-4
        same(name, tolerance=rounding, config={"prediction_type": prediction}, dtype=dtype)


def test_a_few_steps_where_more_have_no_rows():
    """Ten steps have two at one level, and no step of order 3 exists; the original takes fewer."""
    short = {"num_train_timesteps": 7, "steps_offset": 1}
    same("DEISMultistepScheduler", {"num_inference_steps": 4}, config=short)
    config = {"algorithm_type": "sde-dpmsolver", "solver_order": 3, "final_sigmas_type": "sigma_min"}
    same("DPMSolverMultistepScheduler", {"num_inference_steps": 2}, config=config)
    consistency = {"num_train_timesteps": 7}  # of which it takes no 50 original steps
    steps = {"num_inference_steps": 5, "original_inference_steps": 7}
    same("TCDScheduler", steps, config=consistency)


def test_timesteps_beyond_the_schedule_are_an_error_of_ours():
    config = {"num_train_timesteps": 50, "steps_offset": 5}
    with pytest.raises(BadArgument, match="cannot be repeated"):
        fastddpm.plans.diffusers.from_scheduler(diffusers.PNDMScheduler(**config), 10)


def test_a_first_timestep_that_comes_twice():
    """The original begins at its second place and has no row for the last step."""
    config = {"num_train_timesteps": 10, "use_exponential_sigmas": True, "beta_start": 0.01, "beta_end": 0.5}
    pipeline = quiet(LDMPipeline(quantizer(), pixel_unet(), diffusers.UniPCMultistepScheduler(**config)))
    fast = fastddpm.optimize(pipeline)
    call = {"num_inference_steps": 20, "output_type": "np"}
    with pytest.raises((IndexError, AssertionError)):
        pipeline(**call)
    with pytest.raises(BadArgument, match="num_inference_steps: 20, of which the first timestep"):
        fast(**call)


def test_networks_in_float64():
    pixels = quiet(DDIMPipeline(pixel_unet().double(), DDIMScheduler()))
    hold(pixels, batch_size=2, num_inference_steps=5, eta=0.5, output_type="np")
    texts = text_pipeline().to(torch.float64)
    given = {name: value.double() for name, value in embeds().items()}
    hold(texts, num_inference_steps=4, output_type="latent", **given)
    images, _ = drawn(fastddpm.optimize(texts), num_inference_steps=2, output_type="latent", **given)
    assert images.dtype == torch.float64
