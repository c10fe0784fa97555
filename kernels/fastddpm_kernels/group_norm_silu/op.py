"""The public `group_norm_silu`: argument checks, then the Triton operator on CUDA, else plain torch."""

from __future__ import annotations

import torch
from torch import Tensor

from ..compat import runs_kernels
from .reference import Arguments
from .reference import group_norm_silu as reference_group_norm_silu
from .tiles import fits, is_channels_last, surely_fits

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
ACTIVATIONS = ("silu", "mish", "none")


def group_norm_silu(
    x: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    *,
    pre_bias: Tensor | None = None,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    activation: str = "silu",
) -> Tensor:
    """y = silu(group_norm(x + pre_bias) * (1 + scale) + shift): a residual block between two convolutions.

    Args:
        x: (N, C, ...). On CUDA float32, float16 and bfloat16 go through the fused kernel, in float32
            throughout; contiguous and channels_last maps are read as they are, others are copied first.
            Other dtypes, and groups of more than about 16 million elements, take the plain path.
        num_groups: G, a divisor of C.
        weight, bias: (C,), or None.
        eps: added to the variance of a group.
        pre_bias: (N, C), or (1, C) for all samples alike; None adds nothing.
        scale, shift: likewise, both or neither.
        activation: "silu", "mish" or "none".

    Returns y, in x's layout; on CUDA in x's dtype, elsewhere in the dtype that PyTorch promotes to. Gradients
    flow to every tensor; with "mish" by the plain path. A NaN or infinity in a group of x makes the whole
    group NaN, as in `torch.nn.functional.group_norm`.

    Raises:
        ValueError: num_groups does not divide C, a vector has another shape or device, scale comes without
            shift, or another activation is named.

    Sources: GroupNorm (Wu and He 2018), equations 1 to 3; SiLU (Elfwing et al. 2018); Mish
    (Misra 2019); a bias before the norm:
    the code of DDPM (Ho et al. 2020); scale and shift after it: that of Improved DDPM (Nichol and Dhariwal
    2021).
    """
    _check(x.shape, num_groups, activation)
    _check_vectors(x.shape, x.device, weight, bias, pre_bias, scale, shift)
    silu, mish = activation == "silu", activation == "mish"
    is_plain = mish and _needs_gradient((x, weight, bias, pre_bias, scale, shift))
    if is_plain or not _is_for_kernels(x, num_groups):
        return reference_group_norm_silu(
            Arguments(x, num_groups, weight, bias, eps, pre_bias, scale, shift, silu, mish=mish)
        )
    from .launches import group_norm_mish_op, group_norm_silu_op

    if not (x.is_contiguous() or is_channels_last(x)):
        x = x.contiguous()
    weight, bias = (None if tensor is None else tensor.contiguous() for tensor in (weight, bias))
    pre_bias, scale, shift = (_with_neighbouring_channels(tensor) for tensor in (pre_bias, scale, shift))
    if mish:
        fused: Tensor = group_norm_mish_op(x, num_groups, weight, bias, eps, pre_bias, scale, shift)
        return fused
    y: Tensor = group_norm_silu_op(x, num_groups, weight, bias, eps, pre_bias, scale, shift, silu)[0]
    return y


def add_group_norm_silu(
    x: Tensor,
    residual: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    *,
    pre_bias: Tensor | None = None,
    activation: str = "silu",
) -> tuple[Tensor, Tensor]:
    """(`group_norm_silu` of x + residual, x + residual): the end of a residual block and the next one's norm.

    Args:
        x: as of `group_norm_silu`.
        residual: of x's shape and dtype.
        num_groups, weight, bias, eps, pre_bias, activation: as of `group_norm_silu`.

    On CUDA one pass where a group fits, without a gradient; with gradients or Mish, and elsewhere, two
    operations.

    Raises:
        ValueError: as `group_norm_silu`, and for a residual of another shape, dtype or device.
    """
    _check(x.shape, num_groups, activation)
    _check_vectors(x.shape, x.device, weight, bias, pre_bias, None, None)
    _check_residual(x, residual)
    is_plain = activation == "mish" or _needs_gradient((x, residual, weight, bias, pre_bias))
    if is_plain or not _is_for_kernels(x, num_groups):
        total = x + residual
        options = {"pre_bias": pre_bias, "activation": activation}
        return group_norm_silu(total, num_groups, weight, bias, eps, **options), total  # type: ignore[arg-type]
    from .launches import add_group_norm_silu_op

    if not (x.is_contiguous() or is_channels_last(x)):
        x = x.contiguous()
    if residual.stride() != x.stride():
        residual = torch.empty_like(x).copy_(residual)
    weight, bias = (None if tensor is None else tensor.contiguous() for tensor in (weight, bias))
    pre_bias, silu = _with_neighbouring_channels(pre_bias), activation == "silu"
    outputs: tuple[Tensor, Tensor] = add_group_norm_silu_op(
        x, residual, num_groups, weight, bias, eps, pre_bias, silu
    )
    return outputs


