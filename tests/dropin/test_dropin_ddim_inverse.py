"""FastDDIMInverseScheduler against diffusers': steps, chains, there and back, saving, what it refuses."""

from __future__ import annotations

import copy
import json
import pickle

import pytest
import torch

import fastddpm

diffusers = pytest.importorskip("diffusers")

from fastddpm.dropin.diffusers_schedulers import FastDDIMInverseScheduler  # noqa: E402

# As tests/dropin/test_dropin_diffusers_schedulers.py has them: of a step, and of a chain.
STEP = 1e-5
CHAIN = 1e-4
SHAPE = (2, 3, 4, 5)
CONFIGS = [
    {},
    {"clip_sample": False},
    {"set_alpha_to_one": False, "prediction_type": "sample"},
    {"timestep_spacing": "trailing", "clip_sample_range": 0.5, "prediction_type": "v_prediction"},
    {"timestep_spacing": "trailing", "rescale_betas_zero_snr": True, "prediction_type": "v_prediction"},
    {"beta_schedule": "squaredcos_cap_v2", "steps_offset": 2},
    {"beta_schedule": "scaled_linear", "set_alpha_to_one": False, "clip_sample": False},
]


def network(x, t):
    weight = torch.randn((3, 3, 3, 3), generator=torch.Generator().manual_seed(1), dtype=x.dtype) * 0.1
    return torch.tanh(torch.nn.functional.conv2d(x, weight, padding=1) + t / 1000)


