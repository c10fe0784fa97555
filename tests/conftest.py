"""Fixtures that more than one test file uses."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import onnx_exports
import pytest
import torch
from networks import make_unet
from sampled import sample

from fastddpm import NoiseSchedule, Sampler, UNet
from fastddpm.precision import forced
from fastddpm_kernels import machine_code

# The tensors here are tiny: more threads only wait for each other, those of commands that tests start too.
torch.set_num_threads(1)
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Inductor then compiles in the process itself; others would import torch first.
os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")


LONG_ROOMS = ("export", "engine", "dropin", "training", "commands", "applications", "serving")
"""With the files that take minutes."""


def pytest_addoption(parser: pytest.Parser) -> None:
    what = "Of each test as few cases as have every value of every parameter; others with another K."
    parser.addoption("--sample", type=int, metavar="K", help=what)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Begins with the rooms of long files, so that no worker is left with one while the others are done."""
    k = config.getoption("--sample")
    if k is not None:
        items[:], left_out = sample(items, k)
        config.hook.pytest_deselected(items=left_out)
    items.sort(key=lambda item: item.path.parent.name not in LONG_ROOMS)


def pytest_report_header() -> str:
    return "tests marked gpu: float32 with TF32 off, but where they set a precision themselves"


@pytest.fixture(autouse=True)
def _exact(request: pytest.FixtureRequest) -> Iterator[None]:
    """Two right TF32 kernels differ by more over a chain than exact checks accept (see `tolerances`)."""
    with forced("highest" if request.node.get_closest_marker("gpu") else None):
        yield


@pytest.fixture(scope="session", autouse=True)
def _by_torchs_operators() -> Iterator[None]:
    """Numba starts after much work: what runs would depend on the tests before. Those of numba set this."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(machine_code, "PAYS_FROM", 2**62)
        yield


@pytest.fixture(scope="session", autouse=True)
def _one_home(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Each worker has a folder of its own in that of the run."""
    base = tmp_path_factory.getbasetemp()
    onnx_exports.home = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base


@pytest.fixture
def unet() -> UNet:
    return make_unet()


@pytest.fixture
def sampler(unet: UNet) -> Sampler:
    """Ten DDPM steps of a tiny three-channel network, clipped so that values stay of order 1."""
    return Sampler(
        unet,
        NoiseSchedule.linear(1000),
        num_inference_steps=10,
        clip_sample_range=1.0,
        shape=(3, 8, 8),
        engine="eager",
    )


@pytest.fixture
def fake_cuda() -> Iterator[torch.device]:
    """Tensors made in it are fake CUDA tensors: shapes and devices without data."""
    from kernel_build import TARGETS, pretended
    from torch._subclasses.fake_tensor import FakeTensorMode

    with pretended(TARGETS["sm_90"]), FakeTensorMode(), torch.no_grad():
        yield torch.device("cuda")


@pytest.fixture
def run_sample(tmp_path: Path, monkeypatch, capsys) -> Callable[..., tuple[Any, str, str, list[str]]]:
    """Runs `fastddpm sample` in an empty folder: (exit code, output, errors, what is there)."""
    from fastddpm.cli import app

    monkeypatch.chdir(tmp_path)

    def call(*words: object) -> tuple[Any, str, str, list[str]]:
        monkeypatch.setattr(sys, "argv", ["fastddpm", "sample", *map(str, words)])
        code: Any
        try:
            code = app.main()
        except SystemExit as stop:
            code = stop.code
        captured = capsys.readouterr()
        there = [str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")]
        return code, captured.out, captured.err, sorted(there)

    return call


@pytest.fixture
def small_disk(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Path]:
    """A disk of as many bytes as the module's ``DISK`` says; a test that cannot have one is skipped."""
    yield from _mounted(tmp_path / "disk", f"size={request.module.DISK}")


@pytest.fixture
def readonly_folder(tmp_path: Path) -> Iterator[Path]:
    """An empty folder that cannot be written, by the superuser neither."""
    if os.geteuid() == 0:  # whom permissions do not stop
        yield from _mounted(tmp_path / "readonly", "ro,size=64k")
        return
    folder = tmp_path / "readonly"
    folder.mkdir(mode=0o500)
    yield folder
    folder.chmod(0o700)


def _mounted(folder: Path, options: str) -> Iterator[Path]:
    folder.mkdir()
    if sys.platform != "linux":
        pytest.skip("a disk in memory can be mounted on Linux alone")
    mount = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    done = subprocess.run(mount, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"a disk in memory cannot be mounted here ({done.stderr.strip()})")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.fixture
def popen() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """`subprocess.Popen` whose processes end with the test, and heed Ctrl-C where this one does not."""
    started = []

    def start(command: list[str], **options: Any) -> subprocess.Popen[str]:
        # A shell that runs something in the background has it ignore SIGINT, and that is inherited.
        heeding = {} if sys.platform == "win32" else {"preexec_fn": _heed_interrupts}
        process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, **heeding, **options)
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()


def _heed_interrupts() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.fixture
def one_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """A training draws one image at each checkpoint: 40 take longer than the few steps of a test."""
    from fastddpm.training import report

    monkeypatch.setattr(report.draw_grid, "__defaults__", (None, 1))


@pytest.fixture
def translated_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """What torch.export and its translation make of a `tiny_sampler`'s UNet is made once in a process."""
    monkeypatch.setattr("fastddpm.export.export_network", onnx_exports.translated)


@pytest.fixture
def traced(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is compiled is traced and run by torch's operators: a minute of C++ less for each loop.

    Inductor's own part is held by `test_engine.py`.
    """
    compile_ = torch.compile

    def compiled(function: Any, *, mode: str | None = None, **options: Any) -> Any:
        return compile_(function, backend="aot_eager", **options)

    monkeypatch.setattr(torch, "compile", compiled)


@pytest.fixture
def run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[Any, str, str]]:
    """Runs the command in this process: (exit code, standard output, standard error)."""
    from fastddpm.cli import app

    def call(*words: object) -> tuple[Any, str, str]:
        monkeypatch.setattr(sys, "argv", ["fastddpm", *map(str, words)])
        with pytest.raises(SystemExit) as stop:
            app.main()
        captured = capsys.readouterr()
        return stop.value.code, captured.out, captured.err

    return call
