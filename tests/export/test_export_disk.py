"""`fastddpm export` on a full disk: what is said, and what is left."""

from __future__ import annotations

import contextlib
import functools
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import fastddpm
import fastddpm.export
from fastddpm import NoiseSchedule, Sampler
from fastddpm.cli import app
from fastddpm.export.compose import Recipe
from fastddpm.export.network import export_network
from fastddpm.export.settings import resolve

DISK = 2**20
NAMES = ("denoiser.onnx", "sampler.onnx", "README.md", "export.json")
compose = fastddpm.export.models


class Small(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Conv2d(1, 1, 1)

    def forward(self, x, t):
        return self.layer(x)


@functools.cache
def sampler() -> Sampler:
    torch.manual_seed(0)
    schedule = NoiseSchedule.linear(200)
    return Sampler(Small(), schedule, shape=(1, 4, 4), num_inference_steps=5, timestep_spacing="trailing")


@functools.cache
def made():
    """The network and the models, once for all tests: here it is about the files."""
    settings = resolve(
        sampler(),
        schedule=None,
        shape=None,
        dtype="float32",
        num_classes=None,
        condition_channels=None,
        options={},
    )
    network = export_network(Small(), settings.call)
    return network, compose(Recipe(network, settings.table))


@pytest.fixture(autouse=True)
def _exported_once(monkeypatch):
    network, models = made()
    monkeypatch.setattr("fastddpm.export.export_network", lambda model, call: network)
    monkeypatch.setattr("fastddpm.export.models", lambda recipe: models)


def fills_up(monkeypatch, name):
    """Half of a file of this name is written when the disk is full."""
    for method in ("write_bytes", "write_text"):
        original = getattr(Path, method)

        def write(self, data, *given, original=original):
            if self.name != name:
                return original(self, data, *given)
            original(self, data[: len(data) // 2], *given)
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(Path, method, write)


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("name", NAMES)
def test_an_error_that_names_the_folder_and_nothing_half_made(tmp_path, monkeypatch, name):
    folder = tmp_path / "out"
    fills_up(monkeypatch, name)
    with pytest.raises(OSError, match="No space left on device") as full:
        fastddpm.export_onnx(sampler(), folder, verify=False)
    assert (full.value.errno, full.value.filename) == (28, str(folder))
    assert list(tmp_path.iterdir()) == []


def test_an_earlier_export_stays_as_it_was(tmp_path, monkeypatch):
    folder = fastddpm.export_onnx(sampler(), tmp_path / "out", verify=False)
    (folder / "notes.txt").write_text("stays")
    before = contents(folder)
    fills_up(monkeypatch, "step.onnx")
    with pytest.raises(OSError, match="No space left on device"):
        fastddpm.export_onnx(sampler(), folder, verify=False)
    assert contents(folder) == before


def test_the_command_says_it_in_one_line(tmp_path, monkeypatch, capsys):
    fills_up(monkeypatch, "sampler.onnx")
    monkeypatch.setattr("fastddpm.cli.export.load", lambda model: sampler())
    words = ["fastddpm", "export", "--out", str(tmp_path / "out"), "--no-verify"]
    monkeypatch.setattr(sys, "argv", words)
    with pytest.raises(SystemExit) as ended:
        app.main()
    said = f"{tmp_path / 'out'}: not written, as no space is left there; more space or another place accepted"
    assert (ended.value.code, capsys.readouterr().err) == (2, f"fastddpm: error: {said}\n")
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_is_full_in_earnest(small_disk):
    ballast = small_disk / "ballast"
    with ballast.open("wb") as file, contextlib.suppress(OSError):
        file.write(bytes(DISK - 16_384))
    with pytest.raises(OSError, match="No space left on device") as full:
        fastddpm.export_onnx(sampler(), small_disk / "out", verify=False)
    assert full.value.filename == str(small_disk / "out")
    assert [path.name for path in small_disk.iterdir()] == ["ballast"]
    ballast.unlink()
    assert (fastddpm.export_onnx(sampler(), small_disk / "out", verify=False) / "export.json").is_file()
