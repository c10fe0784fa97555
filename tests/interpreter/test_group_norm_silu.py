"""The group_norm_silu kernels in Triton's interpreter, against float64, between guard values.

A GPU rounds float32 to bfloat16 where the interpreter truncates: results in bfloat16 are allowed one of its
ulps more.
"""

from __future__ import annotations

import math
from dataclasses import replace

import group_norm_cases
import pytest
import torch
from group_norm_cases import ONE_PASS, SPLIT, Case, both_layouts
from guards import Guarded
from test_reverse_step_kernel import CountedTraffic

from fastddpm_kernels import launch
from fastddpm_kernels.group_norm_silu import tiles
from fastddpm_kernels.group_norm_silu.kernel import group_norm_silu_kernel
from fastddpm_kernels.group_norm_silu.launches import (
    add_group_norm_silu_op,
    cat_group_norm_silu_op,
    configure,
    group_norm_mish_op,
    group_norm_silu_op,
)
from fastddpm_kernels.group_norm_silu.reference import Arguments
from fastddpm_kernels.group_norm_silu.tiles import shared

# One in one pass and one that is split, with every option, in both layouts.
SMALL = [*ONE_PASS[4:6], *SPLIT[2:4]]
# A group of 8x512x64x64 with 32 groups, and with its layout's tiles; one sample of it.
LARGE = both_layouts(Case((1, 16, 64, 64), 1, pre_bias=True))
VECTORS = ("weight", "bias", "pre_bias", "scale", "shift")


# Several programs to a group in a small batch: powers of two or not, one or two groups to a tile.
SHARED = both_layouts(
    Case((2, 12, 7, 5), 1, pre_bias=True, scale_shift=True),
    Case((1, 16, 8, 8), 4, pre_bias=True, one_row=True),
    Case((1, 12, 6, 8), 3, scale_shift=True, silu=False),
)


@pytest.fixture(autouse=True)
def _alone(monkeypatch):
    """A group in one pass has a program to itself, as in a large batch; shared ones have own tests."""
    monkeypatch.setattr(tiles, "shared", lambda *_: None)


@pytest.fixture
def sharing(_alone, monkeypatch):
    """Call it, and groups are shared as in a small batch, by a card's programs."""
    return lambda: monkeypatch.setattr(tiles, "shared", shared)


def name(case):
    return case.name


def run(given):
    y, _ = group_norm_silu_op(*given.values())
    assert y.stride() == given["x"].stride()
    assert y.dtype == given["x"].dtype
    return y


def compare(drawn):
    """Within twice the largest error of PyTorch, over several draws where a map has few values."""
    ours, theirs = zip(*(group_norm_cases.errors(run(given), given) for given in drawn), strict=True)
    assert max(ours) <= 2 * max(theirs)


@pytest.mark.parametrize("case", [*ONE_PASS, *SPLIT], ids=name)
def test_agrees_with_float64(case):
    drawn = [
        group_norm_cases.arguments(case, seed=seed)
        for seed in range(1 if case in SPLIT or case.num_groups == 32 else 3)
    ]
    assert (tiles.one_pass(drawn[0]["x"], case.num_groups) is None) == (case in SPLIT)
    compare(drawn)


