"""`precision="int8"`: what is rounded to bytes, by which states, never of old weights; what is refused."""

from __future__ import annotations

import re
import warnings

import numpy as np
import pytest
import torch
from networks import TINY, make_unet
from tolerances import ACROSS_BACKENDS, INT8_PASS
from torch import nn

import fastddpm
from fastddpm import EngineUnavailable, NoiseSchedule, Sampler
from fastddpm.engine import int8, quantised, sessions
from fastddpm.engine.calibration import output_moves
from fastddpm.serving import Scheduler
from fastddpm_kernels import reverse_step

pytest.importorskip("onnxruntime")

ENGINE = {"engine": "onnxruntime", "precision": "int8"}
OPTIONS = {"num_inference_steps": 4, "clip_sample_range": 1.0, "shape": (3, 8, 8)}
REQUEST = {"class_labels": [0, 3], "progress": False}


def sampler(model=None, **options):
    return Sampler(model or make_unet(TINY), NoiseSchedule.linear(), **{**OPTIONS, **options})


def draw(one, seeds=(1, 2), **request):
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        return one.sample(seeds=list(seeds), **{**REQUEST, **request})


# ------------------------------------------------------------------ the arithmetic


class Two(nn.Module):
    """A convolution between two others, of which the outer ones hang on the input and the output."""

    def __init__(self, spread=1.0):
        super().__init__()
        torch.manual_seed(0)
        self.convs = nn.ModuleList(nn.Conv2d(a, b, 3, padding=1) for a, b in ((3, 8), (8, 8), (8, 3)))
        scales = torch.ones(8)
        scales[0] = (
            spread  # a channel that is so much larger, and that the next convolution reads so much smaller
        )
        with torch.no_grad():
            self.convs[0].weight.mul_(scales[:, None, None, None])
            self.convs[0].bias.mul_(scales)
            self.convs[1].weight.div_(scales[:, None, None])

    def forward(self, x, t):
        return self.convs[2](self.convs[1](self.convs[0](x)))


def test_the_integers_are_those_of_torchs_own_quantisation():
    """Held to torch's fake quantisation of the same ranges, in float64 around it."""
    model, x = Two().eval(), torch.randn(4, 3, 8, 8)
    proto = sessions.traced(model, (x, torch.zeros(4)))
    read = quantised.read(proto)
    nodes = quantised.candidates(read)
    seen = quantised.observed(read, nodes, [{"input_0": x.numpy()}], 1)
    found = sessions.started(quantised.quantised(read, nodes, seen))((x,)).clone()
    assert len(nodes) == 1

    def rounded(values):
        low, high = min(0.0, float(values.min())), max(0.0, float(values.max()))
        scale = (high - low) / 255
        return torch.fake_quantize_per_tensor_affine(values, scale, round(-low / scale), 0, 255)

    with torch.no_grad():
        first, middle, last = model.convs
        scales = middle.weight.abs().amax((1, 2, 3)) / 127
        weight = torch.fake_quantize_per_channel_affine(
            middle.weight, scales, torch.zeros(8, dtype=torch.int32), 0, -127, 127
        )
        before = first(x)
        plain = middle(before)
        inner = nn.functional.conv2d(
            rounded(before).double(), weight.double(), middle.bias.double(), padding=1
        )
        low, high = min(0.0, float(plain.min())), max(0.0, float(plain.max()))
        scale = (high - low) / 255
        inner = torch.fake_quantize_per_tensor_affine(inner.float(), scale, round(-low / scale), 0, 255)
        wanted = last(inner)
    # A sum near a tie may round to the neighbouring byte, which is what one output in so many is off by.
    step = scale * float(last.weight.detach().abs().max())
    assert float((found - wanted).abs().max()) < 2 * step
    assert float((found - wanted).abs().mean()) < 0.05 * step
    assert float((found - model(x, None).detach()).abs().mean()) > 0.1 * step


def test_what_256_levels_are_too_few_for():
    """Uniform numbers in [-1, 1] have 48 dB: 1/3 over (2/255)**2/12."""
    uniform = np.linspace(-1, 1, 20_001)[None]
    seen = quantised.Seen()
    seen.add(uniform, 1)
    step = (seen.highest - seen.lowest) / 255
    assert abs(seen.energy / (step * step / 12) / 65025 - 1) < 1e-3
    assert seen.fits_bytes
    seen.add(np.concatenate((0.05 * uniform, uniform)), 2)  # 22 dB of one sample of two
    assert not seen.fits_bytes
    alone = quantised.Seen()
    alone.add(np.concatenate((0.15 * uniform, uniform)), 2)  # 32 dB
    assert alone.fits_bytes
    assert not quantised.Seen(0.0, float("inf"), 1.0).fits_bytes


