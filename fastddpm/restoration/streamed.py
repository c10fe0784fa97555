"""Large pictures restored from the top down into files, in memory that their height does not add to."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fastddpm.checks import BadArgument, seed_list
from fastddpm.finite import check_finite
from fastddpm.progress import progress_bar
from fastddpm.restoration.picture import Picture
from fastddpm.restoration.png import Pixels, png_rows
from fastddpm.restoration.restorer import OVERLAP, Restorer
from fastddpm.restoration.rows import Rows
from fastddpm.transfer import current, to_device

WHOLE_PIXELS = 2**22
"""Up to here the whole picture is in memory, and samples are drawn in batches."""
MOST_SAMPLES = 8
"""At a time: each has bands of its own."""
# Rows of the picture that bicubic scaling reaches beyond those it makes.
REACH = 4


def can_stream(restorer: Restorer) -> bool:
    """Whether large pictures are drawn from the top down: eagerly, in float32, by a method whose steps look
    at no more than a pixel's own numbers."""
    plan, options = restorer.sampler.plan, restorer.sampler.options
    return (
        options["dtype"] is None
        and options["precision"] is None
        and options["engine"] in ("auto", "eager")
        and plan.thresholding is None
        and plan.langevin is None
        and not (plan.learned_range and plan.stochastic)
    )


def is_large(restorer: Restorer, picture: Picture, out: Path) -> bool:
    """Whether the result, a PNG file, has more than `WHOLE_PIXELS` pixels, and sides of a tile or more."""
    height, width = (restorer.factor * side for side in picture.size)
    fits = min(height, width) >= restorer.tile
    return fits and height * width > WHOLE_PIXELS and out.suffix.lower() == ".png"


def restore_to_files(
    restorer: Restorer,
    picture: Picture,
    paths: Sequence[Path],
    *,
    seeds: Sequence[int],
    mask: Tensor | None = None,
    progress: bool = False,
) -> tuple[int, int]:
    """Writes one restored picture per path: of each seed, or the mean of all for one path.

    Args:
        restorer: of the task.
        picture: what to restore.
        paths: ``.png``, one for each seed or one; whole or not there.
        seeds: of the samples.
        mask: of an inpainting task.
        progress: show a bar, over the rows of tiles of all steps.

    Returns:
        (height, width) of the results.

    Raises:
        ValueError: as of `Restorer.restore`; more than `MOST_SAMPLES` for a mean.
        NonFiniteSamples: the network gives no finite numbers.
        OSError: a file cannot be written.
    """
    seeds = seed_list(seeds)
    if len(paths) == 1 and len(seeds) > MOST_SAMPLES:
        raise BadArgument("samples", f"a mean of {len(seeds)} of so large a picture", f"up to {MOST_SAMPLES}")
    if mask is not None and tuple(mask.shape) != picture.size:
        restorer.condition(picture, mask)
    for start in range(0, len(seeds), MOST_SAMPLES):
        some = seeds[start : start + MOST_SAMPLES]
        files = paths if len(paths) == 1 else paths[start : start + MOST_SAMPLES]
        _draw(restorer, _Source(restorer, picture, mask), files, some, progress)
    height, width = picture.size
    return restorer.factor * height, restorer.factor * width


class _Source:
    """A picture, and rows of what is made of it, of the result's size."""

    def __init__(self, restorer: Restorer, picture: Picture, mask: Tensor | None) -> None:
        self.restorer, self.picture, self.mask = restorer, picture, mask

    def condition(self, top: int, bottom: int) -> Tensor:
        """Rows of the condition."""
        part, mask, above = self._part(top, bottom)
        return self.restorer.condition(part, mask)[:, :, above : above + bottom - top]

    def pixels(self, restored: Tensor, top: int) -> Pixels:
        """uint8 ``(rows, W, C)``, alpha last, of restored rows ``(C, rows, W)`` from ``top`` on."""
        rows = restored.shape[1]
        part, _, above = self._part(top, top + rows)
        whole = restored.new_zeros((len(restored), self.restorer.factor * part.size[0], restored.shape[2]))
        whole[:, above : above + rows] = restored
        made = self.restorer.picture(whole, part)
        planes = made.pixels if made.alpha is None else torch.cat([made.pixels, made.alpha[None]])
        return np.ascontiguousarray(planes[:, above : above + rows].movedim(0, -1).numpy())

    def profile(self) -> bytes | None:
        """The colour profile of what is made."""
        factor = self.restorer.factor
        part, _, _ = self._part(0, factor)
        height, width = part.size
        zeros = torch.zeros(self.restorer.channels, factor * height, factor * width)
        return self.restorer.picture(zeros, part).profile

    def _part(self, top: int, bottom: int) -> tuple[Picture, Tensor | None, int]:
        """The picture's rows that rows of the result are made of; how many of the result are above them."""
        factor = self.restorer.factor
        reach = 0 if factor == 1 else REACH
        first = max(0, top // factor - reach)
        last = min(self.picture.size[0], -(-bottom // factor) + reach)
        alpha = None if self.picture.alpha is None else self.picture.alpha[first:last]
        part = Picture(self.picture.pixels[:, first:last], alpha, self.picture.profile)
        mask = None if self.mask is None else self.mask[first:last]
        return part, mask, top - factor * first


@torch.no_grad()
def _draw(
    restorer: Restorer, source: _Source, paths: Sequence[Path], seeds: Sequence[int], progress: bool
) -> None:
    sampler, factor = restorer.sampler, restorer.factor
    height, width = (factor * side for side in source.picture.size)
    shape = (restorer.channels, height, width)
    on_device = to_device(torch.tensor(seeds, dtype=torch.int64), sampler.facts.device)
    overlap = int(OVERLAP * restorer.tile)
    rows = Rows(sampler.model, sampler.plan, on_device, shape, restorer.tile, overlap, source.condition)  # type: ignore[arg-type]
    channels = len(source.pixels(torch.zeros(restorer.channels, factor, width), 0)[0, 0])
    with ExitStack() as stack:
        stack.enter_context(current(on_device.device))
        advance = stack.enter_context(
            progress_bar(progress, len(rows.plan) * len(rows.tops), unit="rows of tiles")
        )
        profile = source.profile()
        files = [stack.enter_context(png_rows(path, height, width, channels, profile)) for path in paths]
        top = 0
        for x in rows.drawn(advance):
            check_finite(x, seeds)
            condition = source.condition(top, top + x.shape[2]).expand(len(x), -1, -1, -1)
            images = restorer.task.restored(x.cpu(), condition).clamp(-1, 1)
            if len(files) < len(images):
                images = images.mean(dim=0, keepdim=True)
            for file, image in zip(files, images, strict=True):
                file.write(source.pixels(image, top))
            top += x.shape[2]
