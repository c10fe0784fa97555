"""`fastddpm.serving.Scheduler`: every image is the one that its request gives alone, in any company."""

from __future__ import annotations

import concurrent.futures
import gc
import itertools
import random
import re
import threading
import time
import warnings
import weakref
from pathlib import Path

import pytest
import torch
from networks import make_unet
from replay import RecordingBackend
from tolerances import ACROSS_BATCHES

from fastddpm import NoiseSchedule, NonFiniteSamples, Sampler
from fastddpm.engine import Loops
from fastddpm.network import without_grad
from fastddpm.serving import Busy, Closed, DeadlinePassed, Scheduler, line
from fastddpm.serving.pace import Pace
from fastddpm.serving.parked import Parked
from fastddpm.serving.stopwatch import AHEAD, Stopwatch

SCHEDULE = NoiseSchedule.linear(100)
SHAPE = (3, 8, 8)
METHODS = [
    {},
    {"method": "ddim", "num_inference_steps": 4},
    {"method": "ddim", "num_inference_steps": 9, "eta": 0.6},
    {"method": "ddpm", "num_inference_steps": 12},
    {"method": "dpmpp_2m", "num_inference_steps": 5},
    {"method": "unipc", "num_inference_steps": 6},
    {"method": "heun", "num_inference_steps": 4},
]


def make_sampler(model=None, **options):
    options = {"num_inference_steps": 7, "clip_sample_range": 1.0, "timestep_spacing": "trailing"} | options
    return Sampler(model or make_unet(), SCHEDULE, shape=SHAPE, **options)


def alone(sampler, seed, method, label=None, guidance=1.0):
    """The image by `Sampler.sample`."""
    one = Sampler(
        sampler.model, SCHEDULE, shape=SHAPE, engine="eager", **sampler.method.adapted(**method).to_dict()
    )
    return one.sample(seeds=[seed], class_labels=label, guidance_scale=guidance, progress=False)[0]


class Gate:
    """A model's call that waits until it is opened, and counts."""

    def __init__(self, model):
        self.model, self.open, self.calls = model, threading.Event(), 0
        self.reached = threading.Event()

    def __call__(self, x, t, **cond):
        self.calls += 1
        self.reached.set()
        assert self.open.wait(30)
        return self.model(x, t, **cond)


def affine(x, t, **cond):
    """A model whose images can be told apart, and whose state stays small."""
    return 0.3 * x + 0.01 * (t % 7).float().view(-1, 1, 1, 1)


class Affine(torch.nn.Module):
    """The same with a weight, and no choice of what to do."""

    def __init__(self):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.tensor(0.3))

    def forward(self, x, t):
        return affine(x, t) / 0.3 * self.scale


def asked_by_another(scheduler, answers):
    """A callback of a drawing that waits until another thread was answered, as one does that takes a lock
    which that thread has."""

    def ask(_):
        asking = threading.Thread(target=lambda: answers.append(scheduler.stats()))
        asking.start()
        asking.join(5)

    return ask


@pytest.fixture
def unmeasured(monkeypatch):
    """Batches hold all who are there, as where nothing was measured yet."""
    monkeypatch.setattr(Pace, "note", lambda self, size, seconds: None)


@pytest.mark.parametrize("engine", ["eager", "onnxruntime"])
def test_mixed_requests_in_any_order_are_what_they_are_alone(engine, monkeypatch):
    """With batches of any size, so that images are set aside and taken up again all the time."""
    if engine == "onnxruntime":
        pytest.importorskip("onnxruntime")
    sizes, taken_up = random.Random(2), []
    monkeypatch.setattr(Pace, "best", lambda self, filled: sizes.choice(list(filled)))
    take = Parked.take
    monkeypatch.setattr(
        Parked, "take", lambda self, *given: taken_up.append(len(given[0])) or take(self, *given)
    )
    sampler, draw = make_sampler(engine=engine), random.Random(1)
    count, methods, scales = (120, METHODS, [1.0, 2.5]) if engine == "eager" else (24, METHODS[:3], [1.0])
    asked = [
        (seed, draw.choice(methods), draw.choice([0, 1, 2]), draw.choice(scales)) for seed in range(count)
    ]
    draw.shuffle(asked)
    most = 8 if engine == "eager" else 2
    with Scheduler(sampler, max_batch=most, max_waiting=count, rows=30) as scheduler:
        futures = []
        for seed, method, label, guidance in asked:
            futures.append(
                scheduler.submit(
                    seed, class_label=label, guidance_scale=guidance, priority=seed % 3, **method
                )
            )
            if draw.random() < 0.2:
                time.sleep(0.01)  # so that some come while others are on their way
        images = [future.result(60) for future in futures]
        assert all(future.progress == 1.0 for future in futures)
        assert scheduler.stats()["steps"] < sum(future.steps for future in futures)  # they shared some
        assert sum(taken_up) > count
    samplers = [
        sampler.replace(engine="eager", **sampler.method.adapted(**method).to_dict()) for method in methods
    ]
    for (seed, method, label, guidance), image in zip(asked, images, strict=True):
        options = {"class_labels": label, "guidance_scale": guidance, "progress": False}
        [wanted] = samplers[methods.index(method)].sample(seeds=[seed], **options)
        assert (image - wanted).abs().max() <= ACROSS_BATCHES, (seed, method, label, guidance)


