"""The pieces of an exported sampler that need no network: the table, the noise, the update, the folder."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

pytest.importorskip("onnxruntime")
import onnx
import onnxruntime as ort

from fastddpm import NoiseSchedule
from fastddpm.export import compose, folder
from fastddpm.export.network import OPSET
from fastddpm.export.nodes import DOUBLE, FLOAT, INT64, Graph, as_model, value
from fastddpm.export.readme import snippet
from fastddpm.export.table import TableOptions, plan_table
from fastddpm.plans import make_plan
from fastddpm.plans.formula import FormulaOptions
from fastddpm.plans.registry import formulas
from fastddpm_kernels import Column
from fastddpm_kernels.noise import normal as torch_normal
from fastddpm_kernels.noise import reference

SCHEDULES = {
    "linear": NoiseSchedule.linear(1000),
    "cosine": NoiseSchedule.cosine(300),
    "zero_snr": NoiseSchedule.linear(200).rescaled_zero_terminal_snr(),
}
# float64 formulas arranged otherwise, rounded to float32: the last bit of a float32.
LAST_BITS = 3e-7


def run(model, **inputs):
    options = ort.SessionOptions()
    options.log_severity_level = 4
    onnx.checker.check_model(model, full_check=True)
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, inputs)


def table_of(schedule, timesteps, method, eta, **options):
    chosen = {"prediction_type": "epsilon", "clip": 1.0, **options}
    clip = chosen.pop("clip")
    g = Graph()
    fixed = TableOptions(schedule.alphas_cumprod, FormulaOptions(bounded=clip != np.inf, **chosen), clip)
    g("Identity", plan_table(g, fixed, "timesteps", "method", "eta"), out="table")
    inputs = [value("timesteps", INT64, ["steps"]), value("method", INT64), value("eta", FLOAT)]
    model = as_model(g.finished("table", inputs, [value("table", FLOAT, ["steps", 16])]), OPSET, 10)
    feed = {"timesteps": np.asarray(timesteps), "method": np.array(list(formulas()).index(method))}
    return run(model, **feed, eta=np.array(eta, np.float32))[0]


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("ddpm", {}),
        ("ddpm", {"variance_type": "fixed_large", "sigma_scale": 0.7}),
        ("ddpm", {"variance_type": "learned_range", "prediction_type": "v_prediction"}),
        ("ddpm", {"prediction_type": "sample"}),
        ("ddim", {}),
        ("ddim", {"eta": 0.5}),
        ("ddim", {"eta": 1.0, "prediction_type": "v_prediction"}),
        ("dpmpp_2m", {}),
        ("dpmpp_2m", {"prediction_type": "sample"}),
    ],
)
@pytest.mark.parametrize(
    ("steps", "spacing"),
    [(1, "leading"), (2, "trailing"), (7, "linspace"), (20, "trailing"), (None, "leading")],
)
def test_the_table_is_the_plans(schedule, method, options, steps, spacing):
    plan = make_plan(
        schedule,
        method=method,
        num_inference_steps=steps,
        timestep_spacing=spacing,
        clip_sample_range=1.5,
        **options,
    )
    eta = options.get("eta", 0.0)
    fixed = {name: option for name, option in options.items() if name != "eta"}
    table = table_of(schedule, plan.timesteps, method, eta, clip=1.5, **fixed)
    assert table.shape == (len(plan), 16)
    expected = plan.table[:, :16]
    scale = np.maximum(np.abs(expected), 1e-3)
    np.testing.assert_array_less(np.abs(table - expected) / scale, LAST_BITS)


def test_the_table_without_a_clip():
    plan = make_plan(SCHEDULES["linear"], method="dpmpp_2m", num_inference_steps=9)
    table = table_of(SCHEDULES["linear"], plan.timesteps, "dpmpp_2m", 0.0, clip=np.inf)
    np.testing.assert_allclose(table, plan.table[:, :16], rtol=LAST_BITS, atol=1e-9)


def test_a_row_that_is_not_finite_is_an_error_as_in_a_plan():
    schedule = SCHEDULES["zero_snr"]
    with pytest.raises(ValueError, match="zero terminal SNR"):
        make_plan(schedule, method="ddpm", num_inference_steps=5, timestep_spacing="trailing")
    with pytest.raises(ort.capi.onnxruntime_pybind11_state.InvalidArgument, match="out of data bounds"):
        table_of(schedule, [199, 100, 0], "ddpm", 0.0, clip=np.inf)
    assert np.isfinite(table_of(schedule, [150, 100, 0], "ddpm", 0.0, clip=np.inf)[:, Column.X0_FROM_X]).all()


SEEDS = [0, 1, 5, 2**32 - 1, 2**32, (1 << 40) + 3, 2**63 - 1]


@pytest.mark.parametrize("step", [0, 1, 999, 2**31])
def test_words_are_numpys_bit_for_bit(step):
    feed = {"seeds": np.array(SEEDS, np.int64), "step": np.array(step, np.int64)}
    words, normals = run(compose.noise_test(), **feed)
    np.testing.assert_array_equal(words, reference.words(SEEDS, step, 64).astype(np.int64))
    assert np.abs(normals - reference.normal(SEEDS, step, (64,))).max() <= 2e-6


def test_the_known_answer():
    words, _ = run(compose.noise_test(), seeds=np.zeros(1, np.int64), step=np.array(0))
    assert [f"{word:08x}" for word in words[0, :, 0]] == ["6627e8d5", "e169c58d", "bc57ac4c", "9b00dbd8"]


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 1, 2), (3, 5, 7), (1, 28, 28), (3, 16, 24)])
def test_normals_of_any_size_are_those_of_the_torch_twin(shape):
    g = Graph()
    keys = compose.noise.keys(g, "seeds", int(np.prod(shape)))
    g("Identity", compose.noise.normal(g, keys, "step", shape), out="z")
    inputs = [value("seeds", INT64, ["batch"]), value("step", INT64)]
    model = as_model(g.finished("z", inputs, [value("z", FLOAT, ["batch", *shape])]), OPSET, 10)
    (z,) = run(model, seeds=np.array(SEEDS), step=np.array(3))
    (alone,) = run(model, seeds=np.array(SEEDS[2:3]), step=np.array(3))
    wanted = torch_normal(torch.tensor(SEEDS), 3, shape).numpy()
    assert np.abs(z - wanted).max() <= 2e-6
    np.testing.assert_array_equal(alone[0], z[2])


def test_constants_stand_once_and_keep_their_types():
    g = Graph()
    names = [g.float32(1.0), g.float64(1.0), g.int64(1), g.int64([1]), g.float32(1.0)]
    assert names[0] == names[4]
    assert len(set(names)) == 4
    assert [w.data_type for w in g.weights] == [FLOAT, DOUBLE, INT64, INT64]


# ------------------------------------------------------------------ the folder


def test_a_failure_leaves_what_was_there(tmp_path):
    target = tmp_path / "out"
    with pytest.raises(FileNotFoundError), folder.new_export(target) as new:
        (new / "half" / "missing").write_text("x")
    assert list(tmp_path.iterdir()) == []

    with folder.new_export(target) as new:
        (new / "export.json").write_text(json.dumps({"format": folder.FORMAT, "mark": 1, "files": {}}))
    with pytest.raises(RuntimeError, match="on purpose"), folder.new_export(target):
        raise RuntimeError("on purpose")
    assert json.loads((target / "export.json").read_text())["mark"] == 1
    with folder.new_export(target) as new:
        (new / "export.json").write_text(json.dumps({"format": folder.FORMAT, "mark": 2, "files": {}}))
    assert json.loads((target / "export.json").read_text())["mark"] == 2
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_other_peoples_folders_are_refused(tmp_path):
    (tmp_path / "photo.png").write_text("x")
    with pytest.raises(ValueError, match="holds other files"), folder.new_export(tmp_path):
        pass
    with pytest.raises(ValueError, match="which is a file"), folder.new_export(tmp_path / "photo.png"):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["photo.png"]


def test_the_snippet_lists_timesteps_that_are_no_range():
    about = {
        "image_shape": [1, 8, 8],
        "timesteps": [9, 5, 2],
        "defaults": {"method": "ddim", "eta": 0.0},
        "methods": ["ddpm", "ddim"],
        "num_classes": None,
        "null_label": None,
        "condition_channels": 0,
    }
    assert "np.array([9, 5, 2], dtype" in snippet(about)
    assert "np.array(range(9, -3, -4), dtype" in snippet({**about, "timesteps": [9, 5, 1]})
