"""What `export_onnx` and `fastddpm export` refuse before any work, and the options found in a given plan."""

from __future__ import annotations

import re
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from networks import make_unet
from torch import nn

pytest.importorskip("onnxruntime")
import onnx

import fastddpm
from fastddpm import NoiseSchedule, Sampler
from fastddpm.cli import app as cli
from fastddpm.export import ExportError, network
from fastddpm.export.settings import resolve
from fastddpm.plans import make_plan
from fastddpm.plans.diffusers import from_ddim_scheduler

SCHEDULE = NoiseSchedule.linear(200)


def test_the_command_names_what_it_does_not_take(tmp_path, monkeypatch, capsys):
    (tmp_path / "mine.txt").write_text("x")
    cases = [
        (["--out", str(tmp_path)], "--out: .*holds other files"),
        (
            ["--out", str(tmp_path / "new"), "--dtype", "int8"],
            "--dtype: 'int8' given, one of float32, float16",
        ),
        (["nowhere", "--out", str(tmp_path / "new")], "'nowhere': not found"),
        ([], "--out"),
    ]
    for words, message in cases:
        monkeypatch.setattr(sys, "argv", ["fastddpm", "export", *words])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        assert stop.value.code == 2
        assert re.search(message, capsys.readouterr().err)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


# ------------------------------------------------------------------ what is asked for


def resolved(model, **changes):
    arguments = {"schedule": None, "shape": None, "dtype": "float32"}
    arguments |= {"num_classes": None, "condition_channels": None, "options": {}}
    return resolve(model, **{**arguments, **changes})


def sampler(**options):
    return Sampler(make_unet(), SCHEDULE, **{"shape": (3, 8, 8), **options})


@pytest.mark.parametrize(
    "options",
    [
        {"method": "ddpm", "variance_type": "fixed_large", "sigma_scale": 0.5, "clip_sample_range": 2.0},
        {"method": "ddpm", "prediction_type": "v_prediction", "timestep_spacing": "trailing"},
        {"method": "ddim", "eta": 0.25, "prediction_type": "sample"},
        {"method": "dpmpp_2m", "clip_sample_range": 1.0, "time_input": "noise_level"},
        {"method": "lms", "solver_order": 3, "timestep_spacing": "karras"},
        {"method": "unipc", "solver_order": 3, "clip_sample_range": 1.0, "timestep_spacing": "linspace"},
        {"method": "deis", "lower_order_final": True},
        {"method": "dpm2_ancestral", "timestep_spacing": "trailing", "prediction_type": "v_prediction"},
        {"method": "heun", "time_input": "noise_level"},
        {"method": "euler_ancestral", "variance_type": "learned_range", "timestep_spacing": "exponential"},
    ],
)
def test_options_are_found_in_a_given_plan(options):
    plan = make_plan(SCHEDULE, num_inference_steps=10, **options)
    settings = resolved(Sampler.from_plan(make_unet(), SCHEDULE, plan, shape=(3, 8, 8)))
    again = make_plan(SCHEDULE, **settings.defaults)
    np.testing.assert_allclose(again.table, plan.table, rtol=1e-5, atol=1e-9)
    told = make_plan(SCHEDULE, **settings.defaults, time_input=settings.method.time_input)
    np.testing.assert_allclose(told.model_time, plan.model_time, rtol=1e-6)
    assert settings.call.time_input == options.get("time_input", "timestep")
    for name in set(options) - {"time_input", "timestep_spacing", "eta", "sigma_scale"}:
        assert settings.defaults[name] == options[name]


def test_levels_of_ones_own_are_found_in_a_given_plan():
    levels = [2.5, 1.5, 0.9, 0.4, 0.1]
    plan = make_plan(SCHEDULE, method="unipc", sigmas=levels)
    found = resolved(Sampler.from_plan(make_unet(), SCHEDULE, plan, shape=(3, 8, 8))).defaults
    np.testing.assert_allclose(found["sigmas"], levels, rtol=1e-12)


