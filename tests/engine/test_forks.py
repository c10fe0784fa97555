"""A child of os.fork draws while a thread of its parent is in the middle of a chain."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import threading
import traceback
import warnings

import numpy as np
import pytest
import torch
from networks import TINY, make_unet

from fastddpm import NoiseSchedule, Sampler
from fastddpm.forks import ForkLock
from fastddpm.network import in_eval_mode

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")

# A child that waits for a lock of its parent's never ends by itself.
PATIENCE = 30.0


def in_child(work):
    """What ``work`` returns in a forked child, as bytes; fails if it raises there or does not end."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.close(reading)
            os.write(writing, work())
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    os.close(writing)
    there, _, _ = select.select([reading], [], [], PATIENCE)
    if not there:
        os.kill(child, signal.SIGKILL)
    received = os.read(reading, 1 << 16) if there else b""
    os.close(reading)
    _, status = os.waitpid(child, 0)
    assert there, f"the child waited for {PATIENCE:.0f} s"
    assert status == 0
    return received


@pytest.fixture(autouse=True)
def one_thread():
    """The threads of OpenMP are not in the child either; that is torch's affair."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class Gate:
    """A network of which one call waits, so that a chain stands still where we fork."""

    def __init__(self):
        self.inside, self.go_on = threading.Event(), threading.Event()
        self.waits = False
        self.unet = make_unet(TINY)

    def __call__(self, x, t, **cond):
        if self.waits:
            self.waits = False
            self.inside.set()
            assert self.go_on.wait(2 * PATIENCE)
        return self.unet(x, t, **cond)


@pytest.fixture
def busy():
    """A sampler in whose chain another thread stands."""
    gate = Gate()
    gate.unet.train()
    sampler = Sampler(
        gate, NoiseSchedule.linear(1000), num_inference_steps=2, shape=(3, 8, 8), device="cpu", engine="eager"
    )
    expected = draw(sampler)
    gate.waits = True
    thread = threading.Thread(target=draw, args=(sampler,))
    thread.start()
    assert gate.inside.wait(PATIENCE)
    yield sampler, expected
    gate.go_on.set()
    thread.join(PATIENCE)
    assert draw(sampler) == expected  # the parent's lock is as it was
    assert gate.unet.training


def draw(sampler):
    return sampler.sample(seeds=[3], class_labels=1, progress=False).numpy().tobytes()


def test_a_child_draws_with_the_sampler_that_another_thread_holds(busy):
    sampler, expected = busy
    received = in_child(lambda: draw(sampler))
    assert np.frombuffer(received, np.float32).size == 3 * 8 * 8
    assert received == expected


def test_its_network_is_as_it_was_and_put_back_as_without_a_fork(busy):
    """The parent's chain, which has it in eval mode, never ends in the child."""
    unet = busy[0].model.unet
    assert not unet.training
    seen = in_child(lambda: bytes([unet.training, draw(busy[0]) == busy[1], unet.training]))
    assert list(seen) == [True, True, True]


def test_a_child_of_a_callback_is_still_in_its_chain():
    """The thread that forks is the one that goes on: what it holds, it holds in the child."""
    network = make_unet(TINY)
    options = {"num_inference_steps": 2, "shape": (3, 8, 8), "device": "cpu", "engine": "eager"}
    sampler = Sampler(network.train(), NoiseSchedule.linear(1000), **options)

    def again():
        with pytest.raises(RuntimeError, match="in the middle of a chain"):
            draw(sampler)
        return bytes([network.training])

    seen = []
    sampler.sample(
        seeds=[3], class_labels=1, progress=False, callback=lambda *state: seen.append(in_child(again))
    )
    assert seen == [b"\0", b"\0"]
    assert network.training


def test_locks_do_not_keep_and_are_not_kept():
    import gc
    import weakref

    lock = ForkLock()
    with lock:
        assert lock.owner == threading.get_ident()
    assert lock.owner is None
    gone = weakref.ref(lock)
    del lock
    gc.collect()
    assert gone() is None


def test_the_last_of_several_threads_puts_a_network_back():
    network, order = make_unet(TINY).train(), []
    first_in, second_in = threading.Event(), threading.Event()

    def first():
        with in_eval_mode(network):
            first_in.set()
            second_in.wait(PATIENCE)
        order.append(network.training)

    thread = threading.Thread(target=first)
    thread.start()
    first_in.wait(PATIENCE)
    with in_eval_mode(network), in_eval_mode(network):
        second_in.set()
        thread.join(PATIENCE)
        order.append(network.training)
    order.append(network.training)
    assert order == [False, False, True]


def test_a_network_that_a_chain_found_in_eval_mode_is_put_into_it_by_the_next():
    """Chains whose ends are in the order of their beginnings, as generators' may be."""
    network = torch.nn.Dropout(0.5).eval()
    with contextlib.ExitStack() as first, contextlib.ExitStack() as second:
        first.enter_context(in_eval_mode(network))
        network.train()
        second.enter_context(in_eval_mode(network))
        assert not network.training
        first.close()
        assert not network.training
    assert network.training


def trained_meanwhile(network, work):
    """Another thread does ``work`` with a network from which this one draws; the messages of warnings."""
    options = {"num_inference_steps": 2, "shape": (3, 8, 8), "device": "cpu", "engine": "eager"}
    sampler = Sampler(network, NoiseSchedule.linear(1000), **options)

    def meanwhile(*state):
        thread = threading.Thread(target=work)
        thread.start()
        thread.join(PATIENCE)

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        sampler.sample(seeds=[3], class_labels=1, progress=False, callback=meanwhile)
    return [str(one.message) for one in caught if one.category is RuntimeWarning]


def test_a_network_that_is_trained_while_images_are_drawn_from_it_is_told():
    network = make_unet(TINY).train()
    optimizer = torch.optim.SGD(network.parameters(), lr=1e-3)

    def step():
        with torch.enable_grad():
            network(*_one_image()).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()

    for work in (step, network.train):
        (said,) = trained_meanwhile(network, work)
        assert said.startswith("model: trained while images were drawn from it")
        assert network.training
    assert trained_meanwhile(network, lambda: network(*_one_image())) == []
    assert trained_meanwhile(network.eval(), step) == []  # a mode that nobody changed
    assert not network.training


def _one_image():
    return torch.ones(1, 3, 8, 8), torch.tensor([1]), torch.tensor([0])
