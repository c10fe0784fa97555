"""What differs between versions of torch, asked of stand-ins for each; and CUDA without Triton."""

from __future__ import annotations

import subprocess
import sys
import warnings

import pytest
import torch
from fake_cuda_steps import BUFFERS, run_step
from networks import TINY

from fastddpm import EngineUnavailable, UNet
from fastddpm.engine import resolve_engine
from fastddpm.engine.step import StepCase
from fastddpm.tabulated import bind
from fastddpm_kernels import compat

CUDA, CPU = torch.device("cuda"), torch.device("cpu")


@pytest.fixture
def no_triton(monkeypatch):
    monkeypatch.setattr(compat, "HAS_TRITON", False)
    compat._warn_of_missing_triton.cache_clear()
    yield
    compat._warn_of_missing_triton.cache_clear()


def compile_of_214(model, *, dynamic=None, mode=None, isolate_recompiles=False):
    return model, {"dynamic": dynamic, "mode": mode, "isolate_recompiles": isolate_recompiles}


def compile_of_29(model, *, dynamic=None, mode=None):
    return model, {"dynamic": dynamic, "mode": mode}


def double(x):
    return 2 * x


def test_compilations_are_counted_apart_by_an_option_where_torch_has_it(monkeypatch):
    monkeypatch.setattr(torch, "compile", compile_of_214)
    function, options = compat.compiled(double, mode="default")
    assert function is double
    assert options == {"dynamic": False, "mode": "default", "isolate_recompiles": True}


def test_compilations_are_counted_apart_by_code_objects_where_torch_has_no_option(monkeypatch):
    monkeypatch.setattr(torch, "compile", compile_of_29)
    (first, options), (second, _) = (compat.compiled(double, mode="default") for _ in range(2))
    assert options == {"dynamic": False, "mode": "default"}
    assert first(3) == second(3) == 6
    assert first.__code__ is not second.__code__


@pytest.mark.parametrize("has_option", [True, False], ids=["as this torch does", "without the option"])
def test_every_loop_is_compiled_however_many_there_are(has_option, monkeypatch):
    """torch's limit is a number for one code object, beyond which the function runs as it is."""
    if not has_option:
        monkeypatch.setattr(compat, "_takes", lambda function, parameter: False)
    torch._dynamo.reset()
    compilations = []

    def backend(graph, inputs):
        compilations.append(1)
        return graph.forward

    def step_of(factor):
        def step(x):
            return factor * x

        return step

    loops = torch._dynamo.config.recompile_limit + 3
    for factor in range(loops):
        step = compat.compiled(step_of(factor), backend=backend)
        assert step(torch.ones(2)).tolist() == [factor, factor]
    assert len(compilations) == loops
    torch._dynamo.reset()


def test_a_pools_memory_is_read_without_its_history(monkeypatch):
    monkeypatch.setattr(torch.cuda, "memory_snapshot", lambda pool=None: [("before 2.11", pool)])
    assert compat.pool_segments((0, 1)) == [("before 2.11", (0, 1))]

    def with_traces(pool=None, include_traces=True):
        return [(include_traces, pool)]

    monkeypatch.setattr(torch.cuda, "memory_snapshot", with_traces)
    assert compat.pool_segments((0, 1)) == [(False, (0, 1))]


def test_kernels_of_the_interpreter_are_not_wrapped(monkeypatch):
    """torch 2.11 refuses them."""
    from triton.runtime.interpreter import InterpretedFunction

    from fastddpm_kernels.reverse_step.kernel import reverse_step_kernel

    monkeypatch.setattr(torch.library, "wrap_triton", lambda kernel: ("traced", kernel))
    interpreted = InterpretedFunction(double)
    assert compat.wrap_triton(interpreted) is interpreted
    assert compat.wrap_triton(reverse_step_kernel) == ("traced", reverse_step_kernel)


def test_kernels_run_on_cuda():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert compat.runs_kernels(CUDA)
        assert not compat.runs_kernels(CPU)


@pytest.mark.usefixtures("no_triton")
def test_without_triton_one_warning_is_given():
    with warnings.catch_warnings(record=True) as given:
        warnings.simplefilter("always")
        assert not any(compat.runs_kernels(device) for device in (CPU, CUDA, CUDA, CUDA))
    [warning] = given
    assert "Triton is not installed: on CUDA, plain PyTorch runs" in str(warning.message)


@pytest.mark.usefixtures("no_triton")
def test_without_triton_a_step_on_cuda_is_plain_torch_and_stays_on_the_device(fake_cuda):
    """So it can be captured."""
    case = StepCase((2, 3, 8, 8), clip=True)
    with fake_cuda:
        model = UNet(TINY).eval()
        network = bind(
            model, guided=False, cond={"class_labels": torch.zeros(2, dtype=torch.int64)}, **BUFFERS
        )
    with pytest.warns(RuntimeWarning, match="Triton is not installed"):
        devices = run_step(case, network)
    assert devices.strays == []
    assert not [name for name in devices.operators if name.startswith("fastddpm::")]
    assert "aten::native_group_norm" in devices.operators


@pytest.mark.usefixtures("no_triton")
def test_without_triton_nothing_is_compiled_for_cuda():
    assert resolve_engine("auto", CUDA) == resolve_engine("cudagraph", CUDA) == "cudagraph"
    assert resolve_engine("compile", CPU) == "compile"
    for engine in ("compile", "max"):
        with pytest.raises(EngineUnavailable, match=rf"'{engine}' needs Triton.*auto, eager or cudagraph"):
            resolve_engine(engine, CUDA)


def test_every_operator_runs_on_cuda_where_triton_cannot_be_imported():
    code = """
import sys, warnings
sys.modules["triton"] = None  # importing it raises, looking for it finds nothing
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from fastddpm_kernels import group_norm_silu, noise_mse, q_sample, reverse_step
with FakeTensorMode(), torch.device("cuda"), warnings.catch_warnings(record=True) as given:
    warnings.simplefilter("always")
    x, i, table = torch.zeros(2, 4, 8, 8), torch.zeros(2, dtype=torch.int64), torch.zeros(9)
    for _ in range(2):
        reverse_step(x, x.clone(), torch.zeros(1, 32), i.expand(2, 2), noise=i, clip=True)
        x_t = q_sample(x, i, table, table, seeds=i, ordinals=i)
        results = [x_t, noise_mse(x, i, i), group_norm_silu(x, 2)]
print([result.device.type for result in results], [str(w.message).split(":")[0] for w in given])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "['cuda', 'cuda', 'cuda'] ['Triton is not installed']", done.stderr
