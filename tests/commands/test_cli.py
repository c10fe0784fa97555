"""`fastddpm sample`, run as a person runs it, and as the function that the command calls."""

from __future__ import annotations

import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
from networks import make_unet
from PIL import Image
from torch._dynamo.exc import BackendCompilerFailed
from torch._inductor.exc import InductorError

import fastddpm
from fastddpm import NoiseSchedule, UNetConfig, save_folder
from fastddpm.cli import app as cli
from fastddpm.cli import terminal
from fastddpm.cli.ranges import parse_ranges


@pytest.fixture
def folder(tmp_path):
    options = {"method": "ddim", "num_inference_steps": 4, "clip_sample_range": 1.0, "shape": [3, 8, 8]}
    return save_folder(tmp_path / "model", make_unet(), NoiseSchedule.linear(), options)


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """Runs the command in an empty folder: (exit code, standard output, standard error, files there)."""
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")

    def call(*words):
        monkeypatch.setattr(sys, "argv", ["fastddpm", *map(str, words)])
        try:
            code = cli.main()
        except SystemExit as stop:
            code = stop.code
        captured = capsys.readouterr()
        files = sorted(str(p.relative_to(tmp_path / "cwd")) for p in (tmp_path / "cwd").rglob("*"))
        return code, captured.out, captured.err, files

    return call


def test_grid_and_summary(run, folder):
    code, out, err, files = run("sample", folder, "--seeds", "0-3,9", "--steps", "3", "--out", "d.png")
    assert (code, err, files) == (0, "", ["d.png"])
    assert "5 images of 8x8, ddim, 3 steps, engine eager on cpu:" in out
    assert "images/s -> d.png" in out
    assert Image.open("d.png").mode == "RGB"


def test_one_seed_is_the_same_alone_and_in_a_batch(run, folder):
    run("sample", folder, "--seeds", "20-29", "--class", "3", "--out", "ten.npz", "--batch", "4")
    run("sample", folder, "--seeds", "25", "--class", "3", "--out", "one.npz")
    run("sample", folder, "--seeds", "25", "--out", "own.npz")
    ten, one, own = (np.load(name) for name in ("ten.npz", "one.npz", "own.npz"))
    difference = ten["arr_0"][5].astype(int) - one["arr_0"][0]
    assert abs(difference).max() <= 1
    assert ten["arr_0"].shape == (10, 8, 8, 3)
    assert ten["arr_0"].std() > 10
    assert ten["arr_1"].tolist() == [3] * 10
    assert ten["seeds"].tolist() == list(range(20, 30))
    # Left out, the class goes round with the seed: 25 mod 4.
    assert own["arr_1"].tolist() == [1]


def test_a_file_per_seed_and_an_animation(run, folder):
    code, _, _, files = run(
        "sample", folder, "--seeds", "5-6", "--outdir", "new/dir", "--trajectory", "t.gif", "--guidance", "2"
    )
    assert code == 0
    assert files == ["new", "new/dir", "new/dir/000005.png", "new/dir/000006.png", "t.gif"]
    assert Image.open("new/dir/000005.png").size == (8, 8)
    assert Image.open("t.gif").n_frames == 5


def test_strips_go_from_noise_to_the_image(run, folder):
    """A row per image, enlarged alike; its last picture is the image that --outdir gets."""
    words = ["--seeds", "5-6", "--outdir", "here", "--trajectory", "strip.png"]
    assert run("sample", folder, *words)[0] == 0
    picture, image = np.array(Image.open("strip.png")), np.array(Image.open("here/000006.png"))
    columns, rows = 5, 2
    factor = picture.shape[0] // (rows * 10 + 2)
    assert picture.shape[:2] == (factor * (rows * 10 + 2), factor * (columns * 10 + 2))
    small = picture[::factor, ::factor]
    assert np.array_equal(small[12:20, 42:50], image)
    assert not np.array_equal(small[12:20, 2:10], image)


def test_warnings_are_one_line():
    place = (UserWarning, "spacing.py", 3)
    with terminal.warnings_of_one_line("fastddpm"):
        assert (
            warnings.formatwarning("leading starts late", *place)
            == "fastddpm: warning: leading starts late\n"
        )
    assert warnings.formatwarning("late", *place).startswith("spacing.py:3: UserWarning: late")


