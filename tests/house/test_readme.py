"""What the README shows runs as it stands there, and what it points at is there."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import diffusers
import pytest
import torch
import typer

from fastddpm.cli import app

ROOT = Path(__file__).parents[2]
DOCUMENTS = [
    path.relative_to(ROOT).as_posix()
    for pattern in (
        *("*.md", "docs/*.md", "kernels/*.md", "benchmarks/*.md"),
        *("fastddpm/assets/*/*.md", "examples/*/*.md"),
    )
    for path in sorted(ROOT.glob(pattern))
]


@pytest.fixture
def pipeline(tmp_path, monkeypatch):
    """What the README takes as given: a pipeline, and a diffusers folder in the working folder."""
    unet = diffusers.UNet2DModel(
        sample_size=8,
        block_out_channels=(32, 64),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    )
    pipeline = diffusers.DDPMPipeline(unet.eval(), diffusers.DDPMScheduler(20))
    monkeypatch.chdir(tmp_path)
    pipeline.save_pretrained("ddpm-cifar10-32")
    return pipeline


def test_the_python_of_the_readme_runs(pipeline):
    generator = torch.Generator().manual_seed(0)
    names = {"pipeline": pipeline, "generator": generator}
    own, dropin, load = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S)
    exec(own, names)
    assert names["images"].shape == (3, 3, 32, 32)
    assert names["frames"].shape == (8, 1, 1, 28, 28)
    assert names["nearby"].shape == (10, 1, 28, 28)
    for name in ("images", "frames", "nearby"):
        assert torch.isfinite(names[name]).all()

    # The scheduler has 20 steps; the pipelines' own default is 1000.
    exec(dropin.replace("(batch_size", "(num_inference_steps=20, batch_size"), names)
    generator.manual_seed(0)
    expected = pipeline(batch_size=4, generator=generator, num_inference_steps=20).images
    assert [image.tobytes() for image in names["images"]] == [image.tobytes() for image in expected]

    exec(load, names)
    assert names["sampler"].sample(1, progress=False).shape == (1, 3, 8, 8)


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_point_at_files(document):
    path = ROOT / document
    links = [link for link in re.findall(r"\]\(([^)#]+)", path.read_text()) if "://" not in link]
    missing = [link for link in links if not (path.parent / link).exists()]
    assert missing == []


BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", re.M | re.S)
OURS = re.compile(r"(?:^|-m )fastddpm (?=\S)")


def shown(text: str) -> Iterator[tuple[str, bool]]:
    """The lines of shell that a document shows, and whether they are whole: in blocks, and not in prose."""
    for language, block in BLOCK.findall(text):
        if language in ("", "bash"):
            yield from ((line, True) for line in block.replace("\\\n", " ").splitlines())
    for code in re.findall(r"`([^`]+)`", BLOCK.sub("", text)):
        # `a | b` and `a|b` are choices, N a number.
        yield re.sub(r" ?\| ?\S+", "", code.replace("\n", " ")).replace(" N", " 1"), False


def refusal(command, name: str, words: list[str]) -> tuple[str, str]:
    """The kind of error that words are to a command, and what it says; empty where they are taken."""
    try:
        command.make_context(name, words)
    except Exception as error:
        return type(error).__name__, str(error)
    return "", ""


@pytest.mark.parametrize("document", DOCUMENTS)
def test_commands_in_documents_are_taken(document, tmp_path, monkeypatch):
    """The application reads their words, options and values, and is stopped before it does anything."""
    text = (ROOT / document).read_text()
    monkeypatch.chdir(tmp_path)
    for language, block in BLOCK.findall(text):
        if language == "yaml":
            Path("train.yaml").write_text(block)
    group = typer.main.get_command(app.app)
    for line, is_whole in shown(text):
        if (found := OURS.search(line)) is None:
            continue
        name, *words = shlex.split(line[found.end() :], comments=True)
        if name.startswith("-") or "--help" in words:
            continue
        command = group.get_command(None, name)
        assert command is not None, line
        refused, why = refusal(command, name, words)
        # In prose a command may go without its arguments, and an option without its value.
        accepted = {""} if is_whole else {"", "MissingParameter", "BadOptionUsage"}
        assert refused in accepted, f"{line}: {why}"


@pytest.mark.parametrize("document", DOCUMENTS)
def test_what_else_documents_run_is_there(document):
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.M))
    for line, _ in shown((ROOT / document).read_text()):
        for target in re.findall(r"(?:^|&& |; )make ([\w-]+)", line):
            assert target in targets, line
        for file in re.findall(r"(?:^|/|=1 )(?:python|bash|pytest) (?!-)([\w./*-]+)", line):
            near = (ROOT, (ROOT / document).parent)
            assert any([*folder.glob(file)] for folder in near), line


def test_the_readme_says_that_no_gpu_has_run_it():
    assert "No GPU has run this yet" in (ROOT / "README.md").read_text()
