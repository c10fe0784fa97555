"""What a captured loop takes besides labels and guidance: each replayed from recorded ops, with new contents.

`RecordingBackend` (replay.py) stands in for CUDA graphs; the twin on a card is test_gpu_engine.py.
"""

from __future__ import annotations

import functools
import subprocess
import sys

import pytest
import torch
from networks import make_unet
from replay import RecordingBackend
from tolerances import SAME_OPS
from torch import nn

from fastddpm import NoiseSchedule, Sampler, randomness
from fastddpm.engine import Loops, executors
from fastddpm.engine.graph import MOST_GRAPHS

CALL = {"seeds": [3, 2**32 + 5], "progress": False}
LABELLED = {**CALL, "class_labels": 1}


@pytest.fixture(autouse=True)
def _recorded(monkeypatch):
    monkeypatch.setattr(executors, "CudaGraphBackend", RecordingBackend)
    monkeypatch.setattr(RecordingBackend, "captures", 0)


def captured(sampler: Sampler, **options) -> Sampler:
    """The sampler with the captured loop."""
    made = sampler.replace()
    made.runner.loops = Loops("cudagraph", **options)
    return made


def only_loop(sampler: Sampler):
    (loop,) = sampler.runner.loops._loops.values()
    return loop


def assert_same(image, expected):
    assert expected.isfinite().all()
    assert expected.std() > 0.05
    assert (image - expected).abs().max().item() <= SAME_OPS


class Conditioned(nn.Module):
    """A network of a condition image in front of x and a noise level, in any dtype."""

    def __init__(self, channels=6):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.conv = nn.Conv2d(channels, 3, 3, padding=1)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.15)
        self.seen: list[tuple[torch.dtype, torch.dtype]] = []

    def forward(self, x, level):
        self.seen.append((x.dtype, level.dtype))
        return torch.tanh(self.conv(x)) * (1 + level[:, None, None, None].to(x.dtype))


OPTIONS = {"num_inference_steps": 10, "clip_sample_range": 1.0, "shape": (3, 8, 8), "engine": "eager"}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_condition_images_and_noise_levels_in_any_dtype(dtype):
    model = Conditioned().to(dtype)
    eager = Sampler(model, NoiseSchedule.linear(1000), time_input="noise_level", **OPTIONS)
    fast = captured(eager)
    generator = torch.Generator().manual_seed(1)
    images = []
    for _ in range(2):
        call = {**CALL, "condition": torch.randn(2, 3, 8, 8, generator=generator)}
        images.append(fast.sample(**call))
        assert_same(images[-1], eager.sample(**call))
    assert (images[0] - images[1]).abs().max() > 0.05
    assert RecordingBackend.captures == 1
    assert set(model.seen) == {(dtype, torch.float32)}
    buffers = only_loop(fast).buffers
    assert buffers.x.dtype == images[0].dtype == torch.float32


@pytest.mark.parametrize("every", [1, 3, 4, 10, 50])
def test_a_callback_every_few_steps_sees_the_states_of_single_steps(sampler, every):
    fast, states, seen = captured(sampler), [], []
    sampler.sample(callback=lambda k, t, x: states.append((k, t, x.clone())), **LABELLED)
    call = {**LABELLED, "callback": lambda k, t, x: seen.append((k, t, x.clone())), "callback_every": every}
    for _ in range(2):
        seen.clear()
        fast.sample(**call)
        assert [k for k, _, _ in seen] == sorted({*range(every - 1, 10, every), 9})
        for k, t, x in seen:
            assert t == states[k][1]
            assert torch.equal(x, states[k][2])


def test_segments_between_callbacks_become_graphs_of_their_length(sampler, monkeypatch):
    replays = []
    capture = RecordingBackend.capture

    def counting(self, run):
        replay, name = capture(self, run), len(replays)
        return (lambda: (replays.append(name), replay())) if self.is_of_steps(run) else replay

    monkeypatch.setattr(RecordingBackend, "capture", counting)
    fast = captured(sampler)
    call = {**LABELLED, "callback": lambda *_: None, "callback_every": 4}
    fast.sample(**call)
    assert len(replays) == 4 + 1 + 2  # the first four one by one, then a graph of four, and the last two
    replays.clear()
    fast.sample(**call)
    assert len(replays) == 1 + 1 + 1  # twice four, and two, which were asked for before
    assert sorted(only_loop(fast)._executor._replays) == [1, 2, 4]
    for every in (2, 3, 5, 6, 7, 8, 9):
        for _ in range(2):
            fast.sample(**{**call, "callback_every": every})
    assert len(only_loop(fast)._executor._replays) <= MOST_GRAPHS + 1  # and that of all ten


