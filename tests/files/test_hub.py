"""Models on the Hugging Face Hub: from a cache that is laid out as the Hub's, and what is fetched of one."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import huggingface_hub
import pytest
import torch
from hub_cases import add
from huggingface_hub import errors
from huggingface_hub.utils import filter_repo_objects
from networks import make_unet

import fastddpm
from fastddpm import BadArgument, CheckpointError, NoiseSchedule
from fastddpm.cli import app
from fastddpm.formats.hub import names_repository
from fastddpm.tasks import SuperResolve, write_task

SHAPE = [3, 8, 8]
OPTIONS = {"method": "ddim", "num_inference_steps": 2, "clip_sample_range": 1.0, "shape": SHAPE}


def save(folder: Path, bias: float = 0.0) -> Path:
    network = make_unet()
    with torch.no_grad():
        network.conv_out.bias.add_(bias)
    return fastddpm.save_folder(folder, network, NoiseSchedule.linear(20), OPTIONS)


@pytest.fixture
def cache(tmp_path):
    """Of one repository with two commits, the first of which is tagged."""
    for commit, branch, bias in (("a" * 40, "v1", 0.0), ("b" * 40, "main", 1.0)):
        add(tmp_path / "hub", "some-lab/digits.v2", save(tmp_path / commit, bias), commit, branch)
    return tmp_path / "hub"


def same(one, other):
    theirs = other.model.state_dict()
    return all(torch.equal(tensor, theirs[name]) for name, tensor in one.model.state_dict().items())


def test_what_is_in_the_cache_is_loaded_without_asking(cache, tmp_path):
    kept = {"cache_dir": cache, "local_files_only": True}
    first, last = fastddpm.load(tmp_path / ("a" * 40)), fastddpm.load(tmp_path / ("b" * 40))
    assert same(fastddpm.load("some-lab/digits.v2", **kept), last)
    for revision in ("v1", "a" * 40):
        assert same(fastddpm.load("some-lab/digits.v2", revision=revision, **kept), first)
        assert same(fastddpm.load(f"some-lab/digits.v2@{revision}", **kept), first)
    given = fastddpm.load("some-lab/digits.v2", num_inference_steps=3, **kept)
    assert given.options["num_inference_steps"] == 3


def test_the_command_samples_one_by_its_name(cache, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for name in ("some-lab/digits.v2", "some-lab/digits.v2@v1"):
        words = ["sample", name, "--seeds", "1", "--out", str(tmp_path / "a.png")]
        monkeypatch.setattr(sys, "argv", ["fastddpm", *words])
        with pytest.raises(SystemExit) as end:
            app.main()
        assert (end.value.code, capsys.readouterr().err) == (0, "")
    assert (tmp_path / "a.png").exists()


def test_what_is_not_there_is_said(cache):
    kept = {"cache_dir": cache, "local_files_only": True}
    for source, options in (("some-lab/nothing", {}), ("some-lab/digits.v2", {"revision": "v3"})):
        with pytest.raises(CheckpointError, match=f"{source}: not here, and not in the cache of"):
            fastddpm.load(source, **options, **kept)
    with pytest.raises(BadArgument, match=r"revision: 'v1' with 'some-lab/digits\.v2@v1' given, one"):
        fastddpm.load("some-lab/digits.v2@v1", revision="v1", **kept)


def test_a_path_is_no_repository(cache, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save(tmp_path / "runs" / "model")
    asked = []
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *given, **options: asked.append(given))
    assert fastddpm.load("runs/model").shape == (3, 8, 8)
    with pytest.raises(CheckpointError, match="model folder 'runs/modle': not found"):
        fastddpm.load("runs/modle")
    for name in (
        "a",
        "runs/b/c",
        "runs/b@c/d",
        "/a/b",
        "../a",
        "a/.b",
        "a/b/../c",
        "a b/c",
        f"a/{'b' * 200}",
    ):
        assert not names_repository(name), name
    assert asked == []
    for option in ({"revision": "v1"}, {"token": "secret"}, {"cache_dir": "x"}, {"local_files_only": True}):
        with pytest.raises(BadArgument, match="which is not on the Hub, given, None accepted") as error:
            fastddpm.load("runs/model", **option)
        assert "secret" not in str(error.value)


@pytest.fixture
def served(tmp_path, monkeypatch):
    """Serves a folder as any repository; what was fetched of it."""
    (tmp_path / "remote").mkdir()
    fetched: list[str] = []

    def snapshot_download(repo_id, *, allow_patterns, **options):
        files = [
            str(path.relative_to(tmp_path / "remote")) for path in sorted((tmp_path / "remote").rglob("*.*"))
        ]
        for name in filter_repo_objects(files, allow_patterns=allow_patterns):
            target = tmp_path / "snapshot" / name
            if not target.exists():
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(tmp_path / "remote" / name, target)
                fetched.append(name)
        (tmp_path / "snapshot").mkdir(exist_ok=True)
        return str(tmp_path / "snapshot")

    def list_repo_files(self, repo_id, *, revision):
        remote = tmp_path / "remote"
        return [str(path.relative_to(remote)) for path in remote.rglob("*") if path.is_file()]

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    monkeypatch.setattr(huggingface_hub.HfApi, "list_repo_files", list_repo_files)
    return fetched


def test_no_file_is_fetched_that_is_not_read(served, tmp_path):
    remote = save(tmp_path / "remote")
    write_task(remote, SuperResolve(factor=4))
    others = [
        "model.bin",
        "optimizer.pt",
        "README.md",
        "checkpoints/step_1/model.safetensors",
        "vae/config.json",
    ]
    for name in others:
        (remote / name).parent.mkdir(parents=True, exist_ok=True)
        (remote / name).write_bytes(b"x")
    fastddpm.load("some-lab/model")
    assert sorted(served) == [
        "config.json",
        "model.safetensors",
        "sampler.json",
        "schedule.json",
        "task.json",
    ]


def diffusers_folder(remote: Path, weights: list[str]) -> None:
    from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel

    torch.manual_seed(0)
    unet = UNet2DModel(
        8,
        3,
        3,
        block_out_channels=(8, 16),
        norm_num_groups=4,
        layers_per_block=1,
        down_block_types=("DownBlock2D",) * 2,
        up_block_types=("UpBlock2D",) * 2,
    )
    DDPMPipeline(unet, DDPMScheduler(20)).save_pretrained(remote)
    content = (remote / "unet/diffusion_pytorch_model.safetensors").read_bytes()
    (remote / "unet/diffusion_pytorch_model.safetensors").unlink()
    for name in weights:
        (remote / name).parent.mkdir(exist_ok=True)
        if name.endswith(".bin"):
            torch.save(unet.state_dict(), remote / name)
        else:
            (remote / name).write_bytes(content)
    (remote / "unet_ema").mkdir(exist_ok=True)


U = "unet/diffusion_pytorch_model"


@pytest.mark.parametrize(
    ("there", "variant", "fetched"),
    [
        ([f"{U}.safetensors", f"{U}.bin", f"{U}.fp16.safetensors"], None, [f"{U}.safetensors"]),
        ([f"{U}.safetensors", f"{U}.fp16.safetensors"], "fp16", [f"{U}.fp16.safetensors"]),
        ([f"{U}.fp16.safetensors", f"{U}.bin"], None, [f"{U}.bin"]),
        ([f"{U}.fp16.safetensors", f"{U}.fp16.bin"], None, [f"{U}.fp16.safetensors"]),
        ([f"{U}.bin", "unet/other.bin"], None, [f"{U}.bin"]),
    ],
)
def test_of_a_pipeline_one_network_is_fetched_as_safetensors_if_there(
    served, tmp_path, there, variant, fetched
):
    diffusers_folder(tmp_path / "remote", there)
    shutil.rmtree(tmp_path / "remote" / "unet_ema")
    sampler = fastddpm.load("some-lab/pipeline", variant=variant)
    assert sampler.shape == (3, 8, 8)
    assert [name for name in served if not name.endswith(".json")] == fetched
    # What the whole folder gives.
    assert same(sampler, fastddpm.load(tmp_path / "snapshot", variant=variant))


def test_a_pipeline_whose_parts_lie_at_the_root(served, tmp_path):
    """As google's ddpm-cifar10-32 has them."""
    remote = tmp_path / "remote"
    diffusers_folder(remote, [f"{U}.safetensors"])
    for file in (*(remote / "unet").iterdir(), remote / "scheduler" / "scheduler_config.json"):
        file.rename(remote / file.name)
    for part in ("unet", "scheduler", "unet_ema"):
        (remote / part).rmdir()
    sampler = fastddpm.load("some-lab/pipeline")
    assert len(sampler.schedule.betas) == 20
    assert "scheduler_config.json" in served
    assert same(sampler, fastddpm.load(remote))


