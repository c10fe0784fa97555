"""Reports, comparisons and the command, on made-up measurements."""

from __future__ import annotations

import dataclasses
import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from fastddpm.cli import app as cli
from fastddpm.timing import Effort
from fastddpm_bench import excerpts, figures, runner, tables
from fastddpm_bench.comparison import compare
from fastddpm_bench.contest import Contest, Contestant, ParityError
from fastddpm_bench.limits import Limits
from fastddpm_bench.results import Document, Result, Row

MACHINE = {
    "processor": "Abacus",
    "cores": 2,
    "threads": 1,
    "instructions": "none",
    "system": "Linux",
    "python": "3.11",
    "packages": {"torch": "2.14.1", "diffusers": None},
    "device": "cpu",
    "commit": "abc",
}
LIMITS = Limits(((1000, 1e9), (1_000_000, 1e8)), gemm=2e9, convolution=1e9, threads=1)


def samples(seconds, seed, scatter=0.02):
    return (seconds * np.random.default_rng(seed).lognormal(0, scatter, 20)).tolist()


def result(subject="pipelines", workload="net, ddpm, 4 steps", ours=0.5, axis=None, speed=1.0, seed=0):
    rows = [
        Row("diffusers", False, samples(speed, seed), samples(speed, seed + 1), 0.0),
        Row("diffusers, compiled", False, samples(0.8 * speed, seed + 2), [], 1e-6),
        Row("Sampler", True, samples(ours * speed, seed + 3), samples(ours * speed, seed + 4), 1e-6),
    ]
    work = {"flops": 4e8, "bytes": 1e6, "fused": 0.2, "dispatched": 0.3}
    full = 1000 if subject == "pipelines" else 0
    state = {"load": [0.1, 0.1, 0.1], "mhz": 1.0, "gpu": None}
    return Result(
        subject,
        workload,
        "cpu",
        4,
        "step",
        full,
        "s",
        axis,
        rows,
        {"ORT": "not here"},
        work,
        state,
        state,
        "abc",
    )


def document(*results, **machine):
    found = Document("fastddpm bench", False, "2020-01-01", {**MACHINE, **machine}, LIMITS)
    found.results, found.complete, found.finished = list(results), True, "2020-01-02"
    return found


def test_a_document_comes_back_from_its_file(tmp_path):
    whole = document(result(), result("batch", "b", axis=4.0))
    whole.skipped.append({"subject": "s", "workload": "w", "reason": "r"})
    whole.save(tmp_path / "new folder" / "r.json")
    assert Document.load(tmp_path / "new folder" / "r.json") == whole


def test_what_stands_in_the_file_is_right(tmp_path):
    document(result(ours=0.5)).save(tmp_path / "r.json")
    (written,) = json.loads((tmp_path / "r.json").read_text())["results"]
    ours = written["rows"][2]
    median = float(np.median(ours["wall"]))
    assert ours["s a step"]["median"] == pytest.approx(median / 4)
    assert ours["flop_per_s"] == pytest.approx(4e8 / median)
    assert ours["of_possible"] == pytest.approx(0.2 / median)
    assert ours["extrapolated_seconds"] == {"steps": 1000, "value": pytest.approx(250 * median)}
    assert ours["ratio"]["low"] < 0.5 < ours["ratio"]["high"]
    pairs = {(pair["ours"], pair["theirs"]): pair["value"] for pair in written["ours_over_theirs"]}
    assert pairs["Sampler", "diffusers, compiled"] == pytest.approx(0.5 / 0.8, rel=0.05)


@pytest.mark.parametrize("text", ["no JSON", "[]", "{}", '{"format": 99}', '{"format": 1}'])
def test_another_file_is_an_error_that_names_it(tmp_path, text):
    (tmp_path / "r.json").write_text(text)
    with pytest.raises(ValueError, match=r"r\.json: not a result of fastddpm bench"):
        Document.load(tmp_path / "r.json")


def test_report_says_what_it_must():
    whole = document(result())
    whole.skipped.append({"subject": "unet", "workload": "256x256", "reason": "needs a card"})
    text = tables.markdown(whole)
    assert re.search(r"Extrapolated to 1000 steps from 4: diffusers 2[45]\d s", text)
    assert "| **Sampler** |" in text
    assert "- ORT: left out, not here" in text
    assert "- unet, 256x256: needs a card" in text
    assert "matrix product 2 GFLOP/s" in text
    assert "torch 2.14.1" in text
    assert "Not complete" not in text
    whole.complete, whole.parity_failure = False, "other differs"
    text = tables.markdown(whole)
    assert "**Not complete:**" in text
    assert "other differs" in text


