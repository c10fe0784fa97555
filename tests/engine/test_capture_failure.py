"""A capture that fails leaves nothing behind; work of several threads' streams is ordered. Without a card.

What torch.cuda does is restated here: where ending a capture fails, the side stream stays the current one,
the allocator goes on with the graph's pool (torch before 2.13), and a second error hides the first. On a card
tests/sampler/test_gpu_engine.py has the same.
"""

from __future__ import annotations

import contextlib
import threading
import types
import warnings

import pytest
import torch
from networks import make_unet
from replay import RecordingBackend
from torch import nn

from fastddpm import NoiseSchedule, Sampler
from fastddpm.engine import Loops, executors
from fastddpm.engine.constants import Constants
from fastddpm.engine.graph import CaptureFailed, CudaGraphBackend, GraphExecutor
from fastddpm.engine.refusal import refusal
from fastddpm.turn import Turn

MAIN, SIDE = "the stream of the caller", types.SimpleNamespace(device_index=0)
SETTING = {"num_inference_steps": 4, "clip_sample_range": 1.0, "shape": (3, 8, 8)}


class Card:
    """The state that captures change."""

    def __init__(self):
        self.current = MAIN
        self.pools = []
        self.generator_captures = False
        self.broken = False
        self.captured = 0


class Graph:
    replay = staticmethod(lambda: None)


@pytest.fixture
def card(monkeypatch):
    state = Card()

    @contextlib.contextmanager
    def graph(cuda_graph, *, pool=None, stream, capture_error_mode):
        assert capture_error_mode == "thread_local"
        assert not state.pools, "the allocator is in another capture"
        pool, before = pool or ("a pool of its own",), state.current
        state.current, state.generator_captures = stream, True
        state.pools.append(pool)
        state.broken = False
        try:
            yield
        except BaseException:
            state.broken = True
            raise
        finally:
            if state.broken:  # neither the stream nor anything else is put back
                raise RuntimeError("CUDA error: operation failed due to a previous error during capture")
        state.pools.remove(pool)
        state.current, state.generator_captures = before, False
        state.captured += 1

    def end(device_index, pool):
        if pool not in state.pools:
            raise RuntimeError("endAllocatePool: not currently recording to mempool_id")
        state.pools.remove(pool)

    monkeypatch.setattr(torch.cuda, "Stream", lambda device: SIDE)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: ("the loop's",))
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "graph", graph)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device=None: state.current)
    monkeypatch.setattr(torch.cuda, "set_stream", lambda stream: setattr(state, "current", stream))
    monkeypatch.setattr(torch._C, "_cuda_endAllocateToPool", end, raising=False)
    return state


def failing(error):
    def run():
        raise error

    return run


@pytest.mark.parametrize(
    "error", [RuntimeError("a value was read"), torch.OutOfMemoryError("out of memory"), KeyboardInterrupt()]
)
def test_a_failed_capture_is_mended_and_names_its_first_error(card, error):
    backend = CudaGraphBackend(torch.device("cpu"))
    for _ in range(2):
        with pytest.raises(type(error)) as caught:
            backend.capture(failing(error))
        assert caught.value is error
        assert (card.current, card.pools, card.generator_captures) == (MAIN, [], False)
    before = card.captured
    backend.capture(lambda: None)
    assert card.captured == before + 1


