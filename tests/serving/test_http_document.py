"""docs/serving.md on HTTP: its commands are run against a service, and its table holds every address."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from http_service import events_of, live
from PIL import Image
from test_http import close, pixels_of

import fastddpm
from fastddpm.serving.http.app import ROUTES
from fastddpm.serving.http.service import Service

TEXT = (Path(__file__).parents[2] / "docs" / "serving.md").read_text().partition("## Over HTTP\n")[2]


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
def test_the_commands_do_what_they_show(tmp_path):
    sampler = fastddpm.load()
    (block,) = re.findall(r"```bash\n(curl .*?)```", TEXT, re.S)
    with live(Service({"mnist": sampler})) as client:
        outputs = []
        for command in block.strip().split("\n\n"):
            assert command.startswith("curl ")
            here = command.replace("127.0.0.1:8080", f"127.0.0.1:{client.port}")
            here = "curl --fail --silent --show-error --max-time 120" + here.removeprefix("curl")
            done = subprocess.run(["bash", "-c", here], cwd=tmp_path, capture_output=True, check=False)
            assert done.returncode == 0, done.stderr
            outputs.append(done.stdout)
    wanted = sampler.replace(num_inference_steps=20).sample(seeds=[7], class_labels=3, progress=False)
    assert close(pixels_of((tmp_path / "7.png").read_bytes())[..., None], wanted[0])
    with Image.open(tmp_path / "four.png") as picture:
        assert picture.size == (558, 558)
    assert [name for name, _ in events_of(outputs[2]) if name in ("image", "done")] == [
        "image",
        "image",
        "done",
    ]
    assert sum(name == "preview" for name, _ in events_of(outputs[2])) == 2 * 4
    [pixels] = json.loads(outputs[3])["outputs"]
    wanted = sampler.replace(num_inference_steps=10).sample(seeds=[1, 2], class_labels=3, progress=False)
    assert close(np.array(pixels["data"]).reshape(pixels["shape"]), wanted)


def test_the_table_has_every_address():
    listed = re.findall(r"`(GET|POST) (/[^`]*)`", TEXT)
    there = [(method, route.path) for route in ROUTES for method in route.methods if method != "HEAD"]
    assert sorted(set(listed)) == sorted(there)


def test_the_options_that_are_named_are_there():
    import typer

    from fastddpm.cli import app

    options = {
        option for param in typer.main.get_command(app.app).commands["serve"].params for option in param.opts
    }
    named = set(re.findall(r"`(--[a-z-]+)", TEXT))
    assert named <= options
    assert {"--max-batch", "--token", "--grace"} <= named


def test_the_metrics_that_are_named_are_there():
    service = Service({"mnist": fastddpm.load()})
    service.metrics.count("/", "GET", 200, 0.1)
    text = service.metrics.text().decode()
    for name in re.findall(r"`(fastddpm_\w+)`", TEXT):
        assert f"\n{name}" in text, name
