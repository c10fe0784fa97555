"""Rows of several plans in one table: where they stand, and the row that changes nothing."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from float64_reference import reverse_step as exact_step
from step_cases import COLUMNS

from fastddpm import NoiseSchedule, ddim_plan, ddpm_plan
from fastddpm.plans import Method
from fastddpm.plans.arena import IDLE, Arena, RowKind, idle_row
from fastddpm_kernels import Column, reverse_step

SCHEDULE = NoiseSchedule.linear(100)


def plan(steps, **options):
    return ddim_plan(SCHEDULE, num_inference_steps=steps, **options)


@pytest.mark.parametrize("combines", [False, True])
@pytest.mark.parametrize("divides", [False, True])
@pytest.mark.parametrize("rederives", [False, True])
@pytest.mark.parametrize("bound", [{"clip": True}, {"threshold": torch.tensor([1.5, 2.0])}, {}])
def test_the_idle_row_changes_nothing(divides, rederives, combines, bound):
    """By the kernel's reference bit for bit, and by the formula in float64."""
    generator = torch.Generator().manual_seed(0)
    x, m, kept = (5 * torch.randn(*size, 2, 3, 4, 4, generator=generator) for size in ((), (), (2,)))
    row = idle_row(RowKind(combines, divides, rederives))
    options = {"divide": divides, "rederive": rederives, "combine": combines}
    found = x.clone()
    counter = torch.zeros(2, 2, dtype=torch.int64)
    own = {"noise": torch.tensor([1, 2]), "kept": kept.clone(), "x0": torch.zeros_like(x)}
    reverse_step(found, m, torch.tensor(row)[None], counter, **own, **options, **bound)
    assert torch.equal(found, x)
    letters = {letter: float(row[column]) for letter, column in COLUMNS.items()}
    s = bound["threshold"].numpy() if "threshold" in bound else None
    exact, _, _ = exact_step(x.numpy(), m.numpy(), letters, kept=kept.numpy(), s=s, **options)
    np.testing.assert_array_equal(exact, x.numpy())


def test_plans_stand_one_behind_the_other():
    arena, first, second = Arena(20), plan(5), plan(7)
    bases = [arena.enter(one) for one in (first, second, first)]
    assert bases == [1, 6, 1]
    assert len(arena) == 13
    for base, one in ((1, first), (6, second)):
        np.testing.assert_array_equal(arena.table[base : base + len(one)], one.table)
        np.testing.assert_array_equal(arena.model_time[base : base + len(one)], one.model_time)
    np.testing.assert_array_equal(arena.table[IDLE], idle_row(RowKind()))


def test_rows_are_given_up_once_nobody_walks_them():
    arena, plans = Arena(11), [plan(steps) for steps in (4, 6, 5, 3)]
    assert [arena.enter(one) for one in plans[:2]] == [1, 5]
    assert arena.enter(plans[2]) is None  # both are walked
    arena.leave(plans[1])
    arena.leave(plans[0])
    assert all(one in arena for one in plans[:2])
    assert arena.enter(plans[0]) == 1  # still there
    assert arena.enter(plans[2]) == 5
    assert plans[1] not in arena
    assert arena.enter(plans[3]) is None
    arena.leave(plans[0])
    assert arena.enter(plans[3]) == 1
    assert plans[0] not in arena


def test_one_walker_of_two_keeps_a_plan():
    arena, one = Arena(6), plan(5)
    arena.enter(one)
    arena.enter(one)
    arena.leave(one)
    assert arena.enter(plan(4)) is None
    arena.leave(one)
    assert arena.enter(plan(4)) == 1


def test_a_plan_of_x0_is_kept_as_the_sum_that_is_x0():
    """Where the others keep sums."""
    multistep = Method(method="dpmpp_2m", num_inference_steps=5).plan(SCHEDULE)
    arena = Arena(12, kind=RowKind(combines=True))
    base = arena.enter(multistep)
    rows = arena.table[base : base + 5]
    assert (rows[:, Column.KEPT_FROM_X0] == 1).all()
    np.testing.assert_array_equal(np.delete(rows, Column.KEPT_FROM_X0, 1), np.delete(multistep.table, 18, 1))
    assert not multistep.combines


def test_a_capacity_without_room_for_a_row_is_refused():
    with pytest.raises(ValueError, match=r"^capacity: 1 given"):
        Arena(1)


def test_a_plan_that_is_equal_is_another():
    """Plans are told apart by identity, since arrays make no keys."""
    arena, one = Arena(20), ddpm_plan(SCHEDULE, num_inference_steps=5)
    assert arena.enter(one) != arena.enter(dataclasses.replace(one))
