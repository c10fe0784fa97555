"""scripts/card.sh: on the CPU, small, with a part that fails; the goals; the section of docs/gpu.md."""

from __future__ import annotations

import importlib
import json
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "scripts" / "card.sh"
sys.path.insert(0, str(ROOT / "scripts" / "card"))

import goals  # noqa: E402
import tables  # noqa: E402

import results  # noqa: E402


def run(*words):
    return subprocess.run(
        ["bash", str(SCRIPT), *map(str, words)], capture_output=True, text=True, check=False
    )


def test_the_kit_on_a_cpu_survives_a_part_that_fails(tmp_path):
    pytest.importorskip("diffusers")
    python = tmp_path / "python"
    python.write_text(
        f'#!/bin/sh\ncase "$1" in *environment.py) echo broken; exit 3 ;; esac\nexec {sys.executable} "$@"\n'
    )
    python.chmod(0o755)
    out = tmp_path / "out"
    parts = [word for part in ("environment", "speed", "bandwidth", "profile") for word in ("--part", part)]
    done = run("--tiny", "--out", out, "--python", python, *parts)
    assert done.returncode == 0, done.stderr
    assert (out / "environment.log").read_text() == "broken\n"
    found = json.loads((out / "card.json").read_text())
    assert found["tiny"]
    assert [line.split(",")[0] for line in found["parts"]] == [
        "environment: exit code 3",
        "speed: exit code 0",
        "bandwidth: exit code 0",
        "profile: exit code 0",
    ]
    assert found["environment"] is found["doctor"] is found["tests"] is None
    for part in ("speed", "bandwidth", "profile"):
        assert found[part]["rows"]
        assert [row for row in found[part]["rows"] if "error" in row] == []
    speed = found["speed"]["rows"]
    assert {row["dtype"] for row in speed} == {"bfloat16", "float32"}
    assert {row["ours"] for row in speed} == {True, False}
    # Float32 on a CPU is the same arithmetic: the drop-in's images are the pipeline's.
    assert max(row["largest_difference"] for row in speed if row["dtype"] == "float32") < 1e-4
    kernels = {row["name"].split(",")[0].split()[0] for row in found["bandwidth"]["rows"]}
    assert kernels >= {"reverse_step", "q_sample", "group_norm_silu", "noise_mse"}
    assert {goal["reached"] for goal in found["goals"] if goal["measured"] is None} == {None}
    assert tables.card("x.json", found)  # it can be shown


NEEDED = {"dropins": ("diffusers", "denoising_diffusion_pytorch"), "policies": ("diffusers",)}


@pytest.mark.parametrize("part", tables.MORE)
def test_what_else_may_be_asked_for(part, tmp_path, monkeypatch):
    """On a CPU, small, and here: five processes would import torch five times."""
    for name in NEEDED.get(part, ()):
        pytest.importorskip(name)
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    monkeypatch.setattr(sys, "argv", [part, str(tmp_path), "--tiny", "--seconds", "300"])
    for name in ("signal", "alarm"):
        monkeypatch.setattr(signal, name, lambda *_: 0)
    with torch.random.fork_rng():
        importlib.import_module(part).main()
    found = json.loads((tmp_path / f"{part}.json").read_text())["rows"]
    assert [row["error"] for row in found if "error" in row] == []
    ours = [row for row in found if row.get("ours")]
    assert part == "precisions" or ours
    # Float32 on a CPU is the same arithmetic, or nearly.
    if part in ("dropins", "policies"):
        assert len(found) == 2 * len(ours)
        assert max(row["largest_difference"] for row in ours) < 1e-3
    if part == "large_pictures":
        assert [row["largest_difference"] for row in found if "largest_difference" in row] == [0.0]
    shown = "\n".join(tables.card("x.json", document(**{part: {"rows": found}})))
    assert tables.MORE[part] in shown
    assert all(row["name"] in shown for row in found)


def test_parts_are_asked_for_as_they_take_it(tmp_path):
    """All but the slow ones are usual; each is told its seconds."""
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\necho "$@"\n')
    python.chmod(0o755)
    for given, wanted in (([], ["dropins", "policies"]), (list(tables.MORE), list(tables.MORE))):
        out = tmp_path / f"out{len(given)}"
        words = [word for part in given for word in ("--part", part)]
        done = run("--tiny", "--out", out, "--python", python, *words)
        assert done.returncode == 0, done.stderr
        assert {path.stem for path in out.glob("*.log")} & set(tables.MORE) == set(wanted)
        for part in wanted:
            assert re.search(
                rf"{part}\.py \S+ --seconds \d+ --tiny$", (out / f"{part}.log").read_text().strip()
            )


