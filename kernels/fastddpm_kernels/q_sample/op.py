"""The public `q_sample`: argument checks, then the Triton operator on a CUDA tensor, else plain torch."""

from __future__ import annotations

from typing import Literal, overload

import torch
from torch import Tensor

from ..arguments import check_state, check_tensor
from ..compat import runs_kernels
from .reference import Arguments
from .reference import q_sample as reference_q_sample


@overload
def q_sample(
    x_0: Tensor,
    t: Tensor,
    sqrt_alphas_cumprod: Tensor,
    sqrt_one_minus_alphas_cumprod: Tensor,
    *,
    noise: Tensor | None = None,
    seeds: Tensor | None = None,
    ordinals: Tensor | None = None,
    return_noise: Literal[False] = False,
) -> Tensor: ...


@overload
def q_sample(
    x_0: Tensor,
    t: Tensor,
    sqrt_alphas_cumprod: Tensor,
    sqrt_one_minus_alphas_cumprod: Tensor,
    *,
    noise: Tensor | None = None,
    seeds: Tensor | None = None,
    ordinals: Tensor | None = None,
    return_noise: Literal[True],
) -> tuple[Tensor, Tensor]: ...


def q_sample(
    x_0: Tensor,
    t: Tensor,
    sqrt_alphas_cumprod: Tensor,
    sqrt_one_minus_alphas_cumprod: Tensor,
    *,
    noise: Tensor | None = None,
    seeds: Tensor | None = None,
    ordinals: Tensor | None = None,
    return_noise: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """x_t ~ q(x_t | x_0) = sqrt_alphas_cumprod[t] * x_0 + sqrt_one_minus_alphas_cumprod[t] * noise.

    Args:
        x_0: float32 (B, C, H, W), or any (B, ...), contiguous. With several GPUs, x_0's is the current one.
        t: int64 (B,), 0 <= t < T. Outside of it: IndexError on a CPU, an x_t of NaN on a GPU, where a check
            would wait for the device.
        sqrt_alphas_cumprod: float32 (T,), from the schedule.
        sqrt_one_minus_alphas_cumprod: likewise.
        noise: float32 like x_0; or, instead,
        seeds: int64 (B,) in [0, 2**63) (a training run repeats its one seed), and
        ordinals: int64 (B,): sample i is the ordinals[i]-th that the run draws; the noise has step = ordinal
            modulo 2**32, repeat = ordinal // 2**32, stream 1 (noise spec v1). It is drawn in the pass that
            uses it.
        return_noise: also return the noise, float32 like x_0.

    Returns:
        x_t, float32 like x_0, or (x_t, noise). Gradients flow to x_0 and to a given noise.

    Raises:
        ValueError: an argument has another shape, dtype, device or layout, or not exactly one source of
            noise is given.

    Source: DDPM (Ho et al. 2020), equation 4.
    """
    _check(x_0, t, sqrt_alphas_cumprod, sqrt_one_minus_alphas_cumprod)
    _check_noise(x_0, noise, seeds, ordinals)
    given = Arguments(
        x_0, t, sqrt_alphas_cumprod, sqrt_one_minus_alphas_cumprod, noise, seeds, ordinals, return_noise
    )
    if runs_kernels(x_0.device):
        from .kernel import q_sample_op

        x_t, drawn = q_sample_op(*given)
        z = drawn if noise is None else noise
    else:
        x_t, z = reference_q_sample(given)
    return (x_t, z) if return_noise else x_t


def _check(x_0: Tensor, t: Tensor, signal: Tensor, sigma: Tensor) -> None:
    check_state("x_0", x_0)
    check_tensor("t", t, shape=x_0.shape[:1], dtypes=(torch.int64,), device=x_0.device)
    tables = {"sqrt_alphas_cumprod": signal, "sqrt_one_minus_alphas_cumprod": sigma}
    for name, values in tables.items():
        check_tensor(name, values, shape=(signal.numel(),), dtypes=(torch.float32,), device=x_0.device)


def _check_noise(x_0: Tensor, noise: Tensor | None, seeds: Tensor | None, ordinals: Tensor | None) -> None:
    if noise is not None:
        if seeds is not None or ordinals is not None:
            raise ValueError(
                "noise is given beside seeds or ordinals; accepted is noise alone, or seeds and ordinals"
            )
        check_tensor("noise", noise, shape=x_0.shape, dtypes=(torch.float32,), device=x_0.device)
        return
    if seeds is None or ordinals is None:
        given = "neither" if seeds is None and ordinals is None else "one"
        raise ValueError(
            f"noise is None and {given} of seeds and ordinals is given; accepted is noise alone, or both"
        )
    for name, values in {"seeds": seeds, "ordinals": ordinals}.items():
        check_tensor(name, values, shape=x_0.shape[:1], dtypes=(torch.int64,), device=x_0.device)
