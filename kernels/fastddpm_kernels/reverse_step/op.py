"""The public `reverse_step`: argument checks, then the Triton operator on a CUDA tensor, else plain torch."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import machine_code
from ..arguments import check_state, check_tensor
from ..compat import runs_kernels
from ..table import MOST_KEPT, N_COLUMNS
from .reference import Arguments
from .reference import reverse_step as reference_reverse_step

M_DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def reverse_step(
    x: Tensor,
    m: Tensor,
    table: Tensor,
    counter: Tensor,
    *,
    noise: Tensor | None = None,
    x0: Tensor | None = None,
    guidance: Tensor | None = None,
    threshold: Tensor | None = None,
    kept: Tensor | None = None,
    base: Tensor | None = None,
    clip: bool = False,
    combine: bool = False,
    divide: bool = False,
    rederive: bool = False,
) -> None:
    """One reverse step, in place on x; of each sample b with the coefficients of row k = counter[b, 0]:

        m      = m_u + w*(m_c - m_u)                     with guidance
        x0     = clip(p*x + q*m, -r, r)                  or clip(p*x + q*m, -s, s) / s with threshold
        x_next = a*x0 + b*x + e*m + h1*k1 + ... + h5*k5 + c*z             k1 .. with kept
        k_slot = x0                                      or i*x0 + j*x + n*m with combine

    Where nothing bends or reads x0 this is x_next = linear_x*x + linear_m*m + c*z, and is computed so. With
    divisions it is computed as written, and on the CPU each operation rounds once, in this order:

        x0     = clip((p*x + q*m) / d, -r, r)            divide
        x_next = a*x0 + e*eps + h1*k1 + ... + c*z,  eps = (b*x + f*x0 + g*m) / w     rederive

    Args:
        x: float32 (B, C, H, W), or any (B, ...), contiguous. Overwritten by x_next. With several GPUs, x's
            is the current one: Triton launches there.
        m: the network's output, float32, float16 or bfloat16, contiguous or channels_last; another layout is
            copied first. It has the shape of x; with 2C channels the second half is the learned-range
            variance v in [-1, 1]; with guidance it has 2B rows, first the B unconditional and then the B
            conditional ones.
        table: float32 (S, 32), columns `Column`.
        counter: int64 (B, 2) = (k, repeat) of each sample, 0 <= k < S, read on the device only: k beyond the
            table is not detected on a GPU. One for all may be expanded, and is copied first on a GPU.
        noise: None: no noise term. int64 (B,): a seed in [0, 2**63) per sample, z drawn by the noise spec
            (stream 0, step k - base + 1). float32 (K, *x.shape): z = noise[(k - base) % K].
        x0: float32 like x, receives the clean image after the clip.
        guidance: float32 (B,), the scales w.
        threshold: float32 (B,), the bounds s > 0; takes the place of clip.
        kept: float32 (1 to 5, *x.shape), predictions of earlier rows; the row's own goes into the place that
            its column names, after the others were read.
        base: int64 (B,), the row of the table at which the plan of each sample begins, where the table holds
            the rows of several; None: 0 for all.
        clip: bound x0 by column r.
        combine: what is kept is a sum of x0, x and m, such as eps, instead of x0.
        divide: x0 has the divisor d, before the bound; d = 0 gives infinities, or NaN.
        rederive: e takes eps in place of m, from x, the bounded x0 and m; likewise w = 0.

    With 2C channels the noise is scaled by sigma = c * exp(0.5*(f*log_var_max + (1-f)*log_var_min)), f =
    (v+1)/2, v from the conditional half, else by c.

    NaN and infinity pass as they do through torch.clamp: a NaN stays one.

    Raises:
        ValueError: an argument has another shape, dtype, device or layout, or clip meets threshold, or
            combine has nothing to keep.

    Sources: DDPM (Ho et al. 2020), equations 7 and 11; DDIM (Song et al. 2021), 12; DPM-Solver++ (Lu et al.
    2022), algorithm 2; learned range: Improved DDPM (Nichol and Dhariwal 2021), 15; thresholding: Imagen
    (Saharia et al. 2022).
    """
    _check(x, m, table, guidance)
    _check_place(x, counter, base)
    _check_options(x, noise, x0, threshold, kept, clip, combine)
    if not _is_dense(m):
        m = m.contiguous()
    bounds = (guidance, threshold)
    given = Arguments(x, m, table, counter, noise, x0, *bounds, kept, base, clip, combine, divide, rederive)
    if runs_kernels(x.device):
        from .kernel import reverse_step_op

        reverse_step_op(*given._replace(counter=counter.contiguous()))
    elif _is_for_numba(given):
        from .compiled import reverse_step as compiled_reverse_step

        compiled_reverse_step(given)
    else:
        reference_reverse_step(given)


def _is_for_numba(given: Arguments) -> bool:
    """Whether numba makes the step: on a CPU, without kept predictions, a learned variance or a gradient,
    where it pays and rounds as torch does."""
    x, m = given.x, given.m
    if x.device.type != "cpu" or torch.compiler.is_compiling() or given.kept is not None:
        return False
    has_gradient = torch.is_grad_enabled() and (x.requires_grad or m.requires_grad)
    if m.shape[1] != x.shape[1] or not x.numel() or has_gradient:
        return False
    if not machine_code.pays(machine_code.UPDATED * x.numel()):
        return False
    from .compiled import torch_fuses

    return torch_fuses()


def _check(x: Tensor, m: Tensor, table: Tensor, guidance: Tensor | None) -> None:
    check_state("x", x)
    if m.dtype not in M_DTYPES:
        raise ValueError(f"m has dtype {m.dtype}; accepted: {', '.join(str(dtype) for dtype in M_DTYPES)}")
    if m.device != x.device:
        raise ValueError(f"m is on {m.device}; accepted is {x.device}, where x is")
    rows = x.shape[0] if guidance is None else 2 * x.shape[0]
    plain = (rows, *x.shape[1:])
    learned = (rows, 2 * x.shape[1], *x.shape[2:])
    if tuple(m.shape) not in (plain, learned):
        raise ValueError(
            f"m has shape {tuple(m.shape)}; accepted is {plain}, or {learned} with learned-range variance, "
            f"for x {tuple(x.shape)} {'without' if guidance is None else 'with'} guidance"
        )
    if table.dim() != 2 or table.shape[0] < 1:
        raise ValueError(f"table has shape {tuple(table.shape)}; accepted is (S, {N_COLUMNS}), S >= 1")
    check_tensor("table", table, shape=(table.shape[0], N_COLUMNS), dtypes=(torch.float32,), device=x.device)
    if guidance is not None:
        check_tensor("guidance", guidance, shape=x.shape[:1], dtypes=(torch.float32,), device=x.device)


def _check_place(x: Tensor, counter: Tensor, base: Tensor | None) -> None:
    batch, dtypes = x.shape[0], (torch.int64,)
    check_tensor("counter", counter, shape=(batch, 2), dtypes=dtypes, device=x.device, contiguous=False)
    if base is not None:
        check_tensor("base", base, shape=(batch,), dtypes=dtypes, device=x.device)


def _check_options(
    x: Tensor,
    noise: Tensor | None,
    x0: Tensor | None,
    threshold: Tensor | None,
    kept: Tensor | None,
    clip: bool,
    combine: bool,
) -> None:
    if noise is not None and noise.dtype == torch.int64:
        check_tensor("noise (seeds)", noise, shape=x.shape[:1], dtypes=(torch.int64,), device=x.device)
    elif noise is not None:
        if noise.dim() != x.dim() + 1 or noise.shape[0] < 1:
            raise ValueError(
                f"noise has shape {tuple(noise.shape)} and dtype {noise.dtype}; accepted: int64 seeds "
                f"{tuple(x.shape[:1])}, or float32 (K, *{tuple(x.shape)}) with K >= 1"
            )
        ring = (noise.shape[0], *x.shape)
        check_tensor("noise", noise, shape=ring, dtypes=(torch.float32,), device=x.device)
    if x0 is not None:
        check_tensor("x0", x0, shape=x.shape, dtypes=(torch.float32,), device=x.device)
    if threshold is not None:
        check_tensor("threshold", threshold, shape=x.shape[:1], dtypes=(torch.float32,), device=x.device)
    if clip and threshold is not None:
        raise ValueError("clip is True and threshold is given; accepted is one of the two bounds of x0")
    if kept is not None:
        if kept.dim() != x.dim() + 1 or not 1 <= kept.shape[0] <= MOST_KEPT:
            raise ValueError(
                f"kept has shape {tuple(kept.shape)}; accepted is (1 to {MOST_KEPT}, *{tuple(x.shape)})"
            )
        check_tensor("kept", kept, shape=(len(kept), *x.shape), dtypes=(torch.float32,), device=x.device)
    elif combine:
        raise ValueError("combine is True and kept is None; accepted is a buffer for what is kept")


def _is_dense(m: Tensor) -> bool:
    """Whether the kernel reads this layout: contiguous, or channels_last."""
    return m.is_contiguous() or (m.dim() == 4 and m.is_contiguous(memory_format=torch.channels_last))
