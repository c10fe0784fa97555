"""RePaint (Lugmayr et al. 2022): inpainting by a model that was never trained for it.

At each step the known part is taken from the given image, noised to the step's level, and the unknown part
from the model (algorithm 1, lines 4 to 8):

    x <- mask * x_model + (1 - mask) * (sqrt(abar_t) * image + sqrt(1 - abar_t) * z)        mask: 1 is unknown

So that both parts fit each other, stretches of the chain are walked several times (section 4.2): after some
steps the state is noised back to where the stretch began.

The noise of every visit is its own, by the repeat word of noise spec v1; visit n = 0, 1, ... of row k:

    the step's own      stream 0, step k + 1, repeat n
    the known part      stream 4, step k + 1, repeat n + 1     (repeat 0 is `PhiloxNoise.encoding`)
    the way back to k   stream 3, step k + 1, repeat n
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from fastddpm.batch import Batch
from fastddpm.checks import BadArgument, seed_list, whole
from fastddpm.conditions import Conditions, Labels
from fastddpm.finite import check_finite
from fastddpm.network import without_grad
from fastddpm.plans import Plan
from fastddpm.progress import progress_bar
from fastddpm.randomness import TASK_STREAM, PhiloxNoise
from fastddpm.request import make_batches
from fastddpm.runner import Runner
from fastddpm.sampler import Sampler
from fastddpm.schedule import NoiseSchedule
from fastddpm.signatures import checked
from fastddpm.transfer import to_device
from fastddpm_kernels import normal

CORRECTOR_STREAM = 3


def visits(n_rows: int, jump: int, resample: int) -> list[int]:
    """The plan rows in the order in which they are walked.

    The paper's schedule of jumps: counted from the last row, every ``jump`` rows the chain goes back by as
    many, until that stretch was walked ``resample`` times.

    Args:
        n_rows: S of the plan.
        jump: rows of a stretch, 1 or more.
        resample: times each stretch is walked, 1 or more.
    """
    order: list[int] = []
    ends = {n_rows - 1 - j: resample - 1 for j in range(0, n_rows - jump, jump)}
    row = 0
    while row < n_rows:
        if ends.get(row, 0) > 0 and row >= jump:
            ends[row] -= 1
            row -= jump
        order.append(row)
        row += 1
    return order


@checked
@without_grad()
def repaint(
    sampler: Sampler,
    images: Tensor,
    mask: Tensor,
    *,
    seeds: Sequence[int] | Tensor,
    class_labels: Labels | None = None,
    guidance_scale: float = 1.0,
    cond: Conditions | None = None,
    uncond: Conditions | None = None,
    jump: int = 5,
    resample: int = 4,
    max_batch: int | None = None,
    progress: bool = True,
) -> Tensor:
    """Draws the unknown part of images.

    Args:
        sampler: of a ddpm or ddim plan. ddim with eta 0 has no noise of its own to reconcile the parts with.
        images: float ``(B, C, H, W)``, or ``(1, C, H, W)`` for all seeds, in the model's range; or states of
            another shape ``(B or 1, ...)``.
        mask: bool or float ``(B or 1, 1 or C, H, W)``, 1 (True) where unknown; of states of another shape
            likewise, with 1 or all of their second axis.
        seeds: one per result, in [0, 2**63); a result depends on its own alone.
        class_labels: as in :meth:`Sampler.sample`.
        guidance_scale: likewise.
        cond: likewise.
        uncond: likewise.
        jump: rows of a stretch, 1 or more. The paper has 10 of 250.
        resample: times each stretch is walked, 1 or more. The paper has 10.
        max_batch: images at a time.
        progress: show a progress bar.

    Returns:
        float32 ``(B, ...)``: the given image where it is known.

    Raises:
        ValueError: naming the argument, what was given and what is accepted.
        NonFiniteSamples: NaN or infinity among the results, as in :meth:`Sampler.sample`.
    """
    jump, resample = whole("jump", jump, least=1), whole("resample", resample, least=1)
    if sampler.plan.kept:
        raise BadArgument(
            "method", sampler.plan.method, "ddpm or ddim (going back needs steps that remember nothing)"
        )
    count = len(seed_list(seeds))
    known = _expanded("images", images, count)
    unknown = _expanded("mask", mask.float() if isinstance(mask, Tensor) else mask, count)
    if unknown.shape[1] not in (1, known.shape[1]) or unknown.shape[2:] != known.shape[2:]:
        channels = " or ".join(map(str, sorted({1, known.shape[1]})))
        sides = ", ".join(map(str, (f"{count} or 1", channels, *known.shape[2:])))
        raise BadArgument("mask", f"shape {tuple(mask.shape)}", f"({sides})")
    if not torch.all((unknown == 0) | (unknown == 1)):
        raise BadArgument("mask", "values besides 0 and 1", "those two")
    batches = make_batches(
        sampler.facts,
        seeds=seeds,
        shape=known.shape[1:],
        max_batch=max_batch,
        class_labels=class_labels,
        guidance_scale=guidance_scale,
        cond=cond,
        uncond=uncond,
    )
    order = visits(len(sampler.plan), jump, resample)
    results, start = [], 0
    with sampler.running() as runner, progress_bar(progress, len(batches) * len(order)) as advance:
        for batch in batches:
            # The last batch may be padded with its last image.
            rows = torch.arange(start, start + batch.shape[0]).clamp(max=count - 1)
            chain = _Chain(sampler, batch, known[rows], unknown[rows])
            results.append(chain.run(runner, order, advance)[: batch.count])
            check_finite(results[-1], batch.source.host)
            start += batch.count
    return torch.cat(results)


class _Chain:
    """One batch on its way through the visits."""

    def __init__(self, sampler: Sampler, batch: Batch, known: Tensor, unknown: Tensor) -> None:
        self.batch, self.plan = batch, sampler.plan
        self.known, self.unknown = known.to(sampler.device), unknown.to(sampler.device)
        assert isinstance(batch.source, PhiloxNoise)
        self.seeds = batch.source.seeds
        self.abar = levels(sampler.plan, sampler.schedule)
        self.noise_shape = known.shape[1:]

    def run(self, runner: Runner, order: list[int], advance: Callable[[int], None]) -> Tensor:
        """Walks the rows of ``order``; the finished images, float32 ``(B, ...)``."""
        segments = runner.segments(self.batch, self.plan, stops=None)
        _, loop = next(segments)  # the loop, loaded; it is run here
        x, before, done = loop.buffers.x, -1, Counter[int]()
        for row in order:
            repeat = done[row]
            if row <= before:
                self._go_back(x, before + 1, row, repeat)
            loop.buffers.counter.copy_(to_device(torch.tensor([row, repeat]), x.device))
            loop.run(1)
            self._put_known(x, row, repeat)
            done[row] += 1
            before = row
            advance(1)
        return x.clone()

    def _put_known(self, x: Tensor, row: int, repeat: int) -> None:
        """After a row: the known part at the level the row leads to."""
        abar = self.abar[row + 1]
        level = math.sqrt(abar) * self.known
        if abar < 1:
            z = normal(self.seeds, row + 1, self.noise_shape, stream=TASK_STREAM, repeat=repeat + 1)
            level = level + math.sqrt(1 - abar) * z
        x.copy_(torch.where(self.unknown > 0, x, level))

    def _go_back(self, x: Tensor, here: int, row: int, repeat: int) -> None:
        """From the level before row ``here`` to that before ``row``: q(x_t | x_s), t > s, in one draw."""
        ratio = self.abar[row] / self.abar[here]
        z = normal(self.seeds, row + 1, self.noise_shape, stream=CORRECTOR_STREAM, repeat=repeat)
        x.mul_(math.sqrt(ratio)).add_(z, alpha=math.sqrt(1 - ratio))


def levels(plan: Plan, schedule: NoiseSchedule) -> list[float]:
    """abar of the state before each row and after the last, S + 1 of them; the last is 1."""
    return [*plan.levels(schedule).tolist(), 1.0]


def _expanded(name: str, values: Tensor, count: int) -> Tensor:
    if not isinstance(values, Tensor) or values.ndim < 2 or len(values) not in (1, count):
        given = f"shape {tuple(values.shape)}" if isinstance(values, Tensor) else type(values).__name__
        raise BadArgument(name, given, f"a tensor ({count} or 1, ...), as ({count} or 1, C, H, W) of images,")
    return values.float().expand(count, *values.shape[1:])
