"""`OnnxSampler` in a service: threads, memory, providers that do not start or compute wrongly."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
import textwrap
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import numpy_helper
from onnx_exports import exported

from fastddpm.onnx import OnnxSampler, ProviderError
from fastddpm.onnx.providers import Provider
from fastddpm.onnx.sampler import buffer_size
from fastddpm.onnx.step_loop import SLOTS, StepLoop
from fastddpm_kernels.noise.reference import MULTIPLIERS


@pytest.fixture(params=["file", "steps"])
def loop(request):
    return request.param


def test_threads_share_a_sampler(loop):
    """Each thread asks for its own seeds, labels, batch sizes and steps; none may see another's."""
    sampler = OnnxSampler(exported("classes"), "cpu", threads=1, loop=loop)

    def call(number: int):
        seeds = [100 * number + i for i in range(1 + number % 3)]
        return sampler.sample(
            seeds=seeds,
            class_labels=number % 4,
            guidance_scale=1.0 + number % 2,
            num_inference_steps=3 + number % 4,
            progress=False,
        )

    expected = [call(number) for number in range(12)]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(3):
            for images, alone in zip(pool.map(call, range(12)), expected, strict=True):
                np.testing.assert_array_equal(images, alone)


def test_one_thread_at_a_time_uses_the_buffers(monkeypatch):
    sampler = OnnxSampler(exported("classes"), "cpu", threads=1, loop="steps")
    run, inside, most = StepLoop.run, [], []

    def slow(loop, *arguments):
        inside.append(loop)
        most.append(len(inside))
        time.sleep(0.02)  # the others reach this point, unless they wait
        try:
            return run(loop, *arguments)
        finally:
            inside.pop()

    monkeypatch.setattr(StepLoop, "run", slow)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: sampler.sample(num_inference_steps=1, progress=False), range(8)))
    assert most == [1] * 8


def test_memory_does_not_grow_with_calls(loop):
    """A kept batch of 64 images is 49 kB: kept by 300 calls, 15 MB."""
    code = f"""
        import os, sys
        from fastddpm.onnx import OnnxSampler
        sampler = OnnxSampler({str(exported("classes"))!r}, "cpu", threads=1, loop={loop!r})
        def resident():
            with open("/proc/self/statm") as file:
                return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        def calls(count):
            for i in range(count):
                sampler.sample((64, 3, 17, 33)[i % 4], class_labels=i % 4, guidance_scale=1.0 + i % 2,
                               num_inference_steps=1 + i % 2, output=("float", "uint8")[i % 2])
        calls(60)
        before = resident()
        calls(1200 if {loop!r} == "file" else 600)
        print(resident() - before)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 6e6


def test_buffers_are_few():
    assert [buffer_size(n) for n in (1, 2, 3, 5, 8, 9, 33, 64)] == [1, 2, 4, 8, 8, 16, 64, 64]
    sampler = OnnxSampler(exported("classes"), "cpu", threads=1, loop="steps")
    for count in range(1, 9):
        sampler.sample(count, num_inference_steps=1, progress=False)
    assert sorted(sampler._step_loops) == [(1, False), (2, False), (4, False), (8, False)]


def test_a_graph_belongs_to_one_binding(monkeypatch):
    """A captured graph is replayed on the addresses of its first run: a number must mean one binding, whose
    buffers never move, and no two sizes may share one."""
    sampler = OnnxSampler(exported("classes"), "cpu", threads=1, loop="steps")
    call = {"class_labels": 1, "num_inference_steps": SLOTS + 3, "progress": False}
    expected = {
        n: sampler.sample(seeds=range(n), guidance_scale=w, **call) for n, w in ((1, 1), (3, 1), (4, 2))
    }
    seen: dict[str, list] = {}

    class Replaying:
        """Runs a number's first binding again, whatever it is given: what a replay does."""

        def __init__(self, session):
            self.session = session

        def __getattr__(self, name):
            return getattr(self.session, name)

        def run_with_iobinding(self, binding, options):
            runs = seen.setdefault(options.get_run_config_entry("gpu_graph_id"), [])
            runs.append(binding)
            self.session.run_with_iobinding(runs[0])

    replayed = OnnxSampler(exported("classes"), "cpu", threads=1, loop="steps")
    replayed._graphs = True
    make = replayed._session
    monkeypatch.setattr(replayed, "_session", lambda *a, **k: Replaying(make(*a, **{**k, "graphs": False})))
    replayed._step_sessions.clear()
    for _ in range(2):
        for n, w in ((1, 1), (3, 1), (4, 2)):
            np.testing.assert_array_equal(
                replayed.sample(seeds=range(n), guidance_scale=w, **call), expected[n]
            )
    assert len(seen) == 3 * SLOTS
    assert "0" not in seen  # ONNX Runtime's own number for runs that name none
    assert sum(map(len, seen.values())) == 2 * 3 * (SLOTS + 3)


