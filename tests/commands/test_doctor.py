"""`fastddpm doctor`: on this machine, with something broken, and with parts of the environment missing."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from importlib.metadata import PackageNotFoundError
from types import SimpleNamespace

import pytest
import torch

from fastddpm.cli import app as cli
from fastddpm.doctor import cases, chains, environment, examine, kernels
from fastddpm.doctor.comparison import Comparison, compared
from fastddpm.doctor.report import Examination
from fastddpm_kernels import compat


@pytest.fixture
def run(monkeypatch, capsys, tmp_path):
    """Runs the command in an empty folder: (exit code, standard output, standard error)."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "300")

    def call(*words):
        monkeypatch.setattr(sys, "argv", ["fastddpm", "doctor", "--device", "cpu", *map(str, words)])
        try:
            code = cli.main()
        except SystemExit as stop:
            code = stop.code
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


@pytest.fixture(scope="module")
def run_once():
    """`subprocess.run`, once for each command: the interpreter takes 10 s for what two tests look at."""
    done = {}

    def called(command, **options):
        key = tuple(command)
        if key not in done:
            done[key] = subprocess.run(command, **options)
        return done[key]

    return called


@pytest.fixture
def interpreted_once(monkeypatch, run_once):
    monkeypatch.setattr(kernels, "subprocess", SimpleNamespace(run=run_once))


def test_a_healthy_cpu(run, interpreted_once):
    code, out, err = run()
    assert (code, err) == (0, "")
    assert "graphs and bandwidth are not examined" in out
    with open("doctor.json") as file:
        found = json.load(file)
    assert found["ok"]
    assert found["complete"]
    assert found["device"] == "cpu"
    assert found["rates"] == []
    assert {part["name"] for part in found["parts"]} >= {"torch", "triton", "driver", "onnxruntime providers"}
    results = {check["name"]: check for check in found["checks"]}
    assert results["noise, known answer"]["status"] == "passed"
    assert results["reverse_step, clip, 3x32x32, cpu"]["error"] < 4e-6
    assert results["reverse_step, guidance, 3x11x1, interpreter"]["status"] == "passed"
    assert results["ddpm, a seed alone and in a batch"]["status"] == "passed"
    assert results["bf16 against float32, one evaluation"]["error"] > 1e-4
    assert results["graphs and bandwidth"]["status"] == "skipped"
    assert "TF32 off" in out


def test_a_wrong_operator_is_found_and_fails(run, monkeypatch):
    right = kernels.fastddpm_kernels.q_sample
    monkeypatch.setattr(chains, "comparisons", lambda device: [])
    monkeypatch.setattr(kernels, "interpreted", list)
    monkeypatch.setattr(
        type(kernels.fastddpm_kernels),
        "q_sample",
        property(lambda package: lambda **given: 1.001 * right(**given), lambda package, value: None),
    )
    code, out, _ = run("--json", "found.json")
    assert code == 1
    with open("found.json") as file:
        found = json.load(file)
    assert not found["ok"]
    failed = [check["name"] for check in found["checks"] if check["status"] == "failed"]
    assert failed == ["q_sample, noise drawn, 3x32x32, cpu", "q_sample, noise given, 3x32x32, cpu"]
    assert "2 failed" in out


def test_a_broken_kernel_is_found_in_the_interpreter(monkeypatch, interpreted_once):
    monkeypatch.setattr(kernels, "limit", lambda operator: 0.0)
    assert {check.status for check in kernels.interpreted()} == {"failed"}
    monkeypatch.setattr(kernels.importlib.util, "find_spec", lambda name: None)
    [check] = kernels.interpreted()
    assert (check.status, check.note) == ("skipped", "triton is not installed")


def test_a_card_without_triton(monkeypatch):
    """What is compared is plain torch and says so; nothing is compiled, and no bandwidth measured."""
    cuda = torch.device("cuda")
    with_triton = {one.name for one in (*chains.comparisons(cuda), *kernels.comparisons(cuda))}
    assert any("compile against eager" in name for name in with_triton)
    monkeypatch.setattr(compat, "HAS_TRITON", False)
    without = [one.name for one in (*chains.comparisons(cuda), *kernels.comparisons(cuda))]
    assert any("cudagraph against eager" in name for name in without)
    assert not [name for name in without if "compile against eager" in name or name.endswith(", card")]
    for module in (chains, kernels):
        monkeypatch.setattr(module, "comparisons", lambda device: [])
    monkeypatch.setattr(kernels, "references", list)
    found = examine(cuda)
    assert found.rates == []
    assert [(check.name, check.note) for check in found.checks] == [
        ("kernels and bandwidth", "triton is not installed")
    ]