def test_a_request_that_fails_or_is_cancelled_changes_no_other():
    """Beside one whose model output is NaN, one that is cancelled on its way, and one that is too late."""

    def sometimes_nan(x, t, y):
        return affine(x, t) + torch.where(y > 0, torch.nan, 0.0).view(-1, 1, 1, 1)

    gate = Gate(sometimes_nan)
    sampler = make_sampler(gate, engine="eager")

    def y(value):
        return {"y": torch.tensor([float(value)])}

    with Scheduler(sampler, max_batch=4) as scheduler:
        good = scheduler.submit(1, cond=y(0))
        bad = scheduler.submit(2, cond=y(1))
        gone = scheduler.submit(3, cond=y(0))
        late = scheduler.submit(4, cond=y(0), deadline=0.05)
        late.add_done_callback(asked_by_another(scheduler, answers := []))
        late.add_done_callback(lambda _: answers.append("told"))
        assert gate.reached.wait(30)
        assert gone.cancel()
        assert gone.cancel()
        assert concurrent.futures.wait([gone], 0).done == {gone}
        time.sleep(0.06)
        gate.open.set()
        image = good.result(30)
        with pytest.raises(NonFiniteSamples, match="of seeds 2"):
            bad.result(30)
        with pytest.raises(DeadlinePassed, match=r"^deadline: \d of 7 steps"):
            late.result(30)
        assert gone.cancelled()
        assert [type(one) for one in answers] == [dict, str]
        after = scheduler.submit(5, cond=y(0)).result(30)  # in a slot that held NaN
    for seed, found in ((1, image), (5, after)):
        wanted = sampler.sample(seeds=[seed], cond=y(0), progress=False)[0]
        assert torch.equal(found, wanted)


def test_a_slot_that_is_used_again_has_nothing_of_the_last_chain():
    """Neither its noise, nor the predictions that it kept."""
    sampler = make_sampler(affine, engine="eager")
    with Scheduler(sampler, max_batch=1) as scheduler:
        for seed in (1, 2):
            for options in ({}, {"method": "dpmpp_2m"}, {"method": "dpmpp_3m"}):
                image = scheduler.submit(seed, **options).result(30)
                wanted = sampler.replace(**options).sample(seeds=[seed], progress=False)[0]
                assert (image - wanted).abs().max() <= ACROSS_BATCHES


def test_a_slot_that_held_nan_is_clean():
    def sometimes_nan(x, t, y):
        return affine(x, t) + torch.where(y > 0, torch.nan, 0.0).view(-1, 1, 1, 1)

    sampler = make_sampler(sometimes_nan, engine="eager", method="dpmpp_2m")
    with Scheduler(sampler, max_batch=1) as scheduler:
        with pytest.raises(NonFiniteSamples):
            scheduler.submit(1, cond={"y": torch.ones(1)}).result(30)
        image = scheduler.submit(2, cond={"y": torch.zeros(1)}).result(30)
    wanted = sampler.sample(seeds=[2], cond={"y": torch.zeros(1)}, progress=False)[0]
    assert (image - wanted).abs().max() <= ACROSS_BATCHES


def with_image(x, t):
    """A model of a condition image in front of the state."""
    return affine(x[:, 1:], t) + 0.1 * x[:, :1]


