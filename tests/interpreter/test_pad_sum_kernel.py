"""The pad_sum kernel in Triton's interpreter, against float64, between guard values."""

import pytest
import torch
from guards import Guarded
from torch.library import opcheck

from fastddpm_kernels.pad_sum.kernel import configure, pad_sum_kernel, pad_sum_op
from fastddpm_kernels.pad_sum.reference import Arguments

# Rows of one program and of several, of a whole number of 16 elements or not; a single pixel.
SHAPES = [(2, 16, 4, 4), (1, 129, 3, 9), (3, 5, 7, 3), (2, 4, 1, 1), (1, 512, 2, 5)]


def of_pixels(shape, seed, dtype):
    """A channels_last map, whose rows are the pixels of a tensor."""
    batch, channels, height, width = shape
    values = torch.randn(batch, height, width, channels, generator=torch.Generator().manual_seed(seed))
    return values.to(dtype).movedim(-1, 1)


def expected(x, residual, bias, pad):
    """By slices of a map of zeros, in float64; the sum rounded as it is stored."""
    total = x.double() if residual is None else (x.double() + residual.double()).to(x.dtype).double()
    batch, channels, height, width = x.shape
    padded = torch.zeros(batch, channels, height + pad, width + pad, dtype=torch.float64)
    padded[:, :, :height, :width] = total + (0 if bias is None else bias.double()[:, None, None])
    return padded, total


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=["float32", "float16"])
@pytest.mark.parametrize("pad", [0, 1, 2])
@pytest.mark.parametrize(("with_residual", "with_bias"), [(True, True), (False, True), (True, False)])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_sums_and_pads(shape, with_residual, with_bias, pad, dtype):
    batch, channels, height, width = shape
    x = of_pixels(shape, 0, dtype)
    residual = of_pixels(shape, 1, dtype) if with_residual else None
    bias = torch.randn(channels, generator=torch.Generator().manual_seed(2)) if with_bias else None
    padded = Guarded(torch.full((batch, height + pad, width + pad, channels), 5.0, dtype=dtype))
    total = Guarded(torch.full((batch, height, width, channels), 5.0, dtype=dtype)) if with_residual else None
    written = (padded.tensor.movedim(-1, 1), total.tensor.movedim(-1, 1) if total else None)
    grid, operands, options = configure(Arguments(x, residual, bias, pad), *written)
    pad_sum_kernel[grid](*operands, **options)
    of_padded, of_total = expected(x, residual, bias, pad)
    tolerance = {torch.float32: 1e-6, torch.float16: 4e-3}[dtype]
    torch.testing.assert_close(written[0].double(), of_padded, rtol=0, atol=tolerance)
    assert (written[0][:, :, height:] == 0).all()
    assert (written[0][:, :, :, width:] == 0).all()
    assert padded.intact()
    if total is not None:
        torch.testing.assert_close(written[1].double(), of_total, rtol=0, atol=tolerance)
        assert total.intact()


def test_the_operator_changes_nothing_that_it_is_given():
    x = of_pixels((2, 8, 4, 4), 0, torch.float32)
    for residual, bias, pad in ((x.clone(), torch.ones(8), 1), (None, None, 0)):
        opcheck(
            pad_sum_op, (x, residual, bias, pad), test_utils=("test_schema", "test_autograd_registration")
        )