# ---------------------------------------------------------------- providers


def test_auto_is_the_cpu_here():
    sampler = OnnxSampler(exported("classes"))
    assert (sampler.provider, sampler.loop) == ("CPUExecutionProvider", "file")
    assert repr(sampler).endswith("provider='CPUExecutionProvider', loop='file')")


@pytest.mark.filterwarnings("ignore:Specified provider")
def test_a_provider_that_does_not_start(monkeypatch):
    """ONNX Runtime would go on with the CPU in silence; without a card, its CUDA build does just this."""
    here = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: here)
    with pytest.raises(
        ProviderError, match=r"CUDAExecutionProvider, which does not start here .*cpu accepted"
    ):
        OnnxSampler(exported("classes"), "cuda")
    with pytest.warns(UserWarning, match=r"does not start here.*the CPU is used"):
        assert OnnxSampler(exported("classes")).provider == "CPUExecutionProvider"


def test_a_step_that_cannot_be_captured_runs_without_graphs(monkeypatch):
    sampler = OnnxSampler(exported("classes"), "cpu", threads=1, loop="steps")
    sampler._graphs = True
    session = Provider.session

    def refuses(self, file, *, graphs=False):
        if graphs:
            raise ProviderError("provider", f"{file.name} with nodes elsewhere", "cpu")
        return session(self, file)

    monkeypatch.setattr(Provider, "session", refuses)
    with pytest.warns(
        UserWarning,
        match="step_guided.onnx with nodes elsewhere .*; running without CUDA graphs",
    ):
        guided = sampler.sample(seeds=[1], class_labels=1, guidance_scale=2.0, progress=False)
    assert np.isfinite(guided).all()
    # A session that captures gives every binding a number still; one that does not gives none.
    sampler._step_sessions[False] = (sampler._step_sessions[False][0], True)
    sampler.sample(seeds=[1], class_labels=1, progress=False)
    numbers = {
        guided: [options.get_run_config_entry("gpu_graph_id") for options in loop._run_options]
        for (_, guided), loop in sampler._step_loops.items()
        if not guided
    }
    assert numbers == {False: [str(n) for n in range(9, 17)]}
    with pytest.raises(RuntimeError):
        sampler._step_loops[1, True]._run_options[0].get_run_config_entry("gpu_graph_id")


@pytest.fixture
def altered(tmp_path):
    """Makes a folder in which a model computes with another number, as a provider with a fault would."""

    def make(name: str, wrong):
        folder = shutil.copytree(exported("classes"), tmp_path / "export")
        model = onnx.load(folder / name)
        changes = 0
        for weight in model.graph.initializer:
            value = numpy_helper.to_array(weight)
            other = wrong(value)
            if other is not None:
                weight.CopyFrom(numpy_helper.from_array(other.astype(value.dtype), weight.name))
                changes += 1
        assert changes
        content = model.SerializeToString()
        (folder / name).write_bytes(content)
        about = json.loads((folder / "export.json").read_text())
        about["files"][name] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        (folder / "export.json").write_text(json.dumps(about))
        return folder

    return make


def wrong_multiplier(value):
    """Philox with one bit of a multiplier lost, as integers taken through float32 lose it."""
    is_multiplier = value.dtype == np.uint64 and value.shape == () and int(value) == MULTIPLIERS[0]
    return np.array(MULTIPLIERS[0] - 1) if is_multiplier else None


def wrong_angle(value):
    """Angles a little off, as with a coarse cosine."""
    is_turn = value.dtype == np.float32 and value.shape == () and abs(float(value) - 2 * np.pi) < 1e-3
    return np.array(6.2833) if is_turn else None


def test_wrong_noise_is_refused_at_load(altered):
    folder = altered("noise.onnx", wrong_multiplier)
    with pytest.raises(
        ProviderError, match=r"computes the noise .* wrongly \(\d+ of 384 random words differ"
    ):
        OnnxSampler(folder, "cpu")
    # NumPy draws it here.
    OnnxSampler(folder, "cpu", loop="steps").sample(progress=False)


def test_wrong_normals_are_refused_at_load(altered):
    with pytest.raises(ProviderError, match=r"normals differ from NumPy's by \d"):
        OnnxSampler(altered("noise.onnx", wrong_angle), "cpu")


def test_wrong_noise_in_the_sampler_itself_is_refused(altered):
    """What is done for every provider but the CPU's, which may compile a loop otherwise than a test file."""
    OnnxSampler(exported("classes"), "cpu")._check_file_loop()
    sampler = OnnxSampler(altered("sampler.onnx", wrong_multiplier), "cpu")
    with pytest.raises(ProviderError, match=r"images differ by .* from those with NumPy's noise"):
        sampler._check_file_loop()
