"""Sampling jobs on Ray, on this machine: the same files, a lost worker replaced, errors brought back."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
import time
from pathlib import Path

import pytest
from job_cases import COUNT, contents, tiny_job

from fastddpm.jobs import JobStopped, TorchDrawer
from fastddpm.jobs.manifest import open_manifest

ray = pytest.importorskip("ray")


@pytest.fixture(scope="module")
def cluster():
    """Two processors, whose workers find the modules of the tests."""
    places = [str(Path(__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    ray.init(
        num_cpus=2,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
        runtime_env={"env_vars": {"PYTHONPATH": os.pathsep.join(places)}},
    )
    yield
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
    open_manifest(tmp_path / "job", job.settings())
    (tmp_path / "job" / "00003.npz").mkdir()
    with pytest.raises(JobStopped, match=r"cannot be written \(Is a directory\); .* run the same again"):
        job.run(workers="ray", progress=False)
    (tmp_path / "job" / "00003.npz").rmdir()
    assert 0 < job.run(workers="ray", progress=False) < COUNT
    assert contents(tmp_path / "job") == whole


def test_a_cluster_without_room_for_a_worker_is_refused(cluster, tmp_path):
    job = tiny_job(tmp_path)
    job.drawer.threads = 3
    with pytest.raises(ValueError, match=r"workers: 'ray' given, to a cluster without 3 CPU .* fewer"):
        job.run(workers="ray", progress=False)


def test_without_ray_it_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ValueError, match=r"'ray' given, which needs Ray: pip install 'fastddpm\[ray\]'"):
        tiny_job(tmp_path).run(workers="ray", progress=False)
