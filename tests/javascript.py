"""Node and a headless Chromium for tests: where they, or npm's packages, cannot be had, a test is skipped."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any, NamedTuple

import onnx_exports
import pytest
from filelock import FileLock

ROOT = Path(__file__).parents[1]
UNREACHABLE = re.compile(r"\b(E(NOTFOUND|AI_AGAIN|CONNREFUSED|CONNRESET|TIMEDOUT|NETUNREACH)|E40\d|E5\d\d)\b")
"""Of npm, where it found no registry: no fault of what is tested."""


def program(*names: str) -> str:
    """The first of these programs that is here; a test without one is skipped."""
    found = next(filter(None, map(shutil.which, names)), None)
    if found is None:
        pytest.skip(f"{names[0]} is not installed")
    return found


def chromium() -> str:
    """The browser."""
    return program("chromium", "chromium-browser", "google-chrome")


def node(*words: object, given: str = "") -> subprocess.CompletedProcess[str]:
    """A run of Node, whatever its end."""
    command = [program("node"), *map(str, words)]
    return subprocess.run(command, input=given, capture_output=True, text=True, timeout=180, check=False)


def installed(source: str) -> Path:
    """A copy of a folder of the repository with the packages of its lock file, made by the first worker that
    asks, beside a copy of examples/sampler.mjs."""
    npm = program("npm")
    program("node")
    home = onnx_exports.home / "javascript"
    home.mkdir(exist_ok=True)
    folder = home / Path(source).name
    with FileLock(home / f"{folder.name}.lock"):
        if not folder.exists():
            shutil.copy(ROOT / "examples" / "sampler.mjs", home)
            scratch = home / f"{folder.name}.new"
            shutil.rmtree(scratch, ignore_errors=True)
            shutil.copytree(ROOT / source, scratch, ignore=shutil.ignore_patterns("node_modules"))
            install = [npm, "ci", "--no-audit", "--no-fund", "--fetch-retries=1"]
            done = subprocess.run(install, cwd=scratch, capture_output=True, text=True, check=False)
            if done.returncode and (reason := UNREACHABLE.search(done.stderr)):
                pytest.skip(f"npm's packages cannot be had ({reason[0]})")
            assert done.returncode == 0, done.stderr
            scratch.rename(folder)
    return folder


class Visit(NamedTuple):
    """What a browser did: what each act gave, what the console said, what was asked for."""

    results: list[Any]
    said: list[str]
    asked: list[str]


def visited(url: str, acts: list[list[Any]]) -> Visit:
    """A page in a headless Chromium, and acts on it: see tests/examples/browsing/browse.mjs."""
    browser = chromium()
    script = installed("tests/examples/browsing") / "browse.mjs"
    done = node(script, browser, url, given=json.dumps(acts))
    assert done.returncode == 0, done.stderr
    return Visit(**json.loads(done.stdout))