# ------------------------------------------------------------------ chains


@pytest.mark.parametrize("request_", [{}, {"guidance_scale": 2.0}], ids=["plain", "guided"])
def test_images_are_near_float32s_and_alone_what_they_are_together(request_):
    full, fast = sampler(), sampler(**ENGINE)
    wanted, found = draw(full, **request_), draw(fast, **request_)
    gap = float((found - wanted).square().mean() / wanted.square().mean()) ** 0.5
    assert 1e-3 < gap < 4 * INT8_PASS
    assert torch.equal(draw(fast, **request_), found)
    alone = [draw(fast, [seed], class_labels=[label], **request_) for seed, label in ((1, 0), (2, 3))]
    assert float((torch.cat(alone) - found).abs().max()) < ACROSS_BACKENDS
    assert found.dtype == torch.float32
    assert "int8" in repr(fast)


def test_one_pass_is_within_its_tolerance():
    one = {"method": "ddim", "num_inference_steps": None, "timesteps": [200], "clip_sample_range": None}
    wanted, found = draw(sampler(**one)), draw(sampler(**one, **ENGINE))
    assert float((found - wanted).square().mean() / wanted.square().mean()) ** 0.5 < INT8_PASS


def test_what_was_drawn_first_changes_nothing():
    one, other = sampler(**ENGINE), sampler(**ENGINE)
    draw(one, [77, 78], class_labels=[1, 1], guidance_scale=3.0)
    draw(one, [77, 78], class_labels=[1, 1])
    assert torch.equal(draw(one), draw(other))


@pytest.mark.parametrize("change", ["past the version counter", "load_state_dict"])
def test_changed_weights_are_quantised_again(change):
    model = make_unet(TINY)
    fast = sampler(model, **ENGINE)
    before = draw(fast)
    other = make_unet(TINY, 1)
    with torch.no_grad():
        if change == "load_state_dict":
            model.load_state_dict(other.state_dict())
        else:
            for mine, theirs in zip(model.parameters(), other.parameters(), strict=True):
                mine.data.copy_(theirs)
    with pytest.warns(
        RuntimeWarning, match=r"the model has changed, and to quantise it again took [0-9.]+ s"
    ):
        found = fast.sample(seeds=[1, 2], **REQUEST)
    assert torch.equal(found, draw(sampler(other, **ENGINE)))
    assert not torch.equal(found, before)
    assert torch.equal(draw(fast), found)


def test_another_plan_is_calibrated_by_itself():
    """A pipeline's plan changes from call to call, in the same loop."""
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    blocks = {"down_block_types": ["DownBlock2D"] * 2, "up_block_types": ["UpBlock2D"] * 2}
    unet = diffusers.UNet2DModel(
        8, 3, 3, block_out_channels=(8, 16), norm_num_groups=4, layers_per_block=1, **blocks
    )
    pipeline = diffusers.DDIMPipeline(unet, diffusers.DDIMScheduler())
    pipeline.set_progress_bar_config(disable=True)

    def draw(fast, steps):
        generator = torch.Generator().manual_seed(1)
        return fast(batch_size=2, num_inference_steps=steps, output_type="np", generator=generator).images

    one, other = (fastddpm.optimize(pipeline, **ENGINE) for _ in range(2))
    assert "precision int8" in str(one.report())
    many = draw(one, 3)
    assert 0 < abs(many - draw(pipeline, 3)).mean() < INT8_PASS
    assert (draw(one, 2) == draw(other, 2)).all()


def test_lucidrains_with_self_conditioning():
    theirs = pytest.importorskip("denoising_diffusion_pytorch")
    torch.manual_seed(0)
    unet = theirs.Unet(8, dim_mults=(1, 2), self_condition=True, flash_attn=False)
    diffusion = theirs.GaussianDiffusion(unet, image_size=8, timesteps=4)
    fast = fastddpm.optimize(diffusion, **ENGINE)
    torch.manual_seed(1)
    wanted = diffusion.sample(batch_size=2)
    torch.manual_seed(1)
    found = fast.sample(batch_size=2)
    assert 0 < float((found - wanted).abs().mean()) < INT8_PASS


# ------------------------------------------------------------------ what is refused


