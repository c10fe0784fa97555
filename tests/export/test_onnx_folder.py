"""What a folder must be: damage and mismatch are refused at load, with what is wrong."""

from __future__ import annotations

import json
import shutil

import pytest
from onnx_exports import exported

from fastddpm.onnx import OnnxFolderError, OnnxSampler
from fastddpm.onnx import folder as accepted


@pytest.fixture
def folder(tmp_path):
    return shutil.copytree(exported("classes"), tmp_path / "export")


def changed(folder, **changes):
    """The folder with other values in export.json; None takes an entry away."""
    file = folder / "export.json"
    content = json.loads(file.read_text())
    for name, value in changes.items():
        if value is None:
            del content[name]
        else:
            content[name] = value
    file.write_text(json.dumps(content))
    return folder


def test_an_untouched_copy_loads(folder):
    assert OnnxSampler(folder, "cpu").image_shape == (3, 8, 8)


def test_what_the_exporter_writes_is_what_is_accepted():
    from fastddpm import export

    assert export.FORMAT == accepted.FORMAT
    assert export.VERSION in accepted.VERSIONS
    assert export.OPSET in accepted.OPSETS


@pytest.mark.parametrize(
    "name", ["denoiser.onnx", "step.onnx", "step_guided.onnx", "sampler.onnx", "noise.onnx"]
)
def test_every_file_is_checked(folder, name):
    file = folder / name
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    with pytest.raises(OnnxFolderError, match=rf"{name}: damaged or another file: sha256 \w+... found"):
        OnnxSampler(folder, "cpu")
    file.write_bytes(content[:-100])
    with pytest.raises(OnnxFolderError, match=rf"{name}: \d+ bytes found, \d+ were exported"):
        OnnxSampler(folder, "cpu")
    file.unlink()
    with pytest.raises(OnnxFolderError, match=rf"{name}: missing"):
        OnnxSampler(folder, "cpu")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": "other"}, "format 'other' found, 'fastddpm-onnx' accepted"),
        ({"version": 2}, "version 2 found, 1 accepted"),
        ({"version": None}, "version None found, 1 accepted"),
        ({"noise_spec": 2}, "noise_spec 2 found, 1 accepted"),
        ({"opset": 12}, "opset 12 found, 20 accepted"),
        ({"files": None}, "no list of files"),
        ({"files": {}}, "denoiser.onnx is not among its files"),
        ({"image_shape": [8, 0]}, "export.json: "),
        ({"image_shape": [1] * 9}, "shape: 9 sides by a file given, at most 8 accepted"),
        ({"image_shape": [8, 8]}, "sampler.onnx: outputs images, pixels found, images accepted"),
        ({"image_shape": None}, "'image_shape' is missing"),
        ({"schedule": {"name": "nothing"}}, "name: .* given, one of"),
        ({"time": "hours"}, "'hours' is missing or unknown"),
        ({"defaults": None}, "'defaults' is missing"),
        # What is said of the network must be what the files take.
        ({"num_classes": 0, "null_label": 0, "condition_channels": 3}, "inputs .* accepted"),
    ],
)
def test_a_description_of_something_else(folder, changes, message):
    with pytest.raises(OnnxFolderError, match=message):
        OnnxSampler(changed(folder, **changes), "cpu")


def test_a_file_outside_the_folder_is_not_read(folder):
    files = json.loads((folder / "export.json").read_text())["files"]
    (folder.parent / "else.onnx").write_bytes(b"")
    with pytest.raises(OnnxFolderError, match=r"'\.\./else.onnx' is no file of the folder"):
        OnnxSampler(changed(folder, files={**files, "../else.onnx": {"sha256": "", "bytes": 0}}), "cpu")


def test_no_export_at_all(tmp_path, folder):
    with pytest.raises(OnnxFolderError, match=r"without export.json; a folder of `fastddpm export`"):
        OnnxSampler(tmp_path / "nowhere", "cpu")
    (folder / "export.json").write_text("{")
    with pytest.raises(OnnxFolderError, match="not JSON"):
        OnnxSampler(folder, "cpu")
    (folder / "export.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(OnnxFolderError, match="not JSON"):
        OnnxSampler(folder, "cpu")
    (folder / "export.json").write_text("[]")
    with pytest.raises(OnnxFolderError, match="format 'list' found"):
        OnnxSampler(folder, "cpu")


def test_a_listed_file_that_is_no_model(folder):
    import hashlib

    files = json.loads((folder / "export.json").read_text())["files"]
    (folder / "sampler.onnx").write_bytes(b"not a model")
    files["sampler.onnx"] = {"bytes": 11, "sha256": hashlib.sha256(b"not a model").hexdigest()}
    with pytest.raises(OnnxFolderError, match=r"sampler.onnx: ONNX Runtime cannot load it"):
        OnnxSampler(changed(folder, files=files), "cpu")
