"""Contests: parity before timing, what is left out, what is kept of a run that ends early."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch

from fastddpm.timing import Effort
from fastddpm_bench import runner
from fastddpm_bench.contest import BenchSettings, Contest, Contestant, LeftOut, ParityError, assemble
from fastddpm_bench.costs import OpCost
from fastddpm_bench.limits import Limits
from fastddpm_bench.results import Document
from fastddpm_bench.subjects import SUBJECTS, contests

CPU = torch.device("cpu")
EFFORT = Effort(seconds=0.0, least=3, most=3, warm_up=0)
LIMITS = Limits(((1000, 1e9),), gemm=1e9, convolution=2e9, threads=1)


def constant(value, calls=None):
    """A contestant's build: a call that returns a tensor of one value, and notes that it ran."""

    def build(shared):
        def call():
            if calls is not None:
                calls.append(value)
            return torch.full((2, 3), value)

        return call

    return build


def contest(*contestants, workload="w", **options):
    return Contest("s", workload, lambda: None, contestants, effort=EFFORT, **options)


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(runner.limits, "measure", lambda device, quick: LIMITS)
    return BenchSettings(CPU, quick=True)


def run(planned, settings, path):
    document = Document("fastddpm bench", True, runner.now(), {})
    seen = []
    try:
        runner.run(planned, settings, document, path, seen.append)
    finally:
        saved = Document.load(path)
    return saved, seen


def test_equal_outputs_are_measured(quick, tmp_path):
    planned = contest(
        Contestant("base", constant(1.0)),
        Contestant("ours", constant(1.00005), ours=True),
        per=10,
        costs=lambda shared: [OpCost("mm", 1000, 10)],
    )
    saved, seen = run([planned], quick, tmp_path / "r.json")
    assert saved.complete
    assert saved.limits == LIMITS
    (result,) = saved.results
    assert [row.name for row in result.rows] == ["base", "ours"]
    assert [row.ours for row in result.rows] == [False, True]
    assert result.rows[1].difference == pytest.approx(5e-5, rel=1e-2)
    assert all(len(row.wall) == 3 for row in result.rows)
    assert result.work["fused"] == pytest.approx(1000 / 2e9)
    assert seen[0].key == result.key
    written = json.loads((tmp_path / "r.json").read_text())["results"][0]
    seconds = written["rows"][0]["s a call"]["median"] * 10
    assert written["rows"][0]["flop_per_s"] == pytest.approx(1000 / seconds)
    assert written["ours_over_theirs"][0]["theirs"] == "base"


def test_parity_failure_stops_before_anything_is_timed(quick, tmp_path):
    calls = []
    good = contest(Contestant("base", constant(1.0)), workload="good")
    bad = contest(Contestant("base", constant(1.0, calls)), Contestant("other", constant(1.1, calls)))
    never = contest(Contestant("base", constant(5.0, calls)), workload="never")
    with pytest.raises(ParityError, match=r"s, w: other differs by 1\.00e-01, 1\.00e-04 accepted"):
        run([good, bad, never], quick, tmp_path / "r.json")
    assert calls == [1.0, 1.1]
    saved = Document.load(tmp_path / "r.json")
    assert [result.workload for result in saved.results] == ["good"]
    assert not saved.complete
    assert "other differs" in saved.parity_failure


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (constant(float("nan")), "differs by nan"),
        (lambda shared: lambda: torch.ones(3, 2), r"gives \(3, 2\), \(2, 3\) expected"),
    ],
)
def test_other_failures_of_parity(build, message):
    with pytest.raises(ParityError, match=message):
        assemble(contest(Contestant("base", constant(1.0)), Contestant("other", build)), None)


def test_a_tolerance_is_relative_above_one():
    pair = [Contestant("base", constant(100.0)), Contestant("other", constant(100.009))]
    assemble(contest(*pair), None)
    with pytest.raises(ParityError):
        assemble(contest(Contestant("base", constant(100.0)), Contestant("o", constant(100.02))), None)


def test_who_drew_other_noise_is_held_to_that():
    expected = Contestant("ours", constant(7.0), expected=lambda shared: torch.full((2, 3), 7.0))
    field = assemble(contest(Contestant("base", constant(1.0)), expected), None)
    assert field.differences == {"base": 0.0, "ours": 0.0}
    wrong = Contestant("ours", constant(7.1), expected=lambda shared: torch.full((2, 3), 7.0))
    with pytest.raises(ParityError):
        assemble(contest(Contestant("base", constant(1.0)), wrong), None)


def missing(shared):
    raise ImportError("No module named 'something'")


def test_who_is_not_installed_is_left_out_with_the_reason(quick, tmp_path):
    planned = contest(Contestant("base", constant(1.0)), Contestant("other", missing))
    whole = contest(Contestant("base", missing), workload="whole")
    large = contest(Contestant("base", constant(1.0)), workload="large", needs_gpu=True)
    saved, _ = run([planned, whole, large], quick, tmp_path / "r.json")
    assert saved.results[0].left_out == {"other": "No module named 'something'"}
    reasons = {skipped["workload"]: skipped["reason"] for skipped in saved.skipped}
    assert reasons["whole"] == "base: No module named 'something'"
    assert "needs a CUDA or ROCm card" in reasons["large"]
    assert saved.complete


def test_errors_of_contestants_are_not_hidden():
    def broken(shared):
        raise RuntimeError("a bug")

    with pytest.raises(RuntimeError, match="a bug"):
        assemble(contest(Contestant("base", constant(1.0)), Contestant("other", broken)), None)


