"""Solvers in exported files: every one against the PyTorch `Sampler`, in both loops."""

from __future__ import annotations

import json
import shutil

import numpy as np
import onnxruntime
import pytest
import torch
from onnx_exports import exported, tiny_sampler
from tolerances import OF_FEW_STEPS
from torch import nn

import fastddpm
from fastddpm import NoiseSchedule, Sampler
from fastddpm.export import export_triton
from fastddpm.onnx import OnnxSampler
from fastddpm.onnx.kept import Kept, keeps_more
from fastddpm.plans import METHODS, make_plan, register_solver
from fastddpm.plans.tableau import Tableau, steps
from fastddpm_kernels import Column
from fastddpm_kernels.noise import reference

SEEDS = [5, 2**40 + 3, 77]
LABELS = [0, 2, 3]
SOLVERS = [name for name, entry in METHODS.items() if entry.solver is not None]
FROM_KEPT = (Column.FROM_KEPT_1, Column.FROM_KEPT_2, Column.FROM_KEPT_3)


@pytest.fixture(params=["file", "steps"])
def loop(request):
    return request.param


@pytest.fixture(scope="module")
def runs():
    """Samplers of exports, each made once."""
    made = {}

    def get(kind, loop):
        if (kind, loop) not in made:
            made[kind, loop] = OnnxSampler(exported(kind), "cpu", threads=1, loop=loop)
        return made[kind, loop]

    return get


def difference(images, expected):
    """Relative to the largest value where a chain of an untrained network leaves [-1, 1]."""
    expected = np.asarray(expected)
    return np.abs(images - expected).max() / max(1.0, np.abs(expected).max())


def changed(sampler, **options):
    """The PyTorch sampler with another method."""
    assert sampler.method is not None
    return sampler.replace(**sampler.method.adapted(**options).to_dict())


@pytest.mark.parametrize("guidance_scale", [1.0, 1.5])
@pytest.mark.parametrize("method", SOLVERS)
def test_every_solver_draws_the_images_of_pytorch(runs, loop, method, guidance_scale):
    options = {"method": method, "num_inference_steps": 5}
    call = {"seeds": SEEDS, "class_labels": LABELS, "guidance_scale": guidance_scale, "progress": False}
    images = runs("classes", loop).sample(**options, **call)
    expected = changed(tiny_sampler("classes"), **options).sample(**call)
    assert expected.std() > 0.1
    assert difference(images, expected) < OF_FEW_STEPS


@pytest.mark.parametrize(
    "options",
    [
        {"method": "lms", "timestep_spacing": "karras", "num_inference_steps": 5},
        {"method": "euler_ancestral", "timestep_spacing": "exponential", "num_inference_steps": 4},
        {"method": "deis", "solver_order": 2, "timesteps": [990, 640, 300, 40]},
        {"method": "heun", "sigmas": [9.0, 2.2, 0.6, 0.1, 0.0], "eta": 0.7},  # churns
        {"method": "unipc", "solver_order": 3, "num_inference_steps": 19, "timestep_spacing": "trailing"},
    ],
    ids=lambda options: options["method"],
)
def test_spacings_orders_and_more_rows_than_a_chunk(runs, loop, options):
    call = {"seeds": SEEDS, "class_labels": 1, "progress": False}
    images = runs("classes", loop).sample(**options, **call)
    expected = changed(tiny_sampler("classes"), **options).sample(**call)
    assert difference(images, expected) < OF_FEW_STEPS


@pytest.mark.parametrize("method", ["unipc", "lms", "dpm2_ancestral", "dpmpp_3m_sde"])
def test_noise_levels_a_condition_and_a_learned_variance(runs, loop, method):
    condition = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    options = {"method": method, "num_inference_steps": 5}
    for kind, given in (("superres", {"condition": condition}), ("learned", {"class_labels": 2})):
        arrays = {name: value.numpy() if name == "condition" else value for name, value in given.items()}
        images = runs(kind, loop).sample(seeds=SEEDS, progress=False, **options, **arrays)
        expected = changed(tiny_sampler(kind), **options).sample(seeds=SEEDS, progress=False, **given)
        assert difference(images, expected) < OF_FEW_STEPS


