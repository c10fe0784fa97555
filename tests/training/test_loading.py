"""Batches made by worker processes: the same for any number of them, and what happens when one fails."""

from __future__ import annotations

import multiprocessing
import os
import signal

import numpy as np
import pytest
import torch
from PIL import Image
from training_cases import Bars, config, trainer

from fastddpm.checks import BadArgument
from fastddpm.data import BrokenImagesError, indices_for, open_dataset
from fastddpm.training import TrainConfig, checkpoints
from fastddpm.training.loading import Batches, WorkerDied


@pytest.fixture
def pictures(tmp_path):
    """A folder of eleven pictures of two classes, decoded when they are asked for."""
    random = np.random.default_rng(0)
    for i in range(11):
        (tmp_path / "data" / "ab"[i % 2]).mkdir(parents=True, exist_ok=True)
        pixels = random.integers(0, 256, (9, 8, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / "data" / "ab"[i % 2] / f"{i}.png")
    return tmp_path / "data"


def opened(folder, **options):
    return open_dataset(folder, size=8, flip=True, shift=1, memory_limit=0, **options)


def drawn(batches, first=0, last=3):
    """All micro-batches of some steps."""
    with batches:
        return [batches.get(step, micro) for step in range(first, last) for micro in range(2)]


class Processes(Bars):
    """Images that say which process made them."""

    def batch(self, indices, ordinals=None, *, seed=0):
        return torch.full((len(indices), 1, 8, 8), float(os.getpid())), None


class Killed(Bars):
    """The process that makes the batch with ordinal 40 is killed."""

    def batch(self, indices, ordinals=None, *, seed=0):
        if ordinals is not None and 40 in ordinals and multiprocessing.parent_process() is not None:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().batch(indices)


@pytest.mark.parametrize("workers", [1, 3])
def test_batches_are_the_same_for_any_number_of_workers(pictures, workers):
    data = opened(pictures)
    options = {"batch_size": 8, "gradient_accumulation": 2, "steps": 3, "seed": 5}
    found = drawn(Batches(data, TrainConfig(**options, workers=workers), processes=2, process=1))
    assert len(found) == 6
    for number, samples in enumerate(found):
        # The order as docs/data.md has it: micro-batches of both processes in turn, this one's second.
        ordinals = torch.arange(4 * number + 2, 4 * number + 4)
        x_0, labels = data.batch(indices_for(4 * number + 2, 2, 11, 5), ordinals, seed=5)
        assert torch.equal(samples.ordinals, ordinals)
        assert torch.equal(samples.x_0, x_0)
        assert torch.equal(samples.labels, labels)
    assert multiprocessing.active_children() == []


def test_they_are_made_by_as_many_processes_as_asked_for():
    def makers(workers):
        batches = Batches(Processes(), config(batch_size=8, gradient_accumulation=2, workers=workers))
        return {int(samples.x_0[0, 0, 0, 0]) for samples in drawn(batches)}

    assert makers(0) == {os.getpid()}
    assert len(makers(2) - {os.getpid()}) == 2


def test_asked_for_another_step_they_begin_anew(pictures):
    batches = Batches(opened(pictures), config(gradient_accumulation=2, workers=1))
    with batches:
        first = [batches.get(step, 0).ordinals[0].item() for step in (4, 0, 7)]
    assert first == [32, 0, 56]


def test_a_run_may_go_on_with_another_number(pictures, tmp_path):
    """Resumed from a checkpoint, with workers that the first part had not: the weights of one run without."""
    data = opened(pictures, channels=1)
    options = {"steps": 4, "checkpoint_every": 2, "batch_size": 4}
    trainer(tmp_path / "whole", data, **options).train()
    part = trainer(tmp_path / "parts", data, workers=1, **options)
    draw = part._optimize

    def stopping():
        if part.step == 3:
            raise KeyboardInterrupt
        return draw()

    part._optimize = stopping
    with pytest.raises(KeyboardInterrupt):
        part.train()
    assert multiprocessing.active_children() == []
    trainer(tmp_path / "parts", data, workers=2, **options).train()
    whole, parts = (checkpoints.read(tmp_path / name, 4)[0] for name in ("whole", "parts"))
    for name, tensors in whole.items():
        assert all(torch.equal(tensor, parts[name][key]) for key, tensor in tensors.items())


def test_a_file_that_breaks_meanwhile_is_named(pictures):
    data = opened(pictures)
    (pictures / "a" / "4.png").write_bytes(b"no image")
    with pytest.raises(BrokenImagesError, match=r"a/4\.png") as raised:
        drawn(Batches(data, config(gradient_accumulation=2, workers=2)))
    assert [name for name, _ in raised.value.files] == ["a/4.png"]
    assert multiprocessing.active_children() == []


def test_a_worker_that_is_killed_ends_the_run_with_one_line(tmp_path):
    killed = trainer(tmp_path / "run", Killed(), workers=1, checkpoint_every=2)
    with pytest.raises(WorkerDied, match=r"workers: one of 1 has ended \(DataLoader worker .*0, accepted"):
        killed.train(progress=False)
    assert checkpoints.steps(tmp_path / "run")[-1] in (2, 4)
    assert "\n" not in str(WorkerDied("one line"))
    assert multiprocessing.active_children() == []


def test_signals_to_all_processes_are_the_trainings(tmp_path):
    """As a scheduler or a terminal sends them: the workers go on, the step is finished and saved."""
    from fastddpm.training.interruption import Interrupted

    stopped = trainer(tmp_path / "run", workers=2)
    step = stopped._batch

    def signalled(micro):
        if stopped.step == 3:
            for child in multiprocessing.active_children():
                for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
                    os.kill(child.pid, number)
            os.kill(os.getpid(), signal.SIGTERM)
        return step(micro)

    stopped._batch = signalled
    with pytest.raises(Interrupted, match="stopped at step 4 of 20"):
        stopped.train(progress=False)
    assert checkpoints.steps(tmp_path / "run") == [4]
    assert multiprocessing.active_children() == []


def test_another_number_of_workers_is_refused():
    for wrong in (-1, 257, 1.5):
        with pytest.raises(BadArgument, match=r"^workers: "):
            TrainConfig(workers=wrong)
