"""What a caller of the sampler wants, checked before any work, as batches that a loop can run.

`make_batches` is the one place where arguments of `Sampler.sample` are validated against the facts of its
model; the last batch is padded to the size of the others.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor

from fastddpm.batch import Batch
from fastddpm.checks import BadArgument, check_values, is_number, is_whole, quoted, shown, whole
from fastddpm.class_names import numbered
from fastddpm.conditions import LABELS, Conditions, Labels, check_halves, checked, checked_one
from fastddpm.facts import ModelFacts
from fastddpm.randomness import Generators, PhiloxNoise, TorchNoise, noise_source
from fastddpm.transfer import to_device


def make_batches(
    facts: ModelFacts,
    *,
    batch_size: int | None = None,
    seeds: Sequence[int] | Tensor | None = None,
    shape: Sequence[int] | None = None,
    class_labels: Labels | None = None,
    guidance_scale: float = 1.0,
    condition: Tensor | None = None,
    cond: Conditions | None = None,
    uncond: Conditions | None = None,
    known: Tensor | None = None,
    known_mask: Tensor | None = None,
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
    image = _shape(facts, shape, x)
    guided = _is_guided(guidance_scale)
    given = {} if cond is None else checked(cond, "cond", count, device, facts.dtype)
    has_labels = class_labels is not None and facts.takes_labels is not False
    facts.check_names(given, has_labels=has_labels)
    labels = _labels(facts, class_labels, count, guided, has_others=bool(given))
    without = {} if uncond is None else checked(uncond, "uncond", count, device, facts.dtype)
    halves = _halves(facts, labels, given, without, guided)
    condition = None if condition is None else _condition(condition, count, image, device)
    if known is not None or known_mask is not None:
        known, known_mask = _known(known, known_mask, (count, *image), device)
    size = count if max_batch is None else _batch_size(max_batch, count, source)
    start_from = None if x is None else _start(x, device)

    batches = []
    for start in range(0, count, size):
        left = min(size, count - start)
        # The last batch is padded to the size of the others, except where padding would draw from generators.
        padded = size if isinstance(source, PhiloxNoise) else left
        rows = [min(row, count - 1) for row in range(start, start + padded)]
        named = {name: _some(value, rows) for name, (_, value) in halves.items()}
        here = None if condition is None else _some(condition, rows)
        guidance = None
        if guided:
            guidance = torch.full((len(rows),), float(guidance_scale), dtype=torch.float32)
            named = {name: torch.cat([_some(half, rows) for half in both]) for name, both in halves.items()}
            here = None if here is None else torch.cat((here, here))
        batches.append(
            Batch(
                shape=(len(rows), *image),
                x=None if start_from is None else _some(start_from, rows),
                count=left,
                source=source if len(rows) == count else source.of(rows),
                guidance=guidance,
                cond=named,
                condition=here,
                known=None if known is None else _some(known, rows),
                known_mask=None if known_mask is None else _some(known_mask, rows),
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


def _count(
    batch_size: int | None,
    seeds: Sequence[int] | Tensor | None,
    generator: Generators | None,
    x: Tensor | None,
) -> int:
    if batch_size is not None:
        batch_size = whole("batch_size", batch_size, least=1)
    if x is not None and (not isinstance(x, Tensor) or x.ndim < 2 or not x.numel()):
        what = f"shape {tuple(x.shape)}" if isinstance(x, Tensor) else type(x).__name__
        raise BadArgument("x_T", what, "a tensor (B, ...), as (B, C, H, W) of images,")
    if seeds is not None and (not hasattr(type(seeds), "__len__") or getattr(seeds, "ndim", 1) == 0):
        raise BadArgument("seeds", quoted(seeds), "a list of integers")
    counts = {
        "batch_size": batch_size,
        "seeds": None if seeds is None else len(seeds),
        "generator": len(generator) if isinstance(generator, (list, tuple)) else None,
        "x_T": None if x is None else len(x),
    }
    given = {name: value for name, value in counts.items() if value is not None}
    if len(set(given.values())) > 1:
        raise BadArgument(", ".join(given), f"{', '.join(map(str, given.values()))} images", "one count")
    return next(iter(given.values()), 1)


def _shape(facts: ModelFacts, shape: Sequence[int] | None, x: Tensor | None) -> tuple[int, ...]:
    """Of one state, as the model takes it."""
    if shape is None and x is None and facts.shape is not None:
        return facts.shape  # checked where it was given
    wanted = shape if shape is not None else facts.shape
    if x is not None:
        given = tuple(x.shape[1:])
        sides = 3 if facts.images_only else len(facts.shape or given)
        if len(given) != sides:
            accepted = (
                "(B, C, H, W)" if facts.images_only else f"(B, ...) with {sides} sides behind B, as shape,"
            )
            raise BadArgument("x_T", f"shape {tuple(x.shape)}", f"a tensor {accepted}")
        if shape is not None and facts.checked_shape(shape) != given:
            raise BadArgument("shape", f"{tuple(shape)} with x_T of {given}", "one shape")
        wanted = given
    if wanted is None:
        accepted = "(C, H, W)" if facts.images_only else "that of a state, as (C, H, W) of an image,"
        raise BadArgument("shape", "none, and no default of the sampler,", accepted)
    return facts.checked_shape(wanted)


def _is_guided(guidance_scale: float) -> bool:
    if not isinstance(guidance_scale, numbers.Real) or not math.isfinite(guidance_scale):
        raise BadArgument("guidance_scale", quoted(guidance_scale), "a finite number")
    return guidance_scale != 1.0


def _null_label(facts: ModelFacts) -> int:
    if facts.null_label is None:
        raise BadArgument(
            "guidance_scale",
            "a number other than 1 for a model without a null label",
            "1, or a null_label of Sampler,",
        )
    return facts.null_label


def _halves(
    facts: ModelFacts,
    labels: Tensor | None,
    given: dict[str, Tensor],
    without: dict[str, Tensor],
    guided: bool,
) -> dict[str, tuple[Tensor, Tensor]]:
    """Of each condition, labels first: without it and with it, ``(count, ...)``; with it twice unguided."""
    if LABELS in without and facts.takes_labels:
        raise BadArgument("uncond", f"{LABELS!r} for a network of classes", "a null_label of Sampler")
    if labels is not None:
        given = {LABELS: labels, **given}
        if guided and LABELS not in without and labels.dtype == torch.int64 and labels.ndim == 1:
            without[LABELS] = torch.full_like(labels, _null_label(facts))
        elif LABELS in without and not labels.is_floating_point():
            without[LABELS] = without[LABELS].to(labels.device, labels.dtype)
    if without or guided:
        check_halves(given, without, guided=guided)
    return {name: (without.get(name, value), value) for name, value in given.items()}


def _labels(
    facts: ModelFacts, class_labels: Labels | None, count: int, guided: bool, *, has_others: bool
) -> Tensor | None:
    """``(count,)`` int64 on the host, or as other networks than ours take them, floating or a vector each;
    None for a network without labels."""
    n_classes, null = facts.num_classes, facts.null_label
    if facts.takes_labels is False and (class_labels is not None or guided):
        raise BadArgument(
            "class_labels, guidance_scale", "labels or guidance for a network without classes", "None and 1"
        )
    if class_labels is None:
        if guided and not has_others:
            raise BadArgument("guidance_scale", "a number other than 1 without class_labels", "1, or labels,")
        if n_classes is None:
            return None
        if null is None:
            raise BadArgument("class_labels", "None", f"labels from 0 to {n_classes - 1}")
        return torch.full((count,), null, dtype=torch.int64)
    if not is_whole(class_labels):
        class_labels = numbered(class_labels, facts.class_names)
    if facts.takes_labels is None and _is_measured(class_labels):
        measured = torch.as_tensor(class_labels)
        each = measured.expand(count) if not measured.ndim else measured
        return checked_one(LABELS, each, count, facts.device, facts.dtype)
    values = class_labels.tolist() if isinstance(class_labels, (Tensor, np.ndarray)) else class_labels
    values = list(values) if isinstance(values, Iterable) else [values] * count
    if len(values) != count:
        raise BadArgument("class_labels", f"{len(values)} for {count} images", "one for all, or one each,")
    for value in values:
        if not is_whole(value) or value < 0:
            raise BadArgument("class_labels", quoted(value), "integers of at least 0")
        if n_classes is not None and value >= n_classes and value != null:
            raise BadArgument("class_labels", str(value), f"0 to {n_classes - 1}")
    return torch.tensor(values, dtype=torch.int64)


def _is_measured(class_labels: object) -> bool:
    """Whether labels are measured or vectors, where they are no classes: floating numbers, or rows of any."""
    if isinstance(class_labels, (Tensor, np.ndarray)):
        return class_labels.ndim > 1 or torch.as_tensor(class_labels).is_floating_point()
    values = class_labels if isinstance(class_labels, (list, tuple)) else [class_labels]
    return all(map(is_number, values)) and not all(map(is_whole, values))


def _condition(condition: Tensor, count: int, image: tuple[int, ...], device: torch.device) -> Tensor:
    if not isinstance(condition, Tensor):
        raise BadArgument("condition", type(condition).__name__, "a tensor (B or 1, Cc, H, W)")
    if condition.ndim < 2 or condition.shape[0] not in (1, count) or condition.shape[2:] != image[1:]:
        sides = ", ".join(map(str, (f"{count} or 1", "Cc", *image[1:])))
        raise BadArgument("condition", f"shape {tuple(condition.shape)}", f"({sides})")
    return to_device(condition.detach(), device, torch.float32).expand(count, *condition.shape[1:])


def _known(
    known: Tensor | None, mask: Tensor | None, shape: tuple[int, ...], device: torch.device
) -> tuple[Tensor, Tensor]:
    """What is given of the states and where, both of their shape ``(count, ...)``, on the device."""
    if known is None or mask is None:
        raise BadArgument("known, known_mask", "one without the other", "both, or neither,")
    count, *sides = shape
    accepted = f"({', '.join(map(str, (f'{count} or 1', *sides)))})"
    if not isinstance(known, Tensor) or not known.is_floating_point() or known.shape[1:] != shape[1:]:
        raise BadArgument("known", shown(known), f"a floating tensor {accepted}")
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool or mask.ndim != len(shape):
        raise BadArgument("known_mask", shown(mask), f"a bool tensor {accepted}")
    for name, given in (("known", known), ("known_mask", mask)):
        if any(side not in (1, whole_side) for side, whole_side in zip(given.shape, shape, strict=True)):
            or_one = ", of whose sides any may be 1," if name == "known_mask" else ""
            raise BadArgument(name, shown(given), f"{accepted}{or_one}")
    check_values("known", known)
    placed = to_device(known.detach(), device, torch.float32), to_device(mask.detach(), device, torch.bool)
    return placed[0].expand(shape), placed[1].expand(shape)


def _batch_size(max_batch: int, count: int, source: PhiloxNoise | TorchNoise) -> int:
    size = min(whole("max_batch", max_batch, least=1), count)
    if size < count and isinstance(source, TorchNoise) and not source.is_per_sample:
        raise BadArgument(
            "max_batch",
            f'{max_batch} for {count} images with noise="torch" and one generator, which draws for '
            "all at once,",
            f"at least {count}, or a generator per image,",
        )
    return size


def _start(x: Tensor, device: torch.device) -> Tensor:
    if not x.is_floating_point():
        raise BadArgument("x_T", str(x.dtype), "floating point in the model's range")
    check_values("x_T", x)
    return to_device(x.detach(), device, torch.float32)
