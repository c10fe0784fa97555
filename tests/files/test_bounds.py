"""What a file may ask for: numbers of a range, networks and images that fit, and errors of a line."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import pickle
import random
import struct
import sys
import tarfile
import warnings
from pathlib import Path

import pytest
import torch
from networks import TINY, make_unet

import fastddpm
from fastddpm import CheckpointError, NoiseSchedule, UNetConfig
from fastddpm.cli import app as cli
from fastddpm.data import BrokenImagesError, open_dataset
from fastddpm.formats._diffusers.network import planned
from fastddpm.onnx.folder import read_folder
from fastddpm.training import checkpoints, report
from fastddpm.unet import UNet, size


@pytest.mark.parametrize(
    ("field", "value"),
    [
        (field.name, value)
        for field in dataclasses.fields(UNetConfig)
        for value in ("x", [], {}, float("nan"), 10**400, -1, [[1]], "y" * 10**6)
        if (field.name, value) not in (("attention_levels", []), ("time_scale", -1))
    ],
)
def test_every_field_of_a_network_has_a_type_and_a_range(field, value):
    with pytest.raises(ValueError, match=rf"^{field}: ") as caught:
        UNetConfig.from_dict({**TINY.to_dict(), field: value})
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize("name", ["config.json", "schedule.json", "sampler.json", "export.json"])
def test_errors_quote_a_line_of_long_values(tmp_path, name):
    import fuzz_samples

    folder = fastddpm.save_folder(tmp_path / "m", make_unet(), NoiseSchedule.linear(10), {"shape": [1, 8, 8]})
    if name == "export.json":
        (tmp_path / "s").mkdir()
        folder = fuzz_samples._onnx(tmp_path / "s")[0].root
    document = json.loads((folder / name).read_text())
    refused = 0
    for long in ("y" * 10**4, {"\x1b[31m": "y" * 10**4}):
        for text in ({**document, key: long} for key in (*document, "k" * 10**4)):
            (folder / name).write_text(json.dumps(text))
            try:
                (read_folder if name == "export.json" else fastddpm.load)(folder)
            except ValueError as error:
                said = str(error).replace(str(folder), "")
                assert name in said
                assert len(said) < 300, said
                assert said.isprintable()
                refused += 1
    assert refused >= len(document)


def test_a_network_of_very_many_blocks_is_refused_before_they_are_made(tmp_path):
    """Each number by itself is within its range: 1,550 blocks, which took 22 s to make of nothing."""
    folder = fastddpm.save_folder(tmp_path / "m", make_unet(), NoiseSchedule.linear(10))
    config = {**TINY.to_dict(), "num_res_blocks": 64, "channel_mults": [1] * 12, "attention_levels": []}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=r"num_res_blocks: 64 given, at most 10 with 12 levels"):
        fastddpm.load(folder)
    theirs = {"block_out_channels": [32] * 12, "layers_per_block": 64}
    theirs |= {"down_block_types": ["DownBlock2D"] * 12, "up_block_types": ["UpBlock2D"] * 12}
    with pytest.raises(CheckpointError, match=r"layers_per_block: 64 given, an integer in \[1, 10\]"):
        planned(theirs, None, "config.json")


def test_a_large_network_is_refused_before_it_is_made(monkeypatch):
    large = UNetConfig(base_channels=8192, channel_mults=(1, 8), num_groups=1)
    monkeypatch.setattr(torch.nn.Module, "__init__", lambda self: pytest.fail("made"))
    with pytest.raises(ValueError, match=r"config: a network of \d+,\d{3},\d{3},\d{3} parameters given"):
        UNet(large)
    count = size.parameters(TINY)
    with pytest.raises(
        ValueError, match=rf"a network of {count:,} parameters given, up to {count - 1:,}, max"
    ):
        UNet(TINY, max_parameters=count - 1)
    monkeypatch.undo()
    UNet(TINY, max_parameters=count)


@pytest.mark.parametrize("seed", range(12))
def test_sizes_are_those_of_the_network_that_is_made(seed):
    """The formulas against torch's own modules: their parameters, and what their convolutions return."""
    pick = random.Random(seed)
    levels = pick.choice([(1,), (1, 2), (2, 1, 3), (1, 1, 16)])
    classes, conditioning = pick.choice([None, 5]), pick.choice(["bias", "embedding", "timestep"])
    config = UNetConfig(
        in_channels=pick.choice([1, 3]),
        out_channels=pick.choice([None, 2]),
        base_channels=8,
        channel_mults=levels,
        num_res_blocks=pick.choice([1, 2]),
        time_dim=pick.choice([10, 16]),
        time_hidden=pick.choice([None, 12]),
        num_classes=classes,
        null_class=classes is not None and conditioning != "timestep" and pick.random() < 0.5,
        class_conditioning=conditioning,
        attention_levels=pick.choice([(), (0,), (len(levels) - 1,)]),
        attention_bias=pick.random() < 0.5,
        mid_attention=pick.choice(["norm", "plain", "none"]),
        norm=pick.choice(["gn", "bn", "in", "none"]),
        num_groups=4,
        time_conditioning=pick.choice(["bias", "affine", "scale_shift"]),
        initial_pad=pick.choice([0, 4]),
        resblock_updown=pick.random() < 0.5,
    )
    unet = UNet(config).eval()
    assert size.parameters(config) == sum(value.numel() for value in unet.parameters())
    maps = []
    for block in unet.residual_blocks:
        block.register_forward_hook(lambda _, given, made: maps.extend((given[0].numel(), made.numel())))
    labels = None if classes is None else torch.zeros(1, dtype=torch.int64)
    unet(torch.zeros(1, config.in_channels, 16, 8), torch.zeros(1, dtype=torch.int64), labels)
    assert size.largest_map(config, (config.in_channels, 16, 8)) == max(maps)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ([1, 2**20, 8], r"shape: \(1, 1048576, 8\) by a file given, sides up to 65,536"),
        ([1, 65536, 65536], "by a file given, sides up to 65,536 and 268,435,456 values accepted"),
        ([1, 16384, 16384], "for which a feature map has .* values given, up to .* a shape as an argument"),
    ],
)
def test_a_file_asks_for_no_image_of_gigabytes(tmp_path, shape, message):
    unet = make_unet(UNetConfig(base_channels=64))
    folder = fastddpm.save_folder(tmp_path / "m", unet, NoiseSchedule.linear(10), {"shape": shape})
    with pytest.raises(CheckpointError, match=rf"sampler\.json: shape: .*{message.removeprefix('shape: ')}"):
        fastddpm.load(folder)
    assert fastddpm.load(folder, shape=(1, 8, 8)).shape == (1, 8, 8)
    assert fastddpm.load(folder, shape=shape).shape == tuple(shape)  # a caller knows what it has