def with_variance(x, t):
    return torch.cat((affine(x, t), torch.tanh(x)), dim=1)


KINDS = {
    "condition image": lambda: (make_sampler(with_image, engine="eager"), {}),
    "learned variance": lambda: (
        make_sampler(with_variance, engine="eager", variance_type="learned_range"),
        {},
    ),
    "thresholding": lambda: (
        Sampler.from_plan(
            affine, SCHEDULE, make_sampler(affine).plan.with_thresholding(0.9, 2.0), shape=SHAPE
        ),
        {},
    ),
    "times between": lambda: (make_sampler(affine, method="euler", timestep_spacing="karras"), {}),
    "no clip": lambda: (make_sampler(affine, clip_sample_range=None), {}),
    "half precision": lambda: (make_sampler(make_unet(), precision="bf16"), {"label": 1}),
}


@pytest.mark.parametrize("kind", KINDS)
def test_other_kinds_of_chains(kind):
    sampler, options = KINDS[kind]()
    images = [
        torch.full((1, 1, 8, 8), 0.5 * seed) if kind == "condition image" else None for seed in range(3)
    ]
    label = options.get("label")
    # How a convolution in half precision rounds depends on the batch, and a chain passes that on.
    most = 1 if kind == "half precision" else 4
    with Scheduler(sampler, max_batch=most) as scheduler:
        futures = [scheduler.submit(seed, condition=images[seed], class_label=label) for seed in range(3)]
        found = [future.result(30) for future in futures]
    for seed, image in enumerate(found):
        wanted = sampler.sample(seeds=[seed], condition=images[seed], class_labels=label, progress=False)[0]
        assert (image - wanted).abs().max() <= ACROSS_BATCHES


def test_steps_that_were_captured_go_on_with_other_chains(monkeypatch):
    """As on a card, several steps a graph; the capture is recorded on the CPU."""
    monkeypatch.setattr("fastddpm.runner.resolve_engine", lambda engine, device: "cudagraph")
    monkeypatch.setattr("fastddpm.engine.executors.CudaGraphBackend", RecordingBackend)
    monkeypatch.setattr("fastddpm.serving.workshop.CAPTURED_STRIDE", 2)

    def model(x, t, y):
        return affine(x, t) + 0.1 * y.view(-1, 1, 1, 1)

    sampler = make_sampler(model, engine="cudagraph")
    plain = {"cond": {"y": torch.ones(1)}}
    guided = plain | {"uncond": {"y": -torch.ones(1)}, "guidance_scale": 2.5}
    asked = [(seed, steps, how) for seed, (steps, how) in enumerate([(7, plain), (3, guided), (4, plain)])]
    with Scheduler(sampler, max_batch=2) as scheduler:
        futures = [scheduler.submit(seed, num_inference_steps=steps, **how) for seed, steps, how in asked]
        images = [future.result(60) for future in futures]
    monkeypatch.undo()
    for (seed, steps, how), image in zip(asked, images, strict=True):
        one = make_sampler(model, num_inference_steps=steps)
        wanted = one.sample(seeds=[seed], progress=False, **how)[0]
        assert (image - wanted).abs().max() <= ACROSS_BATCHES


