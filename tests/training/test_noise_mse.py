"""`noise_mse`: plain torch against float64, its gradients, the trainer's use of it, the kernel on a GPU."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from kernel_build import TARGETS, pretended
from noise_mse_cases import LOSSES, arguments, check, expected
from step_cases import SHAPES
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from training_cases import trainer

from fastddpm import NoiseSchedule
from fastddpm.training.objective import Noiser, Objective
from fastddpm_kernels import noise_mse, q_sample

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("v", [False, True], ids=["epsilon", "v"])
@pytest.mark.parametrize("n", [1, 5, 33, 784])
def test_loss_and_gradients_against_float64(loss, v, n):
    given = arguments(SHAPES[n], v=v)
    given["weights"].requires_grad_()
    value = noise_mse(**given, loss=loss)
    value.backward()
    check(given, loss, value, given["prediction"].grad)
    np.testing.assert_allclose(given["weights"].grad.numpy(), expected(given, loss)[2], rtol=2e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("channels_last", [False, True])
def test_half_precision_and_layouts(dtype, channels_last):
    given = arguments((3, 4, 5), v=True, dtype=dtype, channels_last=channels_last)
    value = noise_mse(**given)
    value.backward()
    check(given, "l2", value, given["prediction"].grad)


def test_it_is_the_noise_that_q_sample_adds():
    """A perfect prediction costs nothing."""
    given = arguments((3, 8, 8))
    tables, t = torch.rand(2, 4), torch.tensor([0, 3, 1])
    draw = {name: given[name] for name in ("seeds", "ordinals")}
    _, z = q_sample(torch.zeros(3, 3, 8, 8), t, *tables.clone(), **draw, return_noise=True)
    assert noise_mse(z, **draw).item() == 0.0
    assert noise_mse(z + 2, **draw, loss="huber").item() == pytest.approx(1.5)
    x_0 = torch.randn(3, 3, 8, 8)
    image = {"x_0": x_0, "signal": torch.zeros(3), "sigma": -torch.ones(3)}
    assert noise_mse(x_0, **draw, **image).item() == 0.0


def test_without_weights_each_sample_counts_the_same():
    given = arguments((3, 4, 4))
    of_one = noise_mse(**dict(given, weights=torch.ones(3)))
    del given["weights"]
    assert torch.equal(noise_mse(**given), of_one)


def test_a_nan_shows():
    for loss in LOSSES:
        given = arguments((3, 4, 4))
        given["prediction"].data[1, 0, 0, 0] = math.nan
        value = noise_mse(**given, loss=loss)
        value.backward()
        assert value.isnan()
        assert given["prediction"].grad[0].isfinite().all()


BAD = {
    "prediction has dtype": {"prediction": torch.zeros(3, 3, 4, 4, dtype=torch.float64)},
    "prediction has shape": {"prediction": torch.zeros(3)},
    "seeds has dtype": {"seeds": torch.zeros(3)},
    "ordinals has shape": {"ordinals": torch.zeros(2, dtype=torch.int64)},
    "weights has dtype": {"weights": torch.zeros(3, dtype=torch.float64)},
    "loss is 'mse'": {"loss": "mse"},
    "x_0 has shape": {"x_0": torch.zeros(3, 3, 4, 5)},
    "x_0 has strides": {"x_0": torch.zeros(3, 4, 4, 3).permute(0, 3, 1, 2)},
    "x_0 requires a gradient": {"x_0": torch.zeros(3, 3, 4, 4, requires_grad=True)},
    "signal is None beside": {"signal": None},
    "sigma has shape": {"sigma": torch.zeros(1)},
}


@pytest.mark.parametrize("message", BAD)
def test_bad_arguments_are_named(message):
    with pytest.raises(ValueError, match=f"^{message}") as raised:
        noise_mse(**(arguments((3, 4, 4), v=True) | BAD[message]))
    assert "accepted" in str(raised.value)


# ------------------------------------------------------------------ the trainer


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("time_input", ["timestep", "noise_level", "alphas_cumprod"])
def test_a_redrawn_target_is_the_stored_one(loss, prediction_type, time_input):
    """What the trainer does on CUDA, on the CPU: the same x_t, loss and gradient without a target kept."""
    objective = Objective(prediction_type=prediction_type, loss=loss, weighting="min_snr")
    noiser = Noiser(NoiseSchedule.linear(1000), objective, seed=7, time_input=time_input)
    assert not noiser.redraws
    x_0, ordinals = torch.rand(4, 3, 6, 6) * 2 - 1, torch.arange(90, 94)
    prediction = torch.randn(4, 3, 6, 6)
    results = []
    for redraws in (False, True):
        noiser.redraws = redraws
        batch = noiser(x_0, None, ordinals)
        given = prediction.clone().requires_grad_()
        value = noiser.loss(given, batch)
        value.backward()
        results.append((batch.x_t, value.detach(), given.grad))
        assert isinstance(batch.target, dict) is redraws
    for stored, redrawn in zip(*results, strict=True):
        torch.testing.assert_close(redrawn, stored, rtol=1e-6, atol=1e-7)


def test_a_run_with_redrawn_targets_trains_the_same_weights(tmp_path):
    weights = []
    for redraws in (False, True):
        one = trainer(tmp_path / str(redraws), objective=Objective(prediction_type="v_prediction"))
        one.noiser.redraws = one.validation_noiser.redraws = redraws
        one.train(progress=False)
        weights.append(torch.cat([p.detach().flatten() for p in one.unet.parameters()]))
    assert (weights[0] - weights[1]).abs().max() < 1e-5


def test_it_is_used_on_cuda_and_only_where_there_is_noise():
    with FakeTensorMode(allow_non_fake_inputs=True):
        for kind, redraws in (("epsilon", True), ("v_prediction", True), ("sample", False)):
            noiser = Noiser(
                NoiseSchedule.linear(10), Objective(prediction_type=kind), seed=0, device=torch.device("cuda")
            )
            assert noiser.redraws is redraws


# ------------------------------------------------------------------ on the device


class Operators(TorchDispatchMode):
    """The operators that run, and the elements of the largest tensor that they make."""

    def __init__(self):
        super().__init__()
        self.names, self.largest = [], 0

    def __torch_dispatch__(self, operator, types, arguments=(), options=None):
        result = operator(*arguments, **(options or {}))
        self.names.append(operator.name())
        if isinstance(result, torch.Tensor):
            self.largest = max(self.largest, result.numel())
        return result


@pytest.mark.parametrize("v", [False, True], ids=["epsilon", "v"])
@pytest.mark.parametrize("channels_last", [False, True])
def test_one_operator_each_way_and_nothing_of_the_images_size_but_the_gradient(v, channels_last):
    from fastddpm_kernels.noise_mse.kernel import noise_mse_backward_op

    with pretended(TARGETS["sm_90"]), FakeTensorMode():
        given = {
            name: torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device="cuda")
            for name, value in arguments((3, 16, 16), v=v, channels_last=channels_last).items()
        }
        given["prediction"].requires_grad_()
        with Operators() as forward:
            value = noise_mse(**given)
        # torch's engine wants a device; this is what the registered gradient runs.
        image = (given.get(name) for name in ("x_0", "signal", "sigma"))
        operands = (given["prediction"], given["seeds"], given["ordinals"], "l2", *image)
        with Operators() as backward:
            grad = noise_mse_backward_op(value.detach().expand(3).contiguous(), *operands)
    assert [name for name in forward.names if "fastddpm" in name] == ["fastddpm::noise_mse"]
    assert forward.largest <= 3
    assert [name for name in backward.names if "fastddpm" in name] == ["fastddpm::noise_mse_backward"]
    assert (grad.dtype, grad.stride()) == (given["prediction"].dtype, given["prediction"].stride())


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("v", [False, True], ids=["epsilon", "v"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("n", [1, 33, 3072])
def test_kernel_agrees_with_float64(loss, v, dtype, channels_last, n):
    given = arguments(SHAPES[n], v=v, dtype=dtype, channels_last=channels_last, device="cuda")
    values = []
    for _ in range(2):
        given["prediction"].grad = None
        values.append(noise_mse(**given, loss=loss))
        values[-1].backward()
    assert torch.equal(*values)
    check(given, loss, values[0], given["prediction"].grad)


@pytest.mark.gpu
@needs_gpu
def test_kernel_compiles_and_opcheck():
    from torch.library import opcheck

    from fastddpm_kernels.noise_mse.kernel import noise_mse_op

    given = arguments((3, 16, 16), v=True, channels_last=True, device="cuda")
    compiled = torch.compile(noise_mse, fullgraph=True)(**given)
    torch.testing.assert_close(compiled, noise_mse(**given), rtol=1e-6, atol=0)
    image = (given["x_0"], given["signal"], given["sigma"])
    opcheck(noise_mse_op, (given["prediction"], given["seeds"], given["ordinals"], "l2", *image))
