"""Two processes on one machine: they train what one trains, write once, and stop together."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tolerances import TWO_PROCESSES
from training_cases import Bars, recorded, trainer, without_dropout

from fastddpm import load
from fastddpm.training import checkpoints

WORKER = Path(__file__).parents[1] / "train_together.py"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def run_two(folder: Path, timeout: float = 540) -> None:
    """Two processes over gloo on this machine alone, as torchrun would start them.

    A hang is a failure. On a machine with other work processes that wait for each other at every step are
    slow, so the limit is far above the half minute that this takes.
    """
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": "2"}
    place.update(LOCAL_WORLD_SIZE="2", OMP_NUM_THREADS="1", ACCELERATE_USE_CPU="true")
    loopback = {"GLOO_SOCKET_IFNAME": "lo"} if sys.platform == "linux" else {}
    processes = [
        subprocess.Popen(
            [sys.executable, str(WORKER), str(folder)],
            env={**os.environ, **place, **loopback, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        said = [process.communicate(timeout=timeout)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], "\n".join(said)


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """The folder in which two processes ran every scenario of `train_together.py`."""
    folder = tmp_path_factory.mktemp("two")
    run_two(folder)
    return folder


@pytest.fixture(scope="module")
def outcomes(two):
    """By process, then by scenario: what it ended with and what it said."""
    return [json.loads((two / f"outcome_{rank}.json").read_text()) for rank in range(2)]


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The folder of the same run on one process, and what that saw."""
    folder = tmp_path_factory.mktemp("alone")
    one, seen = recorded(folder)
    one.train(progress=False)
    return folder, seen()


def weights(run, step, name="ema"):
    return checkpoints.read(run, step)[0][name]


def test_samples_noise_timesteps_and_augmentation_are_those_of_one_process(two, outcomes, alone):
    assert [outcome["together"] for outcome in outcomes] == [["finished", ""]] * 2
    parts = [load_file(two / f"seen_{rank}.safetensors") for rank in range(2)]
    order = torch.cat([part["ordinal"] for part in parts]).argsort()
    # 20 steps of 8: each process half of every batch.
    assert [len(part["ordinal"]) for part in parts] == [80, 80]
    expected = alone[1]
    assert torch.equal(expected["ordinal"], torch.arange(160))
    assert expected["x_0"].flatten(1).unique(dim=0).shape[0] > 100
    for name, values in expected.items():
        assert torch.equal(torch.cat([part[name] for part in parts])[order], values), name


def test_weights_are_those_of_one_process(two, alone):
    for name in ("model", "ema"):
        one, other = weights(alone[0], 20, name), weights(two / "together", 20, name)
        start = weights(alone[0], 10, name)
        moved = max((one[key] - start[key]).abs().max() for key in one)
        assert max((one[key] - other[key]).abs().max() for key in one) < TWO_PROCESSES < moved / 20


def test_two_processes_are_two_micro_batches_bit_for_bit(two, outcomes, tmp_path):
    """Halves are added exactly, and there are but two: (a + b) / 2 = a/2 + b/2."""
    assert outcomes[0]["accumulated"][0] == "finished"
    one, _ = recorded(tmp_path / "one", gradient_accumulation=2)
    one.train(progress=False)
    for name in ("model", "ema", "optimizer"):
        expected, given = weights(tmp_path / "one", 20, name), weights(two / "together", 20, name)
        assert all(torch.equal(expected[key], given[key]) for key in expected)
    trainer(tmp_path / "four", model=without_dropout(), gradient_accumulation=4).train(progress=False)
    expected, given = weights(tmp_path / "four", 20), weights(two / "accumulated", 20)
    assert max((expected[key] - given[key]).abs().max() for key in expected) < TWO_PROCESSES


def test_log_and_checkpoints_are_written_once(two):
    log = [json.loads(line) for line in (two / "together" / "log.jsonl").open()]
    assert [entry["step"] for entry in log] == [5, 10, 15, 20]
    assert checkpoints.steps(two / "together") == [10, 20]
    assert sorted(path.name for path in (two / "together").rglob(".*")) == []
    assert load(two / "together" / "model").model.config == without_dropout()


def test_the_logged_losses_are_those_of_the_whole_batch(two, alone):
    logs = [[json.loads(line) for line in (run / "log.jsonl").open()] for run in (two / "together", alone[0])]
    for given, expected in zip(*logs, strict=True):
        assert given["loss"] == pytest.approx(expected["loss"], abs=TWO_PROCESSES)
        assert given.get("validation_loss") == pytest.approx(
            expected.get("validation_loss"), abs=TWO_PROCESSES
        )


def test_an_interrupt_of_one_process_stops_both_and_one_process_goes_on(two, outcomes):
    for outcome in outcomes:
        kind, message = outcome["interrupted"]
        assert kind == "Interrupted"
        assert "stopped at step 13 of 20" in message
    run = two / "interrupted"
    assert checkpoints.steps(run) == [10, 13]
    one = trainer(run)
    one.train(progress=False)
    assert one.accelerator.num_processes == 1
    assert checkpoints.steps(run) == [13, 20]
    steps = [json.loads(line)["step"] for line in (run / "log.jsonl").open()]
    assert steps == [5, 10, 13, 15, 20]


def test_nan_in_one_process_stops_both(two, outcomes):
    for outcome in outcomes:
        kind, message = outcome["diverged"]
        assert kind == "TrainingDiverged"
        assert "nan at step 21 (samples 160 to 167" in message
    assert checkpoints.steps(two / "diverged") == [10, 20]


def test_a_full_disk_of_the_main_process_stops_both(two, outcomes):
    assert outcomes[0]["full"][0] == "RunNotWritten"
    assert outcomes[1]["full"][0] == "MainProcessFailed"
    for outcome in outcomes:
        assert "No space left on device); step 10 is saved; make space there" in outcome["full"][1]
    assert checkpoints.steps(two / "full") == [10]


def test_the_command_runs_under_accelerate_launch(tmp_path):
    """As the help of `fastddpm train` has it; what there is to say is said once."""
    data = tmp_path / "pictures"
    data.mkdir()
    from PIL import Image

    pixels, _ = Bars().batch(torch.arange(16))
    for i, picture in enumerate(((pixels + 1) * 127.5).byte().numpy()):
        Image.fromarray(picture[0]).save(data / f"{i}.png")
    launch = ["-m", "accelerate.commands.launch", "--cpu", "--num_processes", "2", "--num_machines", "1"]
    launch += ["--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", str(free_port())]
    small = ["--base-channels", "8", "--mults", "1,2", "--steps", "4", "--batch", "8"]
    words = ["train", "--data", str(data), "--out", str(tmp_path / "run"), *small]
    done = subprocess.run(
        [sys.executable, *launch, "-m", "fastddpm", *words],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=540,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("16 images, 4 steps ->") == 1
    assert load(tmp_path / "run" / "model").model.config.in_channels == 1
