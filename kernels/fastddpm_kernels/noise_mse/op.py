"""The public `noise_mse`: argument checks, then the Triton operator on a CUDA tensor, else plain torch."""

from __future__ import annotations

import torch
from torch import Tensor

from ..arguments import check_tensor
from ..compat import runs_kernels
from .reference import DISTANCES, Arguments
from .reference import distances as reference_distances

PREDICTION_DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def noise_mse(
    prediction: Tensor,
    seeds: Tensor,
    ordinals: Tensor,
    *,
    loss: str = "l2",
    weights: Tensor | None = None,
    x_0: Tensor | None = None,
    signal: Tensor | None = None,
    sigma: Tensor | None = None,
) -> Tensor:
    """The training loss, mean_i w_i mean_e d(prediction_ie - target_ie), of noise that is not stored.

        target = z                                       epsilon prediction
        target = signal_i*z - sigma_i*x_0                v prediction, with x_0, signal and sigma

    z is the noise that `q_sample` added for the same seeds and ordinals, drawn again: once for the loss and
    once for its gradient, each in one pass over the prediction.

    Args:
        prediction: the network's output (B, C, H, W), or any (B, ...), float32, float16 or bfloat16,
            contiguous or channels_last; another layout is copied first. With several GPUs, prediction's is
            the current one.
        seeds: int64 (B,) in [0, 2**63), as `q_sample` was given.
        ordinals: int64 (B,), likewise.
        loss: d of a difference u: `l2` is u**2; `l1` is |u|; `huber` is u**2/2 up to |u| = 1 and |u| - 1/2
            beyond.
        weights: float32 (B,), w; None for 1.
        x_0: float32 like prediction, contiguous: the image that was noised. No gradient flows to it.
        signal: float32 (B,), sqrt(alphas_cumprod[t]) of each sample.
        sigma: float32 (B,), sqrt(1 - alphas_cumprod[t]) of each sample.

    Returns a float32 scalar, computed in float32; the same bits each time. Gradients flow to prediction, in
    its dtype and layout, and to weights; not a second time. A NaN in the prediction makes the loss NaN; its
    gradient is that of torch's losses.

    Raises:
        ValueError: an argument has another shape, dtype, device or layout, loss is unknown, or only some of
        x_0, signal and sigma are given.

    Sources: DDPM (Ho et al. 2020), equation 14; v: Salimans and Ho 2022.
    """
    _check(prediction, seeds, ordinals, loss, weights)
    _check_image(prediction, x_0, signal, sigma)
    on_device = runs_kernels(prediction.device)
    if on_device and not is_dense(prediction):
        prediction = prediction.contiguous()
    given = Arguments(prediction, seeds, ordinals, loss, x_0, signal, sigma)
    if on_device:
        from .kernel import noise_mse_op

        distances: Tensor = noise_mse_op(*given)
    else:
        distances = reference_distances(given)
    return (distances if weights is None else weights * distances).mean()


def is_dense(prediction: Tensor) -> bool:
    """Whether the kernel reads this layout: contiguous, or channels_last."""
    if prediction.is_contiguous():
        return True
    return prediction.dim() == 4 and prediction.is_contiguous(memory_format=torch.channels_last)


def _check(prediction: Tensor, seeds: Tensor, ordinals: Tensor, loss: str, weights: Tensor | None) -> None:
    if prediction.dim() < 2 or not prediction.numel():
        shape = tuple(prediction.shape)
        raise ValueError(f"prediction has shape {shape}; accepted is (B, C, H, W) or any (B, ...), not empty")
    batch, device = prediction.shape[:1], prediction.device
    check_tensor(
        "prediction",
        prediction,
        shape=prediction.shape,
        dtypes=PREDICTION_DTYPES,
        device=device,
        contiguous=False,
    )
    for name, values in {"seeds": seeds, "ordinals": ordinals}.items():
        check_tensor(name, values, shape=batch, dtypes=(torch.int64,), device=device)
    if loss not in DISTANCES:
        raise ValueError(f"loss is {loss!r}; accepted: {', '.join(DISTANCES)}")
    if weights is not None:
        check_tensor("weights", weights, shape=batch, dtypes=(torch.float32,), device=device)


def _check_image(prediction: Tensor, x_0: Tensor | None, signal: Tensor | None, sigma: Tensor | None) -> None:
    given = {"x_0": x_0, "signal": signal, "sigma": sigma}
    missing = [name for name, value in given.items() if value is None]
    if len(missing) == 3:
        return
    if missing:
        raise ValueError(
            f"{missing[0]} is None beside the others; accepted are x_0, signal and sigma, or none"
        )
    for name, value in given.items():
        assert value is not None
        shape = prediction.shape if name == "x_0" else prediction.shape[:1]
        check_tensor(name, value, shape=shape, dtypes=(torch.float32,), device=prediction.device)
        if value.requires_grad:
            raise ValueError(f"{name} requires a gradient; accepted is a tensor that does not")
