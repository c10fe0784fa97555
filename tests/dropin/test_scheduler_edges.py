"""diffusers' schedulers at the edges: what the original refuses, repeats or draws for nothing."""

import copy
import inspect

import numpy as np
import pytest
import torch

import fastddpm
from fastddpm.checks import BadArgument
from fastddpm.engine import executors

diffusers = pytest.importorskip("diffusers")
pytest.importorskip("transformers")
from diffusers import (  # noqa: E402
    DDIMPipeline,
    DDIMScheduler,
    LDMPipeline,
    StableDiffusionImg2ImgPipeline,
)
from latent_pipelines import (  # noqa: E402
    drawn,
    embeds,
    forbid_steps,
    hold,
    pixel_unet,
    quantizer,
    quiet,
    text_pipeline,
)
from replay import RecordingBackend  # noqa: E402

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


def test_an_order_that_is_none():
    scheduler = diffusers.SASolverScheduler(corrector_order=0)
    with pytest.raises(AssertionError):
        chain(scheduler)
    with pytest.raises(BadArgument, match="corrector_order: 0 given"):
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


def test_learned_variances_of_four_channels_are_cut_to_three():
    """By SA-Solver, which then fails over the fourth."""
    config = {"variance_type": "learned_range"}
    original, twin = pair("SASolverScheduler", **config)
    x, t = torch.ones(1, 4, 2, 2), 999
    for scheduler in (original, twin):
        scheduler.set_timesteps(2)
        with pytest.raises(RuntimeError, match="size of tensor"):
            scheduler.step(x, t, x)
    pipeline = text_pipeline(scheduler=original)
    with pytest.raises(RuntimeError, match="size of tensor"):
        pipeline(num_inference_steps=2, output_type="latent", **embeds())
    with pytest.raises(BadArgument, match="first 3 of 4 channels"):
        fastddpm.optimize(pipeline)


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
    if prediction == "epsilon":
        names += ["EulerAncestralDiscreteScheduler", "EDMEulerScheduler"]
    for name in names:
        rounding = 0.1 if dtype == torch.bfloat16 else 1e-4
        same(name, tolerance=rounding, config={"prediction_type": prediction}, dtype=dtype)


def test_deis_where_its_weights_are_what_is_left_of_logarithms():
    """By NumPy's logarithm: with torch's they are others."""
    config = {"num_train_timesteps": 500, "beta_schedule": "scaled_linear", "prediction_type": "v_prediction"}
    config |= {"steps_offset": 5, "solver_order": 3}
    same("DEISMultistepScheduler", {"num_inference_steps": 50}, tolerance=2e-5, config=config)


@pytest.mark.parametrize("begin", [1, 2])
def test_pndm_from_the_timestep_that_comes_twice(begin):
    """Where a chain begins is known from its second step: the first has the same timestep at both places."""
    states = []
    for scheduler in pair("PNDMScheduler", skip_prk_steps=True):
        scheduler.set_timesteps(7)
        x = torch.randn(SHAPE, generator=torch.Generator().manual_seed(3))
        for t in scheduler.timesteps[begin:]:
            x = scheduler.step(torch.tanh(x + 1e-3 * float(t)), t, x).prev_sample
        states.append(x)
    assert (states[0] - states[1]).abs().max() <= 1e-5


def test_pndm_from_a_timestep_of_ones_own():
    """The original steps from what it is told, wherever its timesteps are."""
    states = []
    for scheduler in pair("PNDMScheduler", skip_prk_steps=True):
        scheduler.set_timesteps(7)
        x = torch.randn(SHAPE, generator=torch.Generator().manual_seed(3))
        for t in (501, 359):
            x = scheduler.step(torch.tanh(x + 1e-3 * t), t, x).prev_sample
        states.append(x)
    assert states[1].equal(states[0])
    assert "it begins at none of the timesteps" in str(scheduler.report())


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


