"""A method that is not there, added as CONTRIBUTING.md says: a formula and one registration.

Every way in then knows it. Its images are those of a plain loop in float64.
"""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch
from networks import make_unet
from onnx_exports import tiny_sampler
from PIL import Image

import fastddpm
from fastddpm import NoiseSchedule, Sampler, ddim_plan, save_folder
from fastddpm.checks import BadArgument
from fastddpm.cli import app as cli
from fastddpm.export.errors import ExportError
from fastddpm.export.nodes import Graph
from fastddpm.export.vector import Vector
from fastddpm.jobs import Job, TorchDrawer
from fastddpm.plans import METHODS, register_method
from fastddpm.plans.formula import prediction_columns
from fastddpm_kernels.noise import reference

SEEDS = [3, 8]
OPTIONS = {"method": "consistency", "num_inference_steps": 5, "clip_sample_range": 1.0}


def consistency(passed, options):
    """x_next = alpha_next*x0 + sigma_next*z, z fresh: Song et al. 2023, algorithm 1."""
    alpha, sigma = np.sqrt(passed.abar), np.sqrt(1 - passed.abar)
    p, q = prediction_columns(options.prediction_type, alpha, sigma, bounded=options.bounded)
    noise = np.sqrt(1 - passed.abar_next)
    return {"x0_from_x": p, "x0_from_m": q, "from_x0": np.sqrt(passed.abar_next), "from_noise": noise}


@pytest.fixture(autouse=True)
def registered():
    register_method("consistency", consistency)
    yield
    del METHODS["consistency"]


@pytest.fixture(scope="module")
def unet():
    return make_unet()


def plain_loop(unet, schedule, timesteps, label):
    """float64 (B, 3, 8, 8), by the definition."""
    x = reference.normal(SEEDS, 0, (3, 8, 8)).astype(np.float64)
    abar = [*schedule.alphas_cumprod[timesteps], 1.0]
    labels = torch.full((len(SEEDS),), label)
    for k, t in enumerate(timesteps):
        with torch.no_grad():
            eps = unet(
                torch.tensor(x, dtype=torch.float32), torch.full((len(SEEDS),), t), class_labels=labels
            )
        x0 = np.clip((x - np.sqrt(1 - abar[k]) * eps.double().numpy()) / np.sqrt(abar[k]), -1, 1)
        z = reference.normal(SEEDS, k + 1, (3, 8, 8)).astype(np.float64)
        x = np.sqrt(abar[k + 1]) * x0 + np.sqrt(1 - abar[k + 1]) * z
    return x


def test_a_sampler_draws_with_it(unet):
    schedule = NoiseSchedule.linear(1000)
    sampler = Sampler(unet, schedule, shape=(3, 8, 8), **OPTIONS)
    images = sampler.sample(seeds=SEEDS, class_labels=1, progress=False)
    wanted = plain_loop(unet.eval(), schedule, [800, 600, 400, 200, 0], 1)
    assert abs(images.double().numpy() - wanted).max() < 1e-4


def test_a_folder_and_the_command_line_draw_with_it(unet, tmp_path, monkeypatch, capsys):
    folder = save_folder(tmp_path / "model", unet, NoiseSchedule.linear(), {**OPTIONS, "shape": [3, 8, 8]})
    words = ["sample", folder, "--seeds", "3,8", "--class", "1", "--out", tmp_path / "two.npz"]
    monkeypatch.setattr(sys, "argv", ["fastddpm", *map(str, words)])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code in (0, None)
    assert "consistency, 5 steps" in capsys.readouterr().out
    schedule = NoiseSchedule.linear(1000)
    wanted = plain_loop(unet.eval(), schedule, [800, 600, 400, 200, 0], 1).transpose(0, 2, 3, 1)
    pixels = np.load(tmp_path / "two.npz")["arr_0"].astype(int)
    assert abs(pixels - (wanted.clip(-1, 1) + 1) * 127.5).max() <= 1.0


@pytest.mark.slow
def test_a_file_of_onnx_runtime_draws_with_it(tmp_path, translated_once):
    pytest.importorskip("onnxruntime")
    sampler = tiny_sampler("classes").replace(**OPTIONS)
    fastddpm.export_onnx(sampler, tmp_path / "onnx", verify=False)
    wanted = sampler.sample(seeds=SEEDS, class_labels=1, progress=False).numpy()
    for loop in ("file", "steps"):
        exported = fastddpm.onnx.OnnxSampler(tmp_path / "onnx", loop=loop)
        images = exported.sample(seeds=SEEDS, class_labels=1, progress=False)
        assert abs(images - wanted).max() < 1e-4
    known = exported.folder.methods
    assert known == ("ddpm", "ddim", "dpmpp_2m", "consistency")


def test_a_job_draws_with_it(unet, tmp_path):
    sampler = Sampler(unet, NoiseSchedule.linear(1000), shape=(3, 8, 8), **OPTIONS)
    job = Job(TorchDrawer(sampler), SEEDS, tmp_path, class_labels=[1, 1], format="png")
    job.run(progress=False)
    wanted = sampler.sample(seeds=SEEDS, class_labels=1, progress=False)
    (first, *_) = sorted(tmp_path.rglob("*.png"))
    pixels = np.asarray(Image.open(first)).astype(float)
    assert abs(pixels - (wanted[0].clamp(-1, 1).permute(1, 2, 0).numpy() + 1) * 127.5).max() <= 1.0


def test_it_has_no_options_of_others():
    with pytest.raises(BadArgument, match=r"eta: 0\.5, .* heun and tcd, with method 'consist"):
        fastddpm.Method(**OPTIONS, eta=0.5)
    with pytest.raises(BadArgument, match="name: 'ddim' given"):
        register_method("ddim", consistency)
    with pytest.raises(BadArgument, match="takes: 'steps' given"):
        register_method("other", consistency, takes=["steps"])


def test_a_formula_that_no_file_can_have_is_refused():
    vector = Vector(Graph(), "x")
    for formula, words in [
        (lambda: np.tanh(vector), "np.tanh"),
        (lambda: np.sum(vector), "np.sum"),
        (lambda: np.maximum.accumulate(vector), "accumulate"),
        (lambda: vector[::-1], "slice"),
        (lambda: vector[0], "slice"),
    ]:
        with pytest.raises(ExportError, match=words):
            formula()


def test_the_plan_of_a_formula_is_that_of_the_function():
    """Beside the registered formula the functions of `fastddpm.plans` take options of their own."""
    schedule = NoiseSchedule.linear(1000)
    plan = fastddpm.Method(method="ddim", num_inference_steps=7, eta=0.3).plan(schedule)
    other = ddim_plan(schedule, 7, eta=0.3, use_clipped_model_output=True)
    np.testing.assert_array_equal(plan.table, other.table)
