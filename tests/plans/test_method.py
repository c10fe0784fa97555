"""`Method`, the options of sampling as one object, and the keyword arguments that name them elsewhere."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch

import fastddpm
from fastddpm import Method, NoiseSchedule, Sampler, options
from fastddpm.plans import METHODS, make_plan
from fastddpm.plans.abarankab import from_abarankab
from fastddpm.plans.method_options import MethodOptions, StepOptions
from fastddpm.plans.sr3 import from_sr3
from fastddpm.variations import SHARED_ARGUMENTS
from fastddpm_kernels.table import Column

PACKAGE = Path(fastddpm.__file__).parent
SCHEDULE = NoiseSchedule.linear(100)
FULL = {
    "method": "ddim",
    "num_inference_steps": None,
    "prediction_type": "v_prediction",
    "variance_type": "learned_range",
    "sigma_scale": 1.0,
    "clip_sample_range": 0.5,
    "timestep_spacing": "trailing",
    "timesteps": [90, 40, 3],
    "solver_order": None,
    "lower_order_final": False,
    "sigmas": None,
    "thresholding": False,
    "dynamic_thresholding_ratio": 0.995,
    "sample_max_value": 1.0,
    "eta": 0.25,
    "time_input": "noise_level",
    "scheduler": None,
}


def sampler(**given):
    return Sampler(lambda x, t: x, SCHEDULE, shape=(1, 4, 4), **given)


# ---------------------------------------------------------------- the object


def test_a_method_is_its_values():
    one, same = Method(**FULL), Method(**{**FULL, "timesteps": np.array([90, 40, 3], np.uint8)})
    assert one == same
    assert hash(one) == hash(same)
    assert one.timesteps == (90, 40, 3)
    assert one != Method(**{**FULL, "eta": 0.5})
    with pytest.raises(dataclasses.FrozenInstanceError):
        one.eta = 1.0


def test_it_goes_through_json():
    given = {**FULL, "eta": np.float64(0.25), "clip_sample_range": np.float32(0.5)}
    given["timesteps"] = np.array([90, 40, 3])
    stored = json.loads(json.dumps(Method(**given).to_dict(), allow_nan=False))
    assert stored == FULL
    assert list(stored) == [field.name for field in dataclasses.fields(Method)]
    assert Method.from_dict(stored) == Method(**given)
    assert Method.from_dict({}) == Method()


def test_the_plan_is_that_of_its_options():
    plan = Method(**FULL).plan(SCHEDULE)
    assert plan.timesteps.tolist() == [90, 40, 3]
    assert (plan.method, plan.prediction_type, plan.clip, plan.learned_range) == (
        "ddim",
        "v_prediction",
        True,
        True,
    )
    assert np.array_equal(plan.model_time, np.float32(SCHEDULE.sqrt_alphas_cumprod[[90, 40, 3]]))
    assert np.array_equal(make_plan(SCHEDULE, **FULL).table, plan.table)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"stepz": 3}, "stepz: unknown to a method, given, method, num_inference_steps, prediction"),
        ({"method": ["ddpm"]}, r"method: \['ddpm'\] given, one of ddpm, ddim, dpmpp_2m,"),
        ({"method": None}, "method: None given"),
        (
            {"time_input": "level"},
            "time_input: 'level' given, one of timestep, noise_level, alphas_cumprod accepted",
        ),
        ({"timestep_spacing": 3}, "timestep_spacing: 3 given, one of"),
        ({"method": "ddim", "eta": 1.5}, r"eta: 1.5 given, a finite number in \[0, 1\] accepted"),
        ({"sigma_scale": True, "method": "ddpm"}, "sigma_scale: True given, a finite number of at least 0"),
        ({"clip_sample_range": "1"}, "clip_sample_range: '1' given, a finite number above 0"),
    ],
    ids=str,
)
def test_bad_values_are_refused_when_it_is_made(given, message):
    with pytest.raises(ValueError, match=message):
        Method.from_dict(given)


@pytest.mark.parametrize("timesteps", [5, "50", {5, 1}, [[5, 1]], [5.0, 1.0], [1, 5], [100, 5], []], ids=repr)
def test_timesteps_that_a_schedule_has_not_are_refused_as_given(timesteps):
    accepted = r"at least one integer, strictly descending, in \[0, 99\] accepted"
    with pytest.raises(ValueError, match=f"timesteps: .* given, {accepted}"):
        Method(timesteps=timesteps).plan(SCHEDULE)


def test_another_method_begins_at_neutral_values():
    ddpm = Method(sigma_scale=0.5, variance_type="fixed_large", clip_sample_range=1.0)
    assert ddpm.adapted(method="ddim") == Method(method="ddim", clip_sample_range=1.0)
    assert ddpm.adapted(method="ddim", eta=0.3).eta == 0.3
    assert ddpm.adapted(method="ddpm") == ddpm
    ddim = Method(**FULL)
    assert (ddim.adapted(method="ddpm").eta, ddim.adapted(method="ddpm").variance_type) == (
        0,
        "learned_range",
    )
    assert (ddim.adapted().timesteps, ddim.adapted(num_inference_steps=7).timesteps) == ((90, 40, 3), None)
    assert ddim.adapted(timestep_spacing="linspace").timesteps is None
    ten = Method(num_inference_steps=10)
    assert ten.adapted(timesteps=[5, 1]) == Method(timesteps=[5, 1])
    with pytest.raises(ValueError, match="methd: unknown to a method, given"):
        ten.adapted(methd="ddim")


def test_a_sampler_holds_it():
    made = sampler(**FULL)
    assert made.method == Method(**FULL)
    assert {name: made.options[name] for name in FULL} == FULL
    assert made.replace(eta=0.5).method == Method(**{**FULL, "eta": 0.5})
    given = Sampler.from_plan(made.model, SCHEDULE, made.plan, shape=(1, 4, 4))
    assert given.method is None
    assert set(given.options) == set(options.RunOptions.__annotations__)
    assert given.replace(engine="eager").plan is made.plan
    with pytest.raises(
        ValueError, match="eta: an option of a method, for a sampler of a given plan, given, null_label"
    ):
        given.replace(eta=0.5)
    with pytest.raises(ValueError, match="x_T: an argument that is none here given, batch_size, seeds"):
        made.sample_from(torch.zeros(1, 1, 4, 4), 50, x_T=torch.ones(1, 1, 4, 4))


def test_folders_of_this_package_hold_methods():
    for path in sorted((PACKAGE / "assets").glob("*/sampler.json")):
        stored = json.loads(path.read_text())
        fields = {name: value for name, value in stored.items() if name != "shape"}
        method = Method.from_dict(fields)
        assert fields.items() <= method.to_dict().items()
        assert fastddpm.load(path.parent).method == method


# ---------------------------------------------------------------- the same names everywhere


def typed(function) -> dict[str, str]:
    """The keyword arguments of a function with their types, as written."""
    parameters = inspect.signature(function).parameters.values()
    return {one.name: one.annotation for one in parameters if one.kind is one.KEYWORD_ONLY}


def fields(kind) -> dict[str, str]:
    """The same of a typed dictionary."""
    return {name: value.__forward_arg__ for name, value in kind.__annotations__.items()}


def test_typed_dictionaries_are_the_arguments_they_stand_for():
    constructor, loading, drawing = typed(Sampler), typed(fastddpm.load), typed(Sampler.sample)
    assert fields(options.SamplerOptions) == constructor
    assert fields(options.RunOptions) == typed(Sampler._set_up)
    assert fields(MethodOptions) == {field.name: field.type for field in dataclasses.fields(Method)}
    assert fields(options.ModelOptions) == {
        name: kind for name, kind in constructor.items() if name not in ("device", "dtype")
    }
    assert fields(options.LoadOptions) == {**loading, **fields(options.ModelOptions)}
    assert fields(options.SampleArguments).items() <= drawing.items()
    assert {*fields(options.SampleArguments), "batch_size"} == set(SHARED_ARGUMENTS)
    for function in (from_sr3, from_abarankab):
        assert fields(StepOptions) == typed(function)
    defaults = {one.name: one.default for one in inspect.signature(Sampler).parameters.values()}
    assert {field.name: field.default for field in dataclasses.fields(Method)}.items() <= defaults.items()
    assert {field.name for field in dataclasses.fields(Method)} == set(FULL)
    assert Method.__annotations__["method"] == "MethodName"
    assert fastddpm.plans.method_options.MethodName.__args__ == (*METHODS, "diffusers")


# What passes on what it cannot know: another library's arguments, a stranger's network, ONNX's attributes.
OF_ANYTHING = {
    "dropin/__init__.py: optimize",  # whose overloads say what
    "dropin/_diffusers/exploding.py: sample_trajectory",
    "dropin/_diffusers/latent.py: sample_trajectory",
    "dropin/_diffusers/pipeline.py: save_pretrained",
    "dropin/_diffusers/pipeline.py: set_progress_bar_config",
    "dropin/_diffusers/pipeline.py: to",
    "dropin/_diffusers/repaint.py: sample_trajectory",
    "dropin/_diffusers/schedulers.py: set_timesteps",
    "engine/capturable.py: run_on_fakes",
    "engine/refusal.py: refusal",
    "export/nodes.py: subgraphs",
    "network.py: compile",
    "tabulated.py: bind",
}


def takes_any_option(node: ast.stmt) -> bool:
    """Whether it is a public function with a ``**`` of Any."""
    if not isinstance(node, ast.FunctionDef) or node.name.startswith("_") or node.args.kwarg is None:
        return False
    annotation = node.args.kwarg.annotation
    return isinstance(annotation, ast.Name) and annotation.id == "Any"


def test_no_other_public_function_takes_any_option():
    found = set()
    for path in sorted(PACKAGE.rglob("*.py")):
        name = path.relative_to(PACKAGE).as_posix()
        tree = ast.parse(path.read_text())
        classes = [node for node in tree.body if isinstance(node, ast.ClassDef)]
        if not name.startswith("bench/"):
            nodes = [node for scope in (tree, *classes) for node in scope.body]
            found |= {f"{name}: {node.name}" for node in nodes if takes_any_option(node)}
    assert found - OF_ANYTHING == set()
    assert "dropin/__init__.py: optimize" in found


# ---------------------------------------------------------------- a scheduler of diffusers

DDIM = {"_class_name": "DDIMScheduler", "set_alpha_to_one": False, "prediction_type": "v_prediction"}


def test_a_schedulers_configuration_is_held_without_its_betas():
    betas = {"beta_start": 0.3, "trained_betas": [0.1] * 5000, "_use_default_values": ["x"]}
    open_ended = {"lambda_min_clipped": -np.inf, "solver_p": None}
    method = Method(method="diffusers", scheduler={**DDIM, **betas, **open_ended}, num_inference_steps=5)
    assert method.scheduler == DDIM
    assert (method.prediction_type, method.variance_type) == ("v_prediction", "fixed_small")
    assert Method.from_dict(json.loads(json.dumps(method.to_dict()))) == method
    assert hash(method) == hash(Method.from_dict(method.to_dict()))
    changed = {**DDIM, "set_alpha_to_one": True}
    assert method != Method(method="diffusers", scheduler=changed, num_inference_steps=5)


def test_a_schedulers_plan_is_on_the_schedule():
    """Its last step ends at alphas_cumprod[0], and multiplies where diffusers divides."""
    plan = Method(method="diffusers", scheduler=DDIM, num_inference_steps=5).plan(SCHEDULE)
    assert plan.timesteps.tolist() == [80, 60, 40, 20, 0]
    assert (plan.method, plan.divides, plan.rederives) == ("diffusers", False, False)
    x, m = 0.4, -0.3  # the last step goes nowhere: x stays what it is, as x0 is within the clip
    first = SCHEDULE.alphas_cumprod[0]
    x0 = np.sqrt(first) * x - np.sqrt(1 - first) * m
    assert abs(x0) < 1
    a, b, e = plan.table[-1, [Column.FROM_X0, Column.FROM_X, Column.FROM_M]].astype(float)
    p, q = plan.table[-1, [Column.X0_FROM_X, Column.X0_FROM_M]].astype(float)
    assert a * (p * x + q * m) + b * x + e * m == pytest.approx(x, abs=1e-6)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"method": "diffusers"}, "method: 'diffusers' without a scheduler given"),
        ({"scheduler": DDIM}, "scheduler: one with method 'ddpm' given"),
        ({"method": "diffusers", "scheduler": {}}, "scheduler: _class_name=None given"),
        ({"method": "diffusers", "scheduler": 3}, "scheduler: 3 given"),
        ({"method": "diffusers", "scheduler": DDIM, "eta": 0.5}, "eta: 0.5 with method 'diffusers' given"),
        ({"method": "diffusers", "scheduler": DDIM, "timestep_spacing": "trailing"}, "timestep_spacing: "),
        ({"method": "diffusers", "scheduler": DDIM, "timesteps": [3, 1]}, "timesteps: "),
        ({"method": "diffusers", "scheduler": DDIM, "clip_sample_range": 1.0}, "clip_sample_range: "),
        (
            {"method": "diffusers", "scheduler": DDIM, "prediction_type": "sample"},
            "prediction_type: 'sample'",
        ),
        ({"method": "diffusers", "scheduler": {**DDIM, "eta_max": 1e7}}, "eta_max: 10000000.0 given"),
        ({"method": "diffusers", "scheduler": {**DDIM, "a": {}}}, "a: {} given"),
        ({"method": "diffusers", "scheduler": {**DDIM, "b": [0] * 100}}, "b: "),
        ({"method": "diffusers", "scheduler": {**DDIM, "use_flow_sigmas": True}}, "use_flow_sigmas: True"),
        ({"method": "diffusers", "scheduler": {**DDIM, "prediction_type": "flow"}}, "prediction_type: "),
        ({"method": "diffusers", "scheduler": dict.fromkeys(map(str, range(99)))}, "scheduler: "),
    ],
    ids=lambda one: one if isinstance(one, str) else "",
)
def test_what_is_no_scheduler(options, words):
    with pytest.raises(ValueError, match=re.escape(words)):
        Method(**options)


def test_what_its_library_has_not():
    for scheduler in ({"_class_name": "NoScheduler"}, {**DDIM, "steps_offset": "x"}):
        with pytest.raises(ValueError, match=r"scheduler: "):
            Method(method="diffusers", scheduler=scheduler).plan(SCHEDULE)


def test_another_method_in_a_schedulers_place():
    method = Method(method="diffusers", scheduler={**DDIM, "clip_sample_range": 2.0}, num_inference_steps=5)
    other = method.adapted(method="unipc")
    assert (other.prediction_type, other.clip_sample_range, other.scheduler) == ("v_prediction", 2.0, None)
    assert other.num_inference_steps == 5
    assert other.adapted(method="diffusers", scheduler=method.scheduler) == method
    assert method.adapted(num_inference_steps=7).num_inference_steps == 7