@pytest.mark.parametrize("dtype", ["x" * 5000, "/etc/passwd", "\x1b[31m", "F99"])
def test_what_safetensors_quotes_of_a_header_is_cut(tmp_path, dtype):
    header = json.dumps({"a": {"dtype": dtype, "shape": [0], "data_offsets": [0, 0]}}).encode()
    (tmp_path / "a.safetensors").write_bytes(struct.pack("<Q", len(header)) + header)
    with pytest.raises(CheckpointError, match=r"a\.safetensors: not a complete safetensors file") as caught:
        fastddpm.load(tmp_path / "a.safetensors")
    said = str(caught.value).replace(str(tmp_path), "")
    assert (len(said) < 300, said.isprintable()) == (True, True)


@pytest.mark.parametrize("device", ["x", "", [], -1, "y" * 10**6])
def test_a_device_that_a_file_makes_up_is_one_line(tmp_path, device):
    folder = fastddpm.save_folder(tmp_path / "m", make_unet(), NoiseSchedule.linear(10))
    (folder / "sampler.json").write_text(json.dumps({"device": device}))
    with pytest.raises(CheckpointError, match=r"sampler\.json: ") as caught:
        fastddpm.load(folder)
    assert str(caught.value).isprintable()


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_named_pipes_in_runs_and_places_of_models_are_refused_at_once(tmp_path):
    tensors = {name: {"a": torch.ones(2)} for name in checkpoints.TENSOR_FILES}
    for name in ("state.json", "model.safetensors", "sha256.json"):
        folder = checkpoints.save(tmp_path / name, 5, tensors, {"step": 5}, 1)
        (folder / name).unlink()
        os.mkfifo(folder / name)
        with pytest.raises(CheckpointError, match=f"{name}: a named pipe, a regular file accepted"):
            checkpoints.read(tmp_path / name, 5)
    (tmp_path / "m").mkdir()
    os.mkfifo(tmp_path / "m" / "model.safetensors")
    with pytest.raises(ValueError, match=r"which holds model\.safetensors of something else"):
        fastddpm.save_folder(tmp_path / "m", make_unet(), NoiseSchedule.linear(10))


def test_a_log_of_other_values_is_drawn_without_them(tmp_path):
    lines = (
        '{"step": 1, "loss": "a"}',
        '{"step": 2, "loss": 0.5}',
        '{"step": true}',
        '{"step": 3, "loss": NaN}',
    )
    (tmp_path / "log.jsonl").write_text("\n".join(lines))
    entries = report.read_log(tmp_path)
    assert [entry["step"] for entry in entries] == [1, 2, 3]
    report.plot_losses(tmp_path, entries)
    assert (tmp_path / "loss.png").exists()


def test_old_and_other_pickles_are_refused_without_a_warning(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as archive:  # as torch 0.1 wrote, whose reader warns
        for name in ("sys_info", "pickle", "storages", "tensors"):
            content = pickle.dumps({"a": 1}, 2)
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    for protocol in range(2, 6):
        (tmp_path / f"{protocol}.pth").write_bytes(pickle.dumps({"a": Path("x")}, protocol))
        torch.save({"a": torch.ones(2)}, tmp_path / f"torch{protocol}.pth", pickle_protocol=protocol)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for file in tmp_path.iterdir():
            with pytest.raises(CheckpointError) as caught:
                fastddpm.load(file)
            assert len(str(caught.value).replace(str(file), "")) < 300
    with pytest.raises(CheckpointError, match="a tar file, as early versions of torch wrote"):
        fastddpm.load(tmp_path / "a.tar")


@pytest.mark.parametrize("what", ["y" * 10**5, "y " * 10**5, "\x1b[31m\r\n"])
def test_what_is_typed_does_not_fill_the_terminal(monkeypatch, capsys, what):
    monkeypatch.setattr(sys, "argv", ["fastddpm", "sample", what])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    err = capsys.readouterr().err
    assert (stop.value.code, err.count("\n"), len(err) < 320) == (2, 1, True)
    assert err[:-1].isprintable()


def test_an_image_set_of_broken_files_names_a_hundred(tmp_path):
    for index in range(120):
        (tmp_path / f"{index:03d}.png").write_bytes(b"x")
    with pytest.raises(BrokenImagesError, match="120 of 120 image files") as caught:
        open_dataset(tmp_path)
    said = str(caught.value)
    assert ("099.png" in said, "100.png" in said, "and 20 more" in said) == (True, False, True)
    assert len(caught.value.files) == 120
