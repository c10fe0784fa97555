"""Sampling jobs on Ray, on this machine: the same files, a lost worker replaced, errors brought back."""

from __future__ import annotations

import functools
import os
import signal
import socket
import stat
import sys
import tempfile
import threading
import time
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from job_cases import COUNT, contents, tiny_job

from fastddpm.finite import NonFiniteSamples
from fastddpm.jobs import JobStopped, TorchDrawer
from fastddpm.jobs.manifest import open_manifest
from fastddpm.jobs.ray_cluster import connected
from fastddpm.jobs.ray_workers import STOPS, _Worker

psutil = pytest.importorskip("psutil")
ray = pytest.importorskip("ray")


class Stranger:
    """Somebody else's cluster: the file in the shared folder names it, and it notes who comes."""

    def __init__(self) -> None:
        self.visitors: list[object] = []
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self.socket.getsockname()[1]}"
        threading.Thread(target=self._welcome, daemon=True).start()

    def _welcome(self) -> None:
        with suppress(OSError):
            while True:
                visitor, address = self.socket.accept()
                self.visitors.append(address)
                visitor.close()


@pytest.fixture(scope="module")
def stranger():
    stranger = Stranger()
    yield stranger
    stranger.socket.close()


@pytest.fixture(scope="module")
def cluster(tmp_path_factory, stranger):
    """What a job connects to by itself: two processors, whose workers find the modules of the tests."""
    tests = Path(__file__).parents[1]
    places = [
        str(Path(__file__).parent),
        str(tests),
        str(tests.parent / "benchmarks"),
        *filter(None, [os.environ.get("PYTHONPATH")]),
    ]
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory(prefix="t-") as shared:
        for name in ("RAY_ADDRESS", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
            patch.delenv(name, raising=False)
        patch.setenv("HOME", str(tmp_path_factory.mktemp("home")))
        patch.setenv("RAY_TMPDIR", shared)
        where = Path(ray._private.utils.get_ray_address_file(None))
        assert where.is_relative_to(shared)
        where.parent.mkdir()
        where.write_text(stranger.address)
        own = {"num_cpus": 2, "runtime_env": {"env_vars": {"PYTHONPATH": os.pathsep.join(places)}}}
        patch.setattr(ray, "init", functools.partial(ray.init, **own))
        connected()
        yield Path(shared)
        ray.shutdown()


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole") / "job"
    tiny_job(folder).run(progress=False)
    return contents(folder)


class Slow:
    """A drawer that takes its time, so that a worker can be killed while it draws; it says who draws."""

    def __init__(self, drawer: TorchDrawer, diary) -> None:
        self.drawer, self.diary, self.threads = drawer, diary, drawer.threads
        self.image_shape, self.device = drawer.image_shape, drawer.device
        self.describe, self.made_on, self.check = drawer.describe, drawer.made_on, drawer.check

    def __reduce__(self):
        return Slow, (self.drawer, self.diary)

    def draw(self, seeds, labels):
        (self.diary / str(os.getpid())).touch()
        time.sleep(0.1)
        return self.drawer.draw(seeds, labels)


def processes_of(folder):
    """This process and those of the cluster whose sockets are below a folder, workers included."""
    found = {psutil.Process()}
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if any(str(folder) in part for part in process.cmdline()):
                found |= {process, *process.children(recursive=True)}
    return found


def test_the_cluster_that_a_shared_file_names_is_not_joined(cluster, stranger):
    """`ray.init()` reads the file and goes there; anybody may have written it."""
    assert ray.get_runtime_context().gcs_address != stranger.address
    assert stranger.visitors == []


@pytest.mark.skipif(sys.platform != "linux", reason="reads what other processes listen on")
def test_a_cluster_of_its_own_listens_on_loopback_alone(cluster):
    """This process too; the stranger's socket in it is on loopback as well."""
    assert ray.get(ray.remote(lambda: os.getpid()).remote()) != os.getpid()  # so that there are workers
    listening = {
        (process.name(), connection.laddr.ip.removeprefix("::ffff:"))
        for process in processes_of(cluster)
        for connection in process.net_connections("inet")
        if connection.status == psutil.CONN_LISTEN
    }
    names = {name.partition("::")[0] for name, _ in listening}
    assert names >= {"gcs_server", "raylet", "ray", psutil.Process().name()}
    assert {address for _, address in listening} == {"127.0.0.1"}


@pytest.mark.skipif(sys.platform != "linux", reason="reads the environments of other processes")
def test_its_processes_ask_for_a_token_that_only_this_user_reads(cluster):
    modes = {p.name(): p.environ().get("RAY_AUTH_MODE") for p in processes_of(cluster)}
    assert modes["gcs_server"] == modes["raylet"] == "token"
    token = Path.home() / ".ray" / "auth_token"
    assert stat.S_IMODE(token.stat().st_mode) == 0o600
    assert len(token.read_text()) == 64
    (outer,) = cluster.glob("ray-*")
    assert stat.S_IMODE(outer.stat().st_mode) == 0o700
    assert "RAY_AUTH_MODE" not in os.environ  # theirs alone


def test_a_cluster_that_a_person_names_is_the_one_used(monkeypatch):
    """And it is told nothing about this machine; what was there for SIGTERM is there afterwards."""
    given = []

    def init(*args, **options):
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ray puts its own there
        given.append((args, options))

    def ours(number, frame):
        pass

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", init)
    before = signal.signal(signal.SIGTERM, ours)
    try:
        monkeypatch.setenv("RAY_ADDRESS", "203.0.113.7:6379")
        connected()
        assert signal.getsignal(signal.SIGTERM) is ours
    finally:
        signal.signal(signal.SIGTERM, before)
    ((args, options),) = given
    assert args == ()
    assert set(options) == {"log_to_driver", "logging_level"}  # Ray reads the address itself


def test_a_token_that_cannot_be_written_is_one_line(tmp_path, monkeypatch):
    (tmp_path / ".ray").touch()
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("RAY_ADDRESS", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(
        ValueError, match=r"workers: 'ray', whose token .* given, .*RAY_AUTH_TOKEN .* accepted"
    ):
        connected()
    assert "RAY_AUTH_MODE" not in os.environ


def test_two_actors_one_of_which_is_killed_draw_the_files_of_one_process(cluster, tmp_path, whole):
    """Ray starts another in its place and has its shards drawn again; nobody resumes anything."""
    job, diary = tiny_job(tmp_path / "job"), tmp_path / "diary"
    diary.mkdir()
    job.drawer = Slow(job.drawer, diary)
    killed = []

    def kill_one():
        while len(list((tmp_path / "job").glob("0*"))) < 4:
            time.sleep(0.01)
        killed.append(int(next(diary.iterdir()).name))
        os.kill(killed[0], signal.SIGKILL)

    killer = threading.Thread(target=kill_one, daemon=True)
    killer.start()
    assert job.run(workers="ray", progress=False) == COUNT
    killer.join(1)
    assert len(killed) == 1
    assert os.getpid() not in killed
    # At first two, then the one who took over.
    assert len(list(diary.iterdir())) == 3
    assert contents(tmp_path / "job") == whole


def test_on_ray_too_only_what_is_missing_is_drawn(cluster, tmp_path, whole):
    for name, content in whole.items():
        (tmp_path / name).write_bytes(content)
    assert tiny_job(tmp_path).run(workers="ray", progress=False) == 0
    (tmp_path / "00007.npz").unlink()
    assert tiny_job(tmp_path).run(workers="ray", progress=False) == 4
    assert contents(tmp_path) == whole


def test_what_stops_a_worker_is_what_the_caller_gets(cluster, tmp_path, whole):
    """A folder stands where a shard's file is to go."""
    job = tiny_job(tmp_path / "job")
    (tmp_path / "job").mkdir()
    open_manifest(tmp_path / "job", job.settings())
    (tmp_path / "job" / "00003.npz").mkdir()
    with pytest.raises(JobStopped, match=r"cannot be written \(Is a directory\); .* run the same again"):
        job.run(workers="ray", progress=False)
    (tmp_path / "job" / "00003.npz").rmdir()
    assert 0 < job.run(workers="ray", progress=False) < COUNT
    assert contents(tmp_path / "job") == whole


def test_what_a_worker_says_has_its_kind(tmp_path):
    """An error of its own would reach the caller as a page of Ray's."""
    worker = _Worker(tiny_job(tmp_path))
    for stop in (JobStopped("full"), NonFiniteSamples("images: 1 of 4")):
        worker.job = SimpleNamespace(draw_shard=lambda index, stop=stop: (_ for _ in ()).throw(stop))
        said = worker({"shard": np.array([3])})
        assert STOPS[said["why"][0]] is type(stop)
        assert said["stopped"][0] == str(stop)
        assert said["images"].tolist() == [0]


def test_a_cluster_without_room_for_a_worker_is_refused(cluster, tmp_path):
    job = tiny_job(tmp_path)
    job.drawer.threads = 3
    with pytest.raises(ValueError, match=r"workers: 'ray', to a cluster without 3 CPU .* given, .* fewer"):
        job.run(workers="ray", progress=False)


def test_without_ray_it_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ValueError, match=r"'ray' without Ray \(pip install 'fastddpm\[ray\]'\) given"):
        tiny_job(tmp_path).run(workers="ray", progress=False)