def test_a_trajectory_of_few_frames_is_a_few_replays(sampler, monkeypatch):
    runs = []
    fast = captured(sampler)
    expected = sampler.sample_trajectory(**LABELLED)
    run = executors.GraphExecutor.run
    monkeypatch.setattr(executors.GraphExecutor, "run", lambda self, n: (runs.append(n), run(self, n)))
    frames = fast.sample_trajectory(frames=3, **LABELLED)
    assert runs == [5, 5]
    assert torch.equal(frames, expected[[0, 5, 10]])
    expected = sampler.sample_trajectory(predicted=True, **LABELLED)
    assert torch.equal(fast.sample_trajectory(frames=3, predicted=True, **LABELLED), expected[[0, 5, 9]])


def test_graphs_fit_the_segments_of_a_longer_chain(sampler):
    """A loop whose graph holds ten steps runs ten at a time in any chain, not 64 and a rest of four."""
    fast = captured(sampler)
    fast.sample(**LABELLED)
    eager = sampler.replace(num_inference_steps=130)
    fast.plan = eager.plan
    assert_same(fast.sample(**LABELLED), eager.sample(**LABELLED))
    assert sorted(only_loop(fast)._executor._replays) == [10]


def test_steps_per_graph_is_an_option_of_the_sampler(sampler):
    made = sampler.replace(steps_per_graph=4)
    fast = captured(made, steps_per_graph=made.runner.loops._steps_per_graph)
    assert_same(fast.sample(**LABELLED), sampler.sample(**LABELLED))
    assert 4 in only_loop(fast)._executor._replays
    for bad in (0, 1.5, True):
        with pytest.raises(ValueError, match=r"steps_per_graph: .* given, an integer of at least 1"):
            sampler.replace(steps_per_graph=bad)
    with pytest.raises(ValueError, match="callback_every: 0 given, an integer of at least 1 accepted"):
        sampler.sample(callback=lambda *_: None, callback_every=0, **LABELLED)


def test_several_shapes_take_turns_in_the_cache(sampler):
    fast = captured(sampler, limit=2)
    calls = [{**LABELLED, "shape": (3, 8, size)} for size in (8, 16, 24)]
    expected = [sampler.sample(**call) for call in calls]
    for which in (0, 1, 1, 0, 2, 0, 1, 2):
        assert_same(fast.sample(**calls[which]), expected[which])
        assert len(fast.runner.loops) <= 2
    # 0, 1 and 2 once each; then 1, which 2 had replaced, and 2, which 1 had.
    assert RecordingBackend.captures == 5


def test_memory_counts_the_graphs(sampler):
    fast = captured(sampler)
    fast.sample(**LABELLED)
    loop = only_loop(fast)
    buffers = sum(t.numel() * t.element_size() for t in loop.buffers.tensors())
    # The activations of ten recorded steps: more than one feature map of 8 channels each.
    assert fast.memory() - buffers > 10 * 2 * 8 * 8 * 8 * 4
    assert loop._executor.memory() > 0
    eager = sampler.replace()
    eager.sample(**LABELLED)
    assert only_loop(eager)._executor.memory() == 0


SWITCHES = """
import torch
from fastddpm.engine.loops import _global_key

backends = torch.backends
switches = (
    lambda: setattr(backends.cudnn.conv, "fp32_precision", "ieee"),
    lambda: setattr(backends.cuda.matmul, "fp32_precision", "tf32"),
    lambda: setattr(backends, "fp32_precision", "tf32"),
)
older = (
    lambda: setattr(backends.cuda.matmul, "allow_tf32", True),
    lambda: setattr(backends.cudnn, "allow_tf32", False),
)
keys = [_global_key()]
for switch in {which}:
    switch()
    keys.append(_global_key())
assert len(set(keys)) == len(keys), keys
"""