@pytest.mark.parametrize("case", SHARED, ids=name)
def test_shared_groups_agree_with_float64(case, sharing):
    """And with a program to each bit for bit, statistics too, since the interpreter sums in one order."""
    given = group_norm_cases.arguments(case)
    alone = group_norm_silu_op(*given.values())
    sharing()
    assert shared(given["x"], case.num_groups, 132).chunks > 2
    compare([given])
    for ours, theirs in zip(group_norm_silu_op(*given.values()), alone, strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("case", LARGE, ids=name)
def test_one_group_of_a_large_map(case):
    given = group_norm_cases.arguments(case)
    compare([given])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("case", SMALL, ids=name)
def test_half_precision(case, dtype):
    given = group_norm_cases.arguments(replace(case, dtype=dtype))
    ours, theirs = group_norm_cases.errors(run(given), given)
    largest = abs(group_norm_cases.expected(given)).max()
    truncated = torch.finfo(dtype).eps * largest if dtype == torch.bfloat16 else 0.0
    assert ours <= 2 * theirs + truncated


@pytest.mark.parametrize("case", SMALL, ids=name)
def test_large_means_keep_their_digits(case):
    """Squares of 1e4 would leave float32 nothing of a variance of 1."""
    given = [group_norm_cases.arguments(case, mean=1e4, std=1.0, seed=seed) for seed in range(2)]
    compare(given)


@pytest.mark.parametrize("case", SMALL, ids=name)
def test_constant_maps(case):
    for value in (0.0, 0.1, 1e4):
        given = group_norm_cases.arguments(replace(case, pre_bias=False))
        given["x"].fill_(value)
        compare([given])


@pytest.mark.parametrize("case", SMALL, ids=name)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_nan_and_infinity_come_out_as_in_pytorch(case, value):
    """In x they spoil their group and no other; in a bias or shift, their channel."""
    for where in ("x", "pre_bias", "bias", "shift"):
        given = group_norm_cases.arguments(case)
        given[where][(0,) * given[where].dim()] = value
        y, plain = run(given), group_norm_cases.plain(given)
        assert plain.isnan().any() or plain.isinf().any()
        assert torch.equal(y.isnan(), plain.isnan())
        assert torch.equal(y.isinf(), plain.isinf())
        finite = plain.isfinite()
        assert finite.any() or case.num_groups == 1
        true = group_norm_cases.exact_plain(given)
        assert torch.equal(true.isfinite(), finite)
        if finite.any():
            ours, theirs = ((result[finite].double() - true[finite]).abs().max() for result in (y, plain))
            assert ours <= 2 * theirs + 1e-6


def test_writes_nothing_outside_of_y():
    for case in (Case((2, 6, 3, 5), 3), Case((1, 40, 4, 4), 4)):
        given = group_norm_cases.arguments(case)
        y = Guarded(torch.zeros(case.shape))
        statistics = Guarded(torch.zeros(3, case.shape[0], case.num_groups))
        cut = tiles.one_pass(given["x"], case.num_groups)
        grid, arguments, options = configure(Arguments(**given), cut, y.tensor, statistics.tensor)
        group_norm_silu_kernel[grid](*arguments, **options)
        assert y.intact()
        assert statistics.intact()
        ours, theirs = group_norm_cases.errors(y.tensor, given)
        assert ours <= 2 * theirs


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_traffic_is_what_the_docstring_says(dtype, channels_last):
    """Bytes of maps: one read and one write in one pass, two and one where a group is split."""
    options = {"channels_last": channels_last, "affine": False, "dtype": dtype}
    for case, passes in ((Case((2, 8, 16, 16), 2, **options), 2), (Case((1, 8, 64, 48), 1, **options), 3)):
        given = group_norm_cases.arguments(case)
        with CountedTraffic() as moved:
            run(given)
        size = given["x"].numel() * given["x"].element_size()
        # Besides, the statistics: a few numbers for each group and chunk.
        assert passes * size <= moved["bytes"] < (passes + 0.03) * size


@pytest.mark.parametrize("case", [*SMALL, *ONE_PASS[6:11], *SPLIT[4:5]], ids=name)
def test_gradients(case):
    """Of the map and of every vector, within twice the error of PyTorch's own."""
    given = group_norm_cases.arguments(case)
    dy = torch.randn(case.shape, generator=torch.Generator().manual_seed(9))

    def gradients(function, dtype):
        leaves = {
            name: given[name].detach().to(dtype).requires_grad_()
            for name in ("x", *VECTORS)
            if given[name] is not None
        }
        function(given | leaves).backward(dy.to(dtype))
        return {name: leaf.grad.double() for name, leaf in leaves.items()}

    true = gradients(group_norm_cases.plain, torch.float64)
    ours = gradients(run, torch.float32)
    theirs = gradients(group_norm_cases.plain, torch.float32)
    for name, gradient in true.items():
        rounding = torch.finfo(torch.float32).eps * gradient.abs().max()
        allowed = 2 * max((theirs[name] - gradient).abs().max(), rounding)
        assert (ours[name] - gradient).abs().max() <= allowed, name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("case", SMALL, ids=name)
def test_a_residual_is_added_before_and_written(case, dtype):
    """The norm is of the sum as it is stored: of x + residual rounded to their dtype."""
    given = group_norm_cases.arguments(replace(case, scale_shift=False, dtype=dtype))
    residual = (torch.randn_like(given["x"], dtype=torch.float32) * 2).to(dtype)
    # The interpreter truncates what a GPU rounds to bfloat16: values whose sum needs no rounding.
    given["x"], residual = (torch.round(tensor * 8) / 8 for tensor in (given["x"], residual))
    arguments = {name: given[name] for name in ("num_groups", "weight", "bias", "eps", "pre_bias", "silu")}
    y, total = add_group_norm_silu_op(given["x"], residual, *arguments.values())
    assert torch.equal(total, given["x"] + residual)
    assert total.stride() == y.stride() == given["x"].stride()
    assert torch.equal(y, run(given | {"x": total}))


@pytest.mark.parametrize("case", SHARED[:4], ids=name)
def test_a_residual_of_a_shared_group(case, sharing):
    """Each program adds it where it sums, and writes its share."""
    given = group_norm_cases.arguments(replace(case, scale_shift=False, dtype=torch.float16))
    residual = (torch.randn_like(given["x"], dtype=torch.float32) * 2).half()
    arguments = {name: given[name] for name in ("num_groups", "weight", "bias", "eps", "pre_bias", "silu")}
    alone = add_group_norm_silu_op(given["x"], residual, *arguments.values())
    sharing()
    for ours, theirs in zip(
        add_group_norm_silu_op(given["x"], residual, *arguments.values()), alone, strict=True
    ):
        assert torch.equal(ours, theirs)


# Trajectories (B, C, T) in one pass, a map with every option, a split group.
MISHES = (Case((2, 16, 16), 4), Case((1, 24, 4), 8), *SMALL)


@pytest.mark.parametrize("form", ["alone", "shared"])
@pytest.mark.parametrize("case", MISHES, ids=name)
def test_mish_agrees_with_float64(case, form, sharing):
    """torch's own in float64; a norm is of every size, so that both sides of 0 and the far ends are there."""
    if form == "shared":
        sharing()
    for factor in (1.0, 30.0):
        given = group_norm_cases.arguments(replace(case, silu=False))
        del given["silu"]
        given["weight"] = given["weight"] * factor
        y = group_norm_mish_op(*given.values())
        assert y.stride() == given["x"].stride()
        true = torch.nn.functional.mish(group_norm_cases.exact_plain(given | {"silu": False}))
        theirs = torch.nn.functional.mish(group_norm_cases.plain(given | {"silu": False}))
        assert (true > 3 * factor).any()
        ours, limit = (float((one.double() - true).abs().max()) for one in (y, theirs))
        assert ours <= 2 * limit


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 1e4, -1e4, 3e38])
def test_mish_of_extremes(value):
    """Of one channel, which a scale of -1 leaves nothing else: what PyTorch makes of such numbers."""
    given = group_norm_cases.arguments(Case((2, 6, 16), 3, scale_shift=True, silu=False))
    del given["silu"]
    given["scale"][:, 2], given["shift"][:, 2] = -1.0, value
    y = group_norm_mish_op(*given.values())
    theirs = torch.nn.functional.mish(group_norm_cases.plain(given | {"silu": False}))
    assert torch.equal(y.isnan(), theirs.isnan())
    assert torch.equal(y.isinf(), theirs.isinf())
    assert torch.equal(y[:, 2].nan_to_num(), theirs[:, 2].nan_to_num())


