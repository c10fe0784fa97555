"""What a caller of the sampler wants, checked before any work, as batches that a loop can run.

`make_batches` is the one place where arguments of `Sampler.sample` are validated; a `Batch` holds tensors on
the model's device, padded to the batch size of the loop.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fastddpm.randomness import PhiloxNoise, TorchNoise, checked_seeds, random_seeds
from fastddpm.unet import UNet

if TYPE_CHECKING:
    from fastddpm.sampler import Sampler


@dataclasses.dataclass
class Batch:
    """One run of the loop.

    Attributes:
        x: float32 ``(B, C, H, W)``, the state to start from.
        count: images asked for; rows beyond are padding.
        source: where the noise comes from.
        seeds: int64 ``(B,)`` with Philox noise.
        guidance: float32 ``(B,)``, or None without guidance.
        cond: keyword tensors for the model, doubled under guidance.
        condition: ``(B, Cc, H, W)``, doubled under guidance, or None.
    """

    x: Tensor
    count: int
    source: PhiloxNoise | TorchNoise
    seeds: Tensor | None
    guidance: Tensor | None
    cond: dict[str, Tensor]
    condition: Tensor | None


def make_batches(
    sampler: Sampler,
    *,
    batch_size: int | None = None,
    seeds: Sequence[int] | Tensor | None = None,
    shape: Sequence[int] | None = None,
    class_labels: int | Sequence[int] | Tensor | None = None,
    guidance_scale: float = 1.0,
    condition: Tensor | None = None,
    noise: str = "philox",
    generator: Any = None,
    x: Tensor | None = None,
    max_batch: int | None = None,
) -> list[Batch]:
    """Checks the arguments of `Sampler.sample` (``x`` is where the chain starts) and cuts them into batches.

    Raises:
        ValueError: naming the argument, what was given and what is accepted.
    """
    device = sampler.device
    count = _count(batch_size, seeds, generator, x)
    source = _source(noise, seeds, generator, count, device)
    image = _image_shape(sampler, shape, x)
    guided = _is_guided(guidance_scale)
    labels = _labels(sampler, class_labels, count, guided, device)
    condition = _condition(condition, count, image, device)
    size = _batch_size(max_batch, count, noise)
    x = None if x is None else x.detach().to(device, torch.float32)

    batches = []
    for start in range(0, count, size):
        rows = torch.arange(start, start + size, device=device).clamp(max=count - 1)
        seeds_here = None
        source_here = source
        if isinstance(source, PhiloxNoise):
            seeds_here = source.seeds[rows]
            source_here = PhiloxNoise(seeds_here)
        initial = x[rows] if x is not None else source_here.initial((size, *image))
        cond = {} if labels is None else {"class_labels": labels[rows]}
        here = None if condition is None else condition[rows]
        guidance = None
        if guided:
            guidance = torch.full((size,), float(guidance_scale), dtype=torch.float32, device=device)
            null = torch.full((size,), _null_label(sampler), dtype=torch.int64, device=device)
            cond = {"class_labels": torch.cat((null, cond["class_labels"]))}
            here = None if here is None else torch.cat((here, here))
        left = min(size, count - start)
        batches.append(Batch(initial, left, source_here, seeds_here, guidance, cond, here))
    return batches


def _count(batch_size: int | None, seeds: Any, generator: Any, x: Tensor | None) -> int:
    if batch_size is not None and (
        isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1
    ):
        raise ValueError(f"batch_size: {batch_size!r} given, an integer of at least 1 accepted")
    if x is not None and x.ndim != 4:
        raise ValueError(f"x_T: shape {tuple(x.shape)} given, (B, C, H, W) accepted")
    counts = {
        "batch_size": batch_size,
        "seeds": None if seeds is None else len(seeds),
        "generator": len(generator) if isinstance(generator, (list, tuple)) else None,
        "x_T": None if x is None else len(x),
    }
    given = {name: value for name, value in counts.items() if value is not None}
    if len(set(given.values())) > 1:
        raise ValueError(
            f"{', '.join(given)}: {', '.join(map(str, given.values()))} images given; one count accepted"
        )
    return next(iter(given.values()), 1)


def _source(
    noise: str, seeds: Any, generator: Any, count: int, device: torch.device
) -> PhiloxNoise | TorchNoise:
    if noise == "torch":
        if seeds is not None:
            raise ValueError('seeds: given with noise="torch", which draws from `generator`; None accepted')
        return TorchNoise(generator, device)
    if noise != "philox":
        raise ValueError(f"noise: {noise!r} given, 'philox' or 'torch' accepted")
    if generator is not None and not isinstance(generator, torch.Generator):
        raise ValueError('generator: a list given with noise="philox"; seeds are per image there')
    if generator is not None and seeds is not None:
        raise ValueError('generator: given with seeds; with noise="philox" one of the two is accepted')
    values = random_seeds(count, generator) if seeds is None else checked_seeds(seeds)
    return PhiloxNoise(values.to(device))


def _image_shape(sampler: Sampler, shape: Sequence[int] | None, x: Tensor | None) -> tuple[int, ...]:
    image = shape if shape is not None else sampler.shape
    if x is not None:
        given = tuple(x.shape[1:])
        if shape is not None and tuple(shape) != given:
            raise ValueError(f"shape: {tuple(shape)} given with x_T of {given}; one shape accepted")
        image = given
    if image is None:
        raise ValueError("shape: none given and the sampler has no default; (C, H, W) accepted")
    values = tuple(image)
    if len(values) != 3 or any(not isinstance(v, int) or isinstance(v, bool) or v < 1 for v in values):
        raise ValueError(f"shape: {values!r} given, three positive integers (C, H, W) accepted")
    return values


def _is_guided(guidance_scale: float) -> bool:
    if not isinstance(guidance_scale, (int, float)) or not math.isfinite(guidance_scale):
        raise ValueError(f"guidance_scale: {guidance_scale!r} given, a finite number accepted")
    return guidance_scale != 1.0


def _null_label(sampler: Sampler) -> int:
    label = null_label(sampler)
    if label is None:
        raise ValueError("guidance_scale: not 1, but this model has no null label; give Sampler a null_label")
    return label


def null_label(sampler: Sampler) -> int | None:
    """The label that means "no class": the sampler's, or that of our own network; None without one."""
    if sampler.null_label is not None:
        return sampler.null_label
    model = sampler.model
    if isinstance(model, UNet) and model.config.null_class:
        return model.config.num_classes
    return None