@pytest.mark.parametrize("which", ["switches", "older"])
def test_each_switch_of_tf32_changes_the_key(which):
    """torch refuses to read its older switches once a newer one was used: each in a process of its own."""
    subprocess.run([sys.executable, "-c", SWITCHES.replace("{which}", which)], check=True)


def test_weights_changed_in_place_by_an_optimiser_are_used(sampler, unet):
    fast = captured(sampler)
    before = fast.sample(**LABELLED)
    with torch.no_grad():
        torch._foreach_mul_(list(unet.parameters()), 1.1)
    assert_same(fast.sample(**LABELLED), sampler.sample(**LABELLED))
    assert (fast.sample(**LABELLED) - before).abs().max() > 1e-2
    assert RecordingBackend.captures == 1


def test_low_precision_unet_keeps_a_float32_state(sampler):
    eager = Sampler(make_unet().bfloat16(), sampler.schedule, **{**OPTIONS, "method": "ddim"})
    fast = captured(eager)
    call = {**LABELLED, "guidance_scale": 2.0}
    assert_same(fast.sample(**call), eager.sample(**call))
    assert only_loop(fast).buffers.x.dtype == torch.float32
    assert only_loop(fast).network.dtype == torch.bfloat16


def test_noise_of_the_host_is_staged_in_two_buffers(sampler, monkeypatch):
    """With events that say when a buffer may be filled again, and the images of the plain way."""
    log = []

    class Event:
        def __init__(self):
            self.name = sum(entry[0] == "made" for entry in log)
            log.append(("made", self.name))

        def synchronize(self):
            log.append(("waited", self.name))

        def record(self):
            log.append(("sent", self.name))

    monkeypatch.setattr("fastddpm.runner.ring_length", lambda shape, steps: 3)
    monkeypatch.setattr(
        randomness, "Staging", functools.partial(randomness.Staging, event=Event, pinned=False)
    )
    images = []
    for staged in (False, True):
        monkeypatch.setattr(randomness.TorchNoise, "is_staged", staged)
        call = {"class_labels": 1, "noise": "torch", "generator": torch.Generator().manual_seed(5)}
        images.append(captured(sampler).sample(2, progress=False, **call))
    assert_same(images[1], images[0])
    # Segments of 3, 3, 3 and 1 rows.
    turns = [(what, turn) for turn in (1, 0, 1, 0) for what in ("waited", "sent")]
    assert [entry for entry in log if entry[0] != "made"] == turns


def test_only_noise_from_the_host_to_a_card_is_staged():
    host, card = torch.Generator(), torch.device("cuda")
    assert randomness.TorchNoise(host, card).is_staged
    assert randomness.TorchNoise([host, host], card).is_staged
    assert not randomness.TorchNoise(None, card).is_staged
    assert not randomness.TorchNoise(host, torch.device("cpu")).is_staged


def test_torch_noise_is_drawn_eight_steps_ahead(sampler, monkeypatch):
    """The card works on a segment while the host draws the next; images are those of drawing step by step."""
    log = []
    draw, run = randomness.TorchNoise._draw, executors.GraphExecutor.run
    monkeypatch.setattr(
        randomness.TorchNoise, "_draw", lambda self, *args: (log.append("draw"), draw(self, *args))[1]
    )
    monkeypatch.setattr(executors.GraphExecutor, "run", lambda self, n: (log.append(n), run(self, n))[1])
    eager = sampler.replace(num_inference_steps=50)
    images = []
    for one in (captured(eager), captured(eager, steps_per_graph=50), eager):
        log.clear()
        generator = torch.Generator().manual_seed(5)
        images.append(one.sample(2, class_labels=1, noise="torch", generator=generator, progress=False))
        if one is not eager:
            runs = [entry for entry in log if entry != "draw"]
            assert runs == [8] * 6 + [2]
            # x_T and eight steps, then as many for each segment; the last row of ddpm draws nothing.
            draws = [0]
            for entry in log:
                draws = [*draws[:-1], draws[-1] + 1] if entry == "draw" else [*draws, 0]
            assert draws == [9, 8, 8, 8, 8, 8, 1, 0]
    assert torch.equal(images[0], images[2])
    assert torch.equal(images[1], images[2])