def test_of_a_folder_in_a_repository_nothing_else_is_fetched(served, tmp_path):
    remote = tmp_path / "remote"
    diffusers_folder(remote / "runs" / "first", [f"{U}.safetensors"])
    (remote / "runs" / "first" / "unet_ema").rmdir()
    save(remote / "runs" / "second")
    (remote / "ema.pt").write_bytes(b"x")
    one, other = fastddpm.load("some-lab/runs/runs/first"), fastddpm.load("some-lab/runs/runs/second@main")
    assert same(one, fastddpm.load(remote / "runs/first"))
    assert same(other, fastddpm.load(remote / "runs/second"))
    weights = [name for name in served if not name.endswith(".json")]
    assert weights == [f"runs/first/{U}.safetensors", "runs/second/model.safetensors"]
    with pytest.raises(
        CheckpointError, match=r"several models in it \(ema\.pt, runs/first, runs/second\); one of"
    ):
        fastddpm.load("some-lab/runs")


def test_a_pipeline_of_latents_is_refused_before_its_weights_are_fetched(served, tmp_path):
    diffusers_folder(tmp_path / "remote", [f"{U}.safetensors"])
    index = {"_class_name": "StableDiffusionPipeline", "unet": ["diffusers", "UNet2DConditionModel"]}
    (tmp_path / "remote" / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match="latents"):
        fastddpm.load("some-lab/pipeline")
    assert [name for name in served if not name.endswith(".json")] == []


def test_a_repository_without_a_model_is_said(served, tmp_path):
    (tmp_path / "remote" / "README.md").write_text("nothing")
    with pytest.raises(CheckpointError, match="some-lab/text: no weights of a model in this repository,"):
        fastddpm.load("some-lab/text")


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (
            errors.RepositoryNotFoundError,
            "not found here or on the Hugging Face Hub; a private",
        ),
        (errors.GatedRepoError, "a repository that asks for consent"),
        (errors.RevisionNotFoundError, "no such revision; a branch, tag or commit"),
        (errors.LocalEntryNotFoundError, "not here, and not in the cache of the Hugging Face Hub"),
        (OSError, r"not fetched from the Hugging Face Hub \(no\)"),
    ],
)
def test_what_the_hub_says_is_one_line(monkeypatch, error, said):
    def fail(*given, **options):
        raise error.__new__(error, "no") if error is not OSError else OSError("no")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    with pytest.raises(CheckpointError, match=f"^some-lab/model: {said}") as raised:
        fastddpm.load("some-lab/model", token="secret")
    assert "\n" not in str(raised.value)
    assert "secret" not in str(raised.value)