def test_a_solver_registered_here_draws_with_a_file_of_before(runs, loop):
    def slowed(points, options):
        """Two steps' predictions, averaged: consistent, kept, and no solver of this package."""
        tableau, state, last = Tableau("eps"), None, None
        for _, s, t in steps(points):
            x, eps = tableau.evaluate(s, state)
            mean = eps if last is None else 0.75 * eps + 0.25 * last
            state, last = t.alpha * (x / s.alpha + (t.ratio - s.ratio) * mean), eps
        return tableau.ended(state)

    register_solver("slowed", slowed)
    try:
        options = {"method": "slowed", "num_inference_steps": 5}
        call = {"seeds": SEEDS, "class_labels": 1, "progress": False}
        images = runs("classes", loop).sample(**options, **call)
        assert difference(images, changed(tiny_sampler("classes"), **options).sample(**call)) < OF_FEW_STEPS
    finally:
        del METHODS["slowed"]


def test_nothing_of_one_chain_is_in_the_next(runs, loop):
    run, call = runs("classes", loop), {"seeds": SEEDS, "class_labels": 1, "progress": False}
    images = {
        name: run.sample(method=name, num_inference_steps=3, **call) for name in ("lms", "unipc", "ddim")
    }
    for name in ("ddim", "unipc", "lms"):
        np.testing.assert_array_equal(run.sample(method=name, num_inference_steps=3, **call), images[name])


def test_an_export_of_a_schedulers_steps(tmp_path, translated_once):
    """At other timesteps than those of the formula of its name, which is in the file too; in both loops."""
    scheduler = {"_class_name": "DDIMScheduler", "steps_offset": 100, "prediction_type": "v_prediction"}
    sampler = changed(tiny_sampler("classes"), method="diffusers", scheduler=scheduler, num_inference_steps=4)
    fastddpm.export_onnx(sampler, tmp_path / "model")
    call = {"seeds": SEEDS, "class_labels": 1, "progress": False}
    for loop in ("file", "steps"):
        run = OnnxSampler(tmp_path / "model", "cpu", threads=1, loop=loop)
        for options in ({}, {"num_inference_steps": 6}, {"method": "ddim", "num_inference_steps": 4}):
            images = run.sample(**options, **call)
            assert difference(images, changed(sampler, **options).sample(**call)) < OF_FEW_STEPS
        assert difference(images, sampler.sample(**call)) > 0.01


