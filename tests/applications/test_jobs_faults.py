"""Sampling jobs that are killed, on full disks, in folders that cannot be written: what is left and said."""

from __future__ import annotations

import json
import os
import random
import resource
import time

import numpy as np
import pytest
from job_cases import COUNT, SHARDS, contents, start, start_two, tiny_job

from fastddpm.jobs import JobStopped
from fastddpm.jobs.manifest import read_records

FORMATS = ("npz", "png", "webdataset")
KILLED = -9
DISK = 2**20
# Shards between two kills: ten kills are done before the 23 shards are.
STEP = 2


@pytest.fixture(scope="module", params=FORMATS)
def format(request):
    return request.param


@pytest.fixture(scope="module")
def whole(format, tmp_path_factory):
    """What a job that nobody killed leaves."""
    folder = tmp_path_factory.mktemp(format)
    tiny_job(folder, format=format).run(progress=False)
    return contents(folder)


def draw(folder, format):
    tiny_job(folder, format=format).run(progress=False)


def wait_for(folder, count, processes):
    """Until so many shards are recorded, or one of the processes has ended."""
    while all(process.is_alive() for process in processes) and recorded(folder) < count:
        time.sleep(0.0005)


def recorded(folder):
    return len(list((folder / "records").glob("[0-9]*.json"))) if folder.exists() else 0


def check_nothing_torn(folder, whole):
    """Files that have their name are whole, and so is every record; nothing else is there but temporaries."""
    there = {name: content for name, content in contents(folder).items() if not name.startswith(".")}
    for name, content in there.items():
        if name.startswith("records/"):
            if not name.startswith("records/."):
                assert json.loads(content)["name"] in {name.split("/")[0] for name in there}
        elif name != "manifest.json":
            assert content == whole[name], name


def check_resumed(folder, format, whole):
    """The job run again: all files as if nobody had killed it, and what was finished is left as it was."""
    finished = {name: (folder / name).stat().st_mtime_ns for name in read_records(folder)}
    assert tiny_job(folder, format=format).run(progress=False) == images_without(finished)
    assert contents(folder) == whole
    assert {name: (folder / name).stat().st_mtime_ns for name in finished} == finished


def images_without(finished):
    sizes = [4] * (SHARDS - 1) + [2]
    return COUNT - sum(sizes[int(name[:5])] for name in finished)


def test_the_whole_job_killed_ten_times(tmp_path, format, whole):
    rng = random.Random(format)
    folder = tmp_path / "job"
    for kill in range(10):
        process = start(draw, folder, format)
        wait_for(folder, STEP * kill + rng.choice([0, 1, STEP]), [process])
        time.sleep(rng.random() * 0.03)
        process.kill()
        process.join(60)
        assert process.exitcode == KILLED
        if folder.exists():
            check_nothing_torn(folder, whole)
    assert 0 < recorded(folder) < SHARDS
    check_resumed(folder, format, whole)


def test_a_worker_of_two_killed_ten_times(tmp_path, format, whole):
    rng = random.Random(format)
    folder = tmp_path / "job"
    for kill in range(10):
        processes = start_two(draw, folder, format)
        wait_for(folder, recorded(folder) + rng.choice([1, STEP]), processes)
        time.sleep(rng.random() * 0.03)
        processes[kill % 2].kill()
        # torchrun ends the others as soon as one of them has gone.
        processes[1 - kill % 2].terminate()
        for process in processes:
            process.join(60)
        assert processes[kill % 2].exitcode == KILLED or recorded(folder) == 0
        check_nothing_torn(folder, whole)
        if "shards" in json.loads((folder / "manifest.json").read_text()):
            break
    check_resumed(folder, format, whole)


def test_two_processes_draw_the_files_of_one(tmp_path, format, whole):
    processes = start_two(draw, tmp_path / "job", format)
    for process in processes:
        process.join(120)
    assert [process.exitcode for process in processes] == [0, 0]
    assert contents(tmp_path / "job") == whole


def test_a_full_disk_stops_a_job_that_goes_on_when_there_is_space(small_disk, format, whole):
    folder = small_disk / "job"
    (small_disk / "ballast").write_bytes(bytes(DISK - 120_000))
    with pytest.raises(JobStopped, match=r"\(No space left on device\); .* make space there") as end:
        tiny_job(folder, format=format).run(progress=False)
    assert f"{recorded(folder)} of {SHARDS} shards are complete" in str(end.value)
    assert 0 < recorded(folder) < SHARDS
    check_nothing_torn(folder, whole)
    assert list(folder.glob(".*")) == []
    with pytest.raises(JobStopped, match="No space left"):
        tiny_job(folder, format=format).run(progress=False)
    (small_disk / "ballast").unlink()
    check_resumed(folder, format, whole)


def test_no_space_for_the_merged_file_leaves_the_shards(small_disk):
    (small_disk / "ballast").write_bytes(bytes(DISK - 38 * 1024))
    job = tiny_job(small_disk / "job", shard_size=92)
    with pytest.raises(JobStopped, match=r"\(No space left on device\); 1 of 1 shards are complete"):
        job.run(merge=True, progress=False)
    assert len(list((small_disk / "job").iterdir())) == 2
    (small_disk / "ballast").unlink()
    assert job.run(merge=True, progress=False) == 0
    assert np.load(small_disk / "job" / "samples_90x8x8x3.npz")["arr_0"].shape == (90, 8, 8, 3)


def limited(folder, said):
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
    try:
        tiny_job(folder, shard_size=120).run(progress=False)
    except JobStopped as stopped:
        os.write(said, str(stopped).encode())


def test_files_that_may_not_grow_are_a_full_disk_too(tmp_path):
    """The same without a right to mount: the operating system refuses files of more than 10 kB."""
    reading, writing = os.pipe()
    process = start(limited, tmp_path / "job", writing)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        said = pipe.read()
    process.join(60)
    assert "(File too large); 0 of 1 shards are complete; make space there and run the same again" in said
    assert sorted(contents(tmp_path / "job")) == ["manifest.json"]
    assert tiny_job(tmp_path / "job", shard_size=120).run(progress=False) == COUNT


def test_a_folder_that_cannot_be_written(readonly_folder):
    for outdir in (readonly_folder / "job", readonly_folder):
        with pytest.raises(JobStopped, match=r"cannot be written .* 0 of 23 shards .* make it writable"):
            tiny_job(outdir).run(progress=False)
    assert list(readonly_folder.iterdir()) == []
