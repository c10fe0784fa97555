"""What the compiler makes of the kernels, on a machine without a GPU: see kernel_build.

No register may spill, nothing may live on a stack (the slow path of a library sine would), rows of a
multiple of 16 elements move in 128-bit accesses, and there is no loop, so that instructions can be counted.
"""

import pytest
import step_cases
import torch
from kernel_build import TARGETS, build
from step_cases import CASES, SHAPES, Case

from fastddpm_kernels.q_sample import kernel as q_sample
from fastddpm_kernels.reverse_step import kernel as reverse_step

CLIP = Case("clip", clip=True)

ON_EVERY_TARGET = ("linear", "clip", "multistep", "learned_range", "divide_clip", "everything")


@pytest.fixture(autouse=True)
def _fresh_cache(tmp_path, monkeypatch):
    """Builds are made anew, and outside of the user's cache."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "cache"))


def build_step(case, target, tmp_path, shape=SHAPES[3072], **options):
    given = step_cases.arguments(case, shape, **options)
    kernel = reverse_step.reverse_step_kernel
    return build(kernel, reverse_step.configure, tuple(given.values()), target, tmp_path)


def build_q_sample(given, shape, target, tmp_path):
    """With the noise given, or drawn and written."""
    x_0, t, table = torch.zeros(2, *shape), torch.zeros(2, dtype=torch.int64), torch.zeros(1000)
    noise = (x_0, None, None) if given else (None, t, t)
    arguments = (x_0, t, table, table, *noise, x_0, None if given else x_0)
    return build(q_sample.q_sample_kernel, q_sample.configure, arguments, target, tmp_path)


def check(made):
    assert made.spills == 0
    assert made.stack_bytes == 0
    assert not made.has_loop
    assert made.elements_per_thread == 16


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize(
    "case", [case for case in CASES if case.name in ON_EVERY_TARGET], ids=lambda case: case.name
)
def test_step_has_no_spill_no_stack_no_loop(case, target, tmp_path):
    made = build_step(case, target, tmp_path)
    check(made)
    # x, m, v, the other m and x0_prev, each in four lanes.
    reads = 2 + case.learned_range + case.guidance + case.multistep
    assert made.wide_loads == 4 * reads
    assert made.wide_stores == made.stores == 4 * (1 + case.x0)
    assert made.shared_bytes == 0


@pytest.mark.parametrize(
    "case", [case for case in CASES if case.name not in ON_EVERY_TARGET], ids=lambda case: case.name
)
def test_other_cases_of_the_step(case, tmp_path):
    made = build_step(case, "sm_90", tmp_path)
    check(made)
    assert made.wide_stores == made.stores
    assert made.shared_bytes == 0


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("m_dtype", [torch.float16, torch.bfloat16])
def test_half_precision_keeps_wide_accesses_to_x(m_dtype, target, tmp_path):
    """m moves in 64 bits then, four elements of each lane to a thread."""
    made = build_step(CLIP, target, tmp_path, m_dtype=m_dtype)
    check(made)
    assert made.wide_loads == 4
    assert made.wide_stores == made.stores == 4
    assert made.shared_bytes == 0


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", ["clip", "everything"])
def test_channels_last_draws_the_noise_once(name, target, tmp_path):
    """Reads of channels_last pixels must not pull the noise into a layout that computes it once per lane."""
    case = next(case for case in CASES if case.name == name)
    made = build_step(case, target, tmp_path, m_dtype=torch.bfloat16, channels_last=True)
    check(made)
    assert made.wide_stores == made.stores
    assert made.instructions_per_element < {"clip": 64, "everything": 100}[name]


def test_division_by_multiplication():
    largest = 2**31 - 1
    for divisor in (2, 3, 7, 16, 784, 1023, 1024, 1025, 65536, 2**26 - 1, 2**26):
        magic, shift = reverse_step.division(divisor)
        assert magic < 2**32
        for multiple in (0, divisor, 5 * divisor, largest // divisor * divisor):
            for n in (multiple - 1, multiple, multiple + 1, largest):
                if 0 <= n <= largest:
                    assert (n * magic >> 32) >> shift == n // divisor


@pytest.mark.parametrize("target", TARGETS)
def test_rows_of_784_elements_move_in_128_bits(target, tmp_path):
    made = build_step(CLIP, target, tmp_path, shape=SHAPES[784])
    check(made)
    assert made.wide_loads == 8
    assert made.wide_stores == made.stores == 4


@pytest.mark.parametrize("n", [1, 2, 5, 33])
@pytest.mark.parametrize("name", ["linear", "ring", "everything"])
def test_rows_that_are_not_multiples_of_16_are_not_read_in_128_bits(name, n, tmp_path):
    """Their samples are not aligned; that it shows proves that the builds are those of real launches.

    Triton makes a constant of an argument that is 1, as n = 1 is, and one plane of 16.
    """
    case = next(case for case in CASES if case.name == name)
    made = build_step(case, "sm_90", tmp_path, shape=SHAPES[n])
    check(made)
    assert made.wide_loads == made.wide_stores == 0


@pytest.mark.parametrize(("m_dtype", "limit"), [(torch.float32, 46), (torch.bfloat16, 47)])
def test_instructions_of_a_clipped_step(m_dtype, limit, tmp_path):
    """Clip, e-term, every mask, per-sample seeds, the device's table and counter: 43.4, and 44.6 with
    bfloat16 m.

    By an H100's published peaks (3.35 TB/s; 132 multiprocessors of 128 lanes at 1.98 GHz) the 12 bytes of an
    element take as long as 120 instructions.
    """
    made = build_step(CLIP, "sm_90", tmp_path, m_dtype=m_dtype)
    assert made.elements_per_thread == 16
    assert made.instructions_per_element <= limit


def test_instructions_of_a_division(tmp_path):
    """A correctly rounded division is 18 to 20 instructions more: 61.5 for x0, 63.5 for eps."""
    for case in (Case("x0", divide=True, clip=True), Case("eps", rederive=True, clip=True)):
        made = build_step(case, "sm_90", tmp_path)
        check(made)
        assert any(code.startswith("MUFU.RCP") for code in made.opcodes)
        assert any(code.startswith("FCHK") for code in made.opcodes), "not the IEEE division"
        assert made.instructions_per_element <= 66


@pytest.mark.parametrize("target", ["sm_80", "sm_90", "sm_100"])
@pytest.mark.parametrize("name", ["clip", "threshold"])
def test_clips_keep_nan(name, target, tmp_path):
    case = next(case for case in CASES if case.name == name)
    made = build_step(case, target, tmp_path)
    clips = [code for code in made.opcodes if code.startswith("FMNMX")]
    assert clips
    assert all(".NAN" in code for code in clips)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("given", [False, True], ids=["drawn", "given"])
def test_q_sample(given, target, tmp_path):
    made = build_q_sample(given, SHAPES[3072], target, tmp_path)
    check(made)
    assert made.wide_loads == (8 if given else 4)
    assert made.wide_stores == made.stores == (4 if given else 8)
    assert made.shared_bytes == 0


@pytest.mark.parametrize("n", [1, 5])
@pytest.mark.parametrize("given", [False, True], ids=["drawn", "given"])
def test_q_sample_of_small_samples(given, n, tmp_path):
    check(build_q_sample(given, SHAPES[n], "sm_90", tmp_path))