def test_every_method_and_dtype(run, folder):
    for words in (
        ["--method", "ddpm", "--steps", "3"],
        ["--method", "ddim", "--eta", "0.5"],
        ["--method", "dpmpp_2m", "--steps", "3"],
        ["--method", "unipc", "--steps", "4", "--spacing", "karras", "--order", "3"],
        ["--method", "heun", "--sigmas", "9,2.5,0.3"],
        ["--timesteps", "900,600,300"],
        ["--method", "unipc", "--steps", "3", "--lower-order-final"],
        ["--dtype", "bfloat16"],
    ):
        assert run("sample", folder, "--seeds", "1", *words)[0] == 0


def test_levels_of_a_file_are_those_that_are_typed(run, folder, tmp_path):
    (tmp_path / "levels.json").write_text("[9.0, 2.5,\n 0.3]\n")
    words = ("sample", folder, "--seeds", "1-3", "--method", "unipc", "--out")
    for name, levels in (
        ("typed", "9,2.5,0.3"),
        ("file", str(tmp_path / "levels.json")),
        ("other", "9,2,0.3"),
    ):
        assert run(*words, str(tmp_path / f"{name}.npz"), "--sigmas", levels)[0] == 0
    typed, file, other = (np.load(tmp_path / f"{name}.npz")["arr_0"] for name in ("typed", "file", "other"))
    assert np.array_equal(typed, file)
    assert not np.array_equal(typed, other)


def test_options_of_x0_are_the_librarys(run, folder, tmp_path):
    """Of images and of a job's shards."""
    words = ["--seeds", "1-2", "--class", "1", "--method", "dpmpp_3m", "--steps", "4", "--lower-order-final"]
    words += ["--thresholding", "--dynamic-thresholding-ratio", "0.6", "--sample-max-value", "1.5"]
    assert run("sample", folder, *words, "--out", str(tmp_path / "one.npz"))[0] == 0
    options = {"thresholding": True, "dynamic_thresholding_ratio": 0.6, "sample_max_value": 1.5}
    sampler = fastddpm.load(folder).replace(
        method="dpmpp_3m", num_inference_steps=4, lower_order_final=True, clip_sample_range=None, **options
    )
    images = sampler.sample(seeds=[1, 2], class_labels=1, progress=False)
    wanted = (images.clamp(-1, 1).add(1).mul(127.5)).round().permute(0, 2, 3, 1)
    drawn = np.load(tmp_path / "one.npz")["arr_0"]
    assert np.abs(drawn.astype(int) - wanted.numpy().astype(int)).max() <= 1
    job = (
        "--outdir",
        str(tmp_path / "job"),
        "--format",
        "npz",
        "--shard-size",
        "2",
        "--batch",
        "2",
        "--merge",
    )
    assert run("sample", folder, *words, *job)[0] == 0
    merged = np.load(next((tmp_path / "job").glob("*.npz")))["arr_0"]
    assert np.abs(merged.astype(int) - drawn.astype(int)).max() <= 1