@pytest.mark.parametrize("engine", ["eager", "compile", "onnxruntime", "captured"])
def test_an_image_that_is_set_aside_ends_as_it_would_alone(engine, monkeypatch):
    """Twice, for a shorter one and for two that were asked for together; the state is that of a solver."""
    monkeypatch.setattr(Pace, "best", lambda self, filled: min(filled))
    if engine == "onnxruntime":
        pytest.importorskip("onnxruntime")
    if engine == "captured":
        monkeypatch.setattr("fastddpm.runner.resolve_engine", lambda engine, device: "cudagraph")
        monkeypatch.setattr("fastddpm.engine.executors.CudaGraphBackend", RecordingBackend)
    sampler = make_sampler(
        Affine(), engine="cudagraph" if engine == "captured" else engine, method="dpmpp_2m"
    )
    asked = {0: 20, 1: 3, 2: 4, 3: 4}
    futures, seen, order, ends = {}, [], [], []

    def submit(seed, **options):
        futures[seed] = scheduler.submit(seed, num_inference_steps=asked[seed], preview_every=3, **options)
        futures[seed].add_done_callback(lambda _: order.append(seed))
        futures[seed].add_done_callback(lambda _: ends.append(scheduler.stats()))

    def look(done, x0):
        seen.append(scheduler.stats()["parked"])

    def come(done, x0):
        seen.append(scheduler.stats()["parked"])
        if done == 6:
            submit(1, preview=look)
        if done == 9:
            submit(2, preview=look)
            submit(3, preview=look, beside=futures[2])

    with Scheduler(sampler, max_batch=2) as scheduler:
        submit(0, preview=come)
        futures[0].result(300)
        images = {seed: future.result(300) for seed, future in futures.items()}
        stats = scheduler.stats()
    assert order == [1, 2, 3, 0]
    assert seen == [0, 0, 1, 0, 1, 1, 0, 0, 0]
    assert [(one["parked"], one["running"], one["filled"]) for one in ends] == [(1, 0, 0)] * 3 + [(0, 0, 0)]
    assert (stats["parked"], stats["running"], stats["waiting"]) == (0, 0, 0)
    monkeypatch.undo()
    for seed, image in images.items():
        one = make_sampler(Affine(), engine="eager", method="dpmpp_2m", num_inference_steps=asked[seed])
        assert (image - one.sample(seeds=[seed], progress=False)[0]).abs().max() <= ACROSS_BATCHES


def test_an_error_of_the_model_reaches_those_who_were_in_its_step(monkeypatch):
    """Also one that a card tells of when its image is looked at, and while a callback waits for others."""
    calls, answers = [], []

    def raises_once(x, t):
        calls.append(len(x))
        if len(calls) == 1:
            raise RuntimeError("out of luck")
        return affine(x, t)

    with Scheduler(make_sampler(raises_once, engine="eager")) as scheduler:
        drawing = scheduler.submit(1)
        drawing.add_done_callback(asked_by_another(scheduler, answers))
        drawing.add_done_callback(lambda _: answers.append("told"))
        with pytest.raises(RuntimeError, match="out of luck"):
            drawing.result(30)
        with monkeypatch.context() as patched:
            patched.setattr("fastddpm.serving.workshop.check_finite", lambda *_: torch.zeros(2).view(3))
            with pytest.raises(RuntimeError, match="shape"):
                scheduler.submit(1).result(10)
        assert scheduler.submit(1).result(30).isfinite().all()
    assert [type(one) for one in answers] == [dict, str]


def test_previews_show_x0_on_its_way():
    shown = []
    sampler = make_sampler()
    with Scheduler(sampler, max_batch=2) as scheduler:
        beside = scheduler.submit(8, class_label=1)
        future = scheduler.submit(
            7, class_label=2, preview=lambda done, x0: shown.append((done, x0)), preview_every=3
        )
        future.result(60)
        beside.result(60)
    assert [done for done, _ in shown] == [3, 6]
    states = sampler.sample_trajectory(seeds=[7], class_labels=2, predicted=True, progress=False)
    for done, x0 in shown:
        assert (x0 - states[done - 1, 0]).abs().max() <= ACROSS_BATCHES


def test_batches_are_as_large_as_those_who_share_them(unmeasured):
    """One at first, four together, and one again, by sizes that are powers of two."""
    sizes = []

    def counting(x, t):
        sizes.append(len(x))
        return affine(x, t)

    gate = Gate(counting)
    with Scheduler(make_sampler(gate, engine="eager"), max_batch=4) as scheduler:
        first = scheduler.submit(0)
        assert gate.reached.wait(30)
        others = [scheduler.submit(seed, method="ddim", num_inference_steps=2) for seed in (1, 2, 3)]
        gate.open.set()
        for future in [first, *others]:
            future.result(30)
    assert sizes == [1, 4, 4, 1, 1, 1, 1]


def test_nobody_waits_for_more_than_a_bounded_number_of_steps(monkeypatch):
    """A request of the lowest priority, while those of a higher one keep coming."""
    monkeypatch.setattr(line, "HEAD_START", 20)
    monkeypatch.setattr(line, "AGEING", 0.5)
    with Scheduler(make_sampler(affine, engine="eager"), max_batch=1, max_waiting=8) as scheduler:
        low, began, later = None, 0, []
        while low is None or not low.done():
            try:
                later.append(scheduler.submit(len(later), method="ddim", num_inference_steps=3, priority=2))
            except Busy as busy:
                time.sleep(min(0.001, busy.retry_after))
            if low is None and len(later) == 4:
                low, began = scheduler.submit(99), scheduler.stats()["steps"]
        # Those two above it may come before it for 2 * (2 * 20 + 7) steps; then those in front, 3 steps each.
        assert scheduler.stats()["steps"] - began <= 94 + 9 * 3 + 7 + 10
        assert len(later) > 40
        scheduler.close(cancel=True)