def test_every_contestant_is_compiled(quick, tmp_path):
    """Of one function for more of them than torch would: what it no longer compiles runs eagerly, and says so
    nowhere."""
    sizes = []

    def function(x):
        return x + 1

    def compiler(graph, inputs):
        sizes.append(len(inputs[0]))
        return graph.forward

    def build(size):
        def made(shared):
            compiled = torch.compile(function, backend=compiler, dynamic=False)
            return lambda: compiled(torch.zeros(size))[:1]

        return made

    many = [Contestant(str(size), build(size)) for size in range(2, 12)]
    run([contest(*many)], quick, tmp_path / "r.json")
    assert sizes == list(range(2, 12))


def test_interruption_keeps_what_was_measured(quick, tmp_path):
    def interrupted(shared):
        raise KeyboardInterrupt

    first = contest(Contestant("base", constant(1.0)), workload="first")
    second = contest(Contestant("base", interrupted), workload="second")
    with pytest.raises(KeyboardInterrupt):
        run([first, second], quick, tmp_path / "r.json")
    saved = Document.load(tmp_path / "r.json")
    assert [result.workload for result in saved.results] == ["first"]
    assert not saved.complete
    assert saved.finished is not None


def test_returned_bytes_are_the_samples(quick, tmp_path):
    sizes = [Contestant("base", lambda shared: lambda: 2000), Contestant("o", lambda shared: lambda: 500)]
    saved, _ = run([contest(*sizes, unit="B")], quick, tmp_path / "r.json")
    (result,) = saved.results
    assert result.rows[0].wall == [2000.0] * 3
    assert result.ratio(result.rows[1]).value == 0.25


@pytest.mark.parametrize("quick", [True, False])
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_every_subject_lists_its_contests(quick, device):
    """Without setting one up: also what only a GPU runs."""
    found = contests(BenchSettings(torch.device(device), quick=quick))
    on_a_cpu = {"precisions"} if device == "cuda" else set()
    assert {one.subject for one in found} == set(SUBJECTS) - on_a_cpu
    assert len({(one.subject, one.workload) for one in found}) == len(found)
    for one in found:
        names = [contestant.name for contestant in one.contestants]
        assert len(set(names)) == len(names)
        assert not one.contestants[0].ours
        assert any(contestant.ours for contestant in one.contestants)
        assert ("64x64" in one.workload or "256x256, 113" in one.workload) <= one.needs_gpu
        random = "cifar10" in one.workload and "ddim" in one.workload
        assert (one.brief is not None) == random, one.workload
    if device == "cuda" and not quick:
        names = {contestant.name for one in found for contestant in one.contestants}
        assert {"Sampler, cudagraph", "Sampler, max", "fastddpm, replayed"} <= names
    # No capture may hold torch's own graphs.
    names = {contestant.name for one in found for contestant in one.contestants}
    assert [name for name in names if "reduce-overhead, replayed" in name] == []
    assert ("diffusers UNet2DModel, replayed" in names) == (device == "cuda")


def test_large_contests_say_that_they_need_a_card():
    large = [one for one in contests(BenchSettings(CPU)) if one.needs_gpu]
    assert {one.subject for one in large} == {"unet", "pipelines", "restated", "training"}
    with pytest.raises(LeftOut, match="needs a CUDA or ROCm card"):
        large[0].check_runs_on(CPU)


@pytest.mark.parametrize("subject", ["reverse_step", "q_sample"])
def test_kernels_measured(subject, quick, tmp_path):
    """The contests themselves: every contestant computes the same."""
    planned = [one for one in contests(quick, [subject]) if one.workload.startswith("mnist")]
    saved, _ = run(planned, quick, tmp_path / "r.json")
    assert [len(result.rows) >= 2 for result in saved.results] == [True, True]
    assert saved.complete


@pytest.mark.parametrize(
    ("precision", "seen"),
    [("highest", ["ieee"] * 2), (None, ["ieee", "tf32", "tf32"]), ("tf32", ["ieee", "tf32", "tf32"])],
)
def test_on_a_card_outputs_are_compared_with_tf32_off_and_timed_as_asked(monkeypatch, precision, seen):
    """What is captured keeps the kernels of the precision that it was made in: it is built anew."""
    conv, read = torch.backends.cudnn.conv, []

    def build(shared):
        read.append(conv.fp32_precision)
        return lambda: torch.zeros(1)

    contest = Contest("it", "any", lambda: None, [Contestant("one", build)])
    monkeypatch.setattr(runner, "make_clock", lambda device: None)
    monkeypatch.setattr(
        runner, "interleaved", lambda calls, clock, effort: read.append(conv.fp32_precision) or {}
    )
    settings = BenchSettings(torch.device("cuda"), precision=precision)
    field = runner.exactly(contest, None, settings)
    assert field.differences == {"one": 0.0}
    with runner.forced(settings.precision):
        runner._sampled(contest, field, settings)
    assert read == seen
    assert conv.fp32_precision == "tf32"
    # What grows over the whole is compared by less work, and then built for the whole.
    worked = []
    brief = dataclasses.replace(
        contest,
        contestants=[Contestant("one", lambda shared: lambda: worked.append(shared) or torch.zeros(1))],
        brief=lambda: "less",
    )
    runner.exactly(brief, "all", settings).calls["one"]()
    assert worked == ["less", "all", "all"]