@pytest.mark.parametrize("steps", [50, 1000])
@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_steps_and_chains(config, steps):
    original = diffusers.DDIMInverseScheduler(**config)
    original.set_timesteps(steps)
    fast = fastddpm.optimize(original)
    assert type(fast) is FastDDIMInverseScheduler
    start = torch.randn(SHAPE, generator=torch.Generator().manual_seed(7))
    ends = {}
    for scheduler in (original, fast):
        x = start
        for t in scheduler.timesteps if steps < 1000 else scheduler.timesteps[:60]:
            x = scheduler.step(network(x, t), t, x, return_dict=False)[0]
        ends[scheduler] = x
    assert not fast.__dict__.get("_refused")  # and not by the original's step
    assert (ends[fast] - ends[original]).abs().max() <= CHAIN * ends[original].abs().max()
    for t in (0, 1, steps // 2, 321, 990):  # those of the schedule, and others
        m = network(start, t)
        theirs, ours = original.step(m, t, start), fast.step(m, torch.tensor(t), start)
        assert type(ours) is type(theirs)
        for name in ("prev_sample", "pred_original_sample"):
            one, other = getattr(ours, name), getattr(theirs, name)
            assert (one - other).abs().max() <= STEP * other.abs().max(), (t, name)


def test_it_is_our_step(monkeypatch):
    from fastddpm.dropin._diffusers import rows

    calls, kernel = [], rows.reverse_step
    monkeypatch.setattr(rows, "reverse_step", lambda *a, **k: calls.append(1) or kernel(*a, **k))
    fast = FastDDIMInverseScheduler()
    fast.set_timesteps(10)
    x = torch.randn(SHAPE)
    for t in fast.timesteps:
        fast.step(x, t, x)
    assert len(calls) == 10


def test_the_way_back():
    """DDIM of many steps undoes what its inverse did, for a network that changes slowly."""
    config = {"clip_sample": False, "set_alpha_to_one": False}
    back = fastddpm.optimize(diffusers.DDIMScheduler(**config))
    there = FastDDIMInverseScheduler.from_config(back.config)
    x = image = torch.randn(SHAPE, generator=torch.Generator().manual_seed(3)).clamp(-1, 1)
    for scheduler in (there, back):
        scheduler.set_timesteps(500)
        for t in scheduler.timesteps:
            x = scheduler.step(0.3 * x, t, x).prev_sample
    assert (x - image).abs().max() < 0.02


def test_where_the_originals_step_is_taken():
    """Gradients, and x0 of a clean image, which says nothing of its noise: the original divides by 0."""
    config = {"prediction_type": "sample"}
    original, fast = diffusers.DDIMInverseScheduler(**config), FastDDIMInverseScheduler(**config)
    x, m = torch.randn(2, *SHAPE, generator=torch.Generator().manual_seed(3))
    for scheduler in (original, fast):
        scheduler.set_timesteps(10)
    theirs, ours = original.step(m, 0, x).prev_sample, fast.step(m, 0, x).prev_sample
    assert torch.equal(ours, theirs)
    assert not theirs.isfinite().any()
    assert "by the original's step: prediction_type: 'sample', and a step from the clean" in str(
        fast.report()
    )
    m = m.requires_grad_()
    fast.step(m, 500, x).prev_sample.sum().backward()
    assert m.grad is not None


def test_what_a_configuration_of_another_class_leaves_there():
    config = diffusers.DDIMScheduler(thresholding=True).config
    original = diffusers.DDIMInverseScheduler.from_config(config)
    original.set_timesteps(20)
    fast = fastddpm.optimize(original)
    x, m = torch.randn(2, *SHAPE, generator=torch.Generator().manual_seed(3))
    difference = fast.step(m, 900, 4 * x).prev_sample - original.step(m, 900, 4 * x).prev_sample
    assert difference.abs().max() <= STEP * 4
    assert "thresholding" not in str(fast.report())


def test_saved_under_the_originals_name(tmp_path):
    fast = FastDDIMInverseScheduler(beta_end=0.013, timestep_spacing="trailing")
    fast.save_pretrained(tmp_path)
    written = json.loads((tmp_path / "scheduler_config.json").read_text())
    assert written["_class_name"] == "DDIMInverseScheduler"
    assert type(FastDDIMInverseScheduler.from_pretrained(tmp_path)) is FastDDIMInverseScheduler
    for copied in (copy.deepcopy(fast), pickle.loads(pickle.dumps(fast))):
        assert type(copied) is FastDDIMInverseScheduler
        copied.set_timesteps(4)
        copied.step(torch.zeros(SHAPE), int(copied.timesteps[0]), torch.zeros(SHAPE))
    assert repr(fast).startswith("FastDDIMInverseScheduler in the place of ")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_dtypes(dtype):
    original, fast = diffusers.DDIMInverseScheduler(), FastDDIMInverseScheduler()
    x, m = torch.randn(2, *SHAPE, generator=torch.Generator().manual_seed(3)).to(dtype)
    for scheduler in (original, fast):
        scheduler.set_timesteps(20)
    theirs, ours = original.step(m, 500, x).prev_sample, fast.step(m, 500, x).prev_sample
    assert ours.dtype == theirs.dtype == dtype
    assert (ours.double() - theirs.double()).abs().max() <= max(STEP, 4 * torch.finfo(dtype).eps) * 4


def test_refused():
    x = torch.zeros(SHAPE)
    with pytest.raises(ValueError, match="num_inference_steps: None given, a call of set_timesteps first"):
        FastDDIMInverseScheduler().step(x, 3, x)
    with pytest.raises(ValueError, match="variance_type, previous_timestep: of a DDIMInverseScheduler given"):
        fastddpm.optimize(diffusers.DDIMInverseScheduler(), previous_timestep="consistent")
    unet = diffusers.UNet2DModel(
        sample_size=8, block_out_channels=(8, 8), layers_per_block=1, norm_num_groups=4,
        down_block_types=("DownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "UpBlock2D"),
    )  # fmt: skip
    with pytest.raises(ValueError, match="scheduler: DDIMInverseScheduler given, DDPMScheduler, DDIM"):
        fastddpm.optimize(diffusers.DDPMPipeline(unet, diffusers.DDIMInverseScheduler()))