def _labels(
    sampler: Sampler, class_labels: Any, count: int, guided: bool, device: torch.device
) -> Tensor | None:
    model = sampler.model
    n_classes = model.config.num_classes if isinstance(model, UNet) else None
    if isinstance(model, UNet) and n_classes is None and (class_labels is not None or guided):
        raise ValueError("class_labels, guidance_scale: this network has no classes; None and 1 accepted")
    if class_labels is None:
        if guided:
            raise ValueError("guidance_scale: not 1, but class_labels is None; guidance needs labels")
        if n_classes is None:
            return None
        null = null_label(sampler)
        if null is None:
            raise ValueError(f"class_labels: None given, labels from 0 to {n_classes - 1} accepted")
        return torch.full((count,), null, dtype=torch.int64, device=device)
    if isinstance(class_labels, int):
        class_labels = [class_labels] * count
    values = class_labels.tolist() if isinstance(class_labels, Tensor) else list(class_labels)
    if len(values) != count:
        raise ValueError(f"class_labels: {len(values)} given, 1 or {count} accepted")
    for value in values:
        if not isinstance(value, int) or isinstance(value, bool) or value < 0:
            raise ValueError(f"class_labels: {value!r} given, integers of at least 0 accepted")
        if n_classes is not None and value >= n_classes and value != null_label(sampler):
            raise ValueError(f"class_labels: {value} given, 0 to {n_classes - 1} accepted")
    return torch.tensor(values, dtype=torch.int64, device=device)


def _condition(
    condition: Tensor | None, count: int, image: tuple[int, ...], device: torch.device
) -> Tensor | None:
    if condition is None:
        return None
    if condition.ndim != 4 or condition.shape[0] not in (1, count) or condition.shape[2:] != image[1:]:
        raise ValueError(
            f"condition: shape {tuple(condition.shape)} given, "
            f"({count} or 1, Cc, {image[1]}, {image[2]}) accepted"
        )
    return condition.detach().to(device, torch.float32).expand(count, -1, -1, -1)


def _batch_size(max_batch: int | None, count: int, noise: str) -> int:
    if max_batch is None:
        return count
    if isinstance(max_batch, bool) or not isinstance(max_batch, int) or max_batch < 1:
        raise ValueError(f"max_batch: {max_batch!r} given, None or an integer of at least 1 accepted")
    if max_batch < count and noise == "torch":
        raise ValueError(
            f'max_batch: {max_batch} given for {count} images with noise="torch", whose draws are of whole '
            f"batches; at least {count} accepted"
        )
    return min(max_batch, count)
