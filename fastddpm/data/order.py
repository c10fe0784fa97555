"""The order in which a run sees its images: shuffled epochs, as a pure function of the run's seed.

The i-th sample that a run ever draws has the global ordinal i, counted over all processes and epochs. It
belongs to epoch i // n and is that epoch's (i mod n)-th image. Nothing is remembered between calls, so a
resumed run goes on exactly, and processes that share out a batch's ordinals see what one process sees.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from fastddpm.checks import whole
from fastddpm_kernels.noise import words

MAX_ORDINAL = 2**63 - 1
STREAM = 2
"""The noise spec's stream for what training draws besides noise."""
# Words of samples have repeat = ordinal >> 32 < 2**31; those of orders have the top bit set, so that the two
# never share a counter.
ORDER_REPEAT = 2**31


def epoch_order(n: int, seed: int, epoch: int) -> Tensor:
    """A permutation of 0 .. n-1, int64 ``(n,)``: each image once, another order for every epoch and seed.

    Image j gets a 63-bit number, the upper 31 bits of one word of noise spec v1 and all of another, and the
    order sorts these numbers. The words are elements j and n + j of 2n, with key = seed, stream 2,
    step = epoch & 0xffffffff, repeat = 2**31 + (epoch >> 32).

    Args:
        n: images, 1 or more.
        seed: the run's seed, in [0, 2**63).
        epoch: in [0, 2**63).

    Raises:
        ValueError: an argument outside its range.
    """
    whole("n", n, least=1, most=MAX_ORDINAL)
    whole("seed", seed, least=0, most=MAX_ORDINAL)
    whole("epoch", epoch, least=0, most=MAX_ORDINAL)
    return _order(n, seed, epoch).clone()


def indices_for(start_ordinal: int, count: int, n: int, seed: int) -> Tensor:
    """The data indices of the samples with ordinals start_ordinal .. start_ordinal + count - 1.

    Args:
        start_ordinal: the first ordinal, 0 for a new run.
        count: samples, 0 or more; they may cross epochs.
        n: images in the dataset, 1 or more.
        seed: the run's seed, in [0, 2**63).

    Returns:
        int64 ``(count,)`` in [0, n).

    Raises:
        ValueError: an argument outside its range.
    """
    whole("start_ordinal", start_ordinal, least=0, most=MAX_ORDINAL)
    whole("count", count, least=0, most=MAX_ORDINAL)
    whole("n", n, least=1, most=MAX_ORDINAL)
    whole("seed", seed, least=0, most=MAX_ORDINAL)
    parts = [torch.empty(0, dtype=torch.int64)]
    ordinal, end = start_ordinal, start_ordinal + count
    while ordinal < end:
        epoch, position = divmod(ordinal, n)
        stop = min(n, position + end - ordinal)
        parts.append(_order(n, seed, epoch)[position:stop])
        ordinal += stop - position
    return torch.cat(parts)


# A run asks for every batch of an epoch in turn; the second place is for a batch across two epochs.
@lru_cache(maxsize=2)
def _order(n: int, seed: int, epoch: int) -> Tensor:
    lanes = words(
        torch.tensor([seed]), epoch & 0xFFFFFFFF, 2 * n, stream=STREAM, repeat=ORDER_REPEAT | (epoch >> 32)
    )
    flat = torch.cat(lanes, dim=1)[0]
    return torch.argsort(((flat[:n] >> 1) << 32) | flat[n : 2 * n], stable=True)