def test_a_time_limit_ends_a_part_and_not_the_kit(tmp_path):
    python = tmp_path / "python"
    python.write_text(
        '#!/bin/sh\ncase "$1" in *environment.py) exec sleep 60 ;; *results.py) exec '
        f'{sys.executable} "$@" ;; esac\n'
    )
    python.chmod(0o755)
    done = run(
        "--tiny", "--out", tmp_path / "out", "--python", python, "--seconds", "2", "--part", "environment"
    )
    assert done.returncode == 0, done.stderr
    assert "(its time was up)" in (tmp_path / "out" / "parts.log").read_text()
    assert json.loads((tmp_path / "out" / "card.json").read_text())["parts"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--part", "everything"], "--part: everything given, one of environment doctor tests"),
        (["--seconds", "soon"], "--seconds: soon given, a whole number accepted"),
        (["--out"], "--out: no value given, one accepted"),
        (["--fast"], "--fast: given; --part, --out"),
    ],
)
def test_what_is_refused(words, message, tmp_path):
    done = run(*words)
    assert done.returncode == 2
    assert message in done.stderr
    assert done.stderr.count("\n") == 1


def document(**parts):
    """A card's document with what a test needs."""
    packages = {"torch": "2.11.0", "triton": "3.6.0"}
    machine = {"device": "NVIDIA X", "commit": "abc", "packages": packages, "driver": "580", "cuda": "13.0"}
    empty = {
        "environment": None,
        "doctor": None,
        "speed": None,
        "bandwidth": None,
        "profile": None,
        "tests": None,
    }
    whole = {"date": "2026-01-01", "machine": machine, "parts": [], **empty, **parts}
    return {**whole, "goals": goals.held(whole)}


def row(name, ours, batch, milliseconds, dtype="bfloat16"):
    return {"name": name, "ours": ours, "batch": batch, "dtype": dtype, "ms_per_step": milliseconds}


def test_goals_are_held_to_the_fastest_of_ours_and_the_named_of_theirs():
    rows = [
        row("diffusers, eager", False, 256, 16.0),
        row("diffusers, eager, channels_last", False, 256, 12.0),
        row("diffusers, reduce-overhead, channels_last", False, 256, 9.0),
        row("Sampler, cudagraph", True, 256, 10.0),
        row("Sampler, compile", True, 256, 8.0),
        row("Sampler, compile", True, 256, 1.0, dtype="float32"),
        {"name": "Sampler, other", "ours": True, "batch": 256, "dtype": "bfloat16", "error": "no time left"},
    ]
    bandwidth = [
        {"name": "q_sample, noise drawn, 1x3", "percent_of_copy": 85.0},
        {"name": "q_sample, noise drawn, 2x3", "percent_of_copy": 91.0},
        {"name": "noise_mse float32, forward, 1x3", "error": "no"},
    ]
    found = document(speed={"rows": rows}, bandwidth={"rows": bandwidth})
    held = {goal["what"]: (goal["measured"], goal["reached"]) for goal in found["goals"]}
    assert held["a step at batch 256 (bound 5.87 ms)"] == (8.0, "goal")
    assert held["over diffusers eager, batch 256"] == (1.5, "goal")
    assert held["over diffusers reduce-overhead, batch 256"] == (9 / 8, "must")
    assert held["a step at batch 1 (bound 0.037 ms)"] == (None, None)
    assert held["q_sample, noise drawn"] == (91.0, "goal")
    assert held["noise_mse float32, forward"] == (None, None)


