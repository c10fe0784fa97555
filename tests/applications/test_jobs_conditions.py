"""Jobs of models that are given more than labels: every image from its own rows, whoever draws it."""

from __future__ import annotations

import json
import pickle

import numpy as np
import pytest
import torch
from job_cases import contents
from torch import nn

from fastddpm import NoiseSchedule, Sampler
from fastddpm.jobs import Job, OtherSettingsError, TorchDrawer

SEEDS = [3, 11, 2**40 + 1, 5, 6, 7, 8]
SIZES = {"shard_size": 4, "batch_size": 2}


class Stated(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(0.4))

    def forward(self, x, t, states, y):
        added = self.weight * states.mean((1, 2)) + 0.1 * y.to(x.dtype)
        return self.weight * x + added[:, None, None, None]


STATES = torch.randn(len(SEEDS), 3, 2, generator=torch.Generator().manual_seed(0))
Y = np.arange(len(SEEDS)) % 3
COND = {"states": STATES, "y": Y}
UNCOND = {"states": torch.zeros(1, 3, 2), "y": np.zeros(1, dtype=np.int64)}


def drawer(scale: float = 2.0) -> TorchDrawer:
    sampler = Sampler(
        Stated(),
        NoiseSchedule.linear(1000),
        method="ddim",
        num_inference_steps=20,
        shape=(1, 4, 4),
        engine="eager",
    )
    return TorchDrawer(sampler, guidance_scale=scale)


def job(outdir, scale: float = 2.0, **options) -> Job:
    chosen = {"cond": COND, "uncond": UNCOND, **SIZES} | options
    return Job(drawer(scale), SEEDS, outdir, **chosen)


def expected(scale: float) -> np.ndarray:
    """One image at a time, by a model that has its rows in a closure."""
    network, levels = Stated(), []
    for place, seed in enumerate(SEEDS):
        rows, y = STATES[place : place + 1], torch.tensor(Y[place : place + 1])

        def model(x, t, rows=rows, y=y):
            without = network(x, t, torch.zeros(1, 3, 2), torch.zeros(1))
            return without + scale * (network(x, t, rows, y) - without)

        sampler = Sampler(model, NoiseSchedule.linear(1000), method="ddim", num_inference_steps=20)
        image = sampler.sample(seeds=[seed], shape=(1, 4, 4), progress=False)[0]
        levels.append(((image.clamp(-1, 1) + 1) * 127.5).round().permute(1, 2, 0).numpy())
    return np.stack(levels).astype(int)


@pytest.mark.parametrize("scale", [1.0, 2.0])
def test_every_image_has_its_own_rows(tmp_path, scale):
    uncond = UNCOND if scale != 1 else None
    assert job(tmp_path / "a", scale, uncond=uncond).run(progress=False) == len(SEEDS)
    found = np.concatenate([np.load(path)["arr_0"] for path in sorted((tmp_path / "a").glob("0*.npz"))])
    assert np.abs(found.astype(int) - expected(scale)).max() <= 1
    # Shards that were lost come back as they were, and another process is sent the rows too.
    before = contents(tmp_path / "a")
    (tmp_path / "a" / "00001.npz").unlink()
    again = job(tmp_path / "a", scale, uncond=uncond)
    again.run(progress=False)
    assert contents(tmp_path / "a") == before
    sent = pickle.loads(pickle.dumps(again))
    (places, _), *_ = sent.blocks.places(1)
    assert np.array_equal(sent._pixels(places), found[places])


def test_other_rows_are_another_job(tmp_path):
    job(tmp_path / "a").run(progress=False)
    settings = json.loads((tmp_path / "a" / "manifest.json").read_text())["settings"]
    assert sorted(settings["cond"]) == sorted(settings["uncond"]) == ["states", "y"]
    for changes in ({"cond": {**COND, "y": Y[::-1]}}, {"uncond": {**UNCOND, "states": torch.ones(1, 3, 2)}}):
        with pytest.raises(OtherSettingsError, match=r"which holds a job with (un)?cond"):
            job(tmp_path / "a", **changes).run(progress=False)
    assert job(tmp_path / "a").run(progress=False) == 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"cond": {**COND, "y": Y[:3]}}, r"cond\['y'\]: 3 for 7 seeds given, a row for all, or one each"),
        ({"cond": {**COND, "y": [1] * 7}}, r"cond\['y'\]: list given, an array \(7 or 1, ...\) of numbers"),
        ({"cond": [Y]}, "cond: list given, a mapping or None accepted"),
        ({"cond": {**COND, "states": STATES / 0}}, r"cond\['states'\]: NaN or infinity"),
        ({"cond": {"y": Y}}, "uncond: 'states', which is not in cond|no 'states', which Stated needs"),
        ({"cond": {**COND, "z": Y}}, "'z', which Stated does not take, given, states, y accepted"),
        ({"uncond": None}, "guidance_scale: .* without uncond of states, y"),
        ({"cond": None, "uncond": None}, "no 'states', which Stated needs"),
    ],
)
def test_what_is_refused_when_the_job_is_made(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        job(tmp_path / "a", **changes)
    assert not (tmp_path / "a").exists()