class Preconditioned(nn.Module):
    """Of what it is told, log(sigma)/4, its output depends."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(3)
        self.first, self.last = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 3, 3, padding=1)

    def forward(self, x, t):
        return self.last(torch.tanh(self.first(x) + t.float().view(-1, 1, 1, 1)))


def test_an_export_of_a_preconditioned_network(tmp_path):
    """Which is told down to -1.55: its files have no formulas, and take the rows of its own scheduler."""
    scheduler = {"_class_name": "EDMDPMSolverMultistepScheduler", "algorithm_type": "sde-dpmsolver++"}
    options = {"method": "diffusers", "scheduler": scheduler, "num_inference_steps": 6, "shape": (3, 4, 4)}
    sampler = Sampler(Preconditioned(), NoiseSchedule.linear(1000), engine="eager", **options)
    assert sampler.plan.model_time.min() < -1
    folder = fastddpm.export_onnx(sampler, tmp_path / "model")
    about = json.loads((folder / "export.json").read_text())
    assert (about["time"], about["methods"]) == ("log_sigma", [])
    call = {"seeds": SEEDS, "progress": False}
    for loop in ("file", "steps"):
        run = OnnxSampler(folder, "cpu", threads=1, loop=loop)
        for asked in ({}, {"num_inference_steps": 9}):
            expected = changed(sampler, **asked).sample(**call)
            assert expected.std() > 0.1
            assert difference(run.sample(**asked, **call), expected) < OF_FEW_STEPS
        with pytest.raises(ValueError, match="method: 'ddim' for a network of EDMDPMSolver"):
            run.sample(method="ddim", **call)
    file = onnxruntime.InferenceSession(folder / "sampler.onnx", providers=["CPUExecutionProvider"])
    feed = {"seeds": np.array(SEEDS), "timesteps": np.array([900, 400]), "eta": np.zeros((), np.float32)}
    images = file.run(["images"], {**feed, "method": np.array(0)})[0]  # by the rows that are in it
    assert difference(images, sampler.sample(**call)) < OF_FEW_STEPS
    for number in (1, -1):
        with pytest.raises(Exception, match="out of data bounds"):
            file.run(None, {**feed, "method": np.array(number)})
    with pytest.raises(ValueError, match="sampler: one of EDMDPMSolverMultistepScheduler, whose network is"):
        export_triton(sampler, tmp_path / "repository", "model")


# ------------------------------------------------------------------ what is kept


@pytest.mark.parametrize("clip", [None, 1.0])
@pytest.mark.parametrize("prediction_type", ["epsilon", "sample", "v_prediction"])
@pytest.mark.parametrize("method", ["lms", "dpmpp_3m", "heun", "unipc"])
def test_what_is_kept_outside_of_a_step_is_what_the_rows_say(method, prediction_type, clip):
    """In float32, without the network's output; against the table's formula in float64, with it."""
    options = {"prediction_type": prediction_type, "clip_sample_range": clip, "solver_order": None}
    plan = make_plan(NoiseSchedule.linear(), method=method, num_inference_steps=12, **options)
    assert keeps_more(plan) == (plan.kept > 1 or plan.combines)
    generator = np.random.default_rng(0)
    kept, places = Kept(plan, (2, 3)), np.zeros((3, 2, 3))
    for k, row in enumerate(plan.table.astype(np.float64)[:-1]):
        x, m = generator.normal(size=(2, 2, 3)).astype(np.float32)
        x0 = row[Column.X0_FROM_X] * x + row[Column.X0_FROM_M] * m
        x0 = np.clip(x0, -row[Column.X0_BOUND], row[Column.X0_BOUND])
        own = x0
        if plan.combines:
            own = row[Column.KEPT_FROM_X0] * x0 + row[Column.KEPT_FROM_X] * x + row[Column.KEPT_FROM_M] * m
        places[int(row[Column.KEPT_SLOT])] = own
        following = plan.table[k + 1].astype(np.float64)
        wanted = sum(following[column] * places[place] for place, column in enumerate(FROM_KEPT))
        found = kept.after(k, x, x0.astype(np.float32))
        assert found.dtype == np.float32
        # eps where sigma is small is a difference of numbers that sigma then divides.
        assert np.abs(found - wanted).max() < 1e-5 * max(1.0, np.abs(places).max())


class Linear(nn.Module):
    """Predicts x0 = 0.6 x + 0.3 cos(t/150), so that an image is a sum of all noise that was ever added."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.full((1, 1, 1, 1), 0.6))

    def forward(self, x, t):
        return x * self.weight + 0.3 * torch.cos(t.to(x.dtype) / 150)[:, None, None, None]


@pytest.fixture(scope="module")
def linear(tmp_path_factory):
    """An export of a solver of a network of one piece: with its rows in the file, and times between two."""
    options = {"method": "dpm2_ancestral", "num_inference_steps": 4, "prediction_type": "sample"}
    sampler = Sampler(Linear(), NoiseSchedule.linear(), shape=(1, 5, 5), **options)
    return fastddpm.export_onnx(sampler, tmp_path_factory.mktemp("linear") / "export"), sampler


