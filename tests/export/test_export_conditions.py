"""Exports of networks that are given more by name: the files against PyTorch's sampler, in both loops."""

from __future__ import annotations

import json
import warnings

import numpy as np
import onnxruntime
import pytest
import torch
from job_cases import contents
from tolerances import ACROSS_BACKENDS
from torch import nn

import fastddpm
from fastddpm import NoiseSchedule, Sampler
from fastddpm.export import ExportError
from fastddpm.jobs import Job, OnnxDrawer, TorchDrawer
from fastddpm.onnx import OnnxFolderError, OnnxSampler

SEEDS = [3, 2**40 + 1, 8]


class Stated(nn.Module):
    """Attends to states (B, 4, 6), adds an embedding of codes, and takes the sign from a bool."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv_in, self.conv_out = nn.Conv2d(2, 8, 3, padding=1), nn.Conv2d(8, 2, 3, padding=1)
        self.key, self.value = nn.Linear(6, 8), nn.Linear(6, 8)
        self.embedding = nn.Embedding(5, 8)

    def forward(self, x, t, states, *, codes, keep):
        h = self.conv_in(x) + self.embedding(codes)[:, :, None, None]
        pixels = h.flatten(2).transpose(1, 2)
        weights = (pixels @ self.key(states).transpose(1, 2)).softmax(-1)
        h = h + (weights @ self.value(states)).transpose(1, 2).reshape(h.shape)
        h = torch.where(keep[:, None, None, None], h, -h) * (1 + 1e-3 * t.to(h.dtype))[:, None, None, None]
        return self.conv_out(torch.tanh(h))


COND = {
    "states": torch.randn(3, 4, 6, generator=torch.Generator().manual_seed(1)),
    "codes": torch.tensor([1, 4, 0]),
    "keep": torch.tensor([True, False, True]),
}
UNCOND = {"states": torch.zeros(1, 4, 6), "codes": torch.tensor([2]), "keep": torch.tensor([True])}
GUIDED = {"cond": COND, "uncond": UNCOND, "guidance_scale": 2.5}
PLAIN = {"cond": COND}


def as_arrays(call):
    return {
        key: {name: value.numpy() for name, value in half.items()} if isinstance(half, dict) else half
        for key, half in call.items()
    }


@pytest.fixture(scope="module")
def sampler():
    return Sampler(
        Stated(),
        NoiseSchedule.linear(1000),
        method="ddim",
        eta=0.5,
        num_inference_steps=8,
        clip_sample_range=1.0,
        timestep_spacing="trailing",
        shape=(2, 8, 8),
        engine="eager",
    )


@pytest.fixture(scope="module")
def folder(sampler, tmp_path_factory):
    """Verified at export: every file against the network and its step in PyTorch."""
    return fastddpm.export_onnx(sampler, tmp_path_factory.mktemp("conditions") / "export", cond=COND)


@pytest.mark.parametrize("loop", ["file", "steps"])
def test_images_are_those_of_pytorch(sampler, folder, loop):
    run = OnnxSampler(folder, "cpu", loop=loop)
    for call in (GUIDED, PLAIN):
        wanted = sampler.sample(seeds=SEEDS, progress=False, **call).numpy()
        found = run.sample(seeds=SEEDS, progress=False, **as_arrays(call))
        assert np.abs(found - wanted).max() <= ACROSS_BACKENDS
        cut = run.sample(seeds=SEEDS, progress=False, max_batch=2, **as_arrays(call))
        assert np.abs(cut - wanted).max() <= ACROSS_BACKENDS
    others = {**as_arrays(PLAIN), "cond": {**as_arrays(PLAIN)["cond"], "codes": np.array([0, 1, 3])}}
    assert np.abs(run.sample(seeds=SEEDS, progress=False, **others) - found).max() > 0.01


def test_the_files_say_what_they_take(folder):
    about = json.loads((folder / "export.json").read_text())
    assert about["cond"] == [
        {"name": "states", "dtype": "float32", "shape": [4, 6]},
        {"name": "codes", "dtype": "int64", "shape": []},
        {"name": "keep", "dtype": "bool", "shape": []},
    ]
    text = (folder / "README.md").read_text()
    assert "| input | `uncond_states` | float32 | [batch, 4, 6] | the same for the half without cond" in text
    snippet = (
        text.split("```python\n")[1]
        .split("```")[0]
        .replace('"sampler.onnx"', repr(str(folder / "sampler.onnx")))
    )
    names: dict[str, object] = {}
    exec(snippet, names)
    assert names["images"].shape == (4, 2, 8, 8)
    session = onnxruntime.InferenceSession(folder / "step.onnx", providers=["CPUExecutionProvider"])
    assert {"cond_states", "cond_codes", "cond_keep"} < {one.name for one in session.get_inputs()}


def test_jobs_of_an_export_have_the_images_of_the_model(sampler, folder, tmp_path):
    places = {"seeds": SEEDS, "cond": COND, "uncond": UNCOND, "shard_size": 4, "batch_size": 2}
    for name, drawer in (
        ("torch", TorchDrawer(sampler, guidance_scale=2.5)),
        ("onnx", OnnxDrawer(folder, "cpu", guidance_scale=2.5)),
    ):
        Job(drawer, outdir=tmp_path / name, **places).run(progress=False)
    ours, theirs = (np.load(tmp_path / name / "00000.npz")["arr_0"].astype(int) for name in ("torch", "onnx"))
    assert np.abs(ours - theirs).max() <= 1
    assert "cond" in json.loads(contents(tmp_path / "onnx")["manifest.json"])["settings"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"cond": {}},
            r"cond: no 'states', which the network needs, given, a float32 array \(3 or 1, 4, 6\)",
        ),
        ({"uncond": None}, "guidance_scale: a number other than 1 without uncond of states"),
        ({"uncond": {"z": np.zeros(3)}}, "z: unknown to uncond of this export, given, states, codes, keep"),
        ({"cond": 3}, "cond: 3 given, a mapping or None accepted"),
        ({"cond": {"states": np.zeros((3, 4, 6))}}, r"cond\['states'\]: float64 of shape \(3, 4, 6\) given"),
        (
            {"cond": {"states": np.zeros((2, 4, 6), np.float32)}},
            r"shape \(2, 4, 6\) given, .*\(3 or 1, 4, 6\)",
        ),
        ({"cond": {"states": np.full((1, 4, 6), np.nan, np.float32)}}, r"cond\['states'\]: NaN or infinity"),
        ({"cond": {"states": [1.0]}}, r"cond\['states'\]: list given"),
    ],
)
def test_what_is_refused(folder, changes, message):
    with pytest.raises(ValueError, match=message):
        OnnxSampler(folder, "cpu").sample(seeds=SEEDS, progress=False, **{**as_arrays(GUIDED), **changes})


def test_an_export_has_to_be_told(sampler, tmp_path):
    with pytest.raises(ValueError, match="cond: no 'states', which Stated needs, given"):
        fastddpm.export_onnx(sampler, tmp_path / "a")
    with pytest.raises(ValueError, match=r"cond\['codes'\]: torch.int16 given, floating, int64"):
        fastddpm.export_onnx(sampler, tmp_path / "a", cond={**COND, "codes": COND["codes"].short()})
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize("cond", [3, [3], [{"name": "states", "dtype": "int8", "shape": []}], [{"name": 3}]])
def test_a_description_that_says_something_else_is_refused(folder, tmp_path, cond):
    copy = tmp_path / "copy"
    copy.mkdir()
    for file in folder.iterdir():
        (copy / file.name).symlink_to(file) if file.name != "export.json" else None
    about = json.loads((folder / "export.json").read_text())
    (copy / "export.json").write_text(json.dumps({**about, "cond": cond}))
    with warnings.catch_warnings(), pytest.raises(OnnxFolderError):
        OnnxSampler(copy, "cpu")


def test_a_batch_size_that_a_condition_fixes_is_found(tmp_path):
    class Fixed(Stated):
        def forward(self, x, t, states, *, codes, keep):
            return super().forward(x, t, states.reshape(2, 4, 6), codes=codes, keep=keep)

    model = Sampler(Fixed(), NoiseSchedule.linear(10), num_inference_steps=2, shape=(2, 8, 8))
    with pytest.raises(ExportError, match="model: "):
        fastddpm.export_onnx(model, tmp_path / "a", cond=COND)