BAD = {
    "a bound without thresholding": (
        ["--sample-max-value", "1.5"],
        "--sample-max-value: 1.5",
    ),
    "a ratio above 1": (
        ["--thresholding", "--dynamic-thresholding-ratio", "1.5"],
        "--dynamic-thresholding-ratio: 1.5 given",
    ),
    "lower order of a formula": (["--method", "ddim", "--lower-order-final"], "--lower-order-final: True"),
    "thresholding of an export": (
        ["--backend", "onnx", "--no-thresholding"],
        "--thresholding: 'False' with --backend onnx",
    ),
    "levels of a formula": (["--sigmas", "9,1"], "--sigmas: [9.0, 1.0], which belongs to dpmpp_3m"),
    "levels that are no numbers": (
        ["--sigmas", "9,x"],
        "--sigmas: '9,x' given, numbers such as 14.6,2.7,0.4, or a file of them, accepted",
    ),
    "a folder of levels": (["--sigmas", "."], "--sigmas: ., of which "),
    "broken timesteps": (["--timesteps", "9.5,1"], "--timesteps: '9.5,1' given, integers accepted"),
    "rising timesteps": (["--timesteps", "1,9"], "--timesteps: (1, 9) given, at least one integer, strictly"),
    "unknown method": (
        ["--method", "eular"],
        "--method: 'eular' given, one of ddpm, ddim, dpmpp_2m,",
    ),
    "spacing of solvers": (
        ["--method", "ddim", "--spacing", "karras"],
        "--spacing: 'karras', which belongs to",
    ),
    "order of another": (["--method", "unipc", "--order", "4"], "--order: 4 with method 'unipc' given, 1 or"),
    "more steps than T": (["--steps", "1001"], "1000"),
    "no steps": (["--steps", "0"], "--steps: 0 given, an integer in [1, 1000] accepted"),
    "eta below 0": (["--eta", "-1"], "--eta: -1.0 given, a finite number in [0, 1] accepted"),
    "eta is no number": (["--eta", "nan"], "--eta: nan given, a finite number in [0, 1] accepted"),
    "eta of another method": (
        ["--method", "ddpm", "--eta", "0.5"],
        "--eta: 0.5, which belongs to ddim, sa_solver, heun and tcd, with method",
    ),
    "class out of range": (["--class", "4"], "0 to 3 accepted"),
    "reversed seeds": (["--seeds", "9-0"], "rising ranges such as 0-9,20"),
    "negative seeds": (["--seeds=-3"], "none below 0"),
    "seeds too large": (["--seeds", str(2**63)], "[0, 2**63) accepted"),
    "words for seeds": (["--seeds", "one"], "rising ranges"),
    "NaN guidance": (["--guidance", "nan"], "--guidance: nan given, a finite number accepted"),
    "batch of none": (["--batch", "0"], "--batch: 0 given"),
    "seeds twice": (["--seeds", "3-5,4"], "'3-5,4' with 4 more than once given, every seed once accepted"),
    "no shape": (["--shape", "3,8"], "--shape: '3,8' given, three positive integers C,H,W accepted"),
    "empty shape": (["--shape", "3,0,8"], "three positive integers C,H,W accepted"),
    "no picture": (["--shape", "5,8,8"], "images of 5 channels, which are no pictures, given"),
    "out of outdir": (
        ["--outdir", "new", "--out", "new/000001.png"],
        "--out: 'new/000001.png', a file of --outdir too, given",
    ),
    "steps in words": (["--steps", "many"], "valid integer"),
    "unknown option": (["--sped", "3"], "--sped"),
    "other picture format": (["--out", "a.jpg"], ".png or .npz accepted"),
    "no such output folder": (["--out", "none/a.png"], "does not exist"),
    "output is a folder": (["--out", "/tmp.png/.."], "accepted"),
    "unwritable output": (["--out", "/proc/a.png"], "cannot be written"),
    "unwritable folder": (["--outdir", "/proc/a"], "cannot be written"),
    "file in place of a folder": (["--outdir", sys.executable], "a folder accepted"),
    "no such engine": (
        ["--engine", "fast"],
        "auto, eager, compile, cudagraph, max, onnxruntime accepted",
    ),
    "engine of a GPU": (["--engine", "cudagraph"], "--engine: 'cudagraph' needs a CUDA device"),
    "the other engine of a GPU": (["--engine", "max"], "needs a CUDA device"),
    "device that is not there": (["--device", "cuda:77"], "cpu"),
    "device that does not exist": (["--device", "gpu"], "cpu, cuda or cuda:N"),
    "device of no kernel": (["--device", "meta"], "--device: 'meta' given, cpu, cuda or cuda:N accepted"),
    "device of no network": (["--device", "mps"], "--device: 'mps' given, cpu, cuda or cuda:N accepted"),
    "one of many CPUs": (["--device", "cpu:3"], "--device: 'cpu:3' given, cpu, cuda or cuda:N accepted"),
    "device number too large": (["--device", "cuda:99999999999"], "--device"),
    "unknown dtype": (["--dtype", "int8"], "float32, float16, bfloat16"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line_and_writes_nothing(run, folder, case):
    words, accepted = BAD[case]
    code, out, err, files = run("sample", folder, "--seeds", "0-1", *words)
    assert code == 2
    assert out == ""
    assert err.startswith("fastddpm: error: ")
    assert err.count("\n") == 1
    assert accepted in err
    assert files == []


def test_bad_models_are_one_line_and_write_nothing(run, folder, tmp_path):
    (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:-100])
    unconditional = save_folder(
        tmp_path / "plain",
        make_unet(UNetConfig(in_channels=3, base_channels=8)),
        NoiseSchedule.linear(),
        {"shape": [3, 8, 8], "num_inference_steps": 2},
    )
    for words, accepted in (
        ([folder], "not a complete safetensors file"),
        ([tmp_path / "nowhere"], "a folder with config.json"),
        ([unconditional, "--class", "1"], "--class: 1 with a model without classes given"),
        ([unconditional, "--guidance", "2"], "--class, --guidance: labels or guidance for a network without"),
    ):
        code, out, err, files = run("sample", *words)
        assert (code, out, files) == (2, "", [])
        assert err.count("\n") == 1
        assert accepted in err


@pytest.mark.parametrize("words", [[], ["--help"], ["sample", "--help"]])
def test_help(run, words):
    code, out, err, files = run(*words)
    assert (code, err, files) == (0, "", [])
    assert "Usage: fastddpm" in out


def test_version(run):
    assert run("--version") == (0, f"fastddpm {fastddpm.__version__}\n", "", [])


def test_shape_for_a_folder_that_says_none(run, tmp_path):
    network = make_unet(UNetConfig(in_channels=3, base_channels=8))
    shapeless = save_folder(tmp_path / "plain", network, NoiseSchedule.linear(), {"num_inference_steps": 2})
    code, out, err, files = run("sample", shapeless, "--seeds", "1")
    assert (code, out, files) == (2, "", [])
    assert err.startswith("fastddpm: error: --shape: none, and no default of the sampler, given")
    code, _, err, _ = run("sample", shapeless, "--seeds", "1", "--shape", "3, 8,16", "--out", "a.npz")
    assert (code, err) == (0, "")
    assert np.load("a.npz")["arr_0"].shape == (1, 8, 16, 3)


def test_another_method_than_the_folders_takes_none_of_its_options(run, tmp_path):
    network = make_unet(UNetConfig(in_channels=3, base_channels=8))
    defaults = {"shape": [3, 8, 8], "num_inference_steps": 2}
    for name, options, other in (
        ("large", {"variance_type": "fixed_large", "sigma_scale": 0.5}, "ddim"),
        ("noisy", {"method": "ddim", "eta": 0.5}, "dpmpp_2m"),
    ):
        folder = save_folder(tmp_path / name, network, NoiseSchedule.linear(), {**defaults, **options})
        code, out, err, _ = run("sample", folder, "--seeds", "1", "--method", other)
        assert (code, err) == (0, "")
        assert f", {other}, 2 steps" in out


def test_interrupted(run, folder, monkeypatch):
    def interrupted(self, **request):
        raise KeyboardInterrupt

    monkeypatch.setattr(fastddpm.Sampler, "sample", interrupted)
    words = ["sample", folder, "--seeds", "1", "--outdir", "new/dir"]
    assert run(*words) == (130, "", "fastddpm: interrupted\n", [])


@pytest.mark.parametrize(
    "error",
    [
        BackendCompilerFailed(lambda: None, RuntimeError("no C++ compiler\nand much more"), None),
        InductorError(RuntimeError("no C++ compiler\nand much more"), None),
    ],
    ids=lambda error: type(error).__name__,
)
def test_an_engine_that_cannot_compile_is_one_line(run, folder, monkeypatch, error):
    def failing(self, **request):
        raise error

    monkeypatch.setattr(fastddpm.Sampler, "sample", failing)
    code, out, err, files = run("sample", folder, "--seeds", "1", "--engine", "compile")
    assert (code, out, files) == (2, "", [])
    assert err.startswith("fastddpm: error: --engine: 'compile' cannot compile this model here")
    assert "no C++ compiler" in err
    assert err.endswith("; auto or eager accepted\n")
    assert err.count("\n") == 1


def test_a_folder_in_place_of_a_file_of_a_seed(run, folder, monkeypatch):
    monkeypatch.setattr(fastddpm.Sampler, "sample", None)  # refused before
    Path("there/000001.png").mkdir(parents=True)
    words = ["sample", folder, "--seeds", "0-2", "--outdir", "there", "--out", "a.png"]
    code, out, err, files = run(*words)
    assert (code, out, files) == (2, "", ["there", "there/000001.png"])
    assert "--outdir: 'there/000001.png', which would be a file and is a folder, given" in err


def test_a_failure_while_writing_leaves_nothing(run, folder, monkeypatch):
    def full(path, frames):
        raise OSError(28, "no space is left there")

    monkeypatch.setattr(fastddpm.cli.outputs, "save_gif", full)
    words = ["sample", folder, "--seeds", "0-2", "--outdir", "new/dir/", "--out", "new/a.png"]
    code, out, err, files = run(*words, "--trajectory", "t.gif")
    assert (code, out, files) == (2, "", [])
    assert "no space is left there" in err
    assert run(*words)[3] == ["new", "new/a.png", "new/dir", *(f"new/dir/00000{i}.png" for i in range(3))]


def test_seed_ranges():
    assert parse_ranges("0-3,20, 7", "--seeds") == [0, 1, 2, 3, 20, 7]
    for text in ("", "3-1", "-1", "1,,2", "a", "1.5", "0-99999999"):
        with pytest.raises(ValueError, match="--seeds"):
            parse_ranges(text, "--seeds")


def test_python_dash_m():
    words = [sys.executable, "-m", "fastddpm", "sample", "--steps", "0"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("fastddpm: error: ")