def test_one_capture_at_a_time(card):
    """The card of these tests, as torch's allocator, refuses a capture while another is under way."""
    both, seen = threading.Barrier(2, timeout=0.3), []

    def run():
        with contextlib.suppress(threading.BrokenBarrierError):
            both.wait()  # for the other thread, if it comes in here meanwhile

    def capture():
        backend = CudaGraphBackend(torch.device("cpu"))
        try:
            seen.append(backend.capture(run))
        except BaseException as error:
            seen.append(error)

    threads = [threading.Thread(target=capture) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == [Graph.replay] * 2


def test_each_thread_that_captures_has_run_the_steps_before(monkeypatch):
    """Libraries make handles, and keep what cudnn.benchmark found, for each thread, and may not do so in a
    capture."""
    done = []

    class Backend(RecordingBackend):
        def warm_up(self, run):
            done.append(("warm-up", threading.current_thread().name, self.is_of_steps(run)))
            run()

        def capture(self, run):
            name, of_steps = threading.current_thread().name, self.is_of_steps(run)
            assert ("warm-up", name, of_steps) in done
            done.append(("capture", name, of_steps))
            return super().capture(run)

    monkeypatch.setattr("fastddpm.runner.resolve_engine", lambda engine, device: "cudagraph")
    monkeypatch.setattr(executors, "CudaGraphBackend", Backend)
    eager = Sampler(make_unet(), NoiseSchedule.linear(), engine="eager", **SETTING)
    sampler = Sampler(make_unet(), NoiseSchedule.linear(), engine="cudagraph", **SETTING)
    call, images = {"seeds": [3], "class_labels": 1, "progress": False}, []

    def draw(frames):
        # In pieces, with graphs of their own.
        images.append(
            sampler.sample(**call) if frames is None else sampler.sample_trajectory(frames=frames, **call)[-1]
        )

    asked = (("first", None), ("second", 3), ("third", 3))
    threads = [threading.Thread(target=draw, args=(frames,), name=name) for name, frames in asked]
    for thread in threads:
        thread.start()
        thread.join()
    expected = eager.sample(**call)
    assert len(images) == 3
    assert all(torch.equal(image, expected) for image in images)
    assert {name for what, name, of_steps in done if what == "capture" and of_steps} > {"first"}


def test_a_capture_that_only_its_end_refuses_raises_that(card, monkeypatch):
    def run():
        card.broken = True

    with pytest.raises(RuntimeError, match="previous error during capture"):
        CudaGraphBackend(torch.device("cpu")).capture(run)
    assert (card.current, card.pools, card.generator_captures) == (MAIN, [], False)


def test_the_fallbacks_warning_has_the_first_error(card, monkeypatch):
    class Backend(CudaGraphBackend):
        def warm_up(self, run):
            run()

        def capture(self, run):
            return super().capture(failing(RuntimeError("the network reads a value\nand more")))

    monkeypatch.setattr(executors, "CudaGraphBackend", Backend)
    eager = Sampler(make_unet(), NoiseSchedule.linear(), **SETTING)
    auto = Sampler(make_unet(), NoiseSchedule.linear(), **SETTING)
    auto.runner.loops = Loops("cudagraph", may_fall_back=True)
    call = {"seeds": [3], "class_labels": 1, "progress": False}
    with pytest.warns(RuntimeWarning, match=r"\(the network reads a value\); fastddpm"):
        images = auto.sample(**call)
    assert torch.equal(images, eager.sample(**call))
    assert card.current == MAIN


class Inner(nn.Module):
    def __init__(self, offends):
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)
        self.offends, self.table, self.passes = offends, None, 0

    def forward(self, x, t):
        self.passes += 1
        if self.table is None:
            self.table = torch.tensor([0.5, 0.25, 1.0], device=x.device)  # in the first pass alone
        x = self.conv(x) * self.table[:, None, None]
        return x * (1 + t[0].item() * 0) if self.offends else x


@pytest.mark.skipif(not torch.version.cuda, reason="fake CUDA tensors need a CUDA build of torch")
def test_auto_asks_before_it_captures_a_strangers_model(monkeypatch):
    monkeypatch.setattr(executors, "CudaGraphBackend", RecordingBackend)
    for offends in (False, True):
        monkeypatch.setattr(RecordingBackend, "captures", 0)
        model, same = Inner(offends), Inner(offends)
        same.load_state_dict(model.state_dict())
        held = dict(model.named_parameters())
        eager = Sampler(same, NoiseSchedule.linear(), **SETTING)
        images = eager.sample(seeds=[3], progress=False)
        auto = Sampler(model, NoiseSchedule.linear(), **SETTING)
        auto.runner.loops = Loops("cudagraph", may_fall_back=True)
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            result = auto.sample(seeds=[3], progress=False)
        reasons = [str(one.message) for one in said if one.category is RuntimeWarning]
        assert len(reasons) == offends
        assert all("(aten::_local_scalar_dense in Inner: a value is read on the host" in r for r in reasons)
        assert torch.equal(result, images)
        assert auto.engine == ("eager" if offends else "cudagraph")
        assert RecordingBackend.captures == (not offends)
        # The model is as it was: its own weights, a table with values.
        assert all(value is held[name] for name, value in model.named_parameters())
        assert type(model.table) is torch.Tensor


def frequencies(x):
    return torch.exp(-torch.arange(3) / 3.0).to(x.device)[:, None, None]


TABLE = torch.tensor([0.5, 0.25, 1.0])


def tables(x):
    return TABLE.to(x.device)[:, None, None]


def filled(x):
    return torch.empty(3).copy_(TABLE).to(x.device)[:, None, None]


class Sending(nn.Module):
    """As guided-diffusion's network, which computes frequencies on the host in every pass."""

    def __init__(self, what):
        super().__init__()
        self.conv, self.what = nn.Conv2d(3, 3, 3, padding=1), what

    def forward(self, x, t):
        return self.conv(x) * self.what(x)