@pytest.mark.parametrize("channels_last", [False, True])
def test_traffic_of_a_shared_group(channels_last, sharing, monkeypatch):
    """Read by each of its programs, and once more by the one that normalises; written once."""
    sharing()
    given = group_norm_cases.arguments(Case((8, 16, 8, 8), 4, channels_last=channels_last, affine=False))
    cut = shared(given["x"], 4, 64)
    monkeypatch.setattr(launch, "MULTIPROCESSORS", 64)
    assert (cut.groups, cut.chunks) == ((2, 4) if channels_last else (1, 2))
    with CountedTraffic() as moved:
        run(given)
    size = given["x"].numel() * given["x"].element_size()
    passes = cut.chunks + 2
    assert passes * size <= moved["bytes"] < (passes + 0.03) * size


# The first map, channels of the second, groups: a border of both in a group, or at one; a split group.
PAIRS = {
    "a group of both": ((2, 6, 3, 5), 6, 3),
    "groups of one": ((1, 12, 4, 8), 6, 3),
    "several groups": ((2, 16, 4, 4), 16, 16),
    "split": ((1, 8, 64, 48), 4, 1),
}


def pair(kind, channels_last=False, dtype=torch.float32):
    """x, residual and other, of values whose sums need no rounding, and the groups."""
    (batch, channels, *space), others, num_groups = PAIRS[kind]
    generator = torch.Generator().manual_seed(2)
    sizes = [(batch, channels, *space), (batch, channels, *space), (batch, others, *space)]
    maps = [(torch.randn(size, generator=generator) * 8).round().to(dtype) / 8 for size in sizes]
    if channels_last:
        maps = [tensor.to(memory_format=torch.channels_last) for tensor in maps]
    return maps, num_groups


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize(
    ("kind", "dtype", "form"),
    [
        *((kind, torch.float32, "alone") for kind in PAIRS),
        ("a group of both", torch.bfloat16, "alone"),
        ("groups of one", torch.float32, "shared"),
    ],
)
def test_a_concatenation_is_normalised_and_written(kind, dtype, channels_last, form, sharing):
    """The norm is that of torch's concatenation, of which float64 is held above; both in x's layout."""
    (x, residual, other), num_groups = pair(kind, channels_last, dtype)
    if form == "shared":
        sharing()
    for added in (None, residual):
        whole = torch.cat((x if added is None else x + added, other), dim=1)
        case = Case(tuple(whole.shape), num_groups, channels_last, pre_bias=True, dtype=dtype)
        given = group_norm_cases.arguments(case)
        arguments = [given[name] for name in ("num_groups", "weight", "bias", "eps", "pre_bias", "silu")]
        y, total = cat_group_norm_silu_op(x, added, other, *arguments)
        assert torch.equal(total, whole)
        assert total.stride() == y.stride() == given["x"].stride()
        assert torch.equal(y, run(given | {"x": whole}))


