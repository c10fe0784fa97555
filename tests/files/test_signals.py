"""SIGTERM, SIGHUP and Ctrl-C: what is left when they come at any moment, and what is said."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path

import pytest
from job_cases import contents, start
from networks import make_unet

from fastddpm import NoiseSchedule, Sampler, UNetConfig, export, load, save_folder
from fastddpm.cli import app, terminal
from fastddpm.export.settings import resolve
from fastddpm.files import replacing
from fastddpm.interruption import GIVE_AGAIN, as_interrupts
from fastddpm.training import checkpoints
from fastddpm.training.interruption import stop_on_interrupt

MOMENTS = 10
Event = get_context("fork").Event
TERMINATED = 128 + signal.SIGTERM
REST = {"condition_channels": None, "options": {}}
TINY = UNetConfig(in_channels=3, base_channels=8, channel_mults=(1, 2), num_groups=4)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("signals") / "model"
    return save_folder(folder, make_unet(TINY), NoiseSchedule.linear(50), {"shape": [3, 8, 8]})


def command(ready, *words):
    """The command in a process of its own, which says when it has its handlers."""

    @contextmanager
    def noticed(*names):
        try:
            with as_interrupts(*names) as received:
                ready.set()
                yield received
        finally:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)  # over: what comes now finds nothing to interrupt

    terminal.as_interrupts = noticed
    sys.argv = ["fastddpm", *map(str, words)]
    with open(os.devnull, "w") as null:
        os.dup2(null.fileno(), 1)
        os.dup2(null.fileno(), 2)
    app.main()


def ended_at(delay: float, *words) -> int:
    """The exit code of a command that gets SIGTERM so many seconds after it has its handlers."""
    ready = Event()
    process = start(command, ready, *words)
    assert ready.wait(60)
    time.sleep(delay)
    process.terminate()
    process.join(60)
    return process.exitcode


def duration(*words) -> float:
    """The seconds of a command from where it has its handlers, which are the first thing that it does."""
    ready = Event()
    process = start(command, ready, *words)
    assert ready.wait(60)
    began = time.perf_counter()
    process.join(120)
    assert process.exitcode == 0
    return time.perf_counter() - began


def hidden(folder: Path) -> list[str]:
    return [str(path) for path in folder.rglob(".*")]


def at_random_moments(folder: Path, words, check) -> None:
    """``check(target, ended)`` after SIGTERM at ten moments of the command's life, each into a new folder."""
    whole = duration(*words, folder / "whole")
    codes = []
    rng = random.Random(0)
    for moment in range(MOMENTS):
        target = folder / str(moment)
        codes.append(ended_at(rng.random() * whole, *words, target))
        assert codes[-1] in (0, TERMINATED), codes
        assert hidden(folder) == []
        check(target, codes[-1] == TERMINATED)
    assert TERMINATED in codes


def test_pictures_are_all_there_or_none(tmp_path, model):
    words = ["sample", model, "--seeds", "0-39", "--steps", "20", "--batch", "8", "--outdir"]
    at_random_moments(tmp_path, words, lambda target, ended: check_all_or_none(target, 40))


def check_all_or_none(target, count):
    assert not target.exists() or len(list(target.iterdir())) == count


def test_an_export_is_there_or_not(tmp_path, model, monkeypatch):
    """torch.export's seconds are spent once, before the processes are forked: no file is written in them."""
    sampler = load(model)
    settings = resolve(sampler, schedule=None, shape=None, dtype="float32", num_classes=None, **REST)
    network = export.export_network(settings.sampler.model, settings.call)
    monkeypatch.setattr(export, "export_network", lambda *given: time.sleep(0.2) or network)

    def check(target, ended):
        assert not target.exists() or (target / "export.json").exists()

    at_random_moments(tmp_path, ["export", model, "--no-verify", "--out"], check)


def test_a_job_goes_on(tmp_path, model):
    words = ["sample", model, "--format", "png", "--seeds", "0-15", "--steps", "8", "--batch", "4"]
    words += ["--shard-size", "4", "--outdir"]
    whole = {}

    def check(target, ended):
        nonlocal whole
        whole = whole or contents(tmp_path / "whole")
        if ended and target.exists():
            duration(*words, target)
        assert contents(target) in (whole, {})

    at_random_moments(tmp_path, words, check)


def test_training_saves_and_the_same_command_goes_on(popen, tmp_path):
    words = [sys.executable, "-m", "fastddpm", "train", "--out", str(tmp_path), "--base-channels", "8"]
    words += ["--mults", "1,2", "--batch", "4", "--steps"]
    # Not a fork of this process, in which other tests may have set accelerate up.
    process = popen([*words, "100000"])
    log = tmp_path / "log.jsonl"
    while not (log.exists() and log.read_text()) and process.poll() is None:
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=120)
    assert process.returncode == GIVE_AGAIN, said
    assert "the same command goes on from there" in said
    (step,) = checkpoints.steps(tmp_path)
    assert hidden(tmp_path) == []
    other = subprocess.run([*words, str(step + 1)], stderr=subprocess.PIPE, text=True, check=False)
    assert other.returncode == 2  # fewer steps are another run
    assert json.loads((tmp_path / "train.json").read_text())["train"]["steps"] == 100000


