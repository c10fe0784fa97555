"""`pad_sum` where plain torch runs, its arguments, and what of it reaches the kernel."""

import pytest
import torch
from kernel_build import TARGETS, pretended
from torch._subclasses.fake_tensor import FakeTensorMode

from fastddpm_kernels import pad_sum


@pytest.mark.parametrize("pad", [0, 2])
def test_it_is_the_sum_between_zeros(pad):
    generator = torch.Generator().manual_seed(0)
    x, residual = (torch.randn(2, 3, 4, 5, generator=generator) for _ in range(2))
    bias = torch.tensor([1.0, -2.0, 3.0])
    padded, total = pad_sum(x, residual, bias, pad=pad)
    assert torch.equal(total, x + residual)
    expected = torch.zeros(2, 3, 4 + pad, 5 + pad)
    for channel in range(3):
        expected[:, channel, :4, :5] = total[:, channel] + bias[channel]
    assert torch.equal(padded, expected)
    assert pad_sum(x)[1] is x


def test_a_wide_bias_is_rounded_once_with_the_sum():
    """1 + 2**-8 is between two bfloat16: added to 2**-8 it is one, which a bias rounded before misses."""
    x, bias = torch.full((1, 1, 1, 1), 2.0**-8, dtype=torch.bfloat16), torch.tensor([1 + 2.0**-8])
    padded, _ = pad_sum(x, None, bias)
    assert padded.dtype == torch.bfloat16
    assert padded.item() == 1 + 2.0**-7


def test_gradients_go_through_it():
    x, bias = torch.ones(1, 2, 2, 2, requires_grad=True), torch.zeros(2, requires_grad=True)
    pad_sum(x, x, bias, pad=1)[0].sum().backward()
    assert torch.equal(x.grad, torch.full_like(x, 2.0))
    assert bias.grad.tolist() == [4.0, 4.0]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (dict(x=torch.ones(2, 3, 4)), r"x has shape \(2, 3, 4\); accepted is \(B, C, H, W\)"),
        (dict(pad=-1), "pad is -1; accepted are 0 and more"),
        (dict(residual=torch.ones(1, 2, 4, 3)), "residual: .*given; accepted is .*as x is"),
        (dict(residual=torch.ones(1, 2, 4, 4).double()), "residual: .*float64.*given; accepted is .*float32"),
        (dict(bias=torch.ones(3)), r"bias: \(3,\) on cpu given; accepted is \(2,\) on cpu"),
    ],
)
def test_arguments_are_checked(given, words):
    with pytest.raises(ValueError, match=words):
        pad_sum(**{"x": torch.ones(1, 2, 4, 4)} | given)


@torch.no_grad()
def test_on_cuda_maps_keep_their_layout_and_others_run_plain():
    with pretended(TARGETS["sm_90"]), FakeTensorMode():
        x = torch.empty(2, 8, 4, 4, device="cuda").to(memory_format=torch.channels_last)
        padded, total = pad_sum(x, torch.empty(2, 8, 4, 4, device="cuda"), pad=1)
        assert padded.shape == (2, 8, 5, 5)
        for tensor in (padded, total):
            assert tensor.movedim(1, -1).is_contiguous()
        padded, total = pad_sum(x.contiguous(), pad=1)
        assert padded.is_contiguous()
