"""Sound files of every kind that is read, small, to be damaged by the fuzz; and the readers of them.

`samples(folder)` writes them; `READERS[kind](path)` reads one as the library does.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

JOB_SETTINGS = {"format": "npz", "seeds": 2}


@dataclass(frozen=True)
class Sample:
    """What is read, by which reader, and the one file of it that is damaged.

    Attributes:
        kind: of `READERS`.
        root: what the reader is given: a file, or a folder.
        file: the file to damage, below the root's parent.
        weight: how often it is taken, against the others.
    """

    kind: str
    root: Path
    file: Path
    weight: int


def samples(folder: Path) -> list[Sample]:
    """Writes one of each into a new folder."""
    made = [
        *_models(folder),
        *_jobs(folder),
        *_pictures(folder),
        *_tables(folder),
        *_onnx(folder),
        *_runs(folder),
    ]
    return sorted(made, key=lambda sample: str(sample.file))


def _models(folder: Path) -> list[Sample]:
    import torch
    from safetensors.torch import save_file

    import fastddpm
    from fastddpm.formats.writing import save_pipeline
    from fastddpm.tasks import SuperResolve
    from fastddpm.tasks.registry import write_task
    from fastddpm.unet import abarankab, sr3
    from fastddpm_bench.peers.palette import GammaUNet, Network

    config = fastddpm.UNetConfig(in_channels=1, base_channels=8, channel_mults=(1, 2), num_groups=4)
    unet, schedule = fastddpm.UNet(config).eval(), fastddpm.NoiseSchedule.linear(20)
    ours = fastddpm.save_folder(folder / "model", unet, schedule, {"shape": [1, 8, 8]})
    write_task(ours, SuperResolve())
    sr = fastddpm.UNetConfig(**{**config.to_dict(), "in_channels": 2, "out_channels": 1})
    enlarging = fastddpm.save_folder(
        folder / "super", fastddpm.UNet(sr).eval(), schedule, {"shape": [1, 8, 8], "time_input": "timestep"}
    )
    write_task(enlarging, SuperResolve(factor=2))
    found = [Sample("model", ours, file, 3) for file in ours.iterdir()]

    states = folder / "states"
    states.mkdir()
    torch.save(unet.state_dict(), states / "ours.pth")
    torch.save(unet.state_dict(), states / "legacy.pth", _use_new_zipfile_serialization=False)
    save_file(unet.state_dict(), states / "ours.safetensors")
    torch.save(
        {**abarankab.their_state_dict(unet, "model."), "betas": torch.linspace(1e-4, 0.02, 20)},
        states / "abarankab.pth",
    )
    theirs = fastddpm.UNet(fastddpm.UNetConfig(**{**config.to_dict(), "time_activation": False})).eval()
    torch.save(sr3.their_state_dict(theirs, "denoise_fn."), states / "sr3.pth")
    (states / "config.json").write_text(json.dumps(SR3_CONFIG))
    gammas = Network(GammaUNet(2, 1, mults=(1, 1), attention=(), updown=True), schedule.betas)
    torch.save(gammas.state_dict(), states / "palette.pth")
    (states / "palette.json").write_text(json.dumps(PALETTE_CONFIG))
    found += [Sample("state", file, file, 4) for file in states.glob("*.*") if file.suffix != ".json"]
    found += [Sample("configuration", file, file, 3) for file in states.glob("*.json")]

    pipeline = save_pipeline(folder / "pipeline", unet, schedule, {"shape": [1, 8, 8]})
    weights = pipeline / "unet" / "diffusion_pytorch_model.safetensors"
    weights.rename(weights.with_name("part.safetensors"))
    index = {"weight_map": {"conv_in.weight": "part.safetensors"}}
    weights.with_name(f"{weights.name}.index.json").write_text(json.dumps(index))
    return found + [Sample("model", pipeline, file, 3) for file in pipeline.rglob("*.*") if file.is_file()]


SR3_CONFIG = {
    "schedule_phase": "val",
    "model": {
        "which_model_G": "sr3",
        "unet": {"norm_groups": 4, "dropout": 0.0, "in_channel": 1, "out_channel": 1},
        "beta_schedule": {
            "val": {"schedule": "linear", "n_timestep": 20, "linear_start": 1e-4, "linear_end": 0.02}
        },
        "diffusion": {"image_size": 8},
    },
}
PALETTE_CONFIG = {
    "schedule_phase": "test",
    "model": {
        "which_networks": [
            {
                "args": {
                    "module_name": "guided_diffusion",
                    "unet": {"in_channel": 2, "inner_channel": 32, "num_head_channels": 16, "image_size": 8},
                    "beta_schedule": {"test": {"schedule": "linear", "n_timestep": 20, "linear_end": 0.02}},
                }
            }
        ]
    },
}
GIVEN = {
    "time_scale": 1.0,
    "num_groups": 4,
    "activation": "silu",
    "image_size": 8,
    "schedule": {"name": "linear", "parameters": {"num_train_timesteps": 20}},
}


def _jobs(folder: Path) -> list[Sample]:
    from fastddpm.jobs.manifest import add_record
    from fastddpm.jobs.npz import write_npz
    from fastddpm.jobs.shards import digest, shard_name, write_shard

    pixels = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 1), dtype=np.uint8)
    seeds = np.arange(2)
    found = []
    for format in ("npz", "png", "webdataset"):
        job = folder / f"job_{format}"
        job.mkdir()
        name = shard_name(0, format)
        write_shard(job / name, format, pixels, seeds, seeds)
        size, checksum = digest(job / name)
        record = {"name": name, "images": 2, "bytes": size, "sha256": checksum}
        manifest = {"settings": {**JOB_SETTINGS, "format": format}, "shards": [record]}
        (job / "manifest.json").write_text(json.dumps(manifest))
        (job / "records").mkdir()
        add_record(job, record)
        found.append(Sample("job", job, job / "manifest.json", 3))
        found.append(Sample("job", job, job / "records" / "00000.json", 2))
        shard = job / name
        found.append(
            Sample(f"shard_{format}", shard, next(shard.glob("*.png")) if format == "png" else shard, 4)
        )
    write_npz(folder / "stored.npz", {"arr_0": pixels})
    np.savez_compressed(folder / "inflated.npz", arr_0=pixels, other=seeds)
    np.savez(folder / "statistics.npz", mu=np.zeros(3), sigma=np.eye(3), features=np.ones((5, 3)))
    return found + [Sample("images", file, file, 5) for file in folder.glob("*.npz")]


def _pictures(folder: Path) -> list[Sample]:
    from PIL import Image

    place = folder / "pictures"
    place.mkdir()
    levels = np.random.default_rng(1).integers(0, 256, (12, 10, 3), dtype=np.uint8)
    image = Image.fromarray(levels)
    exif = image.getexif()
    exif[0x0112] = 6
    for suffix in ("png", "jpg", "webp", "bmp", "gif", "tif", "ppm", "tga", "jp2"):
        one = place / suffix
        one.mkdir()
        options = {"exif": exif} if suffix in ("png", "jpg", "webp") else {}
        image.save(one / f"a.{suffix}", **options)
    Image.fromarray(levels[..., 0].astype(np.uint16) * 256).save(
        place / "tif" / "a.tif", compression="tiff_lzw"
    )
    return [Sample("picture", file, file, 4) for file in place.rglob("a.*")]


def _tables(folder: Path) -> list[Sample]:
    from datasets import Dataset, Features, Image, Value

    content = (folder / "pictures" / "png" / "a.png").read_bytes()
    rows = {"image": [{"bytes": content, "path": None}] * 3, "label": [0, 1, 0]}
    table = Dataset.from_dict(rows, features=Features({"image": Image(), "label": Value("int64")}))
    table.save_to_disk(folder / "saved")
    place = folder / "tables"
    place.mkdir()
    table.to_parquet(place / "a.parquet")
    arrow = next((folder / "saved").glob("*.arrow"))
    (place / "a.arrow").write_bytes(arrow.read_bytes())
    saved = [Sample("table", folder / "saved", file, 1) for file in (folder / "saved").iterdir()]
    return saved + [Sample("table", file, file, 2) for file in place.iterdir()]


def _onnx(folder: Path) -> list[Sample]:
    place = folder / "onnx"
    place.mkdir()
    files = {}
    for name in ("denoiser.onnx", "step.onnx", "sampler.onnx", "noise.onnx"):
        (place / name).write_bytes(name.encode())
        files[name] = {"sha256": hashlib.sha256(name.encode()).hexdigest(), "bytes": len(name)}
    description = {
        "format": "fastddpm-onnx",
        "version": 1,
        "noise_spec": 1,
        "opset": 20,
        "files": files,
        "image_shape": [1, 8, 8],
        "num_classes": None,
        "null_label": None,
        "class_names": None,
        "condition_channels": 0,
        "schedule": {"name": "linear", "parameters": {"num_train_timesteps": 20}},
        "defaults": {"method": "ddpm", "num_inference_steps": None, "eta": 0.0},
        "prediction_type": "epsilon",
        "time": "index",
    }
    (place / "export.json").write_text(json.dumps(description))
    return [Sample("onnx", place, place / "export.json", 6), Sample("onnx", place, place / "step.onnx", 1)]


def _runs(folder: Path) -> list[Sample]:
    import torch

    from fastddpm.training import checkpoints

    run = folder / "run"
    tensors = {name: {"a": torch.ones(3)} for name in checkpoints.TENSOR_FILES}
    checkpoints.save(run, 5, tensors, {"step": 5, "best_step": 5}, 1)
    (run / "train.json").write_text(json.dumps({"config": {"steps": 5}, "data": {"spec": "mnist"}}))
    (run / "log.jsonl").write_text('{"step": 1, "loss": 0.5}\n{"step": 5, "loss": 0.25}\n')
    found = [Sample("run", run, file, 1) for file in run.rglob("*.*") if file.is_file()]
    return found


def _read_model(path: Path) -> None:
    import fastddpm
    from fastddpm.tasks.registry import read_task

    fastddpm.load(path)
    read_task(path)


def _read_state(path: Path) -> None:
    import fastddpm

    asked = {"sr3": ("num_groups", "image_size", "schedule"), "palette": ("image_size", "schedule")}
    given = {name: GIVEN[name] for name in asked.get(path.stem, GIVEN)}
    fastddpm.load(path, config={**given, "num_heads": 2} if path.stem == "palette" else given)


def _read_configuration(path: Path) -> None:
    import fastddpm

    fastddpm.load(path.with_name("palette.pth" if path.stem == "palette" else "sr3.pth"), config=path)


def _read_job(path: Path) -> None:
    from fastddpm.jobs.manifest import intact

    intact(path)
    _read_images(path)


def _read_images(path: Path) -> None:
    from fastddpm.evaluation.statistics import holds_statistics, read_statistics

    if holds_statistics(path):
        read_statistics(path)
        return
    from fastddpm.evaluation.image_sets import open_images

    images = open_images(path)
    for index in range(min(len(images), 4)):
        images[index]


def _read_shard(format: str) -> Callable[[Path], None]:
    def read(path: Path) -> None:
        from fastddpm.jobs.shards import digest, read_shard

        digest(path)
        read_shard(path, format)

    return read


def _read_picture(path: Path) -> None:
    from fastddpm.data import open_dataset
    from fastddpm.restoration import read_picture

    try:
        read_picture(path)
    finally:
        open_dataset(path.parent, size=8)


def _read_table(path: Path) -> None:
    from fastddpm.data import open_dataset

    open_dataset(path, size=8)


def _read_onnx(path: Path) -> None:
    from fastddpm.onnx.folder import read_folder

    read_folder(path)


def _read_run(path: Path) -> None:
    from fastddpm.training import checkpoints
    from fastddpm.training.description import check_same_run
    from fastddpm.training.report import read_log

    read_log(path)
    try:
        checkpoints.read(path, 5)
    finally:
        check_same_run(path, {"config": {"steps": 5}, "data": {"spec": "mnist"}})


READERS: dict[str, Callable[[Path], None]] = {
    "model": _read_model,
    "state": _read_state,
    "configuration": _read_configuration,
    "job": _read_job,
    "images": _read_images,
    "shard_npz": _read_shard("npz"),
    "shard_png": _read_shard("png"),
    "shard_webdataset": _read_shard("webdataset"),
    "picture": _read_picture,
    "table": _read_table,
    "onnx": _read_onnx,
    "run": _read_run,
}
