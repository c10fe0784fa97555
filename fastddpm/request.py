"""What a caller of the sampler wants, checked before any work, as batches that a loop can run.

`make_batches` is the one place where arguments of `Sampler.sample` are validated against the facts of its
model; the last batch is padded to the size of the others.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastddpm.batch import Batch
from fastddpm.facts import ModelFacts
from fastddpm.randomness import Generators, PhiloxNoise, TorchNoise, noise_source
from fastddpm.transfer import to_device


def make_batches(
    facts: ModelFacts,
    *,
    batch_size: int | None = None,
    seeds: Sequence[int] | Tensor | None = None,
    shape: Sequence[int] | None = None,
    class_labels: int | Sequence[int] | Tensor | None = None,
    guidance_scale: float = 1.0,
    condition: Tensor | None = None,
    noise: str = "philox",
    generator: Generators | None = None,
    x: Tensor | None = None,
    max_batch: int | None = None,
) -> list[Batch]:
    """Checks the arguments of `Sampler.sample` and cuts them into batches.

    Args:
        facts: of the model.
        batch_size: as of `Sampler.sample`, as are the others but x.
        x: where the chain starts; ``x_T`` in messages.

    Raises:
        ValueError: naming the argument, what was given and what is accepted.
    """
    device = facts.device
    count = _count(batch_size, seeds, generator, x)
    source = noise_source(noise, count, device, seeds=seeds, generator=generator)
    image = _image_shape(facts, shape, x)
    guided = _is_guided(guidance_scale)
    labels = _labels(facts, class_labels, count, guided)
    condition = _condition(condition, count, image, device)
    size = _batch_size(max_batch, count, source)
    start_from = None if x is None else _start(x, device)

    batches = []
    for start in range(0, count, size):
        left = min(size, count - start)
        # The last batch is padded to the size of the others, except where padding would draw from generators.
        padded = size if isinstance(source, PhiloxNoise) else left
        rows = [min(row, count - 1) for row in range(start, start + padded)]
        cond = {} if labels is None else {"class_labels": _some(labels, rows)}
        here = None if condition is None else _some(condition, rows)
        guidance = None
        if guided:
            guidance = torch.full((len(rows),), float(guidance_scale), dtype=torch.float32)
            null = torch.full((len(rows),), _null_label(facts), dtype=torch.int64)
            cond = {"class_labels": torch.cat((null, cond["class_labels"]))}
            here = None if here is None else torch.cat((here, here))
        channels, height, width = image
        batches.append(
            Batch(
                shape=(len(rows), channels, height, width),
                x=None if start_from is None else _some(start_from, rows),
                count=left,
                source=source if len(rows) == count else source.of(rows),
                guidance=guidance,
                cond=cond,
                condition=here,
            )
        )
    return batches


def _some(images: Tensor, rows: list[int]) -> Tensor:
    """Some of the images or labels, the last of them perhaps several times."""
    if rows == list(range(len(images))):
        return images
    first, count = rows[0], rows[-1] - rows[0] + 1
    whole_rows = images[first : first + count]
    padding = whole_rows[-1:].expand(len(rows) - count, *whole_rows.shape[1:])
    return torch.cat((whole_rows, padding)) if len(padding) else whole_rows


def _count(batch_size: int | None, seeds: Any, generator: Any, x: Tensor | None) -> int:
    if batch_size is not None:
        batch_size = whole("batch_size", batch_size, least=1)
    if x is not None and (not isinstance(x, Tensor) or x.ndim != 4 or not x.numel()):
        what = f"shape {tuple(x.shape)}" if isinstance(x, Tensor) else type(x).__name__
        raise ValueError(f"x_T: {what} given, a tensor (B, C, H, W) accepted")
    if seeds is not None and not hasattr(seeds, "__len__"):
        raise ValueError(f"seeds: {seeds!r} given, a list of integers accepted")
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


def _image_shape(facts: ModelFacts, shape: Sequence[int] | None, x: Tensor | None) -> tuple[int, int, int]:
    image = shape if shape is not None else facts.shape
    if x is not None:
        given = tuple(x.shape[1:])
        if shape is not None and tuple(shape) != given:
            raise ValueError(f"shape: {tuple(shape)} given with x_T of {given}; one shape accepted")
        image = given
    if image is None:
        raise ValueError("shape: none given and the sampler has no default; (C, H, W) accepted")
    return image_shape(image)


def image_shape(shape: Sequence[int]) -> tuple[int, int, int]:
    """``(C, H, W)``, checked."""
    values = tuple(shape)
    if len(values) != 3 or not all(is_whole(v) and v >= 1 for v in values):
        raise ValueError(f"shape: {values!r} given, three positive integers (C, H, W) accepted")
    channels, height, width = (int(v) for v in values)
    return channels, height, width


def _is_guided(guidance_scale: float) -> bool:
    if not isinstance(guidance_scale, numbers.Real) or not math.isfinite(guidance_scale):
        raise ValueError(f"guidance_scale: {guidance_scale!r} given, a finite number accepted")
    return guidance_scale != 1.0


def _null_label(facts: ModelFacts) -> int:
    if facts.null_label is None:
        raise ValueError("guidance_scale: not 1, but this model has no null label; give Sampler a null_label")
    return facts.null_label


def _labels(facts: ModelFacts, class_labels: Any, count: int, guided: bool) -> Tensor | None:
    """int64 ``(count,)`` on the host, or None for a network without classes."""
    n_classes, null = facts.num_classes, facts.null_label
    if facts.takes_labels is False and (class_labels is not None or guided):
        raise ValueError("class_labels, guidance_scale: this network has no classes; None and 1 accepted")
    if class_labels is None:
        if guided:
            raise ValueError("guidance_scale: not 1, but class_labels is None; guidance needs labels")
        if n_classes is None:
            return None
        if null is None:
            raise ValueError(f"class_labels: None given, labels from 0 to {n_classes - 1} accepted")
        return torch.full((count,), null, dtype=torch.int64)
    values = class_labels.tolist() if isinstance(class_labels, (Tensor, np.ndarray)) else class_labels
    values = list(values) if isinstance(values, Iterable) else [values] * count
    if len(values) != count:
        raise ValueError(
            f"class_labels: {len(values)} given for {count} images; one for all, or one each accepted"
        )
    for value in values:
        if not is_whole(value) or value < 0:
            raise ValueError(f"class_labels: {value!r} given, integers of at least 0 accepted")
        if n_classes is not None and value >= n_classes and value != null:
            raise ValueError(f"class_labels: {value} given, 0 to {n_classes - 1} accepted")
    return torch.tensor(values, dtype=torch.int64)


def _condition(
    condition: Tensor | None, count: int, image: tuple[int, ...], device: torch.device
) -> Tensor | None:
    if condition is None:
        return None
    if not isinstance(condition, Tensor):
        raise ValueError(f"condition: {type(condition).__name__} given, a tensor (B or 1, Cc, H, W) accepted")
    if condition.ndim != 4 or condition.shape[0] not in (1, count) or condition.shape[2:] != image[1:]:
        raise ValueError(
            f"condition: shape {tuple(condition.shape)} given, "
            f"({count} or 1, Cc, {image[1]}, {image[2]}) accepted"
        )
    return to_device(condition.detach(), device, torch.float32).expand(count, -1, -1, -1)


def _batch_size(max_batch: int | None, count: int, source: PhiloxNoise | TorchNoise) -> int:
    if max_batch is None:
        return count
    size = min(whole("max_batch", max_batch, least=1), count)
    if size < count and isinstance(source, TorchNoise) and not source.is_per_sample:
        raise ValueError(
            f'max_batch: {max_batch} given for {count} images with noise="torch" and one generator, which '
            f"draws for all images at once; at least {count}, or a generator per image, accepted"
        )
    return size


def _start(x: Tensor, device: torch.device) -> Tensor:
    if not x.is_floating_point():
        raise ValueError(f"x_T: {x.dtype} given, floating point in the model's range accepted")
    if not x.isfinite().all():
        raise ValueError("x_T: NaN or infinity among the values, finite numbers accepted")
    return to_device(x.detach(), device, torch.float32)


def is_whole(value: object) -> bool:
    """Whether a value is an integer, NumPy's included, and no bool."""
    return isinstance(value, numbers.Integral) and not isinstance(value, (bool, np.bool_))


def whole(name: str, value: Any, *, least: int) -> int:
    """The integer, at least ``least``; ValueError naming the argument otherwise."""
    if not is_whole(value) or value < least:
        raise ValueError(f"{name}: {value!r} given, an integer of at least {least} accepted")
    return int(value)
