"""`fastddpm sample --backend onnx`: the same files as from PyTorch, by ONNX Runtime."""

from __future__ import annotations

import numpy as np
import pytest
from networks import TINY, make_unet
from onnx_exports import exported, tiny_sampler
from PIL import Image

from fastddpm import NoiseSchedule, save_folder


def onnx(*words, kind="classes"):
    return ("--backend", "onnx", exported(kind), "--device", "cpu", *words)


def test_the_arrays_of_both_backends(run_sample, tmp_path_factory):
    options = {"method": "ddpm", "num_inference_steps": 10, "clip_sample_range": 1.0, "shape": [3, 8, 8]}
    folder = tmp_path_factory.mktemp("model") / "model"
    save_folder(folder, make_unet(TINY), NoiseSchedule.linear(1000), options)
    words = ("--seeds", "3-9,20", "--class", "1,3", "--guidance", "1.5", "--method", "ddim", "--steps", "7")
    words = (*words, "--eta", "0.5", "--batch", "3")
    assert run_sample(*onnx(), *words, "--out", "onnx.npz")[0] == 0
    assert run_sample(folder, *words, "--device", "cpu", "--out", "torch.npz")[0] == 0
    ours, theirs = np.load("onnx.npz"), np.load("torch.npz")
    assert sorted(ours.files) == sorted(theirs.files) == ["arr_0", "arr_1", "seeds"]
    for name in ("seeds", "arr_1"):
        np.testing.assert_array_equal(ours[name], theirs[name])
    assert ours["arr_0"].shape == (8, 8, 8, 3)
    assert ours["arr_0"].std() > 10
    assert np.abs(ours["arr_0"].astype(int) - theirs["arr_0"]).max() <= 1


def test_a_solver_and_its_options(run_sample):
    words = ("--seeds", "5-6", "--class", "2", "--method", "deis", "--order", "2", "--steps", "4")
    code, out, err, _ = run_sample(*onnx(*words, "--spacing", "karras", "--out", "two.npz"))
    assert (code, err) == (0, "")
    assert "deis, 4 steps, ONNX Runtime CPUExecutionProvider, loop file:" in out
    options = {"method": "deis", "solver_order": 2, "num_inference_steps": 4, "timestep_spacing": "karras"}
    expected = tiny_sampler("classes").replace(**options).sample(seeds=[5, 6], class_labels=2, progress=False)
    levels = ((expected.clamp(-1, 1) + 1) * 127.5).round().permute(0, 2, 3, 1).numpy()
    assert np.abs(np.load("two.npz")["arr_0"].astype(int) - levels).max() <= 1


def test_a_grid_files_and_the_summary(run_sample):
    code, out, err, files = run_sample(*onnx("--seeds", "5-6", "--out", "grid.png", "--outdir", "each"))
    assert (code, err) == (0, "")
    assert files == ["each", "each/000005.png", "each/000006.png", "grid.png"]
    assert "2 images of 8x8, ddpm, 10 steps, ONNX Runtime CPUExecutionProvider, loop file:" in out
    expected = tiny_sampler("classes").sample(seeds=[5, 6], class_labels=[1, 2], progress=False)[0]
    levels = ((expected.clamp(-1, 1) + 1) * 127.5).round().permute(1, 2, 0).numpy()
    assert np.abs(np.asarray(Image.open("each/000005.png")).astype(int) - levels).max() <= 1


def test_without_an_output_a_grid(run_sample):
    code, _, _, files = run_sample(*onnx("--seeds", "0", "--steps", "2"))
    assert (code, files) == (0, ["samples.png"])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--trajectory", "a.gif"), "--trajectory: 'a.gif' with --backend onnx, where it is fixed"),
        (("--shape", "3,8,8"), "--shape: '3,8,8' with --backend onnx, where it is fixed"),
        (("--engine", "compile"), "--engine: 'compile' with --backend onnx, where it is fixed"),
        (("--dtype", "float16"), "--dtype: 'float16' with --backend onnx, where it is fixed"),
        (("--config", "c.json"), "'--config': path 'c.json' does not exist"),
        (("--device", "tpu"), "--device: 'tpu' given, cpu, cuda or cuda:N accepted"),
        (("--device", "cuda:1"), "onnxruntime-gpu"),
        (("--class", "7"), "--class: 7 given, 0 to 3 accepted"),
        (("--steps", "0"), "--steps: 0 given, an integer in [1, 1000] accepted"),
        (("--order", "2"), "--order: 2 with method 'ddpm' given, None accepted"),
        (("--backend", "tensorflow"), "--backend: 'tensorflow' given, one of torch, onnx accepted"),
        (("--out", "a.bmp"), "--out: 'a.bmp' given, a file ending in .png or .npz"),
    ],
)
def test_errors_are_one_line_and_leave_nothing(run_sample, words, message):
    code, out, err, files = run_sample(*onnx(), *words)
    assert (code, out, files) == (2, "", [])
    assert message in err
    assert err.count("\n") == 1


def test_a_folder_that_is_no_export_and_one_that_needs_a_condition(run_sample):
    code, _, err, _ = run_sample("mnist", "--backend", "onnx")
    assert code == 2
    assert "'mnist' given, without export.json; a folder of `fastddpm export` accepted" in err
    code, _, err, _ = run_sample(*onnx(kind="superres"))
    assert code == 2
    assert "needs an image of 3 channels as its condition" in err