def test_an_unwritable_path_is_found_before_any_work(run, monkeypatch):
    monkeypatch.setattr("fastddpm.doctor.examine", lambda *given: pytest.fail("work was done"))
    code, _, err = run("--json", "missing/doctor.json")
    assert code == 2
    assert "missing" in err


def test_what_was_found_until_it_was_stopped_is_kept(run, monkeypatch):
    def stopped():
        raise KeyboardInterrupt

    found = [
        Comparison("a", 0.0, lambda: 0.0),
        Comparison("b", 0.0, lambda: 1.0),
        Comparison("c", 0.0, stopped),
    ]
    monkeypatch.setattr(kernels, "references", lambda: found)
    run()
    with open("doctor.json") as file:
        kept = json.load(file)
    assert [(check["name"], check["status"]) for check in kept["checks"]] == [
        ("a", "passed"),
        ("b", "failed"),
    ]
    assert not kept["ok"]
    assert not kept["complete"]


@pytest.mark.parametrize(("error", "status"), [(0.5, "passed"), (0.6, "failed"), (math.nan, "failed")])
def test_limits(error, status):
    check = compared(Comparison("it", 0.5, lambda: error))
    assert check.status == status


def test_kernels_are_held_against_float64():
    """Which float32, rounded, differs from: a reference in float32 would pass on its own rounding."""
    for case in cases.cases((3, 5, 2)):
        for expected in case.expected:
            assert expected.dtype == torch.float64
            assert not torch.equal(expected, expected.float().double())


def test_what_a_check_raises_is_its_failure():
    def run():
        raise RuntimeError("CUDA error: an illegal memory access\nmore")

    check = compared(Comparison("it", 0.5, run))
    assert (check.status, check.note) == ("failed", "RuntimeError: CUDA error: an illegal memory access")
    assert not Examination("cuda:0", checks=[check]).ok


def test_cards():
    assert environment.card("cuda:0", "H100", (9, 0), 80 << 30).disables == ""
    assert environment.card("cuda:0", "A100", (8, 0), 40 << 30).disables == ""
    old = environment.card("cuda:1", "V100", (7, 0), 16 << 30)
    assert old.found == "V100, sm_70, 16 GiB"
    assert "older than sm_80: unsupported" in old.disables
    assert environment.card("cuda:0", "MI300X", (9, 4), 192 << 30, rocm=True).disables == ""


def test_missing_packages_say_what_they_disable(monkeypatch):
    def nowhere(name):
        raise PackageNotFoundError(name)

    monkeypatch.setattr(environment, "version", nowhere)
    found = {part.name: part for part in environment.parts()}
    for name in environment.PACKAGES:
        assert found[name].found is None
        assert found[name].disables
    assert "onnx" in found["onnxruntime providers"].disables


def test_a_flat_picture_is_no_proof():
    assert chains._difference(torch.zeros(2, 2), torch.zeros(2, 2)) == math.inf


def test_exact_checks_run_with_tf32_off_whatever_torch_is_set_to(monkeypatch):
    """Also where the process has it on, by the older switch; which is on again afterwards."""
    conv, seen = torch.backends.cudnn.conv, []

    def run():
        seen.append((conv.fp32_precision, torch.backends.cuda.matmul.fp32_precision))
        return 0.0

    monkeypatch.setattr(kernels, "references", lambda: [Comparison("a", 0.0, run)])
    monkeypatch.setattr(chains, "comparisons", lambda device: [Comparison("b", 0.0, run)])
    monkeypatch.setattr(kernels, "interpreted", list)
    assert torch.backends.cudnn.allow_tf32  # torch's default
    found = examine(torch.device("cpu"))
    assert seen == [("ieee", "ieee")] * 2
    assert torch.backends.cudnn.allow_tf32
    assert conv.fp32_precision == "tf32"
    assert "TF32 off" in found.to_dict()["precision"]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_healthy_card(tmp_path):
    """What `fastddpm doctor` does there: kernels, graphs, seeds and bandwidths."""
    found = examine(torch.device("cuda"))
    assert [check for check in found.checks if check.status != "passed"] == []
    assert [part for part in found.parts if "unsupported" in part.disables] == []
    names = [name for name, _, _ in found.rates]
    operators = {name.split(",")[0].split()[0] for name in names}
    assert operators == {"copy", "reverse_step", "q_sample", "noise_mse", "group_norm_silu"}
