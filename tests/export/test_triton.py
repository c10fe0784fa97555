"""A model for Triton Inference Server: its configuration, and unlike requests in one batch of its file.

There is no server here. The configuration is held to Triton's own schema, and the file to what `OnnxSampler`
and PyTorch draw for each request alone.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_exports
import onnxruntime as ort
import pytest
from google.protobuf import descriptor_pool, message_factory, text_format
from tolerances import ACROSS_BACKENDS

from fastddpm.checks import BadArgument
from fastddpm.export import export_triton, triton
from fastddpm.export.compose import IR_VERSION
from fastddpm.export.network import OPSET
from fastddpm.export.nodes import INT64, Graph, as_model, value
from fastddpm.export.spacing import spaced
from fastddpm.onnx import OnnxSampler
from fastddpm.plans import spaced_timesteps
from fastddpm.plans.registry import formulas

# The serialised model_config.proto that tritonclient 2.73.0 holds (tritonclient/grpc/model_config_pb2.py).
# The package itself is not installed: it asks for older versions of ml_dtypes and protobuf than others have.
SCHEMA = Path(__file__).parents[1] / "golden" / "triton_model_config.binpb"
ORT_TYPES = {
    "TYPE_FP32": "tensor(float)",
    "TYPE_INT64": "tensor(int64)",
    "TYPE_UINT8": "tensor(uint8)",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Four classes and a null label, ddpm."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fastddpm.export.export_network", onnx_exports.translated)
        sampler, repository = onnx_exports.tiny_sampler("classes"), tmp_path_factory.mktemp("repository")
        return export_triton(sampler, repository, "tiny", verify=False)


def session(folder):
    options = ort.SessionOptions()
    options.log_severity_level = 4
    return ort.InferenceSession(str(folder / "1" / "model.onnx"), options, providers=["CPUExecutionProvider"])


def parsed(text):
    """A configuration, by Triton's schema: unknown fields, values and types are errors."""
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(SCHEMA.read_bytes())
    config = message_factory.GetMessageClass(pool.FindMessageTypeByName("inference.ModelConfig"))
    return text_format.Parse(text, config())


def drawn(folder, **given):
    kinds = {one.name: one.type for one in session(folder).get_inputs()}
    feed = {
        name: np.array(value, np.float32 if kinds[name] == "tensor(float)" else np.int64).reshape(-1, 1)
        for name, value in given.items()
    }
    return session(folder).run(["images", "pixels"], feed)


def test_the_configuration_is_tritons_and_the_files(folder):
    config = parsed((folder / "config.pbtxt").read_text())
    run = session(folder)
    assert (config.name, config.backend, config.max_batch_size) == ("tiny", "onnxruntime", 64)
    assert config.HasField("dynamic_batching")
    for listed, there in ((config.input, run.get_inputs()), (config.output, run.get_outputs())):
        assert [one.name for one in listed] == [one.name for one in there]
        for one, other in zip(listed, there, strict=True):
            dtype = one.DESCRIPTOR.fields_by_name["data_type"].enum_type.values_by_number[one.data_type].name
            assert ORT_TYPES[dtype] == other.type
            assert other.shape[0] == "batch"
            assert list(one.dims) == other.shape[1:]
    # Whatever a server may put side by side is an image's own: no input is without the batch's axis.
    assert run.get_overridable_initializers() == []
    parameters = {key: value.string_value for key, value in config.parameters.items()}
    assert parameters == run.get_modelmeta().custom_metadata_map
    assert parameters["methods"] == "0 ddpm, 1 ddim, 2 dpmpp_2m"
    assert (parameters["default_steps"], parameters["null_label"]) == ("10", "4")


def test_each_request_of_a_batch_is_drawn_as_alone(folder):
    requests = [
        {"method": "ddim", "num_inference_steps": 7, "eta": 0.5, "class_labels": 3, "guidance_scale": 2.0},
        {"method": "ddpm", "num_inference_steps": 3, "eta": 0.0, "class_labels": 0, "guidance_scale": 1.0},
        {
            "method": "dpmpp_2m",
            "num_inference_steps": 5,
            "eta": 0.0,
            "class_labels": 4,
            "guidance_scale": 1.5,
        },
        {"method": "ddim", "num_inference_steps": 2, "eta": 0.0, "class_labels": 1, "guidance_scale": 0.0},
        {"method": "ddpm", "num_inference_steps": 10, "eta": 0.0, "class_labels": 2, "guidance_scale": 1.0},
    ]
    seeds = [5, 2**63 - 1, 0, 7, 2**40 + 3]
    images, pixels = drawn(
        folder,
        seeds=seeds,
        steps=[one["num_inference_steps"] for one in requests],
        method=[["ddpm", "ddim", "dpmpp_2m"].index(one["method"]) for one in requests],
        eta=[one["eta"] for one in requests],
        class_labels=[one["class_labels"] for one in requests],
        guidance_scale=[one["guidance_scale"] for one in requests],
    )
    alone = OnnxSampler(onnx_exports.exported("classes"), "cpu", threads=1)
    for place, (seed, request) in enumerate(zip(seeds, requests, strict=True)):
        wanted = alone.sample(seeds=[seed], progress=False, **request)
        assert wanted.std() > 0.1
        assert np.abs(images[place] - wanted[0]).max() < ACROSS_BACKENDS
        levels = alone.sample(seeds=[seed], progress=False, output="uint8", **request)
        assert np.abs(pixels[place].astype(int) - levels[0]).max() <= 1


