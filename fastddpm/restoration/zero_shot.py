"""Inpainting of pictures by a model that was trained to draw images and nothing else (RePaint)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fastddpm.checkpoint import CheckpointError, load
from fastddpm.checks import BadArgument, seed_list
from fastddpm.images import to_uint8
from fastddpm.options import SamplerOptions, SourceOptions
from fastddpm.plans.method_options import MethodName, MethodOptions
from fastddpm.repaint import repaint
from fastddpm.restoration.picture import Picture
from fastddpm.restoration.restorer import BATCH_PIXELS, OVERLAP
from fastddpm.restoration.tiles import TiledModel, padded
from fastddpm.sampler import Sampler
from fastddpm.signatures import checked

if TYPE_CHECKING:
    from typing_extensions import Unpack

# ddim with eta 1: the model in the box corrects its own errors by it (see its card).
DEFAULTS: MethodOptions = {"method": "ddim", "eta": 1.0}


@dataclass(frozen=True)
class ZeroShotInpainter:
    """RePaint on pictures of any size.

    Attributes:
        sampler: of a `UNet` without condition; its ``shape`` is that of a tile.
        class_label: what to draw, by number, or by name where the sampler has ``class_names``; None for the
            model's null label.
        jump: as in `fastddpm.repaint.repaint`.
        resample: likewise.
    """

    sampler: Sampler
    class_label: int | str | None = None
    jump: int = 5
    resample: int = 4

    factor = 1

    @classmethod
    @checked
    def load(
        cls,
        source: str | Path,
        *,
        class_label: int | str | None = None,
        jump: int = 5,
        resample: int = 4,
        steps: int | None = None,
        method: MethodName | None = None,
        **options: Unpack[SourceOptions],
    ) -> ZeroShotInpainter:
        """From a model folder or a bundled model; ``options`` are those of :func:`fastddpm.load`."""
        chosen: MethodOptions = {**DEFAULTS} if method is None else {"method": method, "eta": 0.0}
        if steps is not None:
            chosen["num_inference_steps"] = steps
        sampler = load(source, **options, **chosen)
        condition_channels = sampler.facts.condition_channels
        if condition_channels is None:
            raise CheckpointError(f"{source}: no shape in its sampler.json, a model folder with one accepted")
        if condition_channels:
            raise CheckpointError(
                f"{source}: needs a condition; a model of images alone, or of inpainting, accepted"
            )
        return cls(sampler, class_label, jump, resample)

    @checked
    def restore(
        self,
        picture: Picture,
        *,
        seeds: Sequence[int] = (0,),
        mask: Tensor | None = None,
        progress: bool = False,
    ) -> list[Picture]:
        """One completed picture per seed; arguments as of :meth:`Restorer.restore`."""
        draws = self.draws(picture, seeds, mask, progress=progress)
        return [self._picture(image, picture, mask) for images in draws for image in images]

    @checked
    def restore_mean(
        self, picture: Picture, *, seeds: Sequence[int], mask: Tensor | None = None, progress: bool = False
    ) -> Picture:
        """The mean of one completed picture per seed."""
        total = sum(images.sum(dim=0) for images in self.draws(picture, seeds, mask, progress=progress))
        assert isinstance(total, Tensor)
        return self._picture(total / len(seeds), picture, mask)

    def draws(
        self, picture: Picture, seeds: Sequence[int], mask: Tensor | None, *, progress: bool
    ) -> Iterator[Tensor]:
        """Completed images in batches, float32 ``(b, C, H, W)`` in [-1, 1], one per seed."""
        seeds, (height, width) = seed_list(seeds), picture.size
        if mask is None or tuple(mask.shape) != (height, width):
            given = "none" if mask is None else f"one of {mask.shape[0]}x{mask.shape[1]}"
            raise BadArgument("mask", given, f"one of {height}x{width} as the picture")
        assert self.sampler.shape is not None
        channels, tile = self.sampler.shape[0], min(self.sampler.shape[1:])
        known = padded(picture.batch(channels), tile, tile)
        unknown = padded(mask[None, None].float(), tile, tile)
        sampler = self._sized(channels, tile, *known.shape[2:])
        at_once = max(1, BATCH_PIXELS // (known.shape[2] * known.shape[3]))
        for start in range(0, len(seeds), at_once):
            some = list(seeds[start : start + at_once])
            drawn = repaint(
                sampler,
                known,
                unknown,
                seeds=some,
                class_labels=self._labels(),
                jump=self.jump,
                resample=self.resample,
                progress=progress,
            )
            yield drawn[:, :, :height, :width].clamp(-1, 1).cpu()

    def _labels(self) -> int | str | None:
        if self.class_label is not None:
            return self.class_label
        return self.sampler.facts.null_label

    def _sized(self, channels: int, tile: int, height: int, width: int) -> Sampler:
        if (height, width) == (tile, tile):
            return self.sampler.replace(shape=(channels, height, width))
        model = TiledModel(self.sampler.model, tile, int(OVERLAP * tile))  # type: ignore[arg-type]
        options: SamplerOptions = {**self.sampler.options, "shape": (channels, height, width)}
        return Sampler(model, self.sampler.schedule, **options)

    def _picture(self, image: Tensor, source: Picture, mask: Tensor | None) -> Picture:
        """In the source's mode; the known pixels are the source's own."""
        assert mask is not None
        drawn = Picture(torch.from_numpy(to_uint8(image)).movedim(-1, 0))
        levels = torch.from_numpy(to_uint8(drawn.batch(len(source.pixels))[0])).movedim(-1, 0)
        return Picture(torch.where(mask, levels, source.pixels), source.alpha, source.profile)
