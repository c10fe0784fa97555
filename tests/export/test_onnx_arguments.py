"""What a call of `OnnxSampler` may be given: everything else is an error that says so, before the run."""

from __future__ import annotations

import numpy as np
import pytest
from onnx_exports import exported

from fastddpm.onnx import OnnxSampler


@pytest.fixture(scope="module", params=["file", "steps"])
def sampler(request):
    """A sampler whose runs fail: errors must come before them."""
    made = OnnxSampler(exported("classes"), "cpu", threads=1, loop=request.param)

    def never(*arguments):
        raise AssertionError("the run began")

    made._run_file = made._run_steps = never
    return made


BAD = [
    ({"batch_size": 0}, "batch_size: 0 given, an integer of at least 1"),
    ({"batch_size": 2.0}, "batch_size: 2.0 given"),
    ({"batch_size": 2, "seeds": [1]}, "batch_size, seeds: 2, 1 images given, one count"),
    ({"seeds": 5}, "seeds: 5 given, a flat list"),
    ({"seeds": []}, r"seeds: \[\] given, a flat list of at least one"),
    ({"seeds": "12"}, "seeds: '12' given, a flat list"),
    ({"seeds": np.zeros((2, 2), np.int64)}, r"seeds: shape \(2, 2\) given, a flat list"),
    ({"seeds": np.array([1.0, 2.0])}, r"seeds: 1.0 given, integers in \[0, 2\*\*63\)"),
    ({"seeds": [True]}, "seeds: True given, integers"),
    ({"seeds": [-1]}, "seeds: -1 given, integers"),
    ({"seeds": [2**63]}, "seeds: 9223372036854775808 given, integers"),
    ({"class_labels": 5}, "class_labels: 5 given, integers from 0 to 3, 4 for none, accepted"),
    ({"class_labels": -1}, "class_labels: -1 given"),
    ({"class_labels": [1, 2]}, "class_labels: 2 for 1 images given, one for all, or one each"),
    ({"class_labels": 1.0}, "class_labels: 1.0 given"),
    ({"class_labels": "3"}, "class_labels: '3' to a model without class names given"),
    ({"class_labels": np.array([[1]])}, r"class_labels: shape \(1, 1\) given, one label or \(1,\)"),
    ({"guidance_scale": float("nan"), "class_labels": 1}, "guidance_scale: nan given, a finite number"),
    ({"guidance_scale": "2", "class_labels": 1}, "guidance_scale: '2' given, a finite number"),
    ({"guidance_scale": np.ones(2), "class_labels": 1}, "guidance_scale: .* given, a finite number"),
    ({"guidance_scale": 2.0}, "guidance_scale: a number other than 1 without class_labels"),
    ({"condition": np.zeros((1, 3, 8, 8), np.float32)}, "condition: one to a network that takes none"),
    (
        {"method": "unipc", "solver_order": 4},
        "solver_order: 4 with method 'unipc' given, 1 or 2 or 3 accepted",
    ),
    ({"solver_order": 2}, "solver_order: 2 with method 'ddpm' given, None accepted"),
    (
        {"timestep_spacing": "karras"},
        "timestep_spacing: 'karras', which belongs to dpmpp_3m, .* given, leading",
    ),
    ({"method": "eular"}, "method: 'eular' given, one of ddpm, ddim, dpmpp_2m, .*euler"),
    ({"num_inference_steps": 0}, r"num_inference_steps: 0 given, an integer in \[1, 1000\]"),
    ({"num_inference_steps": 1001}, r"num_inference_steps: 1001 given, an integer in \[1, 1000\]"),
    ({"num_inference_steps": 5.0}, r"num_inference_steps: 5.0 given, an integer in \[1, 1000\]"),
    ({"timestep_spacing": "even"}, "timestep_spacing: .* given, one of leading, linspace, trailing"),
    (
        {"timesteps": [1, 2]},
        r"timesteps: \(1, 2\) given, at least one integer, strictly descending, in \[0, 999\]",
    ),
    ({"timesteps": [1000, 1]}, r"timesteps: \(1000, 1\) given, .*strictly descending"),
    ({"timesteps": [5.0, 1.0]}, r"timesteps: \(5.0, 1.0\) given, .*strictly descending"),
    (
        {"timesteps": [5, 1], "num_inference_steps": 3},
        "num_inference_steps: 3 given, None or the number of timesteps given, 2,? accepted",
    ),
    (
        {"eta": 0.5},
        "eta: 0.5, which belongs to ddim, sa_solver, heun and tcd, with method 'ddpm' given, 0 accepted",
    ),
    ({"method": "ddim", "eta": 1.5}, r"eta: 1.5 given, a finite number in \[0, 1\]"),
    ({"max_batch": 0}, "max_batch: 0 given, an integer of at least 1"),
    ({"output": "int"}, "output: 'int' given, one of float, uint8 accepted"),
]


@pytest.mark.parametrize(("given", "message"), BAD, ids=lambda value: value if isinstance(value, str) else "")
def test_an_error_names_what_was_given_and_what_is_accepted(sampler, given, message):
    with pytest.raises(ValueError, match=message):
        sampler.sample(**given)


def test_an_unknown_name(sampler):
    with pytest.raises(TypeError, match="seed"):
        sampler.sample(seed=[1])


@pytest.mark.parametrize(
    ("condition", "what"),
    [
        (None, "None given"),
        ([[0.0]], "list given"),
        (np.zeros((1, 3, 8, 8)), r"float64 of shape \(1, 3, 8, 8\) given"),
        (np.zeros((3, 8, 8), np.float32), r"float32 of shape \(3, 8, 8\) given"),
        (np.zeros((2, 3, 8, 8), np.float32), r"float32 of shape \(2, 3, 8, 8\) given"),
        (np.zeros((1, 1, 8, 8), np.float32), r"float32 of shape \(1, 1, 8, 8\) given"),
        (np.zeros((1, 3, 8, 9), np.float32), r"float32 of shape \(1, 3, 8, 9\) given"),
    ],
)
def test_a_condition_has_one_dtype_and_shape(condition, what):
    sampler = OnnxSampler(exported("superres"), "cpu", threads=1)
    with pytest.raises(ValueError, match=rf"condition: {what}, a float32 array \(3 or 1, 3, 8, 8\) accepted"):
        sampler.sample(3, condition=condition)
    broken = np.full((1, 3, 8, 8), np.nan, np.float32)
    with pytest.raises(ValueError, match="condition: NaN or infinity"):
        sampler.sample(3, condition=broken)


def test_a_network_without_classes():
    sampler = OnnxSampler(exported("superres"), "cpu", threads=1)
    condition = np.zeros((1, 3, 8, 8), np.float32)
    with pytest.raises(ValueError, match="class_labels: 1 to a network without classes given"):
        sampler.sample(class_labels=1, condition=condition)
    with pytest.raises(ValueError, match="guidance_scale: 2 to a network without a null label given"):
        sampler.sample(guidance_scale=2, condition=condition)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"loop": "while"}, "loop: 'while' given, one of auto, file, steps accepted"),
        ({"threads": 0}, "threads: 0 given, an integer of at least 1"),
        ({"provider": "gpu"}, "provider: 'gpu', unknown, given, auto, cpu accepted"),
        ({"provider": "cuda"}, "provider: 'cuda', .*; onnxruntime-gpu has it .* given"),
        (
            {"provider": "OpenVINOExecutionProvider"},
            "onnxruntime-openvino has it .*given, auto, cpu accepted",
        ),
    ],
)
def test_options_of_the_sampler(options, message):
    with pytest.raises(ValueError, match=message):
        OnnxSampler(exported("classes"), **options)
