"""`fastddpm sample --format`: a job from the command line, with PyTorch and with ONNX Runtime."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from job_cases import LABELS, SEEDS, contents, tiny_job
from networks import make_unet
from onnx_exports import exported

from fastddpm import NoiseSchedule, save_folder
from fastddpm.jobs import OnnxDrawer, drawers


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    options = {"method": "ddpm", "num_inference_steps": 10, "clip_sample_range": 1.0, "shape": [3, 8, 8]}
    return save_folder(tmp_path_factory.mktemp("cli") / "model", make_unet(), NoiseSchedule.linear(), options)


WORDS = ("--seeds", "3-12,20", "--class", "1,3", "--guidance", "1.5", "--method", "ddim", "--steps", "3")
SHARDED = (*WORDS, "--eta", "0.5", "--batch", "4", "--outdir", "job", "--format", "npz", "--shard-size", "8")


def test_a_job_is_drawn_merged_and_gone_on_with(run_sample, model, tmp_path):
    code, out, err, files = run_sample(model, *SHARDED, "--merge")
    assert (code, err) == (0, "")
    assert "11 of 11 images drawn now in" in out
    assert out.strip().endswith("-> job/ (2 npz shards, samples_11x8x8x3.npz)")
    assert files == ["job", "job/00000.npz", "job/00001.npz", "job/manifest.json", "job/samples_11x8x8x3.npz"]
    before = contents(tmp_path)
    (tmp_path / "job" / "00001.npz").unlink()
    code, out, _, _ = run_sample(model, *SHARDED)
    assert (code, contents(tmp_path)) == (0, before)
    assert "3 of 11 images drawn now" in out

    assert run_sample(model, *WORDS, "--eta", "0.5", "--batch", "4", "--out", "plain.npz")[0] == 0
    plain, merged = np.load("plain.npz"), np.load("job/samples_11x8x8x3.npz")
    assert np.abs(plain["arr_0"].astype(int) - merged["arr_0"]).max() <= 1
    assert (
        plain["arr_1"].tolist() == merged["arr_1"].tolist() == [[1, 3][seed % 2] for seed in plain["seeds"]]
    )

    code, out, err, _ = run_sample(model, *SHARDED, "--guidance", "2")
    assert (code, out) == (2, "")
    assert (
        "--outdir: 'job', which holds a job with guidance_scale 1.5, not 2.0, given, the same settings" in err
    )


def test_the_same_images_by_onnx_runtime(run_sample, model, tmp_path):
    assert run_sample(model, *SHARDED, "--merge")[0] == 0
    (tmp_path / "job").rename(tmp_path / "torch")
    onnx = ("--backend", "onnx", exported("classes"), "--device", "cpu", *SHARDED, "--merge")
    code, out, err, _ = run_sample(*onnx)
    assert (code, err) == (0, "")
    assert "11 of 11 images drawn now" in out
    ours, theirs = (np.load(name)["arr_0"] for name in ("job/00000.npz", "torch/00000.npz"))
    assert np.abs(ours.astype(int) - theirs).max() <= 1
    before = contents(tmp_path / "job")
    (tmp_path / "job" / "00000.npz").unlink()
    assert "8 of 11 images drawn now" in run_sample(*onnx)[1]
    assert contents(tmp_path / "job") == before
    code, _, err, _ = run_sample(*onnx, "--eta", "0.25")
    assert code == 2
    assert "holds a job with eta 0.5, not 0.25" in err


def test_a_solver_draws_the_same_jobs_on_both(run_sample, model, tmp_path):
    words = ("--seeds", "3-7", "--class", "1", "--method", "lms", "--order", "3", "--steps", "3")
    words = (*words, "--device", "cpu", "--batch", "4", "--outdir", "job", "--format", "npz")
    assert run_sample("--backend", "onnx", exported("classes"), *words)[0] == 0
    (tmp_path / "job").rename(tmp_path / "onnx")
    assert run_sample(model, *words)[0] == 0
    ours, theirs = (np.load(f"{name}/00000.npz")["arr_0"] for name in ("onnx", "job"))
    assert ours.shape == (5, 8, 8, 3)
    assert np.abs(ours.astype(int) - theirs).max() <= 1


def test_another_process_gets_the_same_drawer():
    """What Ray sends to its actors, as they unpack it."""
    seeds, labels = np.array(SEEDS[:4]), np.array(LABELS[:4])
    drawers = (
        tiny_job("x").drawer,
        OnnxDrawer(exported("classes"), "cpu", options={"num_inference_steps": 2}),
        OnnxDrawer(exported("classes"), "cpu", options={"method": "unipc", "solver_order": 3}),
    )
    for drawer in drawers:
        other = pickle.loads(pickle.dumps(drawer))
        assert np.array_equal(other.draw(seeds, labels), drawer.draw(seeds, labels))
        assert other.made_on() == drawer.made_on()


def test_threads_are_those_asked_for_while_drawing_and_put_back(run_sample, model, monkeypatch):
    seen = []
    convert = drawers.to_uint8
    monkeypatch.setattr(
        drawers, "to_uint8", lambda images: (seen.append(torch.get_num_threads()), convert(images))[1]
    )
    assert run_sample(model, *SHARDED, "--threads", "2")[0] == 0
    assert set(seen) == {2}
    assert torch.get_num_threads() == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--format", "zip", "--outdir", "d"), "--format: 'zip' given, one of npz, png, webdataset accepted"),
        (("--format", "npz"), "--format: 'npz' without --outdir, the folder of the shards, given"),
        (("--format", "npz", "--outdir", "d", "--out", "a.npz"), "--out: 'a.npz' with --format"),
        (
            ("--format", "npz", "--outdir", "d", "--trajectory", "a.gif"),
            "--trajectory: 'a.gif' with --format",
        ),
        (("--shard-size", "64"), "--shard-size: one without --format, which makes shards, given"),
        (("--merge",), "--merge: one without --format, which makes shards, given"),
        (("--workers", "ray", "--outdir", "d"), "--workers: one without --format, which makes shards, given"),
        (
            ("--format", "npz", "--outdir", "d", "--workers", "slurm"),
            "--workers: 'slurm' given, one of local, ray",
        ),
        (("--format", "npz", "--outdir", "d", "--shard-size", "100"), "--shard-size: 100 given, a multiple"),
        (("--format", "npz", "--outdir", "d", "--threads", "-1"), "--threads: -1 given"),
        (("--format", "npz", "--outdir", "d", "--engine", "cudagraph"), "--engine: 'cudagraph' needs a CUDA"),
        (("--format", "npz", "--outdir", "/proc/d"), "--outdir: '/proc/d' cannot be written"),
        (
            ("--format", "npz", "--outdir", "d", "--workers", "ray", "--device", "cuda:1"),
            "--device: 'cuda:1' with --workers ray given, cpu or cuda accepted",
        ),
    ],
)
def test_errors_are_one_line_and_leave_nothing(run_sample, model, words, message):
    code, out, err, files = run_sample(model, *words)
    assert (code, out, files) == (2, "", [])
    assert message in err
    assert err.count("\n") == 1
