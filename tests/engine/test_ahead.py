"""Noise drawn for several rows at once (`fastddpm.engine.ahead`): the same numbers, wherever a chain goes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from networks import make_unet

from fastddpm import NoiseSchedule, Sampler
from fastddpm.engine import ahead
from fastddpm.engine.ahead import DrawnAhead, rows_at_once
from fastddpm_kernels.noise import reference

SEEDS = [3, 2**40 + 1]
SHAPE = (2, 3, 5, 4)


def ring(rows=4):
    return torch.full((rows, *SHAPE), torch.nan)


def expected(row, repeat=0):
    """By NumPy, in float64."""
    return reference.normal(SEEDS, row + 1, SHAPE[1:], repeat=repeat)


def test_each_row_is_in_its_slot_however_the_counter_moves():
    held, drawn = ring(), []
    fill = DrawnAhead(torch.tensor(SEEDS), held)
    # On, past the ring, back, to another repeat and on in it, as RePaint walks.
    for row, repeat in [(0, 0), (1, 0), (3, 0), (4, 0), (9, 0), (2, 0), (2, 1), (3, 1), (3, 0)]:
        before = held.clone()
        [found] = fill.noise_of(torch.tensor([[row, repeat]] * 2))
        drawn.append(not torch.equal(held, before))
        np.testing.assert_allclose(found, expected(row, repeat), atol=2e-6)
    assert drawn == [True, False, False, True, True, True, True, False, True]


def test_other_seeds_are_drawn_anew():
    held, seeds = ring(), torch.tensor([8, 9])
    fill = DrawnAhead(seeds, held)
    fill.noise_of(torch.zeros(2, 2, dtype=torch.int64))
    seeds.copy_(torch.tensor(SEEDS))
    fill.forget()
    [found] = fill.noise_of(torch.zeros(2, 2, dtype=torch.int64))
    np.testing.assert_allclose(found, expected(0), atol=2e-6)


def test_samples_at_rows_of_plans_of_their_own():
    """One goes on beside one that leaves the ring, stays, and begins anew."""
    held = ring()
    fill, base = DrawnAhead(torch.tensor(SEEDS), held), torch.tensor([10, 40])
    for rows, repeats in [((0, 7), (0, 0)), ((1, 8), (0, 0)), ((2, 8), (0, 3)), ((3, 0), (0, 0))]:
        counter = torch.tensor([rows, repeats]).t() + torch.tensor([[10, 0], [40, 0]])
        before = held.clone()
        [found] = fill.noise_of(counter, base)
        for i in range(2):
            wanted = reference.normal(SEEDS[i : i + 1], rows[i] + 1, SHAPE[1:], repeat=repeats[i])
            np.testing.assert_allclose(found[i : i + 1], wanted, atol=2e-6)
        assert torch.equal(before[:, 0], held[:, 0]) == (rows[0] > 0)


@pytest.mark.parametrize(
    ("shape", "rows"),
    [((1, 1, 28, 28), 32), ((8, 3, 32, 32), 5), ((32, 3, 32, 32), 0), ((64, 3, 32, 32), 0)],
)
def test_few_numbers_are_drawn_for_many_rows(shape, rows):
    assert rows_at_once(shape) == rows


def test_images_are_the_same_to_the_last_bit(monkeypatch):
    """Of one sampler after the other, of the next seeds, and from the middle of a chain on."""
    unet = make_unet()

    def images():
        sampler = Sampler(unet, NoiseSchedule.linear(), method="ddpm", num_inference_steps=7)
        call = {"shape": (3, 8, 8), "class_labels": 1, "progress": False}
        found = [sampler.sample(seeds=seeds, **call) for seeds in ([1, 2], [5, 6], [1, 2])]
        steps = sampler.sample_trajectory(seeds=[1, 2], **call)
        return [*found, steps]

    many = images()
    monkeypatch.setattr(ahead, "AT_ONCE", 0)
    monkeypatch.setattr("fastddpm.runner.rows_at_once", lambda shape: 0)
    for one, other in zip(many, images(), strict=True):
        assert torch.equal(one, other)
    assert not torch.equal(many[0], many[1])
