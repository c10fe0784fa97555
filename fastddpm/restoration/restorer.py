"""`Restorer`: a picture to its task's condition, through the sampler, and back into a picture."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor

from fastddpm.checkpoint import CheckpointError, load
from fastddpm.checks import BadArgument, seed_list
from fastddpm.images import to_uint8
from fastddpm.options import HubOptions, LoadOptions, SamplerOptions
from fastddpm.restoration.picture import Picture
from fastddpm.restoration.tiles import TiledModel, padded
from fastddpm.sampler import Sampler
from fastddpm.signatures import checked
from fastddpm.sources import located
from fastddpm.tasks import Colorize, Inpaint, SuperResolve, Task, read_task
from fastddpm.tasks.degradations import rescaled

if TYPE_CHECKING:
    from typing_extensions import Unpack

# Of a tile's side, shared with the next tile.
OVERLAP = 0.25
# Pixels of a batch of samples, at most, where one sample has fewer.
BATCH_PIXELS = 2**18


class Restorer:
    """Restores pictures with a model of a task.

    Args:
        sampler: of a `UNet` that takes condition and image; its ``shape`` is that of a tile.
        task: what the model was trained for.

    Raises:
        ValueError: a sampler without a shape, or a network that does not fit the task.
    """

    @checked
    def __init__(self, sampler: Sampler, task: Task) -> None:
        has = sampler.facts.in_channels
        if sampler.shape is None or has is None:
            raise BadArgument(
                "sampler", "one without a UNet or a shape", "one of a UNet with a shape, to restore with,"
            )
        self.sampler, self.task = sampler, task
        self.channels, height, width = sampler.shape
        self.tile = min(height, width)
        wanted = self.channels + task.channels(self.channels)
        if has != wanted:
            raise BadArgument(
                "sampler",
                f"a network of {has} input channels",
                f"{wanted} for this task (those of the condition and of the image)",
            )

    @property
    def factor(self) -> int:
        """How much larger the result is than the picture."""
        return self.task.factor if isinstance(self.task, SuperResolve) else 1

    @checked
    def restore(
        self,
        picture: Picture,
        *,
        seeds: Sequence[int] = (0,),
        mask: Tensor | None = None,
        progress: bool = False,
    ) -> list[Picture]:
        """One restored picture per seed.

        Args:
            picture: what to restore.
            seeds: of the samples, in [0, 2**63); a sample depends on its own alone.
            mask: of an inpainting task: bool ``(H, W)``, True where the picture is unknown.
            progress: show progress bars.

        Raises:
            ValueError: a mask of another size, or none where it is needed.
        """
        condition = self.condition(picture, mask)
        draws = self.draws(condition, seeds, progress=progress)
        return [self.picture(image, picture) for images in draws for image in images]

    @checked
    def restore_mean(
        self, picture: Picture, *, seeds: Sequence[int], mask: Tensor | None = None, progress: bool = False
    ) -> Picture:
        """The mean of one restored picture per seed: less sharp, and nearer to the truth in squared error."""
        condition = self.condition(picture, mask)
        draws = self.draws(condition, seeds, progress=progress)
        total = sum(images.sum(dim=0) for images in draws)
        assert isinstance(total, Tensor)
        return self.picture(total / len(seeds), picture)

    def condition(self, picture: Picture, mask: Tensor | None = None) -> Tensor:
        """The task's condition for a picture, float32 ``(1, Cc, H, W)``, of the result's size."""
        if isinstance(self.task, Inpaint):
            if mask is None or tuple(mask.shape) != picture.size:
                given = "none" if mask is None else f"one of {mask.shape[0]}x{mask.shape[1]}"
                height, width = picture.size
                raise BadArgument("mask", given, f"one of {height}x{width} as the picture")
            return self.task.masked(picture.batch(self.channels), mask[None, None].float())
        if mask is not None:
            raise BadArgument("mask", "one for a model that is not for inpainting", "none")
        if isinstance(self.task, Colorize):
            return picture.batch(1)
        images = picture.batch(self.channels)
        return self.task.enlarged(images) if isinstance(self.task, SuperResolve) else images

    def draws(self, condition: Tensor, seeds: Sequence[int], *, progress: bool = False) -> Iterator[Tensor]:
        """Restored images in batches, float32 ``(b, C, H, W)`` in [-1, 1] on the CPU, one per seed.

        Args:
            condition: float32 ``(1, Cc, H, W)``, as :meth:`condition` gives it.
            seeds: of the samples.
            progress: show progress bars.
        """
        seeds, (height, width) = seed_list(seeds), condition.shape[2:]
        full = padded(condition, self.tile, self.tile)
        sampler = self._sized(*full.shape[2:])
        at_once = max(1, BATCH_PIXELS // (full.shape[2] * full.shape[3]))
        for start in range(0, len(seeds), at_once):
            some = list(seeds[start : start + at_once])
            predicted = sampler.sample(seeds=some, condition=full, progress=progress).cpu()
            restored = self.task.restored(predicted, full.expand(len(some), -1, -1, -1))
            yield restored[:, :, :height, :width].clamp(-1, 1)

    def picture(self, restored: Tensor, source: Picture) -> Picture:
        """The picture for a restored image ``(C, H, W)`` in [-1, 1], of the source's mode.

        A grey model gives a colour picture its luma, and the colours are those of the condition. A profile of
        grey is none of the colours that a grey picture is given.
        """
        channels = 3 if isinstance(self.task, Colorize) else len(source.pixels)
        profile = source.profile if channels == len(source.pixels) else None
        height, width = restored.shape[1:]
        if channels == 3 and self.channels == 1:
            colours = rescaled(source.batch(), height, width)
            luma = rescaled(source.batch(1), height, width)
            restored = (colours + restored[None] - luma)[0]
        pixels = torch.from_numpy(to_uint8(restored)).movedim(-1, 0)
        picture = Picture(pixels, None, profile)
        if channels != len(pixels):
            levels = to_uint8(picture.batch(channels)[0])
            picture = Picture(torch.from_numpy(levels).movedim(-1, 0), None, profile)
        if source.alpha is None:
            return picture
        alpha = source.alpha[None, None].float() / 127.5 - 1.0
        levels = to_uint8(rescaled(alpha, height, width)[0])[..., 0]
        return Picture(picture.pixels, torch.from_numpy(levels), profile)

    def _sized(self, height: int, width: int) -> Sampler:
        """The sampler for images of this size, each at least a tile's."""
        if (height, width) == (self.tile, self.tile):
            return self.sampler.replace(shape=(self.channels, height, width))
        model = TiledModel(self.sampler.model, self.tile, int(OVERLAP * self.tile))  # type: ignore[arg-type]
        options: SamplerOptions = {**self.sampler.options, "shape": (self.channels, height, width)}
        return Sampler(model, self.sampler.schedule, **options)


@checked
def load_restorer(source: str | Path, **options: Unpack[LoadOptions]) -> Restorer:
    """A restorer from a model folder with a `task.json`, or of a bundled model by name.

    Args:
        source: the folder, or ``photo_sr``, ``mnist_sr`` or ``mnist_deblur``.
        **options: of :func:`fastddpm.load`, those of :class:`fastddpm.Sampler` among them.

    Raises:
        CheckpointError: no such folder, or one of a model without a task.
    """
    sampler = load(source, **options)
    hub = {name: value for name, value in options.items() if name in HubOptions.__annotations__}
    task = task_of(source, **cast("HubOptions", hub))
    if task is None:
        raise CheckpointError(
            f"model folder {str(source)!r}: has no task.json; a model of `fastddpm train --task ...` accepted"
        )
    return Restorer(sampler, task)


def task_of(source: str | Path, **hub: Unpack[HubOptions]) -> Task | None:
    """The task of a model folder, a bundled model or one of the Hub; None without one."""
    return read_task(located(source, **hub))