IN_SIGMAS = {
    "EulerDiscreteScheduler": ["epsilon", "v_prediction", "sample"],
    "EulerAncestralDiscreteScheduler": ["epsilon", "v_prediction"],
    "HeunDiscreteScheduler": ["epsilon", "v_prediction", "sample"],
    "LMSDiscreteScheduler": ["epsilon", "v_prediction", "sample"],
    "KDPM2DiscreteScheduler": ["epsilon", "v_prediction"],
    "KDPM2AncestralDiscreteScheduler": ["epsilon", "v_prediction"],
}
COSINE = {"beta_schedule": "squaredcos_cap_v2", "num_train_timesteps": 200}


def walked(twin):
    return twin.__dict__["_walk"].plan


@pytest.mark.parametrize("name", IN_SIGMAS)
def test_from_a_level_of_thousands_results_are_the_originals_to_the_last_bit(name):
    """A unit in the last place of a state is 2e-4 there, which slopes are taken of and images keep."""
    for prediction in IN_SIGMAS[name]:
        config = {**COSINE, "prediction_type": prediction}
        same(name, {"num_inference_steps": 10}, tolerance=0.0, config=config)
        if not name.startswith("Euler"):  # which computes in float32; a plan has LMS's weights in that
            near = 1e-4 if name.startswith("LMS") else 1e-7
            same(name, {"num_inference_steps": 6}, tolerance=near, config=config, dtype=torch.float64)
    if name.startswith("Heun"):
        config = {**COSINE, "prediction_type": "v_prediction", "clip_sample": True}
        same(name, {"num_inference_steps": 6}, tolerance=0.0, config=config)
    if name == "EulerDiscreteScheduler":
        same(name, tolerance=0.0, config=COSINE, s_churn=3.0, s_noise=1.1, s_tmax=1e4)


def test_rows_of_the_scale_without_noise_where_they_do():
    for name, twice in (("EulerDiscreteScheduler", False), ("HeunDiscreteScheduler", True)):
        twin = fastddpm.optimize(getattr(diffusers, name)())
        chain(twin, {"num_inference_steps": 10})
        assert not walked(twin).in_sigmas, "sigma is 157"
        # A second slope far below the first takes the rounding there times both: 14.6 to 0.03 in one step.
        twin = fastddpm.optimize(getattr(diffusers, name)(beta_start=0.00085, beta_end=0.012))
        chain(twin, {"num_inference_steps": 2})
        assert walked(twin).in_sigmas == twice
        assert ("one by one" in str(twin.report().not_fused)) == twice


@pytest.mark.parametrize("name", ["LMSDiscreteScheduler", "KDPM2AncestralDiscreteScheduler"])
def test_pipelines_from_such_a_level(name, monkeypatch):
    """Also from a row where the level is low."""
    scheduler = getattr(diffusers, name)(**COSINE, prediction_type="v_prediction")
    pipeline = text_pipeline(scheduler=scheduler)
    call = {"num_inference_steps": 10, "output_type": "latent", **embeds()}
    hold(pipeline, guidance_scale=3.0, **call)
    fast = fastddpm.optimize(pipeline)
    assert fast.report().fused == ()
    assert "one by one" in fast.report().not_fused[0]
    states = fast.sample_trajectory(generator=torch.Generator().manual_seed(1), **call)
    forbid_steps(monkeypatch, scheduler)
    generator = torch.Generator().manual_seed(1)
    assert states[-1].equal(fast(generator=generator, **call).images), "the trajectory is of the same states"
    monkeypatch.undo()
    picture = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(2))
    hold(text_pipeline(StableDiffusionImg2ImgPipeline, scheduler), image=picture, strength=0.9, **call)
    hold(
        quiet(LDMPipeline(quantizer(), pixel_unet(), getattr(diffusers, name)(**COSINE))),
        num_inference_steps=6,
        output_type="np",
    )
    monkeypatch.setattr("fastddpm.runner.resolve_engine", lambda engine, device: "cudagraph")
    monkeypatch.setattr(executors, "CudaGraphBackend", RecordingBackend)
    monkeypatch.setattr(RecordingBackend, "captures", 0)
    hold(pipeline, guidance_scale=3.0, **call)
    assert RecordingBackend.captures > 0, "steps recorded once and replayed"