def test_the_signal_is_said_and_is_the_exit_code(monkeypatch, capsys, tmp_path):
    for number, said in ((signal.SIGTERM, "terminated"), (signal.SIGHUP, "the terminal was closed")):

        def sample(self, number=number, **request):
            signal.raise_signal(number)

        monkeypatch.setattr("fastddpm.Sampler.sample", sample)
        monkeypatch.setattr(sys, "argv", ["fastddpm", "sample", "--out", str(tmp_path / "a.png")])
        with pytest.raises(SystemExit) as end:
            app.main()
        assert (end.value.code, capsys.readouterr().err) == (128 + number, f"fastddpm: {said}\n")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("number", "said"), [(signal.SIGTERM, "terminated"), (signal.SIGINT, "interrupted")])
def test_what_a_library_makes_of_an_interrupt_is_one_all_the_same(monkeypatch, capsys, number, said):
    def sample(self, **request):
        try:
            signal.raise_signal(number)
        except KeyboardInterrupt as interrupt:
            raise RuntimeError("export failed") from interrupt

    monkeypatch.setattr("fastddpm.Sampler.sample", sample)
    monkeypatch.setattr(sys, "argv", ["fastddpm", "sample", "--out", "never.png"])
    with pytest.raises(SystemExit) as end:
        app.main()
    assert (end.value.code, capsys.readouterr().err) == (128 + number, f"fastddpm: {said}\n")


def test_one_that_python_drops_ends_the_command_all_the_same(monkeypatch, capsys, tmp_path):
    """As it does, with lines of its own on standard error, with what is raised where an object is deleted."""
    steps = []

    class Deleted:
        def __del__(self):
            signal.raise_signal(signal.SIGTERM)

    def sample(self, **request):
        Deleted()
        return drawn(self, **{**request, "callback": lambda *step: steps.append(step)})

    drawn = Sampler.sample
    monkeypatch.setattr("fastddpm.Sampler.sample", sample)
    words = ["sample", "--seeds", "0", "--steps", "4", "--method", "ddim", "--out", str(tmp_path / "a.png")]
    monkeypatch.setattr(sys, "argv", ["fastddpm", *words])
    with pytest.raises(SystemExit) as end:
        app.main()
    assert (end.value.code, capsys.readouterr().err) == (TERMINATED, "fastddpm: terminated\n")
    assert (steps, list(tmp_path.iterdir())) == ([], [])
    with as_interrupts():
        Deleted()
        with pytest.raises(KeyboardInterrupt):
            stop_on_interrupt().__enter__()


def test_handlers_are_put_back_and_an_ignored_signal_stays_ignored():
    before = signal.getsignal(signal.SIGTERM)
    ignored = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    try:
        with as_interrupts() as received:
            signal.raise_signal(signal.SIGHUP)
            with pytest.raises(KeyboardInterrupt):
                signal.raise_signal(signal.SIGTERM)
        assert received == [signal.SIGTERM]
        assert signal.getsignal(signal.SIGTERM) is before
    finally:
        signal.signal(signal.SIGHUP, ignored)


def test_ctrl_c_while_the_command_starts_is_one_line(popen, tmp_path):
    process = popen([sys.executable, "-m", "fastddpm", "sample", "--out", tmp_path / "a.png"])
    maps = Path(f"/proc/{process.pid}/maps")
    while process.poll() is None and "libtorch" not in maps.read_text():
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=120)
    assert (process.returncode, err) == (130, "fastddpm: interrupted\n")


def test_what_nobody_is_left_to_take_away_goes_all_the_same(monkeypatch, capsys, tmp_path):
    """The signal comes between the beginning of a context and its block: as if `enter_context` was cut."""
    held = []

    def write(self, pixels, seeds, labels, frames):
        held.append(replacing(tmp_path / "a.png"))
        held[0].__enter__()
        assert len(hidden(tmp_path)) == 1
        signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr("fastddpm.cli.outputs.Outputs.write", write)
    words = ["sample", "--seeds", "0", "--steps", "1", "--method", "ddim", "--out", str(tmp_path / "a.png")]
    monkeypatch.setattr(sys, "argv", ["fastddpm", *words])
    with pytest.raises(SystemExit) as end:
        app.main()
    assert (end.value.code, capsys.readouterr().err) == (TERMINATED, "fastddpm: terminated\n")
    assert list(tmp_path.iterdir()) == []


def test_ctrl_c_that_an_import_swallows_ends_the_command():
    """torch takes a KeyboardInterrupt in numpy's import for a numpy that is not there, and goes on."""
    script = """
import signal, sys, types

class Swallowing(types.ModuleType):
    @property
    def main(self):
        try:
            signal.raise_signal(signal.SIGINT)
        except KeyboardInterrupt:
            pass
        return lambda: print("went on")

import fastddpm.cli
sys.argv = ["fastddpm", "plan"]
sys.modules["fastddpm.cli.app"] = Swallowing("app")
signal.signal(signal.SIGINT, signal.default_int_handler)
fastddpm.cli.main()
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "fastddpm: interrupted\n")


def test_leftovers_of_a_kill_go_with_the_next_run(tmp_path, model):
    words = ["sample", model, "--seeds", "0-7", "--steps", "2", "--outdir"]
    folder = tmp_path / "pictures"
    folder.mkdir()
    (folder / ".zshrc").write_text("stays")
    process = start(_killed_while_writing, folder)
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    assert len(hidden(folder)) == 2
    duration(*words, folder)
    assert [Path(path).name for path in hidden(folder)] == [".zshrc"]
    assert load(model) is not None


def _killed_while_writing(folder):
    with replacing(folder / "000000.png"):
        os.kill(os.getpid(), signal.SIGKILL)
