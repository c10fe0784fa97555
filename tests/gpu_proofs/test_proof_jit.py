"""Proof c: launches through Triton's just-in-time path, compiled for a card and recorded instead of run.

What a launch with real tensors gets: its grid, and a build that fits whether they are aligned. And how many
builds a workload needs, since each costs a user a second.
"""

from __future__ import annotations

import pytest
import step_cases
import torch
from kernel_build import inspect, recorded
from step_cases import CASES, SHAPES

from fastddpm_kernels.noise.reference import plane_size
from fastddpm_kernels.q_sample.kernel import q_sample_op
from fastddpm_kernels.reverse_step.kernel import reverse_step_op

TARGET = "sm_90"
CLIP = next(case for case in CASES if case.name == "clip")


@pytest.fixture(autouse=True)
def _fresh_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "cache"))


def step(batch, shape, offset=0):
    """A launch of a DDPM step; x begins `offset` elements behind an aligned address."""
    given = step_cases.arguments(CLIP, shape, seeds=tuple(range(batch)))
    buffer = torch.zeros(given["x"].numel() + offset)
    given["x"] = buffer[offset:].view(given["x"].shape)
    reverse_step_op(**given)


@pytest.mark.parametrize("n", [1, 5, 784, 3072])
@pytest.mark.parametrize("batch", [1, 3])
def test_every_counter_has_a_program(n, batch):
    with recorded(TARGET) as launches:
        step(batch, SHAPES[n])
    [launch] = launches
    tiles = launch.grid[1]
    assert launch.grid == (batch, tiles, 1)
    assert 256 * (tiles - 1) < plane_size(n) <= 256 * tiles
    assert launch.compiled.metadata.num_warps == 2


def test_a_workload_needs_few_builds(proof):
    """Batches and sizes of every kind share two builds, since 1x28x28 has 13*16 counters, where the others
    have a multiple of 256; what is odd or misaligned is a build of its own.
    """
    workload = {
        "batches 1 to 256 of 3x32x32, 1x28x28, 3x64x64": [
            (batch, shape, 0)
            for batch in (1, 2, 64, 256)
            for shape in (SHAPES[3072], SHAPES[784], (3, 64, 64))
        ],
        "the same and 1x5x5": [(64, SHAPES[3072], 0), (3, SHAPES[784], 0), (3, (1, 5, 5), 0)],
        "the same and a misaligned state": [(64, SHAPES[3072], 0), (64, SHAPES[3072], 1)],
    }
    counted = {}
    for name, calls in workload.items():
        with recorded(TARGET) as launches:
            for call in calls:
                step(*call)
        assert len(launches) == len(calls)
        counted[name] = len({id(launch.compiled) for launch in launches})
        proof("c", f"reverse_step: {name}", launches=len(launches), builds=counted[name])
    assert list(counted.values()) == [2, 3, 2]


def test_a_misaligned_state_is_not_moved_in_128_bits(tmp_path):
    with recorded(TARGET) as launches:
        step(2, SHAPES[3072])
        step(2, SHAPES[3072], offset=1)
    aligned, misaligned = (inspect(launch, TARGET, tmp_path) for launch in launches)
    assert aligned.wide_stores == 4
    assert misaligned.wide_stores == 0
    assert misaligned.widest == 128  # the loads of m, which is aligned


def test_other_timesteps_and_seeds_are_the_same_build(proof):
    with recorded(TARGET) as launches:
        for size in (10, 16, 1000):
            x_0, t, table = torch.zeros(4, 3, 32, 32), torch.zeros(4, dtype=torch.int64), torch.zeros(size)
            q_sample_op(x_0, t, table, table, None, t, t, False)
    builds = len({id(launch.compiled) for launch in launches})
    proof("c", "q_sample: tables of 10, 16 and 1000 timesteps", launches=len(launches), builds=builds)
    assert builds == 1
