"""The files of `deploy/`: what they name is there. No image is built here."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import typer
import yaml

from fastddpm.cli import app
from fastddpm.serving.http.app import ROUTES

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"


def instructions():
    """Of the Dockerfile: (name, the rest)."""
    text = (DEPLOY / "Dockerfile").read_text().replace("\\\n", " ")
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    return [tuple(line.split(maxsplit=1)) for line in lines]


def check_words(words):
    """Fails for options that `fastddpm serve` has not."""
    command = typer.main.get_command(app.app).commands["serve"]
    with command.make_context("serve", list(words), resilient_parsing=False):
        pass


def test_what_the_image_copies_is_there_and_not_ignored():
    ignored = (DEPLOY / "Dockerfile.dockerignore").read_text().splitlines()
    copied = [name for kind, rest in instructions() if kind == "COPY" for name in rest.split()[:-1]]
    assert set(copied) == {"pyproject.toml", "README.md", "LICENSE", "fastddpm", "kernels"}
    for name in copied:
        assert (ROOT / name).exists()
        assert f"!{name}" in ignored


def test_the_image_runs_the_command_as_nobody_in_particular():
    found = instructions()
    words = json.loads(dict(found)["ENTRYPOINT"])
    assert words[:2] == ["fastddpm", "serve"]
    check_words(words[2:])
    names = [kind for kind, _ in found]
    assert names.index("USER") < names.index("ENTRYPOINT")
    assert dict(found)["USER"] not in ("root", "0")
    [installed] = [rest for kind, rest in found if kind == "RUN" and "pip install" in rest]
    assert re.findall(r"\.\[(.*?)\]", installed) == ["serve"]
    port = words[words.index("--port") + 1]
    assert dict(found)["EXPOSE"] == port
    health = re.search(r"http://127\.0\.0\.1:(\d+)(/\S+?)'", dict(found)["HEALTHCHECK"])
    assert health[1] == port
    assert health[2] in [route.path for route in ROUTES]


def test_options_that_are_not_there_are_seen():
    with pytest.raises(Exception, match="No such option"):
        check_words(["--hosts", "0.0.0.0"])


def test_what_is_composed_fits_together():
    composed = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
    served, watching = composed["services"]["fastddpm"], composed["services"]["prometheus"]
    assert (DEPLOY / served["build"]["context"]).resolve() == ROOT
    assert (ROOT / served["build"]["dockerfile"]).is_file()
    entry = json.loads(dict(instructions())["ENTRYPOINT"])[2:]
    check_words([*entry, *served["command"]])
    grace = float(served["command"][served["command"].index("--grace") + 1])
    assert float(served["stop_grace_period"].removesuffix("s")) >= grace + 5
    assert "FASTDDPM_TOKEN" in served["environment"]
    # Other machines reach neither.
    assert all(port.startswith("127.0.0.1:") for one in (served, watching) for port in one["ports"])
    [volume] = watching["volumes"]
    source, target, _ = volume.split(":")
    assert target == "/etc/prometheus/prometheus.yml"
    scraped = yaml.safe_load((DEPLOY / source).read_text())["scrape_configs"]
    [job] = scraped
    assert job.get("metrics_path", "/metrics") in [route.path for route in ROUTES]
    assert job["static_configs"] == [{"targets": [f"fastddpm:{served['ports'][0].split(':')[2]}"]}]
    [secret] = watching["secrets"]
    assert job["authorization"] == {"type": "Bearer", "credentials_file": f"/run/secrets/{secret}"}
    assert composed["secrets"][secret] == {"environment": "FASTDDPM_TOKEN"}
