"""What goes out with a release says the same version, and is made of files that are there."""

from __future__ import annotations

import re
from pathlib import Path

import yaml

import fastddpm

ROOT = Path(__file__).parents[2]


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
