"""`q_sample`: the plain torch reference against float64, its gradients, and the kernel on a GPU."""

import float64_reference
import numpy as np
import pytest
import torch

from fastddpm_kernels import q_sample

T = 10
SHAPE = (3, 11, 1)


def tables():
    alphas_cumprod = torch.linspace(0.99, 0.01, T, dtype=torch.float64)
    return alphas_cumprod.sqrt().float(), (1 - alphas_cumprod).sqrt().float()


def inputs(shape=SHAPE, device="cpu"):
    x_0 = torch.randn(4, *shape, generator=torch.Generator().manual_seed(0))
    t = torch.tensor([0, 4, T - 1, 4])
    return tuple(tensor.to(device) for tensor in (x_0, t, *tables()))


def drawn(device="cpu"):
    """A training run's seed and four ordinals, one of them beyond 32 bits."""
    return {
        "seeds": torch.full((4,), 2**32 + 5, device=device),
        "ordinals": torch.tensor([0, 1, 2**32 - 1, 3 * 2**32 + 7], device=device),
    }


def expected_noise(shape):
    words = [(0, 0), (1, 0), (2**32 - 1, 0), (7, 3)]
    return np.stack(
        [float64_reference.sample_noise(2**32 + 5, step, shape, 1, repeat) for step, repeat in words]
    )


def expected(x_0, t, signal, sigma, noise):
    per_sample = (-1, *(1,) * (x_0.dim() - 1))
    a, b = (table.double().numpy()[t.numpy()].reshape(per_sample) for table in (signal, sigma))
    return a * x_0.double().numpy() + b * noise


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 1, 5), SHAPE, (1, 28, 28)])
def test_draws_the_training_noise(shape):
    arguments = inputs(shape)
    x_t, noise = q_sample(*arguments, **drawn(), return_noise=True)
    np.testing.assert_allclose(noise.numpy(), expected_noise(shape), rtol=0, atol=2e-6)
    np.testing.assert_allclose(x_t.numpy(), expected(*arguments, expected_noise(shape)), rtol=0, atol=2e-6)
    assert torch.equal(q_sample(*arguments, **drawn()), x_t)


def test_takes_given_noise():
    arguments = inputs()
    given = torch.randn(arguments[0].shape, generator=torch.Generator().manual_seed(1))
    x_t, noise = q_sample(*arguments, noise=given, return_noise=True)
    assert noise is given
    np.testing.assert_allclose(x_t.numpy(), expected(*arguments, given.double().numpy()), rtol=0, atol=1e-6)


def test_the_noise_of_a_sample_depends_on_its_ordinal_alone():
    """However a run's samples are dealt to processes and batches."""
    _, noise = q_sample(*inputs(), **drawn(), return_noise=True)
    x_0, t, *both = inputs()
    half = {name: values[2:] for name, values in drawn().items()}
    _, of_half = q_sample(x_0[2:], t[2:], *both, **half, return_noise=True)
    assert torch.equal(of_half, noise[2:])


def test_gradients():
    x_0, t, signal, sigma = inputs()
    x_0.requires_grad_()
    noise = torch.randn(x_0.shape, generator=torch.Generator().manual_seed(1), requires_grad=True)
    weight = torch.randn(x_0.shape, generator=torch.Generator().manual_seed(2))
    (q_sample(x_0, t, signal, sigma, noise=noise) * weight).sum().backward()
    torch.testing.assert_close(x_0.grad, weight * signal[t].reshape(-1, 1, 1, 1))
    torch.testing.assert_close(noise.grad, weight * sigma[t].reshape(-1, 1, 1, 1))


@pytest.mark.parametrize("t", [[0, 1, 2, T], [0, 1, 2, -1]])
def test_t_outside_the_tables_is_an_error(t):
    x_0, _, *both = inputs()
    with pytest.raises(IndexError):
        q_sample(x_0, torch.tensor(t), *both, **drawn())


def test_compiles_into_one_graph():
    arguments = inputs()
    compiled = torch.compile(q_sample, fullgraph=True)(*arguments, **drawn(), return_noise=True)
    for ours, eager in zip(compiled, q_sample(*arguments, **drawn(), return_noise=True), strict=True):
        torch.testing.assert_close(ours, eager, rtol=0, atol=2e-6)


BAD = {
    "x_0 has dtype": {"x_0": torch.zeros(4, *SHAPE, dtype=torch.float64)},
    "t has dtype": {"t": torch.zeros(4)},
    "t has shape": {"t": torch.zeros(1, dtype=torch.int64)},
    "sqrt_one_minus_alphas_cumprod has shape": {"sqrt_one_minus_alphas_cumprod": torch.zeros(T + 1)},
    "sqrt_alphas_cumprod has dtype": {"sqrt_alphas_cumprod": torch.zeros(T, dtype=torch.float64)},
    "seeds has dtype": {"seeds": torch.zeros(4)},
    "ordinals has shape": {"ordinals": torch.zeros(3, dtype=torch.int64)},
    "noise is None and one of seeds": {"seeds": None},
    "noise is None and neither of seeds": {"seeds": None, "ordinals": None},
    "noise is given beside seeds": {"noise": torch.zeros(4, *SHAPE)},
    "noise has shape": {"noise": torch.zeros(4, 1), "seeds": None, "ordinals": None},
}


@pytest.mark.parametrize("message", BAD)
def test_bad_arguments_are_named(message):
    names = ("x_0", "t", "sqrt_alphas_cumprod", "sqrt_one_minus_alphas_cumprod")
    good = dict(zip(names, inputs(), strict=True)) | drawn()
    with pytest.raises(ValueError, match=f"^{message}") as raised:
        q_sample(**(good | BAD[message]))
    assert "accepted" in str(raised.value)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 1, 5), SHAPE, (1, 28, 28), (3, 32, 32)])
def test_kernel_agrees_with_float64(shape):
    arguments = inputs(shape, "cuda")
    on_cpu = inputs(shape)
    x_t, noise = q_sample(*arguments, **drawn("cuda"), return_noise=True)
    np.testing.assert_allclose(noise.cpu().numpy(), expected_noise(shape), rtol=0, atol=2e-6)
    np.testing.assert_allclose(x_t.cpu().numpy(), expected(*on_cpu, expected_noise(shape)), rtol=0, atol=2e-6)
    given = q_sample(*arguments, noise=noise)
    torch.testing.assert_close(given, x_t, rtol=0, atol=1e-6)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_kernel_gradients_and_unknown_t():
    x_0, t, signal, sigma = inputs(device="cuda")
    x_0.requires_grad_()
    noise = torch.randn(x_0.shape, device="cuda", requires_grad=True)
    q_sample(x_0, t, signal, sigma, noise=noise).sum().backward()
    torch.testing.assert_close(x_0.grad, signal[t].reshape(-1, 1, 1, 1).expand_as(x_0))
    torch.testing.assert_close(noise.grad, sigma[t].reshape(-1, 1, 1, 1).expand_as(x_0))
    outside = torch.tensor([0, T, -1, 2], device="cuda")
    x_t = q_sample(x_0, outside, signal, sigma, noise=noise)
    assert x_t.isnan().flatten(1).all(1).tolist() == [False, True, True, False]