def test_quantities_are_read_by_people():
    found = [tables.si(value) for value in (0, 1.234e-9, 0.00123, 0.5, 12.3456, 123.4, 1234, 5e12)]
    assert found == ["0 ", "1.23 n", "1.23 m", "500 m", "12.3 ", "123 ", "1.23 k", "5 T"]
    assert tables.quantity(0.0123, "s") == "12.3 ms"
    assert tables.si(32768, 1024) == "32 K"


def test_figures_of_what_there_is(tmp_path):
    full = document(
        result(), *(result("batch", f"b {n}", axis=n) for n in (1, 4)), result("steps", "s", axis=10)
    )
    names = [path.name for path in figures.draw(full, tmp_path / "all")]
    assert names == ["speedups.png", "roofline.png", "batch.png", "steps.png"]
    assert all((tmp_path / "all" / name).stat().st_size > 5000 for name in names)
    assert figures.draw(document(), tmp_path / "none") == []


def test_a_run_compared_with_itself_is_unchanged():
    found = compare(document(result()), document(result()))
    assert found.same_machine
    assert [change.slower or change.faster for change in found.changes] == [False] * 3


def test_noise_is_no_regression_and_a_slower_machine_neither():
    found = compare(document(result(seed=10, speed=3.0)), document(result(seed=20)))
    assert found.regressions == []
    assert len(found.changes) == 3


@pytest.mark.parametrize(("ours", "slower", "faster"), [(0.6, True, False), (0.4, False, True)])
def test_what_changed_beyond_noise_is_found(ours, slower, faster):
    found = compare(document(result(ours=ours, seed=10)), document(result(ours=0.5, seed=20)))
    (change,) = [change for change in found.changes if change.ours]
    assert (change.slower, change.faster) == (slower, faster)
    assert change.change.low < ours / 0.5 < change.change.high
    assert str(change).startswith("slower" if slower else "faster")


def test_fewer_than_five_rounds_are_not_compared():
    short = result(ours=0.9, seed=10)
    for row in short.rows:
        row.wall = row.wall[:4]
    found = compare(document(short), document(result(ours=0.5, seed=20)))
    assert found.changes == []
    assert all("has 4 rounds in one of the runs, 5 accepted" in line for line in found.missing)
    assert len(found.missing) == 3


def test_a_large_change_within_the_noise_is_none():
    wild = result(ours=0.56, seed=10)
    wild.rows[2].wall = samples(0.56, 3, scatter=1.0)
    assert compare(document(wild), document(result(ours=0.5, seed=20))).regressions == []


def test_what_is_in_one_run_only_is_named():
    new, old = document(result(), result("unet", "n")), document(result(), result("unet", "o"), cores=64)
    old.results[0].rows.pop()
    found = compare(new, old)
    assert not found.same_machine
    assert found.missing == [
        "pipelines, net, ddpm, 4 steps: Sampler only in the new run",
        "unet, n: only in the new run",
        "unet, o: only in the old run",
    ]


# ---------------------------------------------------------------------- the command


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """Runs the command in an empty folder: (exit code, standard output, standard error)."""
    monkeypatch.chdir(tmp_path)

    def call(*words):
        monkeypatch.setattr(sys, "argv", ["fastddpm", "bench", *map(str, words)])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        captured = capsys.readouterr()
        return stop.value.code, captured.out, captured.err

    return call


@pytest.fixture
def planned(monkeypatch):
    """Two contests of constants in place of the real ones; returns the list to change."""

    def build(value):
        return lambda shared: lambda: tensor(value)

    effort = Effort(seconds=0.0, least=3, most=3, warm_up=0)
    pair = [Contestant("base", build(1.0)), Contestant("ours", build(1.0), ours=True)]
    contests = [Contest("unet", name, lambda: None, pair, effort=effort) for name in ("one", "two")]
    monkeypatch.setattr("fastddpm_bench.subjects.contests", lambda settings, names: contests)
    monkeypatch.setattr(runner.limits, "measure", lambda device, quick: LIMITS)
    return contests


def tensor(value):
    return torch.full((4,), value)


def replaced(contest, build):
    return dataclasses.replace(contest, contestants=[*contest.contestants, Contestant("bad", build)])


def test_report_and_json_are_left(run, planned, tmp_path):
    code, out, err = run("--quick", "--json", "deep/r.json", "--out", "rep")
    assert (code, err) == (0, "")
    saved = Document.load(tmp_path / "deep" / "r.json")
    assert saved.complete
    assert saved.quick
    assert saved.command == "fastddpm bench --quick --json deep/r.json --out rep"
    assert saved.machine["commit"]
    assert (tmp_path / "rep" / "report.md").exists()
    assert "unet: two (cpu)" in out
    assert "of baseline's" in out


