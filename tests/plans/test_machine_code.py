"""Noise and steps by numba on a CPU: the bits of torch's operators, and when numba is started at all."""

import subprocess
import sys
import threading

import float64_reference
import numpy as np
import pytest
import replay
import step_cases
import torch
from step_cases import CASES, SHAPES, TOLERANCE

from fastddpm_kernels import machine_code, normal, reverse_step

SEEDS = (0, 2**32 + 5, 2**63 - 1)
COMMON = [case for case in CASES if not case.kept and not case.learned_range]


@pytest.fixture
def numba(monkeypatch):
    """Numba from the first number on."""
    pytest.importorskip("numba")
    monkeypatch.setattr(machine_code, "PAYS_FROM", 0)


def by_torch(function, *arguments, **options):
    """What torch's operators make of it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(machine_code, "HAS_NUMBA", False)
        return function(*arguments, **options)


@pytest.mark.parametrize(
    ("key", "counter", "answer"),
    [
        ((0, 0), (0, 0, 0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        (
            (0xA4093822, 0x299F31D0),
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_known_answers(numba, key, counter, answer):
    """Random123's own vectors, of which a uniform shows the upper 23 bits."""
    from fastddpm_kernels.noise.jitted import uniforms

    block, step, stream, repeat = counter
    assert float64_reference.philox_words(key[0] | key[1] << 32, *counter) == answer
    radii, angles = np.empty((2, 2, 1, 1), np.float32)
    columns = (np.array([number]) for number in (key[0] | key[1] << 32, step, repeat))
    uniforms(*columns, stream, block, radii, angles)
    exact = [((word >> 9) + 0.5) / 2**23 for word in answer]
    assert radii.ravel().tolist() == exact[::2]
    np.testing.assert_allclose(angles.ravel(), [2 * np.pi * (u - 0.5) for u in exact[1::2]], rtol=1e-7)


@pytest.mark.parametrize("n", SHAPES)
def test_normals_have_the_bits_of_torch_s(numba, n):
    seeds, rows = torch.tensor(SEEDS), torch.tensor([4, 2**32 + 7, 0])
    for step, repeat in ((3, 2), (rows, rows.flip(0)), (torch.tensor([5]), torch.tensor(2**33 - 1))):
        ours = normal(seeds, step, SHAPES[n], stream=3, repeat=repeat)
        assert torch.equal(ours, by_torch(normal, seeds, step, SHAPES[n], stream=3, repeat=repeat))
    restated = np.stack([float64_reference.sample_noise(seed, 3, (n,), 1, 2) for seed in SEEDS])
    ours = normal(seeds, 3, (n,), stream=1, repeat=2)
    np.testing.assert_allclose(ours.numpy(), restated, rtol=0, atol=2e-6)


@pytest.mark.parametrize("counters", [16, 48, 100])
def test_blocks_of_any_size_make_the_same_numbers(numba, monkeypatch, counters):
    from fastddpm_kernels.noise import blocks

    monkeypatch.setattr(blocks, "COUNTERS", counters)
    monkeypatch.setattr(blocks, "MOST_BLOCKS", 2)
    for batch, n in ((70, 5), (7, 784), (2, 333), (5, 64)):
        seeds = torch.arange(batch) * 2**40
        assert torch.equal(normal(seeds, 1, (n,)), by_torch(normal, seeds, 1, (n,)))


def test_nothing_drawn_is_nothing(numba):
    assert normal(torch.zeros(0, dtype=torch.int64), 1, (3, 4)).shape == (0, 3, 4)
    assert normal(torch.tensor([1, 2]), 1, (0, 4)).shape == (2, 0, 4)


