"""Timing side by side: who is slower is found, who is not is not, and nobody always runs after the same."""

from __future__ import annotations

import itertools
import time
from collections import Counter

import numpy as np
import pytest
import torch

from fastddpm.timing import CpuClock, Effort, interleaved, order, processor_seconds
from fastddpm_bench import machine
from fastddpm_bench.statistics import ratio_of_medians

EFFORT = Effort(seconds=1.0, least=15, most=15, warm_up=1)


class Shared:
    """The clock of a machine whose speed wanders and where single samples are hit, the same way each time.

    A real clock will not do: beside other work on the same cores, twice the work took 1.36 times the time.
    """

    def __init__(self):
        self.random = np.random.default_rng(0)
        self.speed = 1.0

    def time(self, call, repeats):
        self.speed *= np.exp(0.03 * self.random.standard_normal())
        hit = 3.0 if self.random.random() < 0.1 else 1.0
        seconds = repeats * call() * self.speed * hit * np.exp(0.05 * self.random.standard_normal())
        return seconds, seconds


def test_a_slowed_contestant_is_slower_and_an_identical_one_is_not():
    times = interleaved({"base": lambda: 3.0, "same": lambda: 3.0, "slow": lambda: 6.0}, Shared(), EFFORT)
    same = ratio_of_medians(times["same"].wall, times["base"].wall)
    slow = ratio_of_medians(times["slow"].wall, times["base"].wall)
    assert slow.low > 1.4
    assert same.low < 1.0 < same.high
    assert same.low > 0.8
    assert same.high < 1.25
    assert all(len(taken.wall) == len(taken.process) == 15 for taken in times.values())


def test_a_call_on_the_processor_is_timed_by_it():
    def spin():
        began = time.process_time()
        while time.process_time() - began < 0.02:
            pass

    wall, process = CpuClock().time(spin, 3)
    assert wall >= 0.055
    assert process >= 0.055


class Steady:
    """A clock that knows what each call takes."""

    def __init__(self):
        self.asked = []

    def time(self, call, repeats):
        self.asked.append((call(), repeats))
        return call() * repeats, 0.0


def test_short_calls_are_repeated_and_divided():
    clock = Steady()
    times = interleaved({"short": lambda: 1e-5, "long": lambda: 3.0}, clock, EFFORT)
    assert times["short"].wall == pytest.approx([1e-5] * 15)
    assert times["long"].wall == pytest.approx([3.0] * 15)
    assert (1e-5, 200) in clock.asked  # 2 ms together
    assert {repeats for seconds, repeats in clock.asked if seconds == 3.0} == {1}


def test_rounds_end_with_the_time_but_not_before_the_least():
    effort = Effort(seconds=0.0, least=4, most=9, warm_up=0)
    assert len(interleaved({"a": lambda: 1.0}, Steady(), effort)["a"].wall) == 4


def test_every_order_is_met():
    names = ["a", "b", "c"]
    rounds = [order(names, number) for number in range(6)]
    assert all(sorted(found) == names for found in rounds)
    first = Counter(found[0] for found in rounds)
    assert first == {"a": 2, "b": 2, "c": 2}
    followers = {pair for found in rounds for pair in itertools.pairwise(found)}
    assert len(followers) == 6


def test_processor_time_is_not_the_time_slept():
    began = processor_seconds()
    time.sleep(0.2)
    assert processor_seconds() - began < 0.1


def test_clocks_of_a_card_are_read():
    line = "1980, 2619, 312.45, 700.00, 41, [N/A]\n"
    assert machine.read_gpu_state(line) == {
        "sm_mhz": 1980.0,
        "memory_mhz": 2619.0,
        "watts": 312.45,
        "watts_allowed": 700.0,
        "celsius": 41.0,
        "percent_busy": None,
    }


def test_the_machine_is_described():
    found = machine.describe(torch.device("cpu"))
    assert found["threads"] == torch.get_num_threads()
    assert found["packages"]["torch"] == torch.__version__.split("+")[0]
    assert found["device"] == "cpu"
