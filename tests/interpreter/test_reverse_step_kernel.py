"""The reverse-step kernel in Triton's interpreter, against float64, between guard bytes.

A GPU rounds float32 to bfloat16 where the interpreter truncates. No test here depends on it: the kernel reads
half precision, which is exact, and writes float32 only.
"""

import math

import numpy as np
import pytest
import step_cases
import torch
from guards import Guarded
from step_cases import CASES, OTHER_SHAPES, SHAPES, TOLERANCE, Case

from fastddpm_kernels.reverse_step import reference
from fastddpm_kernels.reverse_step.kernel import reverse_step_op as launch

ids = [case.name for case in CASES]


def compare(given, result):
    for name, wanted in zip(("x", "x0", "kept"), step_cases.expected(given), strict=True):
        if given[name] is not None:
            np.testing.assert_allclose(result[name].numpy(), wanted, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("case", CASES, ids=ids)
@pytest.mark.parametrize("n", SHAPES)
def test_agrees_with_float64(case, n):
    seeds = step_cases.SEEDS if n < 784 else step_cases.SEEDS[1:]
    given = step_cases.arguments(case, SHAPES[n], seeds=seeds)
    result = step_cases.clone(given)
    guarded = {name: Guarded(given[name]) for name in ("x", "x0", "kept") if given[name] is not None}
    launch(**(result | {name: buffer.tensor for name, buffer in guarded.items()}))
    compare(given, {name: buffer.tensor for name, buffer in guarded.items()})
    assert all(buffer.intact() for buffer in guarded.values())


@pytest.mark.parametrize("case", CASES, ids=ids)
def test_each_sample_reads_its_own_row(case):
    given = step_cases.mixed(case, SHAPES[33])
    result = step_cases.clone(given)
    launch(**result)
    for name, wanted in zip(("x", "x0", "kept"), step_cases.expected_of_mixed(case, given), strict=True):
        if given[name] is not None:
            np.testing.assert_allclose(result[name].numpy(), wanted, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("name", ["clip", "learned_range", "guidance"])
@pytest.mark.parametrize("shape", OTHER_SHAPES)
def test_takes_states_of_any_shape(shape, name):
    given = step_cases.arguments(CASES[ids.index(name)], shape)
    result = step_cases.clone(given)
    x = Guarded(given["x"])
    launch(**(result | {"x": x.tensor}))
    compare(given, result | {"x": x.tensor})
    assert x.intact()


@pytest.mark.parametrize("m_dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("case", CASES, ids=ids)
def test_reads_half_precision_in_both_layouts(case, m_dtype):
    for channels_last in (False, True):
        given = step_cases.arguments(case, SHAPES[33], m_dtype=m_dtype, channels_last=channels_last)
        result = step_cases.clone(given)
        launch(**result)
        compare(given, result)


@pytest.mark.parametrize("name", ["clip", "learned_range", "guidance"])
def test_reads_channels_last_over_several_programs(name):
    case = CASES[ids.index(name)]
    given = step_cases.arguments(case, SHAPES[3072], seeds=(5,), channels_last=True)
    result = step_cases.clone(given)
    assert not result["m"].is_contiguous()
    launch(**result)
    compare(given, result)


@pytest.mark.parametrize("n", SHAPES)
def test_a_sample_between_guards_equals_the_sample_in_its_batch(n):
    batch = step_cases.arguments(Case("clip", clip=True), SHAPES[n])
    alone = step_cases.clone(batch)
    launch(**batch)
    for i in range(3):
        sample = Guarded(alone["x"][i : i + 1])
        one = step_cases.alone(alone, i) | {"x": sample.tensor}
        launch(**one)
        assert torch.equal(sample.tensor[0], batch["x"][i])
        assert sample.intact()


@pytest.mark.parametrize("bound", [{"clip": True}, {"threshold": torch.tensor([1.2, 0.7, 2.0])}, {}])
@pytest.mark.parametrize("where", ["x", "m"])
def test_nan_and_infinity_come_out_as_in_the_reference(where, bound):
    given = step_cases.arguments(Case("x0_out", x0=True), SHAPES[33]) | bound
    given[where].view(-1)[:3] = torch.tensor([math.nan, math.inf, -math.inf])
    ours, plain = step_cases.clone(given), step_cases.clone(given)
    launch(**ours)
    reference.reverse_step(reference.Arguments(**plain))
    assert plain["x0"].isnan().any()
    for name in ("x", "x0"):
        torch.testing.assert_close(ours[name], plain[name], rtol=0, atol=TOLERANCE, equal_nan=True)


def test_no_noise_where_column_c_is_zero():
    given = step_cases.arguments(Case("clip", clip=True), SHAPES[33])
    given["table"] = step_cases.table(dict(step_cases.ROW, c=0.0))
    silent = dict(step_cases.clone(given), noise=None)
    launch(**given)
    launch(**silent)
    assert torch.equal(given["x"], silent["x"])


@pytest.mark.parametrize("case", CASES, ids=ids)
def test_traffic_is_what_the_arguments_say(case):
    """Bytes that the interpreter's loads and stores move for one sample, scalars aside."""
    given = step_cases.arguments(case, SHAPES[784], seeds=(5,))
    with CountedTraffic() as moved:
        launch(**given)
    assert moved["bytes"] == reference.Arguments(**given).traffic().bytes


class CountedTraffic:
    """Counts the unmasked bytes of block loads and stores in Triton's interpreter."""

    def __enter__(self):
        from triton.runtime.interpreter import InterpreterBuilder

        self.builder = InterpreterBuilder
        self.load, self.store = InterpreterBuilder.create_masked_load, InterpreterBuilder.create_masked_store
        moved = {"bytes": 0}

        def create_masked_load(builder, pointers, mask, *rest):
            if mask.data.size > 1:
                moved["bytes"] += int(mask.data.sum()) * pointers.get_element_ty().primitive_bitwidth // 8
            return self.load(builder, pointers, mask, *rest)

        def create_masked_store(builder, pointers, value, mask, *rest):
            if mask.data.size > 1:
                moved["bytes"] += int(mask.data.sum()) * pointers.get_element_ty().primitive_bitwidth // 8
            return self.store(builder, pointers, value, mask, *rest)

        InterpreterBuilder.create_masked_load = create_masked_load
        InterpreterBuilder.create_masked_store = create_masked_store
        return moved

    def __exit__(self, *failure):
        self.builder.create_masked_load, self.builder.create_masked_store = self.load, self.store