def in_float64(plan):
    """The chain of `Linear` by the table's formula, with the noise of the specification."""
    x, places = reference.normal(SEEDS, 0, (1, 5, 5)).astype(np.float64), np.zeros((3, 3, 1, 5, 5))
    for k, row in enumerate(plan.table.astype(np.float64)):
        m = 0.6 * x + 0.3 * np.cos(plan.model_time[k] / 150.0)
        x0 = row[Column.X0_FROM_X] * x + row[Column.X0_FROM_M] * m
        own = x0
        if plan.combines:
            own = row[Column.KEPT_FROM_X0] * x0 + row[Column.KEPT_FROM_X] * x + row[Column.KEPT_FROM_M] * m
        x = row[Column.FROM_X0] * x0 + row[Column.FROM_X] * x + row[Column.FROM_M] * m
        x = x + sum(row[column] * places[place] for place, column in enumerate(FROM_KEPT))
        x = x + row[Column.FROM_NOISE] * reference.normal(SEEDS, k + 1, (1, 5, 5))
        places[int(row[Column.KEPT_SLOT])] = own
    return x


@pytest.mark.parametrize("method", ["dpm2_ancestral", "euler_ancestral", "dpmpp_3m_sde", "lms", "unipc"])
def test_rows_keep_and_draw_what_a_chain_in_float64_does(linear, loop, method):
    """The noise of a row is that of its number; each prediction is read from the place where it was put."""
    run, steps = OnnxSampler(linear[0], "cpu", threads=1, loop=loop), {"num_inference_steps": 5}
    images = run.sample(seeds=SEEDS, progress=False, method=method, **steps)
    assert np.abs(images - in_float64(run.plan(method=method, **steps))).max() < 1e-5


def test_an_export_of_a_solver_has_its_rows(linear):
    folder, sampler = linear
    about = json.loads((folder / "export.json").read_text())
    assert about["times_between"] is True
    assert about["defaults"]["method"] == "dpm2_ancestral"
    assert about["parity"]["sampler.onnx"]["max_abs_error"] < OF_FEW_STEPS
    session = onnxruntime.InferenceSession(folder / "sampler.onnx", providers=["CPUExecutionProvider"])
    optional = {one.name for one in session.get_overridable_initializers()}
    assert optional == {"rows", "times"}
    feed = {"seeds": np.array(SEEDS), "timesteps": np.zeros(0, np.int64), "method": np.array(3)}
    feed["eta"] = np.array(0.0, np.float32)
    own, _ = session.run(None, feed)
    assert difference(own, sampler.sample(seeds=SEEDS, progress=False)) < OF_FEW_STEPS
    other = make_plan(sampler.schedule, method="lms", num_inference_steps=7, prediction_type="sample")
    feed |= {"rows": other.table, "times": other.model_time.astype(np.float32)}
    given, _ = session.run(None, feed)
    expected = Sampler.from_plan(Linear(), sampler.schedule, other, shape=(1, 5, 5))
    assert difference(given, expected.sample(seeds=SEEDS, progress=False)) < OF_FEW_STEPS
    text = (folder / "README.md").read_text()
    assert "| input, optional | `rows` | float32 | [rows, 32] |" in text
    assert "left out: those of dpm2_ancestral, as exported" in text
    code = text.split("```python\n")[1].split("```")[0]
    names: dict[str, object] = {}
    exec(code.replace('"sampler.onnx"', repr(str(folder / "sampler.onnx"))), names)
    assert difference(names["images"], sampler.sample(seeds=range(4), progress=False)) < OF_FEW_STEPS


def with_column(rows, column, number):
    changed = rows.copy()
    changed[1, column] = number
    return changed


