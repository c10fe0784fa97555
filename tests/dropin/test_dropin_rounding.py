"""Drop-ins round where diffusers rounds: chains of untrained networks amplify a last bit, and still agree."""

import pytest
import torch

import fastddpm

diffusers = pytest.importorskip("diffusers")
from diffusers import (  # noqa: E402
    DDIMPipeline,
    DDIMScheduler,
    DDPMPipeline,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    UNet2DModel,
)

EXACT = 0.0
"""On the CPU every operation is the original's, in its order."""

CLIPPED = 2e-5
"""DDPM of a clipped sample or v is a last bit off in some steps, which a chain amplifies to 1.1e-5."""

MULTISTEP = 1e-4
"""Diffusers takes the difference of two x0 before it weighs it; a row weighs each of the two."""


def untrained(size=8, out_channels=3):
    """Twice the weights of a fresh network: one last bit of x_T grows by orders of magnitude in 50 steps."""
    torch.manual_seed(0)
    unet = UNet2DModel(
        sample_size=size,
        in_channels=3,
        out_channels=out_channels,
        layers_per_block=1,
        block_out_channels=(8, 16),
        norm_num_groups=4,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=8,
    ).eval()
    with torch.no_grad():
        for weight in unet.parameters():
            if weight.ndim > 1:
                weight *= 2
    return unet


def difference(pipeline, **call):
    """The largest difference of the drop-in's images from the pipeline's, in [-1, 1]."""
    pipeline.set_progress_bar_config(disable=True)
    fast = fastddpm.optimize(pipeline)
    call = {"num_inference_steps": 50, "output_type": "pt", **call}
    results = []
    for each in (pipeline, fast):
        torch.manual_seed(5)
        results.append(each(**call).images)
    expected, got = results
    assert torch.isfinite(expected).all()
    assert expected.std() > 0.01
    return 2 * float((got - expected).abs().max())


@pytest.mark.parametrize(
    ("prediction", "clip", "eta"),
    [
        ("epsilon", "clipped", 0.0),
        ("epsilon", "clipped", 0.5),
        ("epsilon", "clipped", 1.0),
        ("epsilon", "unclipped", 0.0),
        ("epsilon", "rederived", 0.0),
        ("epsilon", "thresholded", 0.5),
        ("sample", "clipped", 0.0),
        ("sample", "unclipped", 0.5),
        ("v_prediction", "clipped", 0.5),
        ("v_prediction", "unclipped", 0.0),
        ("v_prediction", "rederived", 0.0),
    ],
)
def test_ddim(prediction, clip, eta):
    scheduler = DDIMScheduler(
        prediction_type=prediction,
        clip_sample=clip in ("clipped", "rederived"),
        thresholding=clip == "thresholded",
        sample_max_value=1.5,
    )
    pipeline = DDIMPipeline(untrained(), scheduler)
    assert difference(pipeline, eta=eta, use_clipped_model_output=clip == "rederived") <= EXACT


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"clip_sample": False},
        {"prediction_type": "sample", "clip_sample": False},
        {"prediction_type": "v_prediction", "clip_sample": False},
        {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"},
        {"variance_type": "fixed_large"},
        {"thresholding": True, "sample_max_value": 1.5},
    ],
    ids=str,
)
def test_ddpm(config):
    assert difference(DDPMPipeline(untrained(), DDPMScheduler(**config))) <= EXACT


@pytest.mark.parametrize("prediction", ["sample", "v_prediction"])
def test_ddpm_of_other_predictions_with_a_clip(prediction):
    """The one case of the two schedulers that is not exact."""
    pipeline = DDPMPipeline(untrained(), DDPMScheduler(prediction_type=prediction))
    assert difference(pipeline) <= CLIPPED


def test_ddpm_with_a_learned_range():
    scheduler = DDPMScheduler(variance_type="learned_range")
    assert difference(DDPMPipeline(untrained(out_channels=6), scheduler)) <= EXACT


@pytest.mark.slow
def test_ddpm_over_1000_steps():
    pipeline = DDPMPipeline(untrained(size=4), DDPMScheduler())
    assert difference(pipeline, num_inference_steps=1000) <= EXACT


@pytest.mark.parametrize(("order", "tolerance"), [(1, EXACT), (2, MULTISTEP)])
def test_dpmsolver(order, tolerance):
    scheduler = DPMSolverMultistepScheduler(solver_order=order)
    assert difference(DDPMPipeline(untrained(), scheduler)) <= tolerance


@pytest.mark.parametrize("kind", [DDIMScheduler, DDPMScheduler])
@pytest.mark.parametrize("clip", [True, False])
def test_steps_of_a_scheduler(kind, clip):
    """x_{t-1} and the predicted x0 of single steps, at the noisiest timesteps too."""
    original = kind(clip_sample=clip)
    fast = fastddpm.optimize(original)
    for scheduler in (original, fast):
        scheduler.set_timesteps(250)
    for k, t in enumerate(original.timesteps[::10]):
        torch.manual_seed(k)
        x, m = torch.randn(2, 3, 8, 8), torch.randn(2, 3, 8, 8)
        torch.manual_seed(k)
        expected = original.step(m, t, x)
        torch.manual_seed(k)
        got = fast.step(m, t, x)
        assert torch.equal(got.prev_sample, expected.prev_sample)
        assert torch.equal(got.pred_original_sample, expected.pred_original_sample)
