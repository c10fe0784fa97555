"""fastddpm-runtime: built, alone beside numpy, onnxruntime and pillow, it draws what torch draws."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import typer
from onnx_exports import exported, tiny_sampler
from PIL import Image
from tolerances import ACROSS_BACKENDS

import fastddpm
from fastddpm.cli import app, onnx_command

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "scripts" / "build_runtime.py"
# As if not installed: what a machine with this distribution alone has not.
ABSENT = (
    *("fastddpm", "fastddpm_kernels", "torch", "triton", "safetensors", "filelock", "typer", "rich"),
    *("scipy", "onnx", "diffusers", "tqdm"),
)
WORDS = ("--seeds", "3-8,20", "--class", "1,3", "--guidance", "1.5", "--steps", "5", "--batch", "3")


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """A folder with what the wheel holds."""
    folder = tmp_path_factory.mktemp("runtime")
    build = [sys.executable, SCRIPT, "--wheel", folder]
    done = subprocess.run(build, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,) = folder.glob("fastddpm_runtime-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "site")
    return folder / "site"


def alone(site, code, cwd, *, absent=(), given=""):
    """(exit code, output, errors) of code in a process that has nothing else of ours."""
    gone = f"import sys; sys.modules.update(dict.fromkeys({(*ABSENT, *absent)!r}))"
    done = subprocess.run(
        [sys.executable, "-c", f"{gone}; sys.path.insert(0, {str(site)!r})\n{code}"],
        cwd=cwd,
        input=given,
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout, done.stderr


def command(site, cwd, *words, absent=()):
    words = ["fastddpm-onnx", *map(str, words)]
    code = f"sys.argv = {words!r}\nfrom fastddpm_onnx.cli.onnx_command import main; main()"
    return alone(site, code, cwd, absent=absent)


def test_it_draws_what_torch_draws(site, tmp_path):
    words = ("sample", exported("classes"), *WORDS, "--method", "ddim", "--eta", "0.5", "--device", "cpu")
    code, out, err = command(site, tmp_path, *words, "--out", "images.npz")
    assert (code, err) == (0, "")
    assert "7 images of 8x8, ddim, 5 steps, ONNX Runtime CPUExecutionProvider, loop file:" in out
    images = np.load(tmp_path / "images.npz")
    seeds = [3, 4, 5, 6, 7, 8, 20]
    labels = [[1, 3][seed % 2] for seed in seeds]
    assert images["seeds"].tolist() == seeds
    assert images["arr_1"].tolist() == labels
    sampler = tiny_sampler("classes").replace(method="ddim", eta=0.5, num_inference_steps=5)
    drawn = sampler.sample(seeds=seeds, class_labels=labels, guidance_scale=1.5, progress=False)
    levels = ((drawn.clamp(-1, 1) + 1) * 127.5).round().permute(0, 2, 3, 1).numpy()
    assert images["arr_0"].std() > 10
    assert np.abs(images["arr_0"].astype(int) - levels).max() <= 1


def test_files_names_and_options_are_those_of_the_other_command(site, tmp_path, run_sample):
    words = ("--seeds", "5-6", "--class", "dog", "--method", "deis", "--order", "2", "--steps", "4")
    words = (*words, "--spacing", "karras", "--device", "cpu")
    ours = ("--out", "grid.png", "--outdir", "each")
    assert run_sample("--backend", "onnx", exported("learned"), *words, *ours)[0] == 0
    (tmp_path / "alone").mkdir()
    code, _, err = command(site, tmp_path / "alone", "sample", exported("learned"), *words, *ours)
    assert (code, err) == (0, "")
    for name in ("grid.png", "each/000005.png", "each/000006.png"):
        assert (tmp_path / "alone" / name).read_bytes() == (tmp_path / name).read_bytes()
    assert Image.open(tmp_path / "alone" / "each" / "000005.png").size == (8, 8)


def test_it_has_every_option_that_the_other_command_takes_of_an_export():
    theirs = typer.main.get_command(app.app).commands["sample"].params
    (commands,) = onnx_command.parser()._subparsers._group_actions
    ours = {word for action in commands.choices["sample"]._actions for word in action.option_strings}
    # Of torch alone, of shards, and of options in a file.
    of_torch = "--backend --dtype --engine --precision --shape --trajectory --lower-order-final"
    of_torch += " --thresholding --dynamic-thresholding-ratio --sample-max-value"
    rest = {*of_torch.split(), *"--config --format --merge --shard-size --threads --workers".split()}  # noqa: SIM905
    assert {word for option in theirs for word in option.opts if word[:2] == "--"} - ours == rest


def test_timesteps_and_levels_in_the_place_of_a_spacing(site, tmp_path):
    plan = ("--method", "euler", "--device", "cpu", "--out", "images.npz")
    sampler = tiny_sampler("classes").replace(
        method="euler", num_inference_steps=None, timesteps=[800, 300, 20]
    )
    code, _, err = command(
        site, tmp_path, "sample", exported("classes"), "--seeds", "4", *plan, "--timesteps", "800,300,20"
    )
    assert (code, err) == (0, "")
    drawn = sampler.sample(seeds=[4], class_labels=[0], progress=False)
    levels = ((drawn.clamp(-1, 1) + 1) * 127.5).round().permute(0, 2, 3, 1).numpy()
    assert np.abs(np.load(tmp_path / "images.npz")["arr_0"].astype(int) - levels).max() <= 1


def test_without_an_output_a_grid(site, tmp_path):
    code, _, _ = command(site, tmp_path, "sample", exported("classes"), "--seeds", "0", "--steps", "2")
    assert (code, [path.name for path in tmp_path.iterdir()]) == (0, ["samples.png"])


REFUSED = [
    (("--steps", "0"), "--steps: 0 given, an integer in [1, 1000] accepted"),
    (("--steps", "many"), "argument --steps: invalid int value: 'many'"),
    (("--batch", "0"), "--batch: 0 given"),
    (("--class", "7"), "--class: 7 given, 0 to 3 accepted"),
    (("--order", "2"), "--order: 2 with method 'ddpm' given, None accepted"),
    (("--device", "tpu"), "--device: 'tpu' given, cpu, cuda or cuda:N accepted"),
    (("--out", "a.bmp"), "--out: 'a.bmp' given, a file ending in .png or .npz"),
    (("--method", "deis", "--spacing", "beta"), "--spacing: 'beta' without scipy given, another, "),
    (("--sigmas", "9,x"), "--sigmas: '9,x' given, numbers such as 14.6,2.7,0.4, or a file of them,"),
    (("--timesteps", "9.5"), "--timesteps: '9.5' given, integers accepted"),
    (("--trajectory", "a.gif"), "unrecognized arguments: --trajectory a.gif"),
    (("--seed", "1"), "unrecognized arguments: --seed 1"),
]  # fmt: skip
SEVERAL = """
import contextlib, io, json, os
from fastddpm_onnx.cli.onnx_command import main

