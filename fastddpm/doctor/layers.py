"""Cases of `group_norm_silu` and `noise_mse`, forward and backward, and what float64 makes of them."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from fastddpm.doctor.cases import SEEDS, Arguments, Case
from fastddpm_kernels.noise import reference as noise_spec

LAYER_LIMIT = 1e-5
"""Of float32 values and gradients up to about 10 in size, whose sums run over thousands, against float64."""

MAPS = {"one pass": ((6, 64, 4, 4), 32), "shared": ((2, 16, 8, 8), 4), "split": ((1, 8, 64, 64), 1)}
"""Shapes and groups: more groups than multiprocessors of a card, fewer, and one that does not fit on chip."""

ORDINALS = (7, 2**32 - 1, 3 * 2**32 + 7)


def cases() -> list[Case]:
    """Norms in both layouts, in one pass, shared and split; the loss of epsilon."""
    norms = [norm_case(name, channels_last=layout) for name in MAPS for layout in (False, True)]
    return [*norms, loss_case()]


def norm_case(name: str, *, channels_last: bool) -> Case:
    """y and the gradient of x of `group_norm_silu`, with a bias per sample before the norm."""
    (shape, num_groups), generator = MAPS[name], torch.Generator().manual_seed(3)
    x, dy = (torch.randn(shape, generator=generator) for _ in range(2))
    weight, bias = (torch.randn(shape[1], generator=generator) for _ in range(2))
    pre_bias = torch.randn(shape[:2], generator=generator)
    if channels_last:
        x = x.to(memory_format=torch.channels_last)
    arguments = {
        "x": x,
        "num_groups": num_groups,
        "weight": weight,
        "bias": bias,
        "pre_bias": pre_bias,
        "dy": dy,
    }
    wide = {key: value.double() if isinstance(value, Tensor) else value for key, value in arguments.items()}

    def plain(x: Tensor, groups: int, weight: Tensor, bias: Tensor, *, pre_bias: Tensor) -> Tensor:
        return F.silu(F.group_norm(x + pre_bias[..., None, None], groups, weight, bias))

    layout = "channels_last" if channels_last else "contiguous"
    words = f"group_norm_silu and gradient, {name}, {layout}"
    return Case(words, "group_norm_silu", arguments, norm_results(plain, wide))


def norm_results(function: Callable[..., Tensor], arguments: Arguments) -> list[Tensor]:
    """y and the gradient of x of a function that takes the arguments of `group_norm_silu`."""
    given = dict(arguments)
    dy, x = given.pop("dy"), given.pop("x").detach().requires_grad_()
    positional = (given.pop(name) for name in ("num_groups", "weight", "bias"))
    y = function(x, *positional, **given)
    [dx] = torch.autograd.grad(y, x, dy)
    return [y.detach(), dx]


def loss_case() -> Case:
    """The squared distance of `noise_mse` and its slope 2u."""
    shape = (3, 11, 1)
    prediction = torch.randn(len(SEEDS), *shape, generator=torch.Generator().manual_seed(4))
    ordinals = torch.tensor(ORDINALS)
    numbers = noise_spec.normal(SEEDS, ordinals.numpy(), shape, stream=1, repeat=ordinals.numpy() >> 32)
    u = prediction.double() - torch.from_numpy(numbers)
    arguments = {"prediction": prediction, "seeds": torch.tensor(SEEDS), "ordinals": ordinals}
    return Case("noise_mse and gradient", "noise_mse", arguments, [u.square().mean(), 2 * u])


def loss_results(function: Callable[..., Tensor], arguments: Arguments) -> list[Tensor]:
    """The loss, and its gradient times the number of elements, of a function like `noise_mse`."""
    prediction = arguments["prediction"].detach().requires_grad_()
    loss = function(**{**arguments, "prediction": prediction})
    [gradient] = torch.autograd.grad(loss, prediction)
    return [loss.detach(), gradient * gradient.numel()]