def test_a_kind_that_must_wait_for_a_lane_gets_one():
    with Scheduler(make_sampler(), max_lanes=1, max_batch=2) as scheduler:
        plain = [scheduler.submit(seed, class_label=0) for seed in range(3)]
        other = scheduler.submit(9, class_label=1, preview=lambda done, x0: None)
        more = [scheduler.submit(seed, class_label=0) for seed in range(3, 6)]
        for future in [*plain, other, *more]:
            assert future.result(60).shape == SHAPE


def test_loops_that_were_given_up_are_let_go(monkeypatch):
    """By a lane that others have not emptied for long, whose loops made room for theirs."""
    made, held, sizes = [], [], itertools.cycle([1, 2, 4])
    monkeypatch.setattr(Pace, "best", lambda self, filled: next(one for one in sizes if one in filled))
    get = Loops.get

    def kept(self, *given, **options):
        loop = get(self, *given, **options)
        made.append(weakref.ref(loop))
        return loop

    def count(done, x0):
        gc.collect()
        held.append(len({id(loop) for one in made if (loop := one()) is not None}))

    monkeypatch.setattr(Loops, "get", kept)
    with Scheduler(make_sampler(affine, engine="eager"), max_batch=4) as scheduler:
        scheduler.sampler.runner.loops.limit = 1
        options = {"num_inference_steps": 30, "preview": count, "preview_every": 30}
        for drawing in [scheduler.submit(seed, **options) for seed in range(4)]:
            drawing.result(30)
    assert len(made) > 10
    assert max(held) <= 2


def test_guided_requests_share_steps_with_others(unmeasured):
    """Each in two slots of one batch, for which the network runs once."""
    sizes = []

    def model(x, t, y):
        sizes.append(len(x))
        return affine(x[:, 1:], t) + 0.1 * y.view(-1, 1, 1, 1) + 0.05 * x[:, :1]

    gate, image = Gate(model), torch.full((1, 1, 8, 8), 0.5)
    sampler = make_sampler(gate, engine="eager")
    plain = {"cond": {"y": torch.ones(1)}, "condition": image}
    guided = plain | {"uncond": {"y": -torch.ones(1)}, "guidance_scale": 3.0}
    asked = [plain, guided, guided, plain | {"condition": -image}, guided | {"guidance_scale": 0.5}]
    with Scheduler(sampler, max_batch=5) as scheduler:
        futures = [scheduler.submit(0, **asked[0])]
        assert gate.reached.wait(30)
        futures += [scheduler.submit(seed, **asked[seed]) for seed in range(1, 5)]
        gate.open.set()
        images = [future.result(30) for future in futures]
    assert sizes == [1, 8, 8, 8, 8, 8, 8, 8]  # 3 * 2 + 2 of 8, and the last step of those who came later
    for seed, (options, found) in enumerate(zip(asked, images, strict=True)):
        wanted = sampler.sample(seeds=[seed], **options, progress=False)[0]
        assert (found - wanted).abs().max() <= 1e-6


def test_what_is_refused():
    gate = Gate(affine)
    scheduler = Scheduler(make_sampler(gate, engine="eager"), max_waiting=2, max_batch=1, rows=20)
    with pytest.raises(
        ValueError, match=r"^num_inference_steps: a plan of 21 rows given, 20 at most accepted"
    ):
        scheduler.submit(0, num_inference_steps=21)
    with pytest.raises(ValueError, match=r"^priority: 10 given"):
        scheduler.submit(0, priority=10)
    with pytest.raises(ValueError, match=r"^seed: "):
        scheduler.submit(-1)
    with pytest.raises(ValueError, match=r"^deadline: 0 given"):
        scheduler.submit(0, deadline=0)
    running = scheduler.submit(0)
    assert gate.reached.wait(30)
    waiting = [scheduler.submit(1), scheduler.submit(2)]
    with pytest.raises(Busy, match=r"^max_waiting: 2 requests wait") as raised:
        scheduler.submit(3)
    assert 0 < raised.value.retry_after < 60
    gate.open.set()
    scheduler.close()
    assert all(future.done() for future in [running, *waiting])
    with pytest.raises(Closed):
        scheduler.submit(4)