@pytest.mark.parametrize("engine", ["auto", "eager", "compile"])
def test_it_is_one_engines(engine):
    words = f"precision: 'int8' with engine '{engine}' given, engine 'onnxruntime', on a CPU, or another"
    with pytest.raises(ValueError, match=re.escape(words)):
        sampler(engine=engine, precision="int8")


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_is_other_engines(precision):
    words = (
        f"precision: '{precision}' with engine 'onnxruntime', whose convolutions on a CPU are float32 or int8"
    )
    with pytest.raises(ValueError, match=re.escape(words)):
        sampler(engine="onnxruntime", precision=precision)


def test_where_it_starts_from():
    with pytest.raises(ValueError, match=r"'int8' for a network in torch.bfloat16 given, .*float32 weights"):
        sampler(make_unet(TINY).to(torch.bfloat16), **ENGINE)
    with pytest.raises(
        ValueError, match=r"torch.bfloat16 with precision 'int8' given, None or torch.float32"
    ):
        sampler(dtype=torch.bfloat16, **ENGINE)
    with pytest.raises(EngineUnavailable, match="'onnxruntime' runs on a CPU"):
        sampler(device="cuda", **ENGINE)
    with pytest.raises(
        ValueError, match="sampler: one of precision 'int8' given, another precision accepted"
    ):
        Scheduler(sampler(**ENGINE))


def test_networks_that_bytes_are_not_enough_for():
    with pytest.raises(EngineUnavailable, match="'int8' for a network without a convolution or product"):
        draw(sampler(lambda x, t: 0.5 * x, **ENGINE), class_labels=None)
    # One scale for all channels of an activation: seven of eight are rounded to nothing.
    with pytest.raises(
        EngineUnavailable, match=rf"outputs are [0-9.]+ off in it.*{int8.LARGEST_ERROR} is acc"
    ):
        draw(sampler(Two(1e4), **ENGINE), class_labels=None)


@pytest.mark.parametrize(
    "options",
    [
        {"method": "ddpm"},
        {"method": "ddim", "eta": 0.5, "prediction_type": "v_prediction"},
        {"method": "dpmpp_2m"},
        {"method": "heun"},
        {"method": "unipc", "clip_sample_range": None},
    ],
    ids=lambda options: options["method"],
)
def test_an_output_counts_as_it_moves_the_state(options):
    """By the difference of two steps of one state, with an output of 1 and of 0."""
    plan = sampler(**{**OPTIONS, "clip_sample_range": None, "num_inference_steps": 6, **options}).plan
    moves = output_moves(plan)
    assert len(moves) == len(plan)
    for row, found in enumerate(moves):
        x = torch.zeros(2, 1)
        reverse_step(
            x,
            torch.tensor([[0.0], [1.0]]),
            torch.from_numpy(plan.table.copy()),
            torch.tensor([[row, 0]] * 2),
            kept=torch.zeros(3, 2, 1) if plan.kept or plan.combines else None,
            combine=plan.combines,
            divide=plan.divides,
            rederive=plan.rederives,
        )
        assert abs(float(x[1] - x[0])) == pytest.approx(found, rel=1e-5, abs=1e-6)


def test_errors_where_the_output_does_not_count_are_none(monkeypatch):
    """By 10 leading steps, whose last is at timestep 0; the output by itself is 0.1 off."""
    monkeypatch.setattr(int8, "LARGEST_ERROR", 0.03)
    one = fastddpm.load(**ENGINE, num_inference_steps=10, timestep_spacing="leading")
    assert draw(one, seeds=[1], class_labels=None).isfinite().all()
    monkeypatch.setattr(int8, "LARGEST_ERROR", 0.005)
    with pytest.raises(EngineUnavailable, match=r"outputs are 0\.0[12] off in it"):
        draw(one.replace(), seeds=[1], class_labels=None)


def test_the_command_line(monkeypatch, capsys, tmp_path):
    import sys

    from fastddpm.cli import app

    def run(*words):
        given = ["--steps", "2", "--seeds", "0-1", "--out", str(tmp_path / "x.png"), "--device", "cpu"]
        words = ("sample", *given, *words)
        monkeypatch.setattr(sys, "argv", ["fastddpm", *words])
        try:
            code = app.main()
        except SystemExit as stop:
            code = stop.code
        return code or 0, *capsys.readouterr()

    code, said, _ = run("--engine", "onnxruntime", "--precision", "int8")
    assert code == 0
    assert "in int8" in said
    code, _, error = run("--precision", "int8")
    assert code == 2
    assert error.count("\n") == 1
    assert "--precision: 'int8' with engine 'auto'" in error
