"""Timing side by side: who is slower is found, who is not is not, and nobody always runs after the same."""

from __future__ import annotations

import itertools
import time
from collections import Counter

import pytest
import torch

from fastddpm.bench import machine
from fastddpm.bench.statistics import ratio_of_medians
from fastddpm.bench.timing import CpuClock, Effort, interleaved, order, processor_seconds

EFFORT = Effort(seconds=1.0, least=15, most=15, warm_up=1)


def work(count):
    x = torch.ones(200_000)

    def call():
        for _ in range(count):
            x.mul_(1.0)

    return call


def test_a_slowed_contestant_is_slower_and_an_identical_one_is_not():
    times = interleaved({"base": work(10), "same": work(10), "slow": work(20)}, CpuClock(), EFFORT)
    # In processor time, which other processes on the machine hardly change.
    same = ratio_of_medians(times["same"].process, times["base"].process)
    slow = ratio_of_medians(times["slow"].process, times["base"].process)
    assert slow.low > 1.4
    assert same.low < 1.15
    assert same.high > 0.87
    assert all(len(taken.wall) == len(taken.process) == 15 for taken in times.values())


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
