"""Sampling jobs: what is in the shards, what is drawn again and what is not, what is refused."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import random
import shutil
import tarfile
import time

import numpy as np
import pytest
from job_cases import COUNT, LABELS, SEEDS, SHARDS, SIZES, contents, tiny_job
from networks import TINY, make_unet
from PIL import Image

from fastddpm import NoiseSchedule, Sampler, UNetConfig
from fastddpm.jobs import Blocks, Job, JobStopped, OtherSettingsError, TorchDrawer
from fastddpm.jobs.blocks import as_ranges
from fastddpm.jobs.npz import write_npz
from fastddpm.jobs.shards import digest, write_shard
from fastddpm.locks import LOCK, FolderInUse, exclusive


@pytest.fixture(scope="module")
def expected():
    """uint8 (90, 8, 8, 3), drawn one image at a time."""
    sampler = tiny_job("unused").drawer._sampler
    images = [
        sampler.sample(seeds=[seed], class_labels=label, guidance_scale=1.5, progress=False)[0]
        for seed, label in zip(SEEDS, LABELS, strict=True)
    ]
    levels = [((image.clamp(-1, 1) + 1) * 127.5).round().permute(1, 2, 0).numpy() for image in images]
    return np.stack(levels).astype(int)


def read(folder, format):
    """Pixels, labels and seeds of all shards, by NumPy, Pillow and tarfile."""
    pixels, labels, seeds = [], [], []
    for path in sorted(folder.glob("0*")):
        if format == "npz":
            arrays = np.load(path)
            assert sorted(arrays.files) == ["arr_0", "arr_1", "seeds"]
            pixels.extend(arrays["arr_0"])
            labels.extend(arrays["arr_1"].tolist())
            seeds.extend(arrays["seeds"].tolist())
        elif format == "png":
            rows = list(csv.DictReader((path / "labels.csv").open()))
            assert sorted(file.name for file in path.iterdir()) == sorted(
                ["labels.csv", *(row["file"] for row in rows)]
            )
            pixels.extend(np.asarray(Image.open(path / row["file"])) for row in rows)
            labels.extend(int(row["class"]) for row in rows)
            seeds.extend(int(row["file"].removesuffix(".png")) for row in rows)
        else:
            with tarfile.open(path) as archive:
                for member in archive:
                    key, suffix = member.name.split(".")
                    content = archive.extractfile(member).read()
                    if suffix == "png":
                        pixels.append(np.asarray(Image.open(io.BytesIO(content))))
                        seeds.append(int(key))
                    else:
                        assert int(key) == seeds[-1]
                        labels.append(int(content))
    return np.stack(pixels).astype(int), labels, seeds


@pytest.mark.parametrize("format", ["npz", "png", "webdataset"])
def test_every_image_is_in_its_shard(tmp_path, expected, format):
    assert tiny_job(tmp_path / "a", format=format).run(progress=False) == COUNT
    assert len(list((tmp_path / "a").glob("0*"))) == SHARDS
    pixels, labels, seeds = read(tmp_path / "a", format)
    assert (seeds, labels) == (SEEDS, LABELS)
    assert np.abs(pixels - expected).max() <= 1
    assert len(np.unique(pixels.reshape(COUNT, -1), axis=0)) == COUNT


def test_webdataset_files_are_those_that_datasets_reads(tmp_path, expected):
    datasets = pytest.importorskip("datasets")
    tiny_job(tmp_path / "a", format="webdataset", shard_size=32).run(progress=False)
    files = sorted(map(str, (tmp_path / "a").glob("*.tar")))
    options = {"data_files": files, "split": "train", "streaming": True}
    rows = list(datasets.load_dataset("webdataset", **options))
    assert [(int(row["__key__"]), row["cls"]) for row in rows] == list(zip(SEEDS, LABELS, strict=True))
    assert np.abs(np.stack([np.asarray(row["png"]) for row in rows]) - expected).max() <= 1


@pytest.mark.parametrize("format", ["npz", "png", "webdataset"])
def test_the_same_bytes_on_another_day(tmp_path, monkeypatch, format):
    tiny_job(tmp_path / "a", format=format).run(merge=True, progress=False)
    later, clock = time.time() + 1e7, time.localtime
    monkeypatch.setattr(time, "time", lambda: later)
    monkeypatch.setattr(time, "localtime", lambda *now: clock(*(now or [later])))
    tiny_job(tmp_path / "b", format=format).run(merge=True, progress=False)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


def test_the_merged_file_is_guided_diffusions(tmp_path):
    """In the order in which the seeds were given, whose labels stand beside them."""
    drawer = tiny_job("unused").drawer
    for format in ("npz", "png"):
        options = {"class_labels": LABELS[::-1], "format": format, **SIZES}
        Job(drawer, SEEDS[::-1], tmp_path / format, **options).run(merge=True, progress=False)
        arrays = np.load(tmp_path / format / "samples_90x8x8x3.npz")
        assert arrays.files == ["arr_0", "arr_1"]
        pixels, labels, _ = read(tmp_path / format, format)
        assert arrays["arr_0"].dtype == np.uint8
        np.testing.assert_array_equal(arrays["arr_0"], pixels)
        assert arrays["arr_1"].tolist() == labels


def test_a_large_array_in_pieces_is_the_array(tmp_path):
    values = np.random.default_rng(0).integers(0, 256, (300, 7, 5), np.uint8)
    write_npz(tmp_path / "a.npz", {"one": values, "two": values[:0].astype(np.float32)})
    arrays = np.load(tmp_path / "a.npz")
    np.testing.assert_array_equal(arrays["one"], values)
    assert arrays["two"].shape == (0, 7, 5)


def drawn(job):
    """Runs a job; the shards that it drew."""
    indices = []
    draw = job.draw_shard

    def draw_shard(index, advance):
        indices.append(index)
        return draw(index, advance)

    job.draw_shard = draw_shard
    job.run(progress=False)
    return indices


@pytest.mark.parametrize("format", ["npz", "png", "webdataset"])
def test_only_what_is_missing_or_damaged_is_drawn_again(tmp_path, format):
    folder = tmp_path / "a"
    assert drawn(tiny_job(folder, format=format)) == list(range(SHARDS))
    before = contents(folder)
    assert drawn(tiny_job(folder, format=format)) == []
    assert contents(folder) == before
    gone, damaged = sorted(folder.glob("0*"))[5], sorted(folder.glob("0*"))[11]
    if format == "png":
        (gone / "000020.png").unlink()
        damaged = damaged / "000046.png"
    else:
        gone.unlink()
    content = bytearray(damaged.read_bytes())
    content[len(content) // 2] ^= 1
    damaged.write_bytes(content)
    assert drawn(tiny_job(folder, format=format)) == [5, 11]
    assert contents(folder) == before


def test_a_picture_under_another_name_is_damage(tmp_path):
    """Its name is its seed. Order and contents stay what they were."""
    write_shard(tmp_path / "00000", "png", np.zeros((2, 4, 4, 3), np.uint8), np.array([3, 5]), None)
    before = digest(tmp_path / "00000")
    (tmp_path / "00000" / "000005.png").rename(tmp_path / "00000" / "000007.png")
    assert digest(tmp_path / "00000") != before


def test_the_manifest_says_what_is_there(tmp_path):
    job = tiny_job(tmp_path)
    job.run(progress=False)
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    settings, shards = manifest["settings"], manifest["shards"]
    assert settings["seeds"] == f"0-88,{2**40 + 3}"
    assert {name: settings[name] for name in ("threads", "engine", "batch_size", "guidance_scale")} == {
        "threads": 1,
        "engine": "eager",
        "batch_size": 4,
        "guidance_scale": 1.5,
    }
    assert [shard["images"] for shard in shards] == [4] * 22 + [2]
    for shard in shards:
        content = (tmp_path / shard["name"]).read_bytes()
        assert shard["sha256"] == hashlib.sha256(content).hexdigest()
        assert shard["bytes"] == len(content)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        *(f"{i:05d}.npz" for i in range(SHARDS)),
        "manifest.json",
    ]


OTHERS = {
    "guidance_scale 1.5, not 2.0": {"guidance_scale": 2.0},
    "num_inference_steps 2, not 3": {"num_inference_steps": 3},
    "clip_sample_range 1.0, not None": {"clip_sample_range": None},
    "timesteps None, not [900, 5]": {"timesteps": [900, 5], "num_inference_steps": None},
    "model": {"network": make_unet(seed=1)},
    "threads 1, not 2": {"threads": 2},
    "engine eager, not compile": {"engine": "compile"},
    "seeds 0-88,1099511627779, not 0-88": {"seeds": SEEDS[:-1], "class_labels": LABELS[:-1]},
    "classes 0-3, not 1": {"class_labels": 1},
    "class_labels": {"class_labels": LABELS[::-1]},
    "format npz, not png": {"format": "png"},
    "shard_size 4, not 8": {"shard_size": 8},
    "batch_size 4, not 2": {"batch_size": 2},
}


def job_with(outdir, **changes):
    """The job of `tiny_job` with some arguments changed, each given to the one who takes it."""

    def pick(**usual):
        return {name: changes.get(name, value) for name, value in usual.items()}

    plan = pick(num_inference_steps=2, clip_sample_range=1.0, timesteps=None)
    network = changes.get("network", make_unet())
    sampler = Sampler(network, NoiseSchedule.linear(1000), shape=(3, 8, 8), engine="eager", **plan)
    drawer = TorchDrawer(sampler, **pick(guidance_scale=1.5, threads=1, engine=None))
    cut = pick(class_labels=LABELS, format="npz", shard_size=4, batch_size=4)
    return Job(drawer, changes.get("seeds", SEEDS), outdir, **cut)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished")
    tiny_job(folder).run(progress=False)
    return folder


@pytest.mark.parametrize("difference", OTHERS)
def test_other_settings_are_refused_and_named(finished, difference):
    before = contents(finished)
    assert job_with(finished).run(progress=False) == 0
    job = job_with(finished, **OTHERS[difference])
    with pytest.raises(OtherSettingsError) as refused:
        job.run(progress=False)
    assert f"holds a job with {difference}" in str(refused.value)
    assert contents(finished) == before


def test_a_folder_of_something_else_is_left_alone(tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"holds thesis.txt and no manifest.json, given, a new folder"):
        tiny_job(tmp_path).run(progress=False)
    assert contents(tmp_path) == {"thesis.txt": b"mine"}
    (tmp_path / "thesis.txt").unlink()
    (tmp_path / ".oh-my-zsh").mkdir()
    for name in (".oh-my-zsh/mine", ".pre-commit-config.yaml"):
        (tmp_path / name).write_text("mine")
    hidden = contents(tmp_path)
    with pytest.raises(ValueError, match=r"holds \.oh-my-zsh and no manifest.json, given, a new folder"):
        tiny_job(tmp_path).run(progress=False)
    assert contents(tmp_path) == hidden
    shutil.rmtree(tmp_path / ".oh-my-zsh")
    (tmp_path / ".pre-commit-config.yaml").unlink()
    (tmp_path / "manifest.json").write_text('{"settings": ')
    with pytest.raises(ValueError, match=r"manifest.json', which cannot be read as a job's manifest"):
        tiny_job(tmp_path).run(progress=False)


def test_what_people_put_into_a_job_s_folder_meanwhile_stays(tmp_path):
    job = tiny_job(tmp_path, format="png")
    job.draw_shard = lambda index, advance: (_ for _ in ()).throw(KeyboardInterrupt)
    with pytest.raises(KeyboardInterrupt):
        job.run(progress=False)
    theirs = {".pre-commit-config.yaml": b"mine", ".a-b/c": b"mine", "records/.d-e": b"mine"}
    for name, content in theirs.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content)
    # A folder that has the name of a shard, and is none.
    (tmp_path / "00003").mkdir()
    (tmp_path / "00003" / "thesis.txt").write_text("mine")
    with pytest.raises(JobStopped, match=r"00003 holds thesis.txt, which is of no shard and stays"):
        tiny_job(tmp_path, format="png").run(progress=False)
    assert (tmp_path / "00003" / "thesis.txt").read_text() == "mine"
    shutil.rmtree(tmp_path / "00003")
    assert tiny_job(tmp_path, format="png").run(progress=False) > 0
    found = contents(tmp_path)
    assert {name: found.get(name) for name in theirs} == theirs


def test_one_job_a_folder(tmp_path):
    """Of three equal ones at once one runs, the others say so, and run again they find all there."""
    with exclusive(tmp_path, "outdir", "job"):
        for _ in range(2):
            with pytest.raises(
                FolderInUse, match=r"outdir: .*, where another job is running, given, another"
            ):
                tiny_job(tmp_path).run(progress=False)
        assert [path.name for path in tmp_path.iterdir()] == [LOCK]
    assert tiny_job(tmp_path).run(progress=False) > 0
    assert tiny_job(tmp_path).run(progress=False) == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"format": "zip"}, "format: 'zip' given, one of npz, png, webdataset accepted"),
        ({"shard_size": 6}, "shard_size: 6 given, a multiple of the batch size, 4 accepted"),
        ({"batch_size": 0}, "batch_size: 0 given"),
        ({"class_labels": [1, 2]}, "class_labels: 2 for 90 seeds given"),
        ({"class_labels": 5}, "class_labels: 5 given, 0 to 3 accepted"),
        ({"class_labels": "a"}, "class_labels: .* given, a flat list of integers"),
    ],
)
def test_bad_arguments_are_named_before_a_folder_is_made(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        job_with(tmp_path / "a", **options)
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize("seeds", [[], [3, 4, 3], [-1], [2**63], [0.5], "12", [[1]]])
def test_bad_seeds_are_named(tmp_path, seeds):
    with pytest.raises(ValueError, match="seeds: "):
        Job(tiny_job(tmp_path).drawer, seeds, tmp_path, class_labels=1)


def test_images_of_five_channels_are_arrays_only(tmp_path):
    config = UNetConfig(**{**TINY.to_dict(), "in_channels": 5, "num_classes": None, "null_class": False})
    sampler = Sampler(make_unet(config), NoiseSchedule.linear(), num_inference_steps=1, shape=(5, 8, 8))
    with pytest.raises(
        ValueError, match="format: 'png' for images of 5 channels, which are no pictures, given"
    ):
        Job(TorchDrawer(sampler), [1], tmp_path, format="png")
    Job(TorchDrawer(sampler), [1], tmp_path).run(merge=True, progress=False)
    arrays = np.load(tmp_path / "samples_1x8x8x5.npz")
    assert arrays.files == ["arr_0"]


def test_ranges_are_cut_and_said_as_typed():
    rng = random.Random(4)
    for _ in range(50):
        values = rng.sample(range(30), rng.randint(1, 20))
        if rng.random() < 0.5:
            values.sort()
        said = []
        for part in as_ranges(values).split(","):
            first, _, last = part.partition("-")
            said.extend(range(int(first), int(last or first) + 1))
        assert said == values
    assert as_ranges(range(1000)) == "0-999"


def test_blocks_are_full_and_hold_every_seed_once():
    blocks = Blocks.of(range(100, 123), 3, batch_size=4, shard_size=8)
    seen = []
    for index in range(len(blocks)):
        for seeds, labels, count in blocks.of_shard(index):
            assert len(seeds) == len(labels) == 4
            assert set(labels.tolist()) == {3}
            seen.extend(seeds[:count].tolist())
    assert seen == list(range(100, 123))