def cat_group_norm_silu(
    x: Tensor,
    other: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    *,
    residual: Tensor | None = None,
    pre_bias: Tensor | None = None,
    activation: str = "silu",
) -> tuple[Tensor, Tensor]:
    """(`group_norm_silu` of the whole, the whole): x, or x + residual, with the channels of other behind.

    What a UNet's block on the way up begins with, and what its shortcut reads.

    Args:
        x: (N, C, ...), as of `group_norm_silu`.
        other: (N, any, ...) of x's dtype.
        num_groups, weight, bias, eps, pre_bias, activation: as of `group_norm_silu`, of the whole.
        residual: like x; None adds nothing.

    On CUDA one pass where a group fits, without a gradient; with gradients or Mish, and elsewhere, operation
    by operation.

    Raises:
        ValueError: as `group_norm_silu`, and for another or a residual of another shape, dtype or device.
    """
    _check(x.shape, 1, activation)
    places = [tuple(tensor.shape[:1] + tensor.shape[2:]) for tensor in (x, other)]
    if (places[1], other.dtype, other.device) != (places[0], x.dtype, x.device):
        raise ValueError(
            f"other: {tuple(other.shape)}, {other.dtype} on {other.device} given; accepted is "
            f"{tuple(x.shape)}, {x.dtype} on {x.device}, as x is, with any channels"
        )
    if residual is not None:
        _check_residual(x, residual)
    shape = torch.Size((x.shape[0], x.shape[1] + other.shape[1], *x.shape[2:]))
    _check(shape, num_groups, activation)
    _check_vectors(shape, x.device, weight, bias, pre_bias, None, None)
    given = (x, residual, other, weight, bias, pre_bias)
    is_for_kernels = runs_kernels(x.device) and x.dtype in DTYPES and x.numel() > 0
    is_plain = activation == "mish" or _needs_gradient(given)
    if is_plain or not (is_for_kernels and surely_fits(shape, num_groups)):
        whole = torch.cat((x if residual is None else x + residual, other), dim=1)
        options = {"pre_bias": pre_bias, "activation": activation}
        return group_norm_silu(whole, num_groups, weight, bias, eps, **options), whole  # type: ignore[arg-type]
    from .launches import cat_group_norm_silu_op

    if not (x.is_contiguous() or is_channels_last(x)):
        x = x.contiguous()
    other = _in_layout_of(x, other)
    residual = None if residual is None else _in_layout_of(x, residual)
    weight, bias = (None if tensor is None else tensor.contiguous() for tensor in (weight, bias))
    pre_bias, silu = _with_neighbouring_channels(pre_bias), activation == "silu"
    outputs: tuple[Tensor, Tensor] = cat_group_norm_silu_op(
        x, residual, other, num_groups, weight, bias, eps, pre_bias, silu
    )
    return outputs


def _in_layout_of(x: Tensor, other: Tensor) -> Tensor:
    if is_channels_last(x):
        return other if is_channels_last(other) else other.movedim(1, -1).contiguous().movedim(-1, 1)
    return other.contiguous()


def _needs_gradient(given: tuple[Tensor | None, ...]) -> bool:
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in given)


def _is_for_kernels(x: Tensor, num_groups: int) -> bool:
    return runs_kernels(x.device) and x.dtype in DTYPES and x.numel() > 0 and fits(x, num_groups)


def _check(shape: torch.Size, num_groups: int, activation: str) -> None:
    if len(shape) < 2:
        raise ValueError(f"x has shape {tuple(shape)}; accepted is (N, C, H, W), or any (N, C, ...)")
    if num_groups < 1 or shape[1] % num_groups:
        raise ValueError(f"num_groups is {num_groups}; accepted are divisors of the {shape[1]} channels of x")
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation is {activation!r}; accepted: {', '.join(ACTIVATIONS)}")


def _check_residual(x: Tensor, residual: Tensor) -> None:
    kind = (residual.shape, residual.dtype, residual.device)
    if kind != (x.shape, x.dtype, x.device):
        raise ValueError(
            f"residual: {tuple(residual.shape)}, {residual.dtype} on {residual.device} given; accepted is "
            f"{tuple(x.shape)}, {x.dtype} on {x.device}, as x is"
        )


def _check_vectors(
    shape: torch.Size,
    device: torch.device,
    weight: Tensor | None,
    bias: Tensor | None,
    pre_bias: Tensor | None,
    scale: Tensor | None,
    shift: Tensor | None,
) -> None:
    if (scale is None) != (shift is None):
        alone = "scale" if shift is None else "shift"
        raise ValueError(f"{alone} is given alone; accepted are scale and shift together, or neither")
    batch, channels = shape[:2]
    for name, vector in (("weight", weight), ("bias", bias)):
        if vector is not None and (vector.dim() != 1 or vector.shape[0] != channels):
            raise ValueError(f"{name} has shape {tuple(vector.shape)}; accepted is {(channels,)}")
    for name, vectors in (("pre_bias", pre_bias), ("scale", scale), ("shift", shift)):
        if vectors is None:
            continue
        if vectors.dim() != 2 or vectors.shape[0] not in (1, batch) or vectors.shape[1] != channels:
            raise ValueError(
                f"{name} has shape {tuple(vectors.shape)}; accepted is {(batch, channels)}, or "
                f"{(1, channels)} for all samples"
            )
    given = {"weight": weight, "bias": bias, "pre_bias": pre_bias, "scale": scale, "shift": shift}
    for name, tensor in given.items():
        if tensor is not None and tensor.device != device:
            raise ValueError(f"{name} is on {tensor.device}; accepted is {device}, where x is")


def _with_neighbouring_channels(vectors: Tensor | None) -> Tensor | None:
    """As the kernel reads it: rows may lie apart, as those of a slice of a table do."""
    return vectors if vectors is None or vectors.stride(1) == 1 else vectors.contiguous()
