"""What the README shows runs as it stands there, and what it points at is there."""

from __future__ import annotations

import re
from pathlib import Path

import diffusers
import pytest
import torch

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


def test_the_readme_says_that_no_gpu_has_run_it():
    assert "No GPU has run this yet" in (ROOT / "README.md").read_text()