@pytest.mark.parametrize(
    "wrong",
    [
        lambda rows, times: {"rows": rows[:0], "times": times[:0]},
        lambda rows, times: {"rows": with_column(rows, Column.FROM_X, np.nan)},
        lambda rows, times: {"rows": with_column(rows, Column.FROM_KEPT_2, np.inf)},
        lambda rows, times: {"rows": with_column(rows, Column.KEPT_SLOT, 3)},
        lambda rows, times: {"rows": with_column(rows, Column.X0_DIVISOR, 1)},
        lambda rows, times: {"rows": with_column(rows, Column.EPS_DIVISOR, 1)},
        lambda rows, times: {"times": times[1:]},
        lambda rows, times: {"times": np.where(times > 500, np.float32(1000), times)},
        lambda rows, times: {"times": times - 1000},
        lambda rows, times: {"times": times * np.float32(np.nan)},
        lambda rows, times: {"method": np.array(4)},
    ],
)
def test_rows_out_of_range_are_errors(linear, wrong):
    folder, sampler = linear
    session = onnxruntime.InferenceSession(folder / "sampler.onnx", providers=["CPUExecutionProvider"])
    feed = {"seeds": np.array(SEEDS), "timesteps": np.zeros(0, np.int64), "method": np.array(3)}
    feed |= {"eta": np.array(0.0, np.float32), "rows": sampler.plan.table, "times": sampler.plan.model_time}
    assert np.isfinite(session.run(["images"], feed)[0]).all()
    with pytest.raises(Exception, match="out of data bounds"):
        session.run(None, {**feed, **wrong(sampler.plan.table, sampler.plan.model_time)})


# ------------------------------------------------------------------ what is refused


def of_before(folder, tmp_path):
    """The export as an earlier version described it."""
    copy = shutil.copytree(folder, tmp_path / "before")
    about = json.loads((copy / "export.json").read_text())
    del about["times_between"]
    (copy / "export.json").write_text(json.dumps(about))
    return copy


class WithoutRows:
    """A session of a file that takes no rows."""

    def __init__(self, session):
        self._session = session

    def __getattr__(self, name):
        return getattr(self._session, name)

    def get_overridable_initializers(self):
        return []


def test_files_of_before_draw_by_formulas_and_by_steps(tmp_path):
    folder = of_before(exported("classes"), tmp_path)
    call = {"seeds": SEEDS, "class_labels": 1, "progress": False, "num_inference_steps": 4}
    file = OnnxSampler(folder, "cpu", threads=1, loop="file")
    file._file_session = WithoutRows(file._file_session)
    accepted = r'ddpm, ddim, dpmpp_2m; any with loop="steps", or exported again, accepted'
    with pytest.raises(ValueError, match=rf"method: 'lms' to an export of an earlier version, .*{accepted}"):
        file.sample(method="lms", **call)
    assert file.sample(method="dpmpp_2m", **call).shape == (3, 3, 8, 8)
    by_steps = OnnxSampler(folder, "cpu", threads=1, loop="steps")
    by_steps._step_sessions = {False: (WithoutRows(by_steps._step_sessions[False][0]), False)}
    images = by_steps.sample(method="lms", **call)
    expected = changed(tiny_sampler("classes"), method="lms", num_inference_steps=4)
    assert difference(images, expected.sample(seeds=SEEDS, class_labels=1, progress=False)) < OF_FEW_STEPS


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"method": "dpm2"}, "method: 'dpm2'"),
        ({"method": "lms", "timestep_spacing": "karras"}, "timestep_spacing: 'karras'"),
    ],
)
def test_times_that_a_network_cannot_be_told_are_refused(tmp_path, loop, options, name):
    sampler = OnnxSampler(of_before(exported("classes"), tmp_path), "cpu", loop=loop)
    message = f"{name}, which tells the network times between two of training, .* an export of a sampler that"
    for call in (sampler.sample, sampler.plan):
        with pytest.raises(ValueError, match=message):
            call(num_inference_steps=4, **options)
