"""Files that someone else may have written: nothing in them runs, hangs or fills memory."""

from __future__ import annotations

import ast
import io
import json
import os
import pickle
import re
import struct
import sys
import time
import warnings
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from networks import TINY, make_unet
from PIL import Image

import fastddpm
from fastddpm import CheckpointError, NoiseSchedule, UNetConfig, pictures
from fastddpm.arrays import read_array
from fastddpm.cli import app as cli
from fastddpm.data import BrokenImagesError, open_dataset
from fastddpm.evaluation.image_sets import open_images
from fastddpm.formats.files import read_tensors
from fastddpm.inputs import InputError, member, parse_json, read_json, without_comments
from fastddpm.jobs.manifest import read_manifest, read_records
from fastddpm.jobs.shards import read_shard
from fastddpm.onnx.folder import read_folder

ROOT = Path(__file__).parents[2]
EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 4 4\n%%EndComments\n"


@pytest.fixture
def run(monkeypatch, capsys):
    """Runs a command: (exit code, errors)."""

    def call(*words):
        monkeypatch.setattr(sys, "argv", ["fastddpm", *map(str, words)])
        try:
            code = cli.main()
        except SystemExit as stop:
            code = stop.code
        return code, capsys.readouterr().err

    return call


class Exploit:
    """What a pickle can do: write a file when it is read."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):
        return (Path.write_text, (self.marker, "was here"))


def grey_images(folder: Path, count: int = 4) -> Path:
    folder.mkdir()
    for i in range(count):
        Image.fromarray(np.full((28, 28), i, np.uint8)).save(folder / f"{i}.png")
    return folder


# ------------------------------------------------------------------ code


@pytest.mark.parametrize("zipped", [True, False])
def test_weights_for_evaluate_run_nothing(run, tmp_path, zipped):
    pytest.importorskip("torch_fidelity")
    marker, weights = tmp_path / "marker", tmp_path / "weights.pth"
    torch.save({"a": Exploit(marker)}, weights, _use_new_zipfile_serialization=zipped)
    images = grey_images(tmp_path / "images")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that these are not the published weights
        code, err = run("evaluate", images, "--reference", images, "--weights", weights, "--device", "cpu")
    assert (code, "holds more than tensors" in err, marker.exists()) == (2, True, False)
    torch.load(weights, weights_only=False)  # the exploit is one
    assert marker.exists()


def test_weights_of_another_network_are_one_line(run, tmp_path):
    pytest.importorskip("torch_fidelity")
    torch.save({"a": torch.ones(2)}, tmp_path / "weights.pth")
    images = grey_images(tmp_path / "images")
    words = (
        "evaluate",
        images,
        "--reference",
        images,
        "--weights",
        tmp_path / "weights.pth",
        "--device",
        "cpu",
    )
    with pytest.warns(UserWarning, match="is not the weights-inception"):
        code, err = run(*words)
    assert (code, "--weights: those of another network" in err) == (2, True)


@pytest.mark.parametrize("command", ["evaluate", "job", "deblur", "train"])
def test_no_picture_starts_a_program(run, tmp_path, monkeypatch, command):
    """PostScript under the name of a PNG; a `gs` that logs its calls is on the path."""
    log = tmp_path / "calls"
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / "gs").write_text(f"#!/bin/sh\necho called >> {log}\n")
    (programs / "gs").chmod(0o755)
    monkeypatch.setenv("PATH", str(programs), prepend=os.pathsep)
    place = tmp_path / "images"
    place.mkdir()
    (place / "000000.png").write_bytes(EPS)
    if command == "job":
        with pytest.raises(ValueError, match="no image that can be read"):
            read_shard(place, "png")
    elif command == "train":
        with pytest.raises(BrokenImagesError, match="no image that can be read"):
            open_dataset(place)
    elif command == "deblur":
        code, err = run("deblur", place / "000000.png", tmp_path / "out.png")
        assert (code, "no image that can be read" in err) == (2, True)
    else:
        code, err = run("evaluate", place, "--features", "digits", "--device", "cpu")
        assert (code, "no image that can be read" in err) == (2, True)
    assert not log.exists()


def test_images_are_opened_in_one_place():
    for folder in ("fastddpm", "benchmarks", "scripts"):
        for file in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(file.read_text())):
                opens = isinstance(node, ast.Attribute) and node.attr == "open"
                if opens and isinstance(node.value, ast.Name) and node.value.id in ("Image", "PIL"):
                    assert file == ROOT / "fastddpm" / "pictures.py", f"{file}:{node.lineno}"


# ------------------------------------------------------------------ what is no regular file


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "schedule.json", "sampler.json"])
def test_a_named_pipe_in_a_model_folder_is_refused_at_once(tmp_path, name):
    folder = fastddpm.save_folder(tmp_path / "m", make_unet(), NoiseSchedule.linear(10))
    (folder / name).unlink()
    os.mkfifo(folder / name)
    with pytest.raises(CheckpointError, match=f"{name}: a named pipe, a regular file accepted"):
        fastddpm.load(folder)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
@pytest.mark.parametrize(
    ("name", "read"),
    [
        ("a.pth", read_tensors),
        ("a.safetensors", read_tensors),
        ("a.json", read_json),
        ("a.npz", lambda path: read_array(path, "arr_0")),
        ("a.png", lambda path: open_dataset(path.parent)),
        ("a.arrow", open_dataset),
        ("a.tar", lambda path: read_shard(path, "webdataset")),
    ],
)
def test_a_named_pipe_is_refused_by_every_reader(tmp_path, name, read):
    os.mkfifo(tmp_path / name)
    with pytest.raises((ValueError, OSError)) as caught:
        read(tmp_path / name)
    assert re.search("a regular file accepted|not a folder", str(caught.value))


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="the superuser may read everything")
def test_what_may_not_be_read_is_not_called_missing(tmp_path):
    (tmp_path / "a.json").write_text("{}")
    (tmp_path / "a.json").chmod(0)
    with pytest.raises(InputError, match="permission denied"):
        read_json(tmp_path / "a.json")


def test_a_folder_and_a_device_are_said_to_be_that(tmp_path):
    (tmp_path / "a.pth").mkdir()
    with pytest.raises(CheckpointError, match=r"a\.pth: a folder, a regular file accepted"):
        read_tensors(tmp_path / "a.pth")
    if Path("/dev/zero").exists():
        with pytest.raises(InputError, match="a device"):
            read_json(Path("/dev/zero"))


# ------------------------------------------------------------------ JSON


@pytest.mark.parametrize(
    "text", ['"' * 40_001, '/"' * 20_000, '"\\' * 20_000, "//" * 20_000, '"a//' * 10_000, '"' + "\\" * 40_000]
)
def test_comments_are_left_out_in_linear_time(text):
    began = time.process_time()
    without_comments(text)
    assert time.process_time() - began < 0.5


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[" * 100_000, "nested deeper than 32"),
        ("[" * 40 + "]" * 40, "nested deeper than 32"),
        ('{"a": 1, "a": 2}', "'a' stands twice"),
        ("9" * 5000, "an integer of 5000 digits"),
    ],
)
def test_json_beyond_its_limits_is_refused(text, message):
    with pytest.raises(ValueError, match=message):
        parse_json(text)


def test_json_of_other_libraries_is_read():
    assert parse_json('{"lambda_min_clipped": -Infinity}') == {"lambda_min_clipped": -np.inf}
    assert parse_json("[" * 32 + "]" * 32)


@pytest.mark.parametrize("name", ["../x", "/etc/passwd", "a/b", "a\\b", "", ".", "..", "C:x", None, 3, "a\0"])
def test_names_outside_the_folder_are_refused(tmp_path, name):
    with pytest.raises(InputError, match="a plain name accepted"):
        member(tmp_path, name)
    record = {"name": name, "images": 1, "bytes": 1, "sha256": "a"}
    (tmp_path / "manifest.json").write_text(json.dumps({"settings": {}, "shards": [record]}))
    with pytest.raises(ValueError, match="a plain name accepted"):
        read_manifest(tmp_path)
    (tmp_path / "manifest.json").write_text(json.dumps({"settings": {}}))
    (tmp_path / "records").mkdir()
    (tmp_path / "records" / "00000.json").write_text(json.dumps(record))
    with pytest.raises(ValueError, match=r"00000\.json: .*a plain name accepted"):
        read_records(tmp_path)


def test_an_index_that_leaves_its_folder_is_refused(tmp_path):
    from fastddpm.formats.writing import save_pipeline

    folder = save_pipeline(
        tmp_path / "p", make_unet(UNetConfig()), NoiseSchedule.linear(10), {"shape": [1, 8, 8]}
    )
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    weights.rename(tmp_path / "elsewhere.safetensors")
    index = weights.with_name(f"{weights.name}.index.json")
    index.write_text(json.dumps({"weight_map": {"a": "../../elsewhere.safetensors"}}))
    with pytest.raises(CheckpointError, match=r"index\.json: .*a plain name accepted"):
        fastddpm.load(folder)


# ------------------------------------------------------------------ sizes


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("num_res_blocks", 10**9),
        ("base_channels", 2**40),
        ("channel_mults", [1] * 1000),
        ("channel_mults", [1, 10**9]),
        ("num_classes", 10**12),
        ("time_dim", 10**9),
        ("channel_mults", None),
        ("dropout", "a"),
        ("time_scale", float("nan")),
    ],
)
def test_a_network_that_would_never_be_built_is_refused(tmp_path, field, value):
    folder = fastddpm.save_folder(tmp_path / "m", make_unet(), NoiseSchedule.linear(10))
    config = {**TINY.to_dict(), field: value}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=rf"config\.json: {field}: "):
        fastddpm.load(folder)


def test_a_schedule_of_billions_of_steps_is_refused():
    with pytest.raises(ValueError, match=r"num_train_timesteps: .* given, an integer in \[1, 1000000\]"):
        NoiseSchedule.linear(10**10)


def test_a_diffusers_network_of_billions_of_blocks_is_refused(tmp_path):
    pytest.importorskip("diffusers")
    from fastddpm.formats.writing import save_pipeline

    folder = save_pipeline(
        tmp_path / "p", make_unet(UNetConfig()), NoiseSchedule.linear(10), {"shape": [1, 8, 8]}
    )
    config = json.loads((folder / "unet" / "config.json").read_text())
    for name, value in (("layers_per_block", 10**9), ("block_out_channels", [2**40, 2**40, 2**40])):
        (folder / "unet" / "config.json").write_text(json.dumps({**config, name: value}))
        with pytest.raises(CheckpointError, match=rf"config\.json: {name}: "):
            fastddpm.load(folder)


def test_an_archive_that_inflates_is_refused(tmp_path):
    """What torch.save writes is stored; here 200 MB of zeros are a file of some 200 kB."""
    torch.save({"a.weight": torch.zeros(50_000_000)}, tmp_path / "big.pth")
    with (
        zipfile.ZipFile(tmp_path / "big.pth") as big,
        zipfile.ZipFile(tmp_path / "bomb.pth", "w", zipfile.ZIP_DEFLATED) as bomb,
    ):
        for entry in big.infolist():
            bomb.writestr(entry.filename, big.read(entry))
    assert (tmp_path / "bomb.pth").stat().st_size < 2**20
    with pytest.raises(CheckpointError, match="is compressed, which torch"):
        read_tensors(tmp_path / "bomb.pth")


def test_tensors_that_show_more_than_the_file_has_are_refused(tmp_path):
    torch.save({"a": torch.zeros(1).expand(10**10)}, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match="show many times"):
        read_tensors(tmp_path / "a.pth")


def npy(header: str, content: bytes = b"") -> bytes:
    text = header.encode().ljust(117) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + content


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (npy("{'descr': '|u1', 'fortran_order': False, 'shape': (100000000000,), }"), "its header says"),
        (npy("{'descr': '|O', 'fortran_order': False, 'shape': (1,), }", pickle.dumps([1])), "holds object"),
        (npy("{'descr': '|u1', 'fortran_order': False, 'shape': (4, 1, 1, 1), }", b"abc"), "arr_0"),
        (npy("{'descr': '|u1', 'fortran_order': False, 'shape': (1, 1, 1, 1), }", b"abc"), "longer"),
        (b"", "arr_0"),
    ],
)
@pytest.mark.parametrize("kind", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_headers_of_npz_are_held_to_the_file(tmp_path, entry, message, kind):
    with zipfile.ZipFile(tmp_path / "a.npz", "w", kind) as archive:
        archive.writestr("arr_0.npy", entry)
    with pytest.raises(ValueError, match=rf"a\.npz: .*{message}"):
        open_images(tmp_path / "a.npz")


def test_an_empty_npz_is_one_line(run, tmp_path):
    np.savez(tmp_path / "none.npz")
    np.savez(tmp_path / "zero.npz", arr_0=np.zeros((0, 28, 28, 1), np.uint8))
    (tmp_path / "empty.npz").write_bytes(b"")
    said = {"none": "none.npz: no arr_0", "zero": "FOLDER: no images", "empty": "empty.npz: no arr_0"}
    for name, words in said.items():
        code, err = run("evaluate", tmp_path / f"{name}.npz", "--features", "digits")
        assert (code, words in err, err.count("\n")) == (2, True, 1)


@pytest.mark.parametrize("dtype", [np.uint8, np.int64, np.float32, np.float64, np.bool_])
@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("order", ["C", "F"])
def test_arrays_are_those_of_numpy(tmp_path, dtype, save, order):
    array = np.asarray(np.random.default_rng(0).integers(0, 2, (3, 4, 5)).astype(dtype), order=order)
    save(tmp_path / "a.npz", arr_0=array, scalar=np.float32(3))
    np.testing.assert_array_equal(
        read_array(tmp_path / "a.npz", "arr_0"), np.load(tmp_path / "a.npz")["arr_0"]
    )
    assert read_array(tmp_path / "a.npz", "scalar") == np.float32(3)


def test_a_header_of_a_picture_allocates_nothing(tmp_path):
    """A box of JPEG 2000 that says 2**62 bytes, of which two are there."""
    boxes = b"\0\0\0\x0cjP  \r\n\x87\n", b"\0\0\0\x14ftypjp2 \0\0\0\0jp2 ", b"\0\0\0\x01jp2h"
    (tmp_path / "a.jp2").write_bytes(b"".join(boxes) + (2**62).to_bytes(8, "big") + b"ab")
    with pytest.raises(ValueError, match="not readable"), pictures.opened(tmp_path / "a.jp2"):
        pass


def test_a_large_picture_is_named_among_the_broken_ones(tmp_path):
    """The header of 13000x13000 pixels: pillow alone would only warn."""
    body = struct.pack(">IIBBBBB", 13_000, 13_000, 8, 2, 0, 0, 0)
    content = b"\x89PNG\r\n\x1a\n"
    for name, data in ((b"IHDR", body), (b"IDAT", zlib.compress(b"")), (b"IEND", b"")):
        content += struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
    (tmp_path / "big.png").write_bytes(content)
    with pytest.raises(BrokenImagesError, match=r"big\.png: .*13000x13000 pixels; up to 67,108,864 pixels"):
        open_dataset(tmp_path, size=8)
    with pytest.raises(ValueError, match="13000x13000 pixels"), pictures.opened(content):
        pass


# ------------------------------------------------------------------ tensors


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        (torch.ones(2, dtype=torch.complex64), "complex"),
        (torch.eye(2).to_sparse(), "sparse"),
        (torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8), "quantised"),
        (torch.ones(2, device="meta"), "without data"),
        (torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]), "nested"),
    ],
)
def test_tensors_of_other_kinds_are_named(value, kind):
    state = {**make_unet().state_dict(), "conv_in.bias": value}
    with pytest.raises(CheckpointError, match=rf"conv_in\.bias is {kind} \(torch\."):
        fastddpm.load(state)


def test_integer_weights_are_named(tmp_path):
    folder = fastddpm.save_folder(tmp_path / "m", make_unet(), NoiseSchedule.linear(10))
    state = {name: value for name, value in make_unet().state_dict().items()}
    state["conv_in.bias"] = state["conv_in.bias"].long()
    from safetensors.torch import save_file

    save_file(state, folder / "model.safetensors")
    with pytest.raises(
        CheckpointError, match=r"conv_in\.bias holds torch\.int64, floating point numbers expected"
    ):
        fastddpm.load(folder)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_weights_that_are_not_finite_are_named(tmp_path, value, dtype):
    unet = make_unet().to(dtype)
    with torch.no_grad():
        unet.conv_out.weight.view(-1)[-1] = value
    from safetensors.torch import save_file

    folder = fastddpm.save_folder(tmp_path / "m", make_unet(), NoiseSchedule.linear(10))
    save_file(unet.state_dict(), folder / "model.safetensors")
    found = r"model\.safetensors: conv_out\.weight holds NaN or infinity \(1 of \d+ values\)"
    with pytest.raises(CheckpointError, match=found):
        fastddpm.load(folder)


def test_weights_that_are_not_finite_are_named_as_in_the_file(tmp_path):
    from fastddpm.formats.writing import save_pipeline
    from fastddpm.unet import abarankab

    config = UNetConfig()
    broken, whole = make_unet(config), make_unet(config)
    with torch.no_grad():
        broken.conv_out.weight.view(-1)[0] = float("nan")
    given = {"num_groups": 8, "activation": "silu", "time_scale": 1.0, "image_size": 8}
    both = {**abarankab.their_state_dict(broken, "model."), **abarankab.their_state_dict(whole, "ema_model.")}
    torch.save({**both, "betas": torch.linspace(1e-4, 0.02, 10)}, tmp_path / "a.pth")
    fastddpm.load(tmp_path / "a.pth", config=given)  # the averaged weights are whole
    with pytest.raises(CheckpointError, match=r"a\.pth: model\.out_conv\.weight holds NaN"):
        fastddpm.load(tmp_path / "a.pth", config=given, ema=False)
    folder = save_pipeline(tmp_path / "p", broken, NoiseSchedule.linear(10), {"shape": [1, 8, 8]})
    with pytest.raises(CheckpointError, match=r"_model\.safetensors: conv_out\.weight holds NaN"):
        fastddpm.load(folder, shape=(1, 8, 8))


# ------------------------------------------------------------------ tables and ONNX


def table(path: Path) -> Path:
    datasets = pytest.importorskip("datasets")
    content = io.BytesIO()
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(content, format="PNG")
    cells = [{"bytes": content.getvalue(), "path": None}] * 3
    features = datasets.Features({"image": datasets.Image()})
    datasets.Dataset.from_dict({"image": cells}, features=features).save_to_disk(path)
    return path


@pytest.mark.parametrize(("at", "word"), [(440, 64), (580, 2**31 - 1), (588, 2**20)])
def test_a_damaged_arrow_file_does_not_end_the_process(tmp_path, at, word):
    """Words that say where columns lie: pyarrow 26 alone ends with a signal at each."""
    content = next(table(tmp_path / "saved").glob("*.arrow")).read_bytes()
    (tmp_path / "a.arrow").write_bytes(content[:at] + struct.pack("<I", word) + content[at + 4 :])
    with pytest.raises(ValueError, match="not a complete arrow file"):
        open_dataset(tmp_path / "a.arrow")


def test_a_parquet_file_that_inflates_is_refused(tmp_path, monkeypatch):
    pytest.importorskip("datasets")
    import pyarrow
    from pyarrow import parquet

    zeros = pyarrow.table({"image": [bytes(2**20)] * 20})
    with parquet.ParquetWriter(tmp_path / "a.parquet", zeros.schema, compression="zstd") as file:
        for _ in range(60):
            file.write_table(zeros)
    assert (tmp_path / "a.parquet").stat().st_size < 2**20
    with pytest.raises(ValueError, match="inflates to more than"):
        open_dataset(tmp_path / "a.parquet")


def test_a_saved_dataset_that_lists_files_elsewhere_is_refused(tmp_path):
    folder = table(tmp_path / "saved")
    state = json.loads((folder / "state.json").read_text())
    state["_data_files"] = [{"filename": "../other.arrow"}]
    (folder / "state.json").write_text(json.dumps(state))
    with pytest.raises(ValueError, match="a plain name accepted"):
        open_dataset(folder)


def test_external_weights_outside_of_the_folder_are_refused_by_onnxruntime(tmp_path):
    """Its own check, which SECURITY.md relies on."""
    onnx = pytest.importorskip("onnx")
    onnxruntime = pytest.importorskip("onnxruntime")
    (tmp_path / "secret").write_bytes(np.ones(4, np.float32).tobytes())
    (tmp_path / "folder").mkdir()
    helper = onnx.helper
    for location in ("../secret", str(tmp_path / "secret")):
        weight = onnx.TensorProto(name="w", data_type=1, dims=[4], data_location=onnx.TensorProto.EXTERNAL)
        weight.external_data.add(key="location", value=location)
        node = helper.make_node("Identity", ["w"], ["y"])
        output = helper.make_tensor_value_info("y", 1, [4])
        graph = helper.make_graph([node], "g", [], [output], [weight])
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
        file = tmp_path / "folder" / "a.onnx"
        file.write_bytes(model.SerializeToString())
        with pytest.raises(Exception, match=r"(?i)external|escapes|outside|absolute"):
            onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("num_classes", "ten"),
        ("num_classes", 1.5),
        ("null_label", [1]),
        ("null_label", -1),
        ("class_names", ["cat"]),
        ("class_names", "cat"),
        ("condition_channels", "a"),
        ("condition_channels", 2**40),
        ("image_shape", [1, 8.5, 8]),
        ("image_shape", [1, 2**40, 8]),
        ("defaults", {"method": "none"}),
        ("defaults", {"method": "ddpm", "num_inference_steps": "a"}),
        ("defaults", [1]),
        ("schedule", 3),
        ("time", [1]),
    ],
)
def test_values_of_export_json_are_checked(tmp_path, field, value):
    import fuzz_samples

    (tmp_path / "s").mkdir()
    sample = fuzz_samples._onnx(tmp_path / "s")[0]
    read_folder(sample.root)
    sample.file.write_text(json.dumps({**json.loads(sample.file.read_text()), field: value}))
    with pytest.raises(fastddpm.onnx.OnnxFolderError, match=r"export\.json: "):
        read_folder(sample.root)