@pytest.mark.parametrize("spacing", ["leading", "linspace", "trailing"])
@pytest.mark.parametrize("method", ["ddim", "dpmpp_2m"])
def test_timesteps_of_a_number_are_those_of_plans(spacing, method):
    g = Graph()
    found = spaced(g, 1000, "steps", g.int64(list(formulas()).index(method)), spacing)
    inputs, outputs = [value("steps", INT64)], [value(found, INT64, ["steps"])]
    model = as_model(g.finished("spaced", inputs, outputs), OPSET, IR_VERSION)
    run = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    for steps in (1, 2, 3, 7, 50, 61, 333, 999, 1000):
        (timesteps,) = run.run(None, {"steps": np.array(steps, np.int64)})
        wanted = spaced_timesteps(1000, steps, spacing, skip_last=method == "dpmpp_2m")
        assert timesteps.tolist() == wanted.tolist(), steps


@pytest.mark.parametrize(
    ("name", "wrong"),
    [("seeds", -1), ("steps", 0), ("steps", 1001), ("method", 3), ("eta", 1.5), ("class_labels", 5)],
)
def test_what_is_out_of_range_fails(folder, name, wrong):
    good = {"seeds": 1, "steps": 2, "method": 1, "eta": 0.0, "class_labels": 1, "guidance_scale": 1.0}
    assert np.isfinite(drawn(folder, **good)[0]).all()
    with pytest.raises(Exception, match=r"out of (data )?bounds|indices element"):
        drawn(folder, **{**good, name: wrong})


def test_a_solver_and_a_condition_are_held_to_pytorch(tmp_path, translated_once):
    """Verification draws by every formula and by the solver in one batch, and compares with each alone."""
    sampler = onnx_exports.tiny_sampler("superres").replace(method="unipc", num_inference_steps=4)
    folder = export_triton(sampler, tmp_path, "solver")
    config = parsed((folder / "config.pbtxt").read_text())
    assert [list(one.dims) for one in config.input if one.name == "condition"] == [[3, 8, 8]]
    assert config.parameters["methods"].string_value.endswith("3 unipc")


def test_what_fastddpm_wrote_is_replaced(tmp_path):
    for size in (1, 3):
        folder = triton.check_place(tmp_path, "tiny")
        text = triton.config("tiny", onnx_model(), {"fastddpm_version": "0"}, size)
        with triton.written(folder, onnx_model(), text) as file:
            assert file.is_file()
    assert parsed((folder / "config.pbtxt").read_text()).max_batch_size == 3
    assert sorted(path.name for path in folder.rglob("*")) == ["1", "config.pbtxt", "model.onnx"]


def test_any_text_is_quoted():
    text = 'a "cat", C:\\dog\n\u00e9\u65e5\x01'
    model = onnx_model()
    about = {"fastddpm_version": "0", "class_names": text}
    assert parsed(triton.config("name", model, about, 1)).parameters["class_names"].string_value == text


def onnx_model():
    from onnx import helper

    return helper.make_model(helper.make_graph([], "nothing", [], []))


@pytest.mark.parametrize(
    ("argument", "given"),
    [
        ("name", {"name": "../up"}),
        ("name", {"name": ""}),
        ("max_batch", {"max_batch": 0}),
        ("repository", {"name": "theirs"}),
        ("repository", {"name": "file"}),
    ],
)
def test_errors_name_the_argument_and_leave_nothing(tmp_path, argument, given):
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "config.pbtxt").write_text('name: "theirs"\n')
    (tmp_path / "file").touch()
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(BadArgument, match=f"^{argument}: "):
        export_triton(onnx_exports.tiny_sampler("classes"), tmp_path, **{"name": "tiny", **given})
    assert sorted(tmp_path.rglob("*")) == before


def test_timesteps_by_hand_are_refused(tmp_path):
    sampler = onnx_exports.tiny_sampler("classes").replace(timesteps=[900, 500, 3], num_inference_steps=None)
    with pytest.raises(BadArgument, match=r"^timesteps: a list given"):
        export_triton(sampler, tmp_path, "tiny")
    assert list(tmp_path.iterdir()) == []


def test_the_command_wants_a_place(run):
    code, _, errors = run("export")
    assert code == 2
    assert "--out, --triton-repository: neither given, one of them, or both, accepted" in errors
    code, _, errors = run("export", "--triton-name", "a", "--out", "b")
    assert code == 2
    assert "--triton-name: 'a' without --triton-repository given" in errors