def test_a_goal_compares_like_with_like():
    """A row of ours for which cuDNN or Inductor has tried kernels is none to hold theirs to that has none."""
    name = "diffusers, reduce-overhead, channels_last"
    rows = [
        row("diffusers, eager", False, 256, 16.0),
        row(name, False, 256, 9.0),
        row("Sampler, cudagraph, cudnn.benchmark", True, 256, 6.0),
        row("Sampler, max", True, 256, 8.0),
        row("Sampler, compile", True, 256, 10.0),
    ]
    tried, timed = (row(f"{name}, {how}", False, 256, 7.5) for how in ("cudnn.benchmark", "max-autotune"))
    failed, elsewhere = {**tried, "ms_per_step": None}, {**tried, "batch": 1}
    assert {"cudnn.benchmark", ", max"} == set(goals.TUNINGS)
    for more, wanted in (([], 9 / 10), ([failed, elsewhere], 9 / 10), ([tried], 7.5 / 6), ([timed], 7.5 / 8)):
        found = document(speed={"rows": [*rows, *more]})
        held = {goal["what"]: goal["measured"] for goal in found["goals"]}
        assert held["over diffusers reduce-overhead, batch 256"] == wanted
        assert held["over diffusers eager, batch 256"] == 2.0
        assert held["a step at batch 256 (bound 5.87 ms)"] == 6.0


def test_the_bounds_are_those_of_the_page():
    page = (ROOT / "docs" / "gpu.md").read_text()
    for batch, least in goals.BOUNDS_MS.items():
        (line,) = [line for line in page.splitlines() if line.startswith(f"| {batch} | **step**")]
        assert float(line.split("|")[-2]) / 1000 == pytest.approx(least, rel=0.01)


def test_the_page_is_what_the_files_say():
    page = (ROOT / "docs" / "gpu.md").read_text()
    assert tables.written(page) == page
    if not list(tables.CARDS.glob("*.json")):
        assert tables.NOBODY in page


def test_a_card_is_shown_with_what_failed(tmp_path):
    checks = [{"name": "fine", "status": "passed"}, {"name": "ddim, max", "status": "failed"}]
    tests = {
        "end": "1 failed, 80 passed in 99s",
        "failed": ["FAILED tests/sampler/test_gpu_engine.py::test_x"],
    }
    figures = {"images_per_s": 600.0, "first_s": 3.0, "largest_difference": 1e-3}
    speed = {"rows": [{**row("Sampler, max", True, 256, 8.123), **figures}]}
    given = document(doctor={"checks": checks}, tests=tests, speed=speed)
    (tmp_path / "x.json").write_text(json.dumps(given))
    shown = tables.section(tmp_path)
    for words in (
        "### NVIDIA X",
        "commit abc",
        "torch 2.11.0",
        "1 checks passed, 1 failed (ddim, max)",
        "1 failed, 80 passed in 99s (FAILED tests/sampler/test_gpu_engine.py::test_x)",
        "| Sampler, max | bfloat16 | 256 | 8.123 | 600 | 3.0 | 1e-03 |",
        "| a step at batch 256 (bound 5.87 ms), ms | 9.5 | 8.5 | 7 | 8.12 | goal |",
    ):
        assert words in shown
    assert tables.section(tmp_path / "none") == tables.NOBODY


def test_what_pytest_said_is_read_from_its_log(tmp_path):
    log = tmp_path / "tests.log"
    assert results.tests_of(log) is None
    log.write_text("x\nFAILED tests/a.py::b - no\n1 failed, 3 passed, 5 deselected in 2.00s\n")
    assert results.tests_of(log) == {
        "end": "1 failed, 3 passed, 5 deselected in 2.00s",
        "failed": ["FAILED tests/a.py::b - no"],
    }
    log.write_text("Fatal error\n")
    assert results.tests_of(log)["end"] == "it did not come to its end; 0 failed, 0 passed until then"


@pytest.mark.parametrize(
    "said",
    [
        "tests/a.py::b[c d] PASSED    [ 25%]\ntests/a.py::e FAILED    [ 50%]\n"
        "tests/a.py::f SKIPPED (no) [ 75%]\ntests/a.py::g ",
        "tests/a.py::b[c d] \n[gw1] [ 25%] PASSED tests/a.py::b[c d] \n[gw0] [ 50%] FAILED tests/a.py::e \n"
        "[gw0] [ 75%] SKIPPED tests/a.py::f \n",
    ],
)
def test_what_ended_before_pytest_was_stopped_is_read_too(said, tmp_path):
    """As pytest 9.2 says it with -vv, alone and in workers."""
    log = tmp_path / "tests.log"
    log.write_text(f"collecting ... collected 9 items / 5 deselected / 4 selected\n\n{said}")
    assert results.tests_of(log) == {
        "end": "it did not come to its end; 1 failed, 1 passed until then",
        "failed": ["FAILED tests/a.py::e"],
    }
