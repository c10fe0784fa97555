"""Who is drawn first, and how many at once: what a service's users wait for, by a clock that is not real."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest

from fastddpm.serving.line import AGEING, HEAD_START, Line
from fastddpm.serving.pace import FORGOTTEN_AFTER, Pace
from fastddpm.serving.seating import buckets, seated

STEPS, SHARES = (10, 20, 50, 250), (0.35, 0.35, 0.2, 0.1)
"""Of the load test, benchmarks/serving.py: 1 to 4 images of so many steps, half of the requests guided."""
MOST = 16
Cost = Callable[[int], float]


@dataclasses.dataclass(frozen=True)
class Request:
    """So many images at a time, of so many steps, in one slot each or two."""

    at: float
    images: int
    steps: int
    slots: int

    @property
    def kind(self):
        return self.steps, self.slots


@dataclasses.dataclass(eq=False)
class Image:
    """Of a request, as the line sees it."""

    request: int
    left: int
    slots: int = 1

    @property
    def work(self):
        return self.left * self.slots


def arrivals(count: int, load: float, cost: Cost, seed: int) -> list[Request]:
    """Requests that come at random; at a load of 1 they are as many as one at a time can just draw."""
    slots = [images * halves for images in (1, 2, 3, 4) for halves in (1, 2)]
    alone = np.dot(STEPS, SHARES) * np.mean([cost(number) for number in slots])
    draw, at, found = random.Random(seed), 0.0, []
    for _ in range(count):
        at += draw.expovariate(load / alone)
        [steps] = draw.choices(STEPS, SHARES)
        found.append(Request(at, draw.randint(1, 4), steps, draw.choice((1, 2))))
    return found


def in_flight(requests: list[Request], cost: Cost, *, order="shortest", pace=None) -> list[float]:
    """How long each of them takes by our line, whose steps take what ``cost`` says for a batch size."""
    line, pace, now, coming = Line(order), pace or Pace(), 0.0, list(enumerate(requests))
    ended = [0.0] * len(requests)
    while coming or line:
        if not line:
            now = max(now, coming[0][1].at)
        while coming and coming[0][1].at <= now:
            number, request = coming.pop(0)
            images = [Image(number, request.steps, request.slots) for _ in range(request.images)]
            for image in images:
                line.join(image, beside=images[0])
        chosen, size = seated(line.in_order(), MOST, pace)
        assert sum(image.slots for image in chosen) <= size
        now += cost(size)
        pace.note(size, cost(size))
        for image in chosen:
            line.drawn += image.slots
            image.left -= 1
            ended[image.request] = now
            if not image.left:
                line.leave(image)
    return [end - request.at for end, request in zip(ended, requests, strict=True)]


def static(requests: list[Request], cost: Cost) -> list[float]:
    """The same for who is in front and all who wait and ask for the same, until the last of them is done."""
    now, waiting, coming, took = 0.0, [], list(enumerate(requests)), [0.0] * len(requests)
    while coming or waiting:
        if not waiting:
            now = max(now, coming[0][1].at)
        while coming and coming[0][1].at <= now:
            waiting.append(coming.pop(0))
        batch, images = [], 0
        for one in list(waiting):
            if one[1].kind == waiting[0][1].kind and images + one[1].images <= MOST:
                batch.append(one)
                images += one[1].images
        waiting = [one for one in waiting if one not in batch]
        steps, slots = batch[0][1].kind
        now += steps * cost(images * slots)
        for number, request in batch:
            took[number] = now - request.at
    return took


def proportional(slots):
    return 1.0 * slots


def constant(slots):
    return 1.0


def nearly_constant(slots):
    """As where launches and weights take most of a step: each image more is a twentieth of it."""
    return 1.0 + 0.05 * slots


@pytest.mark.parametrize("seed", [0, 1])
def test_where_a_step_takes_as_long_as_it_has_images_p95_is_half_of_static_batches(seed):
    requests = arrivals(300, 0.8, proportional, seed)
    ours, theirs = in_flight(requests, proportional), static(requests, proportional)
    assert np.percentile(ours, 95) <= 0.5 * np.percentile(theirs, 95)
    assert np.percentile(ours, 50) <= 0.25 * np.percentile(theirs, 50)


@pytest.mark.parametrize("seed", [0, 1])
def test_where_every_step_takes_as_long_p95_is_no_worse_than_static_batches(seed):
    requests = arrivals(300, 0.8, constant, seed)
    ours, theirs = in_flight(requests, constant), static(requests, constant)
    for share in (50, 95, 99):
        assert np.percentile(ours, share) <= np.percentile(theirs, share)
    # Nobody waits longer than the steps that find out what sizes are worth.
    assert all(took <= request.steps + 40 for took, request in zip(ours, requests, strict=True))


@pytest.mark.parametrize("seed", [0, 1])
def test_where_images_cost_a_twentieth_of_a_step_half_as_many_again_wait_no_longer(seed):
    """1.5 times the requests, at no more of p95 than static batches have with fewer."""
    crowd, few = (arrivals(300, load, nearly_constant, seed) for load in (1.2, 0.8))
    ours, theirs = in_flight(crowd, nearly_constant), static(few, nearly_constant)
    assert np.percentile(ours, 95) <= 0.9 * np.percentile(theirs, 95)
    assert np.percentile(static(crowd, nearly_constant), 95) > np.percentile(theirs, 95)


def test_by_arrival_those_who_came_first_end_first():
    """One of the least work behind one of the most, both alone in their batches."""
    long, short = Request(0.0, 4, 250, 2), Request(1.0, 1, 10, 1)
    pace = Pace()
    for size in (1, 2, 4, 8, 16, 32):
        for _ in range(3):
            pace.note(size, size)
    took = in_flight([long, short], proportional, order="arrival", pace=pace)
    assert took == [2000.0, 2009.0]
    took = in_flight([long, short], proportional, pace=pace)
    assert took == [2010.0, 11.0]  # the step that ran when it came, and its own


def test_nobody_is_overtaken_for_longer_than_twenty_times_the_work_that_is_left():
    """While one request of the least work after the other comes, each as soon as the last is done."""
    line, long = Line("shortest"), Image(0, 30, 2)
    line.join(long)
    began = 0
    while line.in_order()[0] is not long or long.left == 30:
        first = line.in_order()[0]
        line.drawn += first.slots
        began += first.slots
        first.left -= 1
        if not first.left:
            line.leave(first)
        if len(line) < 2:
            line.join(Image(1, 5))
        assert began <= long.work / AGEING
    assert began >= 0.8 * 60 / AGEING


def test_priorities_come_first_and_are_overtaken_too():
    line = Line("shortest")
    plain, urgent, later = Image(0, 10), Image(1, HEAD_START), Image(2, 10)
    line.join(plain)
    line.join(urgent, priority=1)
    assert line.in_order() == [urgent, plain]
    line.drawn = int(HEAD_START / AGEING)
    line.join(later, priority=1)
    assert line.in_order() == [urgent, plain, later]
    by_arrival = Line("arrival")
    by_arrival.join(plain)
    by_arrival.join(later, priority=1)
    by_arrival.drawn = int(2 * HEAD_START / AGEING)
    by_arrival.join(urgent, priority=1)
    assert by_arrival.in_order() == [later, plain, urgent]


def test_images_of_a_request_count_as_one():
    """Four of 10 steps come after one of 30; what was asked for by itself comes by itself."""
    line = Line("shortest")
    together, alone, single = [Image(0, 10) for _ in range(4)], Image(1, 30), Image(2, 35)
    for image in together:
        line.join(image, beside=together[0])
    line.join(alone)
    line.join(single)
    assert line.in_order() == [alone, single, *together]
    line.leave(together[0])
    assert line.in_order() == [alone, *together[1:], single]
    for image in (alone, single, *together[1:]):
        line.leave(image)
    assert len(line) == 0
    assert line.in_order() == []


def test_a_batch_is_as_large_as_is_worth_it():
    """By what steps took: a gain up to 4 slots; nothing known; and a size that became slow and fast again."""
    images = [Image(number, 9) for number in range(20)]
    costs = {1: 1.0, 2: 1.3, 4: 2.0, 8: 4.0, 16: 8.0}
    pace, sizes = Pace(), []
    assert seated(images, MOST, pace) == (images[:16], 16)
    for _ in range(20):
        _, size = seated(images, MOST, pace)
        sizes.append(size)
        pace.note(size, costs[size])
    assert sizes[:3] == [16, 16, 16]
    assert sizes[-1] == 4
    assert sizes.count(8) == 0  # no faster than 4, as 16 was not
    assert seated(images[:3], MOST, pace) == (images[:2], 2)  # 2 / 1.3 is more than 3 / 2.0
    assert seated(images[:1], MOST, pace) == (images[:1], 1)
    for _ in range(9):
        pace.note(4, 8.0)
        pace.note(16, 20.0)
    assert seated(images, MOST, pace)[1] == 2
    for _ in range(FORGOTTEN_AFTER + 1):
        pace.note(2, 1.3)
    assert seated(images, MOST, pace)[1] == 16  # tried again, as at first
    fast = Pace()
    for _ in range(40):
        _, size = seated(images, MOST, fast)
        fast.note(size, 1.0)
    assert size == 16


def test_who_shares_a_step():
    """From the front, a guided one in two slots; whoever fits fills a slot that is left."""
    guided, plain, other = Image(0, 9, 2), Image(1, 9, 1), Image(2, 9, 2)
    pace = Pace()
    for _ in range(3):
        pace.note(2, 1.0)
        pace.note(4, 9.0)
    assert seated([plain, guided, other], 3, pace) == ([plain], 1)  # not known, and may be half
    for _ in range(3):
        pace.note(1, 0.9)
    assert seated([plain, guided], 3, pace) == ([plain], 1)
    assert seated([guided, plain, other], 3, pace) == ([guided], 2)
    assert seated([plain, guided, Image(3, 9)], 3, pace)[0][0] is plain
    assert seated([plain, guided], 1, pace) == ([plain], 1)
    assert all(small < large for small, large in pairwise(buckets(5)))
    assert buckets(5) == [1, 2, 4, 5, 8, 10]
