"""Proof a: what the compiler makes of the kernels, on a machine without a GPU; see kernel_build.

No register may spill, nothing may live on a stack (the slow path of a library sine would), rows of a
multiple of 16 elements move in 128-bit accesses, and there is no loop, so that instructions can be counted.
Registers and instructions stay under the ceilings that ceilings.json has for this version of Triton.
"""

from __future__ import annotations

import pytest
from build_points import POINTS, every_point, q_sample_point, step_point
from kernel_build import SHARED_LIMITS, TARGETS, inspect, recorded
from step_cases import CASES

from fastddpm_kernels.launch import division

ON_EVERY_CARD = {word for name in POINTS for word in name.split()[1:2]}


@pytest.fixture
def made(tmp_path, monkeypatch):
    """Builds of a point's launches for a target: made anew, outside of the user's cache, and sound."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "cache"))

    def build(point, target):
        with recorded(target) as launches:
            point()
        assert launches
        builds = [inspect(launch, target, tmp_path) for launch in launches]
        for one in builds:
            assert one.spills == 0
            assert one.stack_bytes == 0
            assert not one.has_loop
            assert one.shared_bytes <= SHARED_LIMITS[target]
        return builds

    return build


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", POINTS)
def test_every_card(name, target, made, proof, most):
    builds = made(POINTS[name], target)
    registers = max(one.registers for one in builds)
    instructions = sum(one.instructions_per_element for one in builds)
    widest = min(one.widest for one in builds)
    proof("a", name, **{target: f"{registers} / {instructions:.1f} / {widest}"})
    assert widest == 128
    most_registers, most_instructions = most(name, target)
    assert registers <= most_registers
    assert instructions <= most_instructions


@pytest.mark.parametrize("target", TARGETS)
def test_every_case_on_every_card(target, made, full):
    if not full:
        pytest.skip("with --full")
    for name, point in every_point().items():
        assert made(point, target), name


@pytest.mark.parametrize(
    "case", [case for case in CASES if case.name not in ON_EVERY_CARD], ids=lambda case: case.name
)
def test_other_cases_of_the_step(case, made):
    [one] = made(step_point(case.name), "sm_90")
    # x, m, v, the other m, what is kept and a slot of the ring, each in four lanes.
    reads = 2 + case.learned_range + case.guidance + case.kept + (case.noise == "ring")
    assert one.wide_loads == 4 * reads
    assert one.wide_stores == one.stores == 4 * (1 + case.x0 + (case.kept > 0))
    assert one.shared_bytes == 0


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_clipped_step_moves_in_wide_accesses(dtype, target, made):
    """m moves in 64 bits where it is half as wide, four elements of each lane to a thread."""
    [one] = made(step_point("clip", dtype), target)
    assert one.elements_per_thread == 16
    assert one.wide_loads == (8 if dtype == "float32" else 4)
    assert one.wide_stores == one.stores == 4
    assert one.shared_bytes == 0
    clips = [code for code in one.opcodes if code.startswith("FMNMX")]
    if target.startswith("sm"):
        assert clips
        assert all(".NAN" in code for code in clips), "a clip loses NaN"


def test_rows_of_784_elements_move_in_128_bits(made):
    [one] = made(step_point("clip", n=784), "sm_80")
    assert one.wide_loads == 8
    assert one.wide_stores == one.stores == 4


@pytest.mark.parametrize("n", [1, 2, 5, 33])
def test_rows_that_are_not_multiples_of_16_are_not_read_in_128_bits(n, made):
    """Their samples are not aligned; that it shows proves that the builds are those of real launches.

    Triton makes a constant of an argument that is 1, as n = 1 is, and one plane of 16.
    """
    for name in ("ring", "everything"):
        [one] = made(step_point(name, n=n), "sm_90")
        assert one.wide_loads == one.wide_stores == 0


@pytest.mark.parametrize("name", ["divide_clip", "rederive"])
def test_instructions_of_a_division(name, made):
    """A correctly rounded division is 18 to 20 instructions more: 61.7 for x0, 63.7 for eps on sm_90."""
    [one] = made(step_point(name), "sm_90")
    assert any(code.startswith("MUFU.RCP") for code in one.opcodes)
    assert any(code.startswith("FCHK") for code in one.opcodes), "not the IEEE division"
    assert one.instructions_per_element <= 66


@pytest.mark.parametrize("noise", ["drawn", "given"])
def test_q_sample(noise, made):
    [one] = made(q_sample_point(noise), "sm_90")
    assert one.wide_loads == (8 if noise == "given" else 4)
    assert one.wide_stores == one.stores == (4 if noise == "given" else 8)
    assert one.shared_bytes == 0
    for n in (1, 5):
        made(q_sample_point(noise, n=n), "sm_90")


def test_division_by_multiplication():
    largest = 2**31 - 1
    for divisor in (2, 3, 7, 16, 784, 1023, 1024, 1025, 65536, 2**26 - 1, 2**26):
        magic, shift = division(divisor)
        assert magic < 2**32
        for multiple in (0, divisor, 5 * divisor, largest // divisor * divisor):
            for n in (multiple - 1, multiple, multiple + 1, largest):
                if 0 <= n <= largest:
                    assert (n * magic >> 32) >> shift == n // divisor
