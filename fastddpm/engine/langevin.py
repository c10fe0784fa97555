"""Rows that go along the score by a step whose length follows from its norm: the corrector of an SDE.

    x <- x + eps m + sqrt(2 eps) z,   eps = 2 (r |z|/|m|)^2

Song et al. 2021, algorithm 4, as diffusers' ScoreSdeVeScheduler has it: the norms are means over the batch.
No coefficient of a table can say that, so that here m and z are scaled before the row is applied to them.
"""

from __future__ import annotations

import torch
from torch import Tensor


def langevin(m: Tensor, ring: Tensor, k: Tensor, snr: float, passes: int) -> tuple[Tensor, Tensor]:
    """What a row is given in the place of m and its noise; nothing is read on the host.

    Args:
        m: the network's output, the score ``(B, ...)``.
        ring: float32 ``(K, B, ...)``, the noise of K rows.
        k: int64 ``(B,)``, the row, which is the same of every sample.
        snr: r.
        passes: rows of the corrector before each of the predictor, whose m and z stay as they are.

    Returns:
        float32 ``(B, ...)``, and a ring of one row ``(1, B, ...)``.
    """
    row = k[:1]
    m, z = m.to(torch.float32), ring.index_select(0, row % len(ring))
    lengths = [torch.norm(values.flatten(1), dim=1).mean() for values in (z[0], m)]
    size = (snr * lengths[0] / lengths[1]) ** 2 * 2
    corrects = row % (passes + 1) < passes
    along = torch.where(corrects, size, 1.0).view(1, *(1,) * (m.dim() - 1))
    across = torch.where(corrects, (size * 2) ** 0.5, 1.0).view(1, *(1,) * m.dim())
    return along * m, across * z
