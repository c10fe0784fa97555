"""`reverse_step`: the plain torch reference against float64, the public function, and the kernel on a GPU."""

import inspect
import itertools
import math

import numpy as np
import pytest
import step_cases
import torch
from step_cases import CASES, OTHER_SHAPES, SHAPES, TOLERANCE, Case

from fastddpm_kernels import Column, reverse_step
from fastddpm_kernels.reverse_step import reference

ids = [case.name for case in CASES]


def compare(given, result):
    """Hold x, x0 and kept of `result` to float64's answer for `given`."""
    for name, wanted in zip(("x", "x0", "kept"), step_cases.expected(given), strict=True):
        if given[name] is not None:
            np.testing.assert_allclose(result[name].cpu().numpy(), wanted, rtol=0, atol=TOLERANCE)


def compare_mixed(case, given, result):
    """The same for samples at rows of their own."""
    for name, wanted in zip(("x", "x0", "kept"), step_cases.expected_of_mixed(case, given), strict=True):
        if given[name] is not None:
            np.testing.assert_allclose(result[name].cpu().numpy(), wanted, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("case", CASES, ids=ids)
@pytest.mark.parametrize("n", SHAPES)
def test_reference_agrees_with_float64(case, n):
    given = step_cases.arguments(case, SHAPES[n])
    result = step_cases.clone(given)
    reverse_step(**result)
    compare(given, result)


@pytest.mark.parametrize("case", CASES, ids=ids)
@pytest.mark.parametrize("n", [33, 784])
def test_samples_at_rows_of_their_own_agree_with_float64(case, n):
    given = step_cases.mixed(case, SHAPES[n])
    result = step_cases.clone(given)
    reverse_step(**result)
    compare_mixed(case, given, result)


def test_a_batch_at_one_row_has_the_bits_of_one_that_says_so_for_each():
    """The counter expanded, and the plan's rows anywhere in the table."""
    for case in CASES:
        given = step_cases.arguments(case, SHAPES[33])
        counter, base = given["counter"][:1].expand(3, 2), torch.full((3,), 4)
        moved = given | {"counter": counter + torch.tensor([4, 0]), "base": base}
        moved["table"] = torch.cat((torch.full((4, 32), math.nan), given["table"]))
        results = [step_cases.clone(given), step_cases.clone(given) | {"counter": counter}, moved]
        for result in results:
            reverse_step(**result)
        for result in results[1:]:
            assert torch.equal(result["x"], results[0]["x"]), case.name


@pytest.mark.parametrize("shape", OTHER_SHAPES)
def test_reference_takes_states_of_any_shape(shape):
    for case in CASES:
        given = step_cases.arguments(case, shape)
        result = step_cases.clone(given)
        reverse_step(**result)
        compare(given, result)


@pytest.mark.parametrize("m_dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("channels_last", [False, True])
def test_reference_reads_half_precision_and_both_layouts(m_dtype, channels_last):
    for case in CASES:
        given = step_cases.arguments(case, SHAPES[33], m_dtype=m_dtype, channels_last=channels_last)
        result = step_cases.clone(given)
        reverse_step(**result)
        compare(given, result)


def test_only_x_and_x0_change():
    given = step_cases.arguments(CASES[-1], SHAPES[33])
    result = step_cases.clone(given)
    reverse_step(**result)
    for name in ("m", "table", "counter", "noise", "guidance", "threshold"):
        torch.testing.assert_close(result[name], given[name], rtol=0, atol=0, equal_nan=True)


def test_coefficients_are_unpacked_in_the_order_of_the_columns():
    letters = sorted(step_cases.COLUMNS, key=step_cases.COLUMNS.__getitem__)
    assert [step_cases.COLUMNS[letter] for letter in letters] == list(Column)
    source = inspect.getsource(reference.reverse_step)
    assert f"{', '.join(letters[:16])} = row[:16]" in source
    assert f"{', '.join(letters[16:])} = row[16:24]" in source


def test_linear_case_equals_the_long_form():
    """Asking for x0 takes the long way to the same x_next."""
    given = step_cases.arguments(Case("linear"), SHAPES[784])
    short, long = step_cases.clone(given), step_cases.clone(given)
    long["x0"] = torch.zeros_like(long["x"])
    reverse_step(**short)
    reverse_step(**long)
    torch.testing.assert_close(short["x"], long["x"], rtol=0, atol=TOLERANCE)


def test_a_bound_of_infinity_is_no_bound():
    given = step_cases.arguments(Case("clip", clip=True), SHAPES[784])
    given["table"] = step_cases.table(dict(step_cases.ROW, r=math.inf))
    unclipped = dict(step_cases.clone(given), clip=False)
    reverse_step(**given)
    reverse_step(**unclipped)
    torch.testing.assert_close(given["x"], unclipped["x"], rtol=0, atol=TOLERANCE)


def test_no_noise_where_column_c_is_zero():
    given = step_cases.arguments(Case("clip", clip=True), SHAPES[33])
    given["table"] = step_cases.table(dict(step_cases.ROW, c=0.0))
    silent = dict(step_cases.clone(given), noise=None)
    reverse_step(**given)
    reverse_step(**silent)
    assert torch.equal(given["x"], silent["x"])


def test_the_ring_is_read_at_k_modulo_its_slots():
    given = step_cases.arguments(Case("ring", noise="ring"), SHAPES[33])
    other = step_cases.clone(given)
    other["noise"][0] = math.nan  # the slot of k = 3 is 3 % 2
    reverse_step(**given)
    reverse_step(**other)
    assert torch.equal(given["x"], other["x"])


@pytest.mark.parametrize("bound", [{"clip": True}, {"threshold": torch.tensor([1.2, 0.7, 2.0])}])
@pytest.mark.parametrize("where", ["x", "m"])
def test_nan_and_infinity_pass_as_through_torch_clamp(where, bound):
    given = step_cases.arguments(Case("x0_out", x0=True, noise=None), (1, 1, 5)) | bound
    given[where].view(-1)[:3] = torch.tensor([math.nan, math.inf, -math.inf])
    reverse_step(**given)
    first = given["x0"].view(-1)[:3]
    sign = 1.0 if where == "x" else -1.0
    assert math.isnan(first[0])
    assert first[1:].tolist() == [sign, -sign]


def test_samples_do_not_depend_on_their_batch():
    case = Case("clip", clip=True)
    given = step_cases.arguments(case, SHAPES[33])
    batch = step_cases.clone(given)
    reverse_step(**batch)
    for i in range(3):
        one = step_cases.alone(given, i)
        reverse_step(**one)
        assert torch.equal(one["x"][0], batch["x"][i])


def test_other_layouts_of_m_are_accepted():
    given = step_cases.arguments(Case("clip", clip=True), SHAPES[3072])
    sliced = step_cases.clone(given)
    sliced["m"] = torch.cat((given["m"], given["m"]), dim=3)[..., :32]
    reverse_step(**given)
    reverse_step(**sliced)
    assert torch.equal(given["x"], sliced["x"])


def test_samples_need_not_be_images():
    generator = torch.Generator().manual_seed(0)
    x, m = (torch.randn(3, 40, generator=generator) for _ in range(2))
    as_image = x.reshape(3, 1, 5, 8).clone()
    counter = torch.tensor([[3, 0]]).expand(3, 2)
    options = {"table": step_cases.table(), "counter": counter, "noise": torch.tensor([1, 2, 3])}
    reverse_step(x, m, **options)
    reverse_step(as_image, m.reshape(3, 1, 5, 8), **options)
    assert torch.equal(x, as_image.reshape(3, 40))


@pytest.mark.parametrize("case", [CASES[1], CASES[-1]], ids=["clip", "everything"])
def test_compiles_into_one_graph(case):
    given = step_cases.arguments(case, SHAPES[3072])
    result = step_cases.clone(given)
    torch.compile(reverse_step, fullgraph=True)(**result)
    compare(given, result)


X = torch.zeros(2, 3, 4, 4)
BAD = {
    "x has dtype": {"x": X.double()},
    "x has shape": {"x": torch.zeros(2)},
    "x has strides": {"x": X.transpose(2, 3)},
    "m has shape": {"m": torch.zeros(2, 4, 4, 4)},
    "m has dtype": {"m": X.double()},
    "table has shape": {"table": torch.zeros(16)},
    "table has dtype": {"table": torch.zeros(1, 32, dtype=torch.float64)},
    "counter has shape": {"counter": torch.zeros(2, dtype=torch.int64)},
    "counter has dtype": {"counter": torch.zeros(2, 2, dtype=torch.int32)},
    "base has shape": {"base": torch.zeros(3, dtype=torch.int64)},
    r"noise \(seeds\) has shape": {"noise": torch.zeros(3, dtype=torch.int64)},
    "noise has shape": {"noise": X},
    "noise has dtype": {"noise": X.double()[None]},
    "x0 has shape": {"x0": X[:1]},
    "guidance has shape": {"guidance": torch.zeros(1), "m": torch.zeros(4, 3, 4, 4)},
    r"m has shape \(2, 3, 4, 4\); accepted is \(4, 3, 4, 4\)": {"guidance": torch.zeros(2)},
    "threshold has dtype": {"threshold": torch.zeros(2, dtype=torch.float64)},
    "clip is True and threshold is given": {"threshold": torch.ones(2), "clip": True},
    "kept has shape": {"kept": X},
    r"kept has shape \(6,": {"kept": torch.zeros(6, *X.shape)},
    "kept has dtype": {"kept": X.double()[None]},
    "combine is True and kept is None": {"combine": True},
}


@pytest.mark.parametrize("message", BAD)
def test_bad_arguments_are_named(message):
    counter = torch.zeros(2, 2, dtype=torch.int64)
    good = {"x": X.clone(), "m": X, "table": torch.zeros(1, 32), "counter": counter}
    with pytest.raises(ValueError, match=f"^{message}") as raised:
        reverse_step(**(good | BAD[message]))
    assert "accepted" in str(raised.value)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("case", CASES, ids=ids)
@pytest.mark.parametrize("m_dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_kernel_agrees_with_float64(case, m_dtype):
    for shape, channels_last in itertools.product(SHAPES.values(), (False, True)):
        given = step_cases.arguments(case, shape, m_dtype=m_dtype, channels_last=channels_last)
        result = step_cases.clone(given, "cuda")
        reverse_step(**result)
        compare(given, result)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("case", CASES, ids=ids)
def test_kernel_reads_rows_of_each_sample(case):
    for shape in SHAPES.values():
        given = step_cases.mixed(case, shape)
        result = step_cases.clone(given, "cuda")
        reverse_step(**result)
        compare_mixed(case, given, result)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("n", SHAPES)
def test_kernel_touches_its_sample_alone(n):
    """Each sample stands alone between guards; the batch's result is the same, bit for bit."""
    case = Case("clip", clip=True)
    batch = step_cases.clone(step_cases.arguments(case, SHAPES[n]), "cuda")
    alone = step_cases.clone(batch)
    reverse_step(**batch)
    for i in range(3):
        buffer = torch.full((n + 128,), 77.0, device="cuda")
        buffer[64 : 64 + n] = alone["x"][i].flatten()
        one = step_cases.alone(alone, i) | {"x": buffer[64 : 64 + n].view(1, *SHAPES[n])}
        reverse_step(**one)
        assert torch.equal(one["x"][0], batch["x"][i])
        assert (buffer[:64] == 77.0).all()
        assert (buffer[64 + n :] == 77.0).all()