def test_plans_that_no_file_can_walk_are_refused():
    plan = make_plan(SCHEDULE, method="ddim", num_inference_steps=10, clip_sample_range=1.0)
    bent = plan.table.copy()
    bent[:, 3] *= 1.1
    lms = make_plan(SCHEDULE, method="lms", num_inference_steps=10)
    kept = lms.table.copy()
    kept[:, 16] *= 1.1
    refused = {
        "thresholding: dynamic thresholding given": plan.with_thresholding(),
        "method: a plan of 'twice' given": replace(plan, method="twice"),
        "plan: a table that is not that of heun with any options given": replace(plan, method="heun"),
        "plan: a table that is not that of lms with any options given": replace(lms, table=kept),
        "plan: a table that is not that of ddim with any options given": replace(plan, table=bent),
        "model_time: a plan that tells the network something else": replace(
            plan, model_time=np.arange(10, dtype=np.int64)
        ),
    }
    for message, given in refused.items():
        with pytest.raises(ValueError, match=message):
            resolved(Sampler.from_plan(make_unet(), SCHEDULE, given, shape=(3, 8, 8)))
    config = {"num_train_timesteps": 200, "clip_sample": True}  # whose steps keep the network's eps
    peer = from_ddim_scheduler(config, 10)
    with pytest.raises(ValueError, match="plan: a table that is not that of ddim"):
        resolved(Sampler.from_plan(make_unet(), SCHEDULE, peer, shape=(3, 8, 8)))


def test_arguments_are_checked_before_any_work(tmp_path):
    unet = make_unet()
    cases = [
        ("schedule: none given", unet, {}),
        ("schedule: one with a sampler, which has its own, given", sampler(), {"schedule": SCHEDULE}),
        ("shape: none, and no default of the sampler, given", unet, {"schedule": SCHEDULE}),
        ("dtype: .* given, one of", sampler(), {"dtype": "bfloat16"}),
        ("model: function given", Sampler(lambda x, t: x, SCHEDULE, shape=(1, 8, 8)), {}),
        ("num_classes: 7 for a network of 4 given", sampler(), {"num_classes": 7}),
        ("shape, condition_channels: 3 channels and 2 for a network", sampler(), {"condition_channels": 2}),
        ("shape, condition_channels: 4 channels", sampler(), {"shape": (4, 8, 8)}),
        ("timesteps", unet, {"schedule": SCHEDULE, "shape": (3, 8, 8), "timesteps": [5, 5]}),
        (
            "null_label: 3 with a network without classes given",
            nn.Conv2d(1, 1, 1),
            {"schedule": SCHEDULE, "shape": (1, 8, 8), "null_label": 3},
        ),
    ]
    for message, model, arguments in cases:
        with pytest.raises(ValueError, match=message):
            fastddpm.export_onnx(model, tmp_path / "out", **arguments)
    assert list(tmp_path.iterdir()) == []


class FixedBatch(nn.Module):
    """A network that knows its batch size."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Conv2d(1, 1, 1)

    def forward(self, x, t):
        return self.layer(x) + t.reshape(network.EXAMPLE_BATCH, 1, 1, 1)


class Deaf(FixedBatch):
    """A network that does not look at the time."""

    def forward(self, x, t):
        return self.layer(x)


class Branching(FixedBatch):
    """A network that looks at numbers."""

    def forward(self, x, t):
        return self.layer(x) if x.sum() > 0 else x


@pytest.mark.parametrize(
    ("model", "message"),
    [(FixedBatch(), "batch size would be fixed at 2"), (Branching(), "cannot be exported by torch.onnx")],
    ids=["fixed_batch", "branching"],
)
def test_networks_that_cannot_be_exported(tmp_path, model, message):
    with pytest.raises(ExportError, match=message):
        fastddpm.export_onnx(model, tmp_path / "out", schedule=SCHEDULE, shape=(1, 8, 8))
    assert list(tmp_path.iterdir()) == []


def test_a_network_that_ignores_the_time_is_exported(tmp_path):
    torch.manual_seed(0)
    options = {"schedule": SCHEDULE, "shape": (1, 4, 4), "num_inference_steps": 5, "clip_sample_range": 1.0}
    path = fastddpm.export_onnx(Deaf(), tmp_path / "out", **options)
    assert [one.name for one in onnx.load(path / "denoiser.onnx").graph.input] == ["x", "t"]


def test_learned_range_needs_a_network_of_twice_the_channels(tmp_path):
    options = {"schedule": SCHEDULE, "shape": (1, 4, 4), "variance_type": "learned_range"}
    with pytest.raises(ValueError, match="learned_range with a model that returns 1 channels"):
        fastddpm.export_onnx(Deaf(), tmp_path / "out", **options)
    assert list(tmp_path.iterdir()) == []
