"""Images from parts of them: inpainting and colourisation without training.

Song et al. 2021, appendix I.2 and I.3.

While the chain runs, what is known of the image is put in, noised to the state's level: x_known = a x_0 +
sigma z, with fresh z each time. What is known are the pixels under a mask, or, for colourisation, one channel
of an orthogonal change of colours, in which the others can be drawn freely. Correctors make the rest agree
with it; without them the seams show (give `sample_pc` several).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fastddpm.checks import BadArgument, check_count, seed_list, shown
from fastddpm.score.predictor_corrector import PassOptions, sample_pc
from fastddpm.score.sdes import SDE, Score, like
from fastddpm.signatures import checked

if TYPE_CHECKING:
    from typing_extensions import Unpack


class KnownPart:
    """A constraint for `sample_pc`: some values of the image, in some orthogonal coordinates of its channels.

    Args:
        image: ``(B, C, H, W)``, or ``(1, ...)`` for any B; only what is known of it is used.
        mask: bool, of a shape that broadcasts to image's; true where it is known.
        basis: orthogonal ``(C, C)``; coordinates are ``basis @ channels``. None for the channels themselves.

    Raises:
        ValueError: a mask that is not bool or does not fit; an image that is not finite where it is known.
    """

    @checked
    def __init__(self, image: Tensor, mask: Tensor, basis: Tensor | None = None) -> None:
        if mask.dtype != torch.bool or mask.ndim > image.ndim:
            raise BadArgument("mask", f"{mask.dtype} {tuple(mask.shape)}", "bool like the image")
        try:
            self.mask = mask.expand(image.shape)
        except RuntimeError:
            raise BadArgument(
                "mask", f"shape {tuple(mask.shape)}", f"one that broadcasts to {tuple(image.shape)}"
            ) from None
        if basis is not None and (image.ndim < 2 or basis.shape != (image.shape[1],) * 2):
            raise BadArgument("basis", shown(basis), "(C, C), for the channels of the image")
        self.basis = basis
        known = self._to(image.float())
        if not bool(known[self.mask].isfinite().all()):
            raise BadArgument("image", "NaN or infinity among what is known", "finite numbers")
        self.known = torch.where(self.mask, known, 0.0)

    def __call__(self, sde: SDE, x: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """x with the known part at time t put in."""
        noised = like(sde.signal(t), x) * self.known.to(x) + like(sde.sigma(t), x) * self._to(noise)
        return self._from(torch.where(self.mask.to(x.device), noised, self._to(x)))

    def final(self, x_0: Tensor) -> Tensor:
        """x_0 with the known part as it was given."""
        return self._from(torch.where(self.mask.to(x_0.device), self.known.to(x_0), self._to(x_0)))

    def _to(self, x: Tensor) -> Tensor:
        return x if self.basis is None else torch.einsum("dc,bc...->bd...", self.basis.to(x), x)

    def _from(self, x: Tensor) -> Tensor:
        return x if self.basis is None else torch.einsum("dc,bd...->bc...", self.basis.to(x), x)


@checked
def inpaint(
    score: Score, image: Tensor, mask: Tensor, seeds: Sequence[int] | Tensor, **options: Unpack[PassOptions]
) -> Tensor:
    """Fills in what is missing of an image.

    Args:
        score: the score model.
        image: ``(B, C, H, W)``, or ``(1, C, H, W)`` for one image in several ways.
        mask: bool, true where the image is known; broadcasts to it.
        seeds: one per result, which depends on it and on the image alone.
        **options: of `sample_pc`: ``steps``, ``predictor``, ``corrector_steps``, ``snr``, ``spacing`` and
            ``denoise``.

    Returns:
        float32 ``(len(seeds), C, H, W)``, the known pixels as they were.

    Raises:
        ValueError: naming the argument, what was given and what is accepted.
    """
    return _constrained(score, image, KnownPart(image, mask), seeds, options)


@checked
def colourise(
    score: Score, grey: Tensor, seeds: Sequence[int] | Tensor, **options: Unpack[PassOptions]
) -> Tensor:
    """Colours for grey images: grey is the mean of the three channels.

    In the coordinates of `COLOURS` the first is (R + G + B)/sqrt(3), which is known, and the two others are
    free.

    Args:
        score: a score model of images ``(3, H, W)``.
        grey: ``(B, 1, H, W)``, or ``(1, 1, H, W)`` for one image in several ways, in the model's range.
        seeds: one per result.
        **options: as in `inpaint`.

    Returns:
        float32 ``(len(seeds), 3, H, W)``, whose mean over channels is grey.

    Raises:
        ValueError: naming the argument, what was given and what is accepted.
    """
    if grey.ndim != 4 or grey.shape[1] != 1:
        raise BadArgument("grey", f"shape {tuple(grey.shape)}", "(B, 1, H, W)")
    image = grey.expand(-1, 3, -1, -1)
    mask = torch.tensor([True, False, False], device=grey.device).reshape(3, 1, 1)
    return _constrained(score, image, KnownPart(image, mask, COLOURS), seeds, options)


COLOURS = torch.tensor(
    [
        [1 / math.sqrt(3), 1 / math.sqrt(3), 1 / math.sqrt(3)],
        [1 / math.sqrt(2), -1 / math.sqrt(2), 0.0],
        [1 / math.sqrt(6), 1 / math.sqrt(6), -2 / math.sqrt(6)],
    ],
    dtype=torch.float64,
)
"""Orthogonal coordinates of colours: grey first, then two of the plane across it."""


def _constrained(
    score: Score, image: Tensor, known: KnownPart, seeds: Sequence[int] | Tensor, options: PassOptions
) -> Tensor:
    count = len(seed_list(seeds))
    check_count("seeds", count, count if len(image) == 1 else len(image))
    return sample_pc(score, seeds, tuple(image.shape[1:]), constraint=known, **options)
