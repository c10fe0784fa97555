"""What goes out with a release says the same version, and is made of files that are there."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import fastddpm

ROOT = Path(__file__).parents[2]
SIGNS = {"": "blob", "!": "raw"}


def test_one_version_and_its_date():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    releases = re.findall(r"^## \[([\d.]+)\] - (\d{4}-\d\d-\d\d)$", (ROOT / "CHANGELOG.md").read_text(), re.M)
    assert releases[0] == (fastddpm.__version__, citation["date-released"])
    assert citation["version"] == fastddpm.__version__
    assert sorted(releases, key=lambda release: release[1], reverse=True) == releases


def test_the_workflow_runs_what_ci_runs():
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())
    commands = [step["run"] for job in workflow["jobs"].values() for step in job["steps"] if "run" in step]
    assert commands == ["bash .ci/run"]
    assert (ROOT / ".ci" / "run").is_file()


def test_hooks_before_a_commit_are_those_of_lint():
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"][0]["hooks"]
    makefile = (ROOT / "Makefile").read_text()
    for hook in hooks:
        words = hook["entry"].replace(" --force-exclude", "")
        assert re.search(rf"\$\(BIN\)/{words}( \.)?$", makefile, re.M), words


def test_every_page_of_the_site_is_in_its_navigation():
    text = (ROOT / "mkdocs.yml").read_text()
    pages = {str(page.relative_to(ROOT / "docs")) for page in (ROOT / "docs").rglob("*.md")}
    assert set(re.findall(r": ([\w/]+\.md)$", text, re.M)) == pages


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="what is released is what a checkout has committed")
def test_what_an_index_shows_leads_to_the_repository(tmp_path):
    tomllib = pytest.importorskip("tomllib")  # of Python 3.11
    script = [sys.executable, ROOT / "scripts" / "build_release.py", "--tree", tmp_path]
    subprocess.run([*script, "--repository", "git@gitlab.com:some/group/body.git"], check=True)
    committed, readme = tmp_path / "fastddpm", (tmp_path / "fastddpm" / "README.md").read_text()
    links = re.findall(r"(!?)\[[^\]]*\]\(([^)]*)\)", readme)
    repository = "https://gitlab.com/some/group/body"
    begins = {sign: f"{repository}/-/{kind}/v{fastddpm.__version__}/" for sign, kind in SIGNS.items()}
    assert [link for sign, link in links if not link.startswith(begins[sign])] == []
    places = [link.removeprefix(begins[sign]).partition("#")[0] for sign, link in links]
    assert len(places) > 30
    assert {place for place in places if not (committed / place).exists()} == set()
    assert "<this repository>" not in readme
    for name in ("fastddpm", "fastddpm-runtime"):
        addresses = tomllib.loads((tmp_path / name / "pyproject.toml").read_text())["project"]["urls"]
        assert addresses["Repository"] == repository
        assert addresses["Changelog"] == f"{begins['']}CHANGELOG.md"


def test_links_to_files_are_made_absolute_and_others_stay(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "scripts")
    addressed = importlib.import_module("build_release").addressed
    text = "[a](b/c.md#d) ![e](f.png) [g](#h) [i](https://j.k/l) `m(n)` [o](mailto:p)"
    there = "[a](https://r/s/blob/v1/b/c.md#d) ![e](https://r/s/raw/v1/f.png)"
    assert addressed(text, "https://r/s/", "v1") == there + text[text.index(" [g]") :]


@pytest.mark.parametrize("repository", ["https://example.org/some/body", "body"])
def test_a_release_of_nowhere_is_refused(repository, tmp_path):
    script = [
        sys.executable,
        ROOT / "scripts" / "build_release.py",
        "--repository",
        repository,
        tmp_path / "out",
    ]
    done = subprocess.run(script, capture_output=True, text=True, check=False)
    assert (done.returncode, list(tmp_path.iterdir())) == (2, [])
    assert f"--repository: '{repository}' given, one at github.com or gitlab.com accepted" in done.stderr