def test_closing_with_cancel_ends_what_is_on_its_way():
    gate = Gate(affine)
    scheduler = Scheduler(make_sampler(gate, engine="eager"), max_batch=1)
    futures = [scheduler.submit(seed) for seed in range(3)]
    assert gate.reached.wait(30)
    futures[2].add_done_callback(asked_by_another(scheduler, answers := []))
    futures[2].add_done_callback(lambda _: answers.append("told"))
    gate.open.set()
    scheduler.close(cancel=True)
    assert all(future.done() for future in futures)
    assert [type(one) for one in answers] == [dict, str]
    assert gate.calls <= 7 * 2


def test_weights_that_changed_while_nothing_ran_are_used():
    unet = make_unet()
    sampler = make_sampler(unet)
    with Scheduler(sampler) as scheduler:
        scheduler.submit(3, class_label=1).result(60)
        while scheduler.stats()["running"]:
            time.sleep(0.001)
        time.sleep(0.05)
        assert not scheduler._workshop._lanes._lanes  # nor the states that were set aside in them
        with without_grad():
            for parameter in unet.parameters():
                parameter.mul_(1.1)
        found = scheduler.submit(3, class_label=1).result(60)
    assert (found - alone(sampler, 3, {}, 1)).abs().max() <= ACROSS_BATCHES


def test_the_callers_sampler_is_free_meanwhile():
    gate = Gate(affine)
    sampler = make_sampler(gate, engine="eager")
    with warnings.catch_warnings(), Scheduler(sampler) as scheduler:
        warnings.simplefilter("error")
        future = scheduler.submit(1)
        assert gate.reached.wait(30)
        gate.open.set()
        image = sampler.sample(seeds=[1], progress=False)[0]
        assert torch.equal(image, future.result(30))


def test_the_document_does_what_it_shows():
    text = (Path(__file__).parents[2] / "docs" / "serving.md").read_text()
    names: dict[str, object] = {}
    for block in re.findall(r"```python\n(.*?)```", text, re.S):
        exec(block, names)
    sampler = names["sampler"]
    asked = [
        (0, 3, {"method": "ddpm", "num_inference_steps": 30}),
        (1, 7, {"method": "dpmpp_2m", "num_inference_steps": 10}),
    ]
    for (seed, label, options), image in zip(asked, names["images"], strict=False):
        one = Sampler(
            sampler.model,
            sampler.schedule,
            shape=sampler.shape,
            **sampler.method.adapted(**options).to_dict(),
        )
        wanted = one.sample(seeds=[seed], class_labels=label, progress=False)[0]
        assert (image - wanted).abs().max() <= ACROSS_BATCHES


def test_a_cards_steps_are_timed_by_events(monkeypatch):
    """A call returns before its work is done: the host is one ahead, and waits for no later one."""
    card = {"sent": 0.0, "done": 0.0}

    class Event:
        def __init__(self, enable_timing):
            assert enable_timing

        def record(self, stream):
            assert stream == "the current"
            self.at = card["sent"]

        def synchronize(self):
            card["done"] = max(card["done"], self.at)

        def elapsed_time(self, end):
            assert card["done"] >= end.at
            return 1000 * (end.at - self.at)

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: "the current")
    watch, noted, behind = Stopwatch(torch.device("cuda")), [], []
    for seconds in (3.0, 1.0, 2.0):

        def call(seconds=seconds):
            card["sent"] += seconds
            behind.append(card["sent"] - card["done"])

        watch.time(call, noted.append)
    assert noted == [3.0, 1.0]
    assert behind == [3.0, 4.0, 3.0]  # of at most two calls
    assert AHEAD == 1
    watch.finish()
    assert noted == [3.0, 1.0, 2.0]
    on_cpu = []
    Stopwatch(torch.device("cpu")).time(lambda: time.sleep(0.01), on_cpu.append)
    assert 0.01 <= on_cpu[0] < 1.0