@pytest.mark.skipif(not torch.version.cuda, reason="fake CUDA tensors need a CUDA build of torch")
@pytest.mark.parametrize("what", [frequencies, tables, filled])
def test_what_every_pass_sends_is_kept_on_the_card(what, monkeypatch):
    """Where the pass has made it of numbers; what it was given may be another in the next call."""
    monkeypatch.setattr(executors, "CudaGraphBackend", RecordingBackend)
    monkeypatch.setattr(RecordingBackend, "captures", 0)
    asked = []
    monkeypatch.setattr(GraphExecutor, "keep_constants", lambda self: asked.append(self))
    auto = Sampler(Sending(what), NoiseSchedule.linear(), **SETTING)
    auto.runner.loops = Loops("cudagraph", may_fall_back=True)
    auto.sample(seeds=[3], progress=False)
    assert len(asked) == RecordingBackend.captures == 1
    # Another kind of device stands for the card here.
    constants, made = Constants("meta"), []
    for _ in range(4):
        with constants.passing():
            made.append(what(torch.empty(1, device="meta")))
    assert constants.varies is (what is not frequencies)
    assert len(constants.sent) == (what is frequencies)
    executor = GraphExecutor(lambda: what(torch.empty(1, device="meta")), [], RecordingBackend(None), 4)
    executor._constants = constants
    if what is frequencies:
        executor.run(4)
    else:
        with pytest.raises(CaptureFailed, match="a tensor of the host is copied to the card"):
            executor.run(4)


def test_constants_are_the_same_to_the_bit():
    """On a device that has values: the CPU stands for both."""
    number, drawn = [1.0], []

    def sent():
        values = torch.full((2,), number[0])
        return values.to(torch.device("cpu"), torch.float64, copy=True)

    constants = Constants("cpu")
    for _ in range(3):
        with constants.passing():
            drawn.append(sent())
        drawn[-1].mul_(2)  # by the model: what is kept stays
    assert [one.tolist() for one in drawn] == [[2.0, 2.0]] * 3
    assert (len(constants.sent), constants.varies) == (1, False)
    number[0] = -0.0
    with constants.passing():
        assert str(sent().tolist()) == "[-0.0, -0.0]"
    assert constants.varies


@pytest.mark.skipif(not torch.version.cuda, reason="fake CUDA tensors need a CUDA build of torch")
def test_what_cannot_be_told_is_captured():
    options = {
        "dtype": torch.float32,
        "guided": False,
        "time_dtype": torch.int64,
        "cond": {},
        "condition": None,
    }

    class Strange(nn.Module):
        def forward(self, x, t):
            raise KeyError("only on real tensors")

    offender = Inner(True)
    assert refusal(Strange(), (1, 3, 8, 8), **options) == ("", False)
    assert refusal(lambda x, t: offender(x, t), (1, 3, 8, 8), **options) == ("", False)
    assert offender.passes == 0
    assert refusal(offender, (1, 3, 8, 8), **options).reason != ""


def test_turns_on_two_streams_are_ordered_by_events(monkeypatch):
    """Two threads take turns, each with a stream of its own: each waits for the event of the turn before."""
    log, streams = [], {}

    class Event:
        def record(self, stream):
            log.append(("recorded", stream.name))

    class Stream:
        def __init__(self, name):
            self.name = name

        def wait_event(self, event):
            assert isinstance(event, Event)
            log.append(("waits", self.name))

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: streams[threading.get_ident()])
    turn = Turn(torch.device("cuda"))

    def chain(name, fails=False):
        streams[threading.get_ident()] = Stream(name)
        with contextlib.suppress(ZeroDivisionError), turn.taken():
            log.append(("runs", name))
            if fails:
                raise ZeroDivisionError

    for name, fails in (("a", False), ("b", True), ("a", False)):
        thread = threading.Thread(target=chain, args=(name, fails))
        thread.start()
        thread.join()
    expected = [("runs", "a"), ("recorded", "a")]
    for name in ("b", "a"):
        expected += [("waits", name), ("runs", name), ("recorded", name)]
    assert log == expected


def test_turns_on_a_cpu_know_of_no_events(monkeypatch):
    def none(*_):
        raise AssertionError("asked for on a CPU")

    for name in ("Event", "current_stream"):
        monkeypatch.setattr(torch.cuda, name, none)
    for turn in (Turn(torch.device("cpu")), Turn()):
        for _ in range(2):
            with turn.taken():
                pass


def test_a_chains_images_are_its_own(unet):
    """The last state of a drop-in's walk outlives the next chain, which another thread may begin at once."""
    from fastddpm.batch import make_batch
    from fastddpm.dropin.settings import Settings

    sampler = Sampler(unet, NoiseSchedule.linear(), **SETTING)
    settings = Settings(noise="philox")
    runner = settings.runner(unet, capacity=1000)
    results = []
    for seeds in ([1], [2]):
        source = settings.source(1, runner.device, seeds=seeds)
        batch = make_batch((1, 3, 8, 8), source, cond={"class_labels": torch.tensor([1])})
        for _, x, _ in runner.walk(sampler.plan, batch, every_step=False, progress=False):
            last = x
        results.append((last, sampler.sample(seeds=seeds, class_labels=1, progress=False)))
    for image, expected in results:
        assert torch.equal(image, expected)