@pytest.mark.parametrize("kind", ["several groups", "split"])
def test_traffic_of_a_concatenation(kind):
    """Both maps are read, the concatenation and y written; split, the concatenation is read again."""
    (x, _, other), num_groups = pair(kind, channels_last=True)
    with CountedTraffic() as moved:
        cat_group_norm_silu_op(x, None, other, num_groups, None, None, 1e-5, None, True)
    size = (x.numel() + other.numel()) * 4
    passes = 4 if kind == "split" else 3
    statistics = 3 * 4 * x.shape[0] * num_groups
    assert passes * size <= moved["bytes"] < (passes + 0.03) * size + statistics


@pytest.mark.parametrize("channels_last", [False, True])
def test_traffic_of_a_residual(channels_last):
    """One read and one write more, whether a group is split or not."""
    options = {"channels_last": channels_last, "affine": False}
    for case, passes in ((Case((2, 8, 16, 16), 2, **options), 4), (Case((1, 8, 64, 48), 1, **options), 5)):
        given = group_norm_cases.arguments(case)
        with CountedTraffic() as moved:
            add_group_norm_silu_op(given["x"], given["x"], case.num_groups, None, None, 1e-5, None, True)
        size = given["x"].numel() * given["x"].element_size()
        assert passes * size <= moved["bytes"] < (passes + 0.03) * size
