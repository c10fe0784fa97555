"""Jobs of states that are no images: float32 as they are, in npz alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fastddpm import NoiseSchedule, Sampler
from fastddpm.jobs import Job, TorchDrawer
from fastddpm.jobs.shards import read_shard

SHAPES = [(5,), (4, 6), (2, 3, 2, 2)]
SEEDS = [*range(20, 27), 2**40]


def sampler(shape):
    weight = torch.nn.Parameter(torch.tensor(0.3))
    schedule = NoiseSchedule.linear(10, 1e-2, 0.3)
    return Sampler(lambda x, t: torch.tanh(x * weight), schedule, shape=shape, engine="eager")


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_every_state_is_in_its_shard_as_it_was_drawn(tmp_path, shape):
    drawer = TorchDrawer(sampler(shape))
    job = Job(drawer, SEEDS, tmp_path / "a", batch_size=3, shard_size=6)
    assert job.run(merge=True, progress=False) == len(SEEDS)
    alone = np.stack([sampler(shape).sample(seeds=[seed], progress=False)[0].numpy() for seed in SEEDS])
    shards = [np.load(path) for path in sorted((tmp_path / "a").glob("0*.npz"))]
    assert len(shards) == 2
    drawn = np.concatenate([shard["arr_0"] for shard in shards])
    assert drawn.dtype == np.float32
    np.testing.assert_allclose(drawn, alone, rtol=0, atol=1e-6)
    assert np.abs(drawn).max() > 1  # nothing clips or rounds it
    assert np.concatenate([shard["seeds"] for shard in shards]).tolist() == SEEDS
    name = "x".join(map(str, (len(SEEDS), *shape)))
    assert np.array_equal(np.load(tmp_path / "a" / f"samples_{name}.npz")["arr_0"], drawn)
    # What reads images refuses them.
    with pytest.raises(ValueError, match=r"arr_0 float32 .* uint8 \(N, H, W, C\) accepted"):
        read_shard(tmp_path / "a" / "00000.npz", "npz")


@pytest.mark.parametrize("format", ["png", "webdataset"])
def test_pictures_are_of_images(tmp_path, format):
    with pytest.raises(ValueError, match=rf"format: '{format}' for states of shape \(5,\), which are"):
        Job(TorchDrawer(sampler((5,))), [1], tmp_path / "a", format=format)