def test_threads_do_not_share_memory(numba):
    shapes, drawn = [(3, 32, 32), (1, 28, 28), (5,), (3, 32, 32)], {}
    seeds = torch.arange(20)

    def draw(number):
        drawn[number] = [normal(seeds + number, step, shapes[number]) for step in range(30)]

    threads = [threading.Thread(target=draw, args=(number,)) for number in range(len(shapes))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number, shape in enumerate(shapes):
        expected = by_torch(lambda s, n: [normal(seeds + n, k, s) for k in range(30)], shape, number)
        assert all(map(torch.equal, drawn[number], expected))


def test_memory_of_inference_mode_is_of_use_outside(numba):
    thread_shape = (1, 19, 23)  # of no other test, so that its block is made here
    with torch.inference_mode():
        inside = normal(torch.tensor(SEEDS), 1, thread_shape)
    assert torch.equal(normal(torch.tensor(SEEDS), 1, thread_shape), inside)


def test_a_recorded_draw_reads_its_counter_again(numba):
    seeds, counter = torch.tensor(SEEDS), torch.tensor([4, 2])
    recorder = replay.Recorder()
    with recorder:
        drawn = normal(seeds, counter[:1] + 1, (3, 5, 7), repeat=counter[1:])
    counter += 1
    recorder.replay()
    assert torch.equal(drawn, by_torch(normal, seeds, 6, (3, 5, 7), repeat=3))


def hold(given):
    """Both forms of a step: to each other bit for bit, and to float64."""
    ours, torchs = step_cases.clone(given), step_cases.clone(given)
    reverse_step(**ours)
    by_torch(reverse_step, **torchs)
    for name in ("x", "x0"):
        assert given[name] is None or torch.equal(ours[name], torchs[name]), name
    return ours


@pytest.mark.parametrize("case", COMMON, ids=[case.name for case in COMMON])
def test_steps_have_the_bits_of_torch_s(numba, case):
    for n in SHAPES:
        given = step_cases.arguments(case, SHAPES[n])
        ours = hold(given)
        for name, wanted in zip(("x", "x0"), step_cases.expected(given)[:2], strict=True):
            if given[name] is not None:
                np.testing.assert_allclose(ours[name].numpy(), wanted, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("name", ["linear", "ring", "guidance"])
def test_samples_at_rows_of_their_own(numba, name):
    hold(step_cases.mixed(next(case for case in CASES if case.name == name), (3, 11, 7)))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_outputs_in_other_dtypes_and_layouts(numba, dtype):
    case = next(case for case in CASES if case.name == "clip")
    hold(step_cases.arguments(case, (3, 11, 7), m_dtype=dtype, channels_last=True))


def test_nan_passes_the_clip(numba):
    given = step_cases.arguments(next(case for case in CASES if case.name == "ring"), (3, 11, 7))
    given["m"][0, 0, 0, 0] = torch.nan
    given["x0"] = torch.zeros_like(given["x"])
    reverse_step(**given)
    assert given["x0"].isnan().nonzero().tolist() == [[0, 0, 0, 0]]


@pytest.mark.parametrize("row", [-1, 4])
def test_a_row_outside_the_table_changes_nothing(numba, row):
    given = step_cases.arguments(next(case for case in CASES if case.name == "clip"), (3, 11, 7))
    given["counter"] = torch.tensor([[3, 0], [3, 0], [row, 0]])
    before = given["x"].clone()
    with pytest.raises(IndexError):
        reverse_step(**given)
    assert torch.equal(given["x"], before)


def test_where_torch_rounds_otherwise_its_operators_make_the_steps(numba, monkeypatch):
    from fastddpm_kernels.reverse_step import compiled

    monkeypatch.setattr(compiled, "torch_fuses", lambda: False)
    monkeypatch.setattr(compiled, "reverse_step", lambda given: pytest.fail("numba made the step"))
    hold(step_cases.arguments(CASES[0], SHAPES[33]))


def test_numba_starts_once_what_it_would_have_saved_is_its_start(monkeypatch):
    monkeypatch.setattr(machine_code, "HAS_NUMBA", True)
    monkeypatch.setattr(machine_code, "PAYS_FROM", 100)
    monkeypatch.setattr(machine_code, "_saved", 0)
    monkeypatch.setattr(machine_code, "starts", lambda: True)
    assert [machine_code.pays(40) for _ in range(5)] == [False, False, False, True, True]
    monkeypatch.setattr(machine_code, "HAS_NUMBA", False)
    assert not machine_code.pays(40)


def test_a_numba_that_cannot_be_imported_is_said_once_and_not_used(monkeypatch, tmp_path):
    (tmp_path / "numba.py").write_text("raise ImportError('Numba needs another NumPy')\n")
    monkeypatch.delitem(sys.modules, "numba", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.warns(RuntimeWarning, match="numba is not used.*needs another NumPy"):
        assert not machine_code.starts.__wrapped__()


@pytest.mark.parametrize("blocked", [True, False])
def test_a_first_draw_imports_no_numba(blocked):
    code = (
        "import sys\n"
        f"if {blocked}: sys.modules['numba'] = None\n"
        "import torch\n"
        "from fastddpm_kernels import normal, machine_code\n"
        f"if {blocked}: machine_code.PAYS_FROM = 0\n"
        "normal(torch.arange(3), 1, (3, 32, 32))\n"
        "assert sys.modules.get('numba') is None\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