def ended(words):
    sys.argv, out, err = words, io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main()
        except SystemExit as stop:
            return stop.code, out.getvalue(), err.getvalue(), os.listdir()

print(json.dumps([ended(words) for words in json.loads(sys.stdin.read())]))
"""


def test_errors_are_one_line_and_leave_nothing(site, tmp_path):
    """Of several commands in one process."""
    commands = [["fastddpm-onnx", "sample", str(exported("classes")), *words] for words, _ in REFUSED]
    status, ends, err = alone(site, SEVERAL, tmp_path, given=json.dumps(commands))
    assert (status, err) == (0, "")
    for (words, said), (code, out, err, there) in zip(REFUSED, json.loads(ends), strict=True):
        assert (code, out, err.count("\n"), there) == (2, "", 1, []), words
        assert err.startswith(f"fastddpm-onnx: error: {said}")


def test_a_folder_that_is_none(site, tmp_path):
    code, _, err = command(site, tmp_path, "sample", "not")
    assert (code, err.count("\n")) == (2, 1)
    assert err.startswith("fastddpm-onnx: error: folder: 'not' given, without export.json")


@pytest.mark.parametrize(
    ("package", "words", "said"),
    [
        ("PIL", (), "a PNG file: needs the package pillow: pip install pillow"),
        ("onnxruntime", ("--out", "a.npz"), "fastddpm-onnx: needs the package onnxruntime"),
    ],
)
def test_a_package_that_is_missing_is_one_line(site, tmp_path, package, words, said):
    words = ("sample", exported("classes"), "--seeds", "0", *words)
    code, _, err = command(site, tmp_path, *words, absent=[package])
    assert (code, err.count("\n"), said in err) == (2, 1, True), err


def test_arrays_need_no_pillow(site, tmp_path):
    words = ("sample", exported("classes"), "--seeds", "0", "--steps", "2", "--out", "a.npz")
    assert command(site, tmp_path, *words, absent=["PIL"])[0] == 0


def test_a_scheduler_of_diffusers_needs_the_library(site, tmp_path):
    folder = tmp_path / "export"
    shutil.copytree(exported("classes"), folder)
    description = json.loads((folder / "export.json").read_text())
    scheduler = {
        "_class_name": "EulerDiscreteScheduler",
        "num_train_timesteps": 1000,
        "beta_schedule": "linear",
    }
    description["defaults"] = {"method": "diffusers", "num_inference_steps": 4, "scheduler": scheduler}
    (folder / "export.json").write_text(json.dumps(description))
    code, _, err = command(site, tmp_path, "sample", folder)
    assert (code, err.count("\n")) == (2, 1)
    assert "method 'diffusers': needs the package fastddpm" in err


@pytest.mark.parametrize("word", ["--version", "--help", "-h"])
def test_its_own_words_load_nothing(site, tmp_path, word):
    absent = ("numpy", "onnxruntime", "PIL")
    code, out, err = command(site, tmp_path, word, absent=absent)
    assert (code, err) == (0, "")
    said = f"{fastddpm.__version__}\n" if word == "--version" else "Draw images from a folder"
    assert said in out


def test_the_library_by_its_other_name(site, tmp_path):
    code = (
        "import fastddpm_onnx, numpy, pickle\n"
        f"sampler = fastddpm_onnx.OnnxSampler({str(exported('classes'))!r}, 'cpu')\n"
        "sampler = pickle.loads(pickle.dumps(sampler))\n"
        "numpy.save('image.npy', sampler.sample(seeds=[5], class_labels=1, method='unipc'))"
    )
    status, _, err = alone(site, code, tmp_path)
    assert status == 0, err
    drawn = tiny_sampler("classes").replace(method="unipc").sample(seeds=[5], class_labels=1, progress=False)
    np.testing.assert_allclose(np.load(tmp_path / "image.npy"), drawn.numpy(), rtol=0, atol=ACROSS_BACKENDS)


def test_what_the_wheel_is_and_needs(site):
    text = next(site.glob("*.dist-info/METADATA")).read_text()
    assert re.findall(r"^Requires-Dist: ([\w-]+)", text, re.MULTILINE) == ["numpy", "onnxruntime", "pillow"]
    assert f"\nVersion: {fastddpm.__version__}\n" in text
    assert {path.name for path in site.iterdir() if path.suffix != ".dist-info"} == {"fastddpm_onnx"}
    entry = next(site.glob("*.dist-info/entry_points.txt")).read_text()
    assert "fastddpm-onnx = fastddpm_onnx.cli.onnx_command:main" in entry
    # The versions are those that the whole package asks for.
    whole, part = ((ROOT / name).read_text() for name in ("pyproject.toml", "runtime/pyproject.toml"))
    for wanted in re.search(r"^dependencies = \[(.*)\]$", part, re.MULTILINE)[1].split(", "):
        assert wanted in whole


def test_what_would_load_torch_is_seen():
    spec = importlib.util.spec_from_file_location("build_runtime", SCRIPT)
    build = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(build)
    assert "torch" in build.loaded("fastddpm.trajectory")
    assert "torch" in build.loaded("fastddpm.cli.arguments")
    assert build.loaded("fastddpm.onnx") <= build.ALLOWED
    modules = build.gathered()
    assert {"fastddpm.onnx.sampler", "fastddpm.cli.outputs", "fastddpm_kernels.noise.reference"} <= modules
    assert not {"fastddpm.sampler", "fastddpm.trajectory", "fastddpm.cli.app"} & modules