def test_contests_are_chosen_by_workload(run, planned, tmp_path):
    assert run("--workload", "tw", "--json", "r.json")[0] == 0
    assert [result.workload for result in Document.load(tmp_path / "r.json").results] == ["two"]
    code, _, err = run("--workload", "three")
    assert code != 0
    assert "workload: no contest" in err
    assert "'three'" in err


def test_parity_failure_exits_with_1_and_leaves_a_report(run, planned):
    planned[1] = replaced(planned[1], lambda shared: lambda: tensor(2.0))
    code, _, err = run()
    assert code == 1
    assert "parity failed: unet, two: bad differs by 1.00e+00" in err
    text = Path("bench-report/report.md").read_text()
    assert "## unet: one" in text
    assert "**Parity failed" in text


def test_interruption_exits_with_130_and_leaves_a_report(run, planned):
    def interrupted(shared):
        raise KeyboardInterrupt

    planned[1] = replaced(planned[1], interrupted)
    code, _, err = run()
    assert code == 130
    assert "1 contests measured until then" in err
    assert "**Not complete:**" in Path("bench-report/report.md").read_text()


def test_an_interrupted_run_goes_on(run, planned, tmp_path, monkeypatch):
    def interrupted(shared):
        raise KeyboardInterrupt

    whole = list(planned)
    planned[1] = replaced(planned[1], interrupted)
    assert run("--json", "r.json")[0] == 130
    first = Document.load(tmp_path / "r.json")
    planned[:] = whole
    code, out, _ = run("--json", "r.json", "--resume")
    assert code == 0
    assert "unet: two (cpu)" in out
    assert "unet: one (cpu)" not in out
    saved = Document.load(tmp_path / "r.json")
    assert saved.complete
    assert [result.workload for result in saved.results] == ["one", "two"]
    assert saved.results[0] == first.results[0]
    assert saved.seconds > first.seconds > 0
    assert (saved.started, saved.command) == (first.started, first.command)
    code, _, err = run("--json", "r.json", "--resume", "--quick")
    assert code == 2
    assert "resume: the results there have another quick" in err
    monkeypatch.setattr("fastddpm_bench.machine._processor", lambda: "Abacus")
    code, _, err = run("--json", "r.json", "--resume")
    assert code == 2
    assert "resume: the results there have another processor; the same machine accepted" in err
    assert Document.load(tmp_path / "r.json").results == saved.results


def test_regression_exits_with_1(run, tmp_path):
    document(result(ours=0.5)).save(tmp_path / "old.json")
    document(result(ours=0.7, seed=9)).save(tmp_path / "new.json")
    code, out, _ = run("--from", "new.json", "--compare", "old.json", "--out", "rep")
    assert code == 1
    assert "1 of 3 slower" in out
    assert "speedups.png" in Path("rep/report.md").read_text()
    code, out, _ = run("--from", "old.json", "--compare", "new.json")
    assert code == 0
    assert "0 of 3 slower" in out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--subjects", "unet,nothing"], "--subjects: 'nothing' given, one of reverse_step,"),
        (["--device", "tpu"], "--device: 'tpu' given, one of auto, cpu, cuda accepted"),
        (["--compare", "no.json"], "not found"),
        (["--from", "no.json"], "not found"),
        (["--threads", "0"], "Invalid value for '--threads'"),
    ],
)
def test_errors_are_one_line(run, words, message):
    code, out, err = run(*words)
    assert (code, out) == (2, "")
    assert message in err
    assert err.count("\n") == 1


@pytest.mark.parametrize("package", ["fastddpm_bench", "matplotlib"])
@pytest.mark.parametrize("words", [("--quick",), ("--from", "r.json")])
def test_what_is_not_installed_is_named(package, words, run, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)  # looking for it finds nothing
    code, out, err = run(*words)
    assert (code, out) == (2, "")
    how = "pip install -e . -e benchmarks in a checkout of the repository"
    assert err == f"fastddpm: error: {package}: not installed; {how}\n"


def test_parity_is_an_error_of_its_own():
    """ValueError would be told as a mistake of the person's."""
    assert not issubclass(ParityError, (ValueError, OSError))


def test_the_documented_report_is_of_the_committed_results():
    root = Path(__file__).parents[2]
    committed = Document.load(root / "benchmarks" / "results" / "cpu.json")
    assert committed.complete
    assert committed.parity_failure is None
    assert (root / "docs" / "benchmarks_cpu.md").read_text() == tables.markdown(committed)


def test_the_tables_of_documents_are_of_the_committed_results():
    root = Path(__file__).parents[2]
    committed = excerpts.loaded(root / "benchmarks" / "results")
    made = 0
    for path in sorted((root / "docs").glob("*.md")):
        text = path.read_text()
        made += text.count("<!-- measured: ")
        assert excerpts.filled(text, committed) == text, path
    assert made == len(excerpts.TABLES)
