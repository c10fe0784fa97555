"""A scheduler of requests on one sampler: chains that join a batch on its way, and leave it when they end.

A sampler is a table and noise depends on the seed alone, so samples of one batch may be at any step of any
method. Before each step the line says who is first (`fastddpm.serving.line`) and what was measured how many
share it (`seating`, `pace`); the others wait, with what they have so far (`lane`). Finished images are handed
out between two steps.
"""

from __future__ import annotations

import time

from torch import Tensor

from fastddpm.checks import BadArgument, check_choice, check_number, seed_list, whole
from fastddpm.conditions import Conditions, Labels
from fastddpm.plans.method_options import MethodName
from fastddpm.request import make_batches
from fastddpm.sampler import Sampler
from fastddpm.serving.drawing import Chain, Drawing, Kind, Preview
from fastddpm.serving.lanes import Lanes
from fastddpm.serving.line import ORDERS, Order
from fastddpm.serving.plans import RequestPlans
from fastddpm.serving.seating import buckets
from fastddpm.serving.stats import Stats
from fastddpm.serving.workshop import Workshop
from fastddpm.signatures import checked

PRIORITIES = 10


class Scheduler:
    """Draws images for requests as they come, each the one that it would be alone.

    One thread runs the steps; any may submit. Weights that change meanwhile are seen when the scheduler has
    been without work. Used as ``with``, it is closed at the end.

    Args:
        sampler: its model, schedule, engine and precision are used, its method where a request says nothing.
        max_batch: images that share a step at most; the network runs twice for those with guidance.
        max_waiting: images beyond ``max_batch`` that are accepted at most, those set aside on their way among
            them; `submit` raises `Busy` beyond.
        max_lanes: kinds of requests that run side by side (`fastddpm.serving.drawing.Kind`); others wait.
        rows: of a lane's table, shared by the plans of its requests; None for twice the schedule's steps.
        order: ``shortest``, first those whose request has the least left to draw, for which others are set
            aside on their way, 20 times what they have left themselves at most; ``arrival``, as they came.

    Raises:
        ValueError: naming the argument, what was given and what is accepted.
    """

    @checked
    def __init__(
        self,
        sampler: Sampler,
        *,
        max_batch: int = 16,
        max_waiting: int = 256,
        max_lanes: int = 4,
        rows: int | None = None,
        order: Order = "shortest",
    ) -> None:
        if sampler.precision == "int8":  # quantised by a chain of one plan; here they share their steps
            raise BadArgument("sampler", "one of precision 'int8'", "another precision")
        self._most = whole("max_batch", max_batch, least=1)
        self._max_waiting = whole("max_waiting", max_waiting, least=1)
        max_lanes = whole("max_lanes", max_lanes, least=1)
        check_choice("order", order, ORDERS)
        longest = len(sampler.schedule)
        self._rows = 1 + (2 * longest if rows is None else whole("rows", rows, least=1))
        self.sampler = sampler.replace()  # of its own, so that the caller's is free meanwhile
        self.sampler.runner.loops.limit = 2 * max_lanes * len(buckets(self._most))
        self._plans = RequestPlans(self.sampler, self._rows - 1)
        self._workshop = Workshop(
            self.sampler, self._most, self._max_waiting, Lanes(self._most, max_lanes, self._rows), order
        )

    def __enter__(self) -> Scheduler:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @checked
    def submit(
        self,
        seed: int,
        *,
        class_label: Labels | None = None,
        method: MethodName | None = None,
        num_inference_steps: int | None = None,
        eta: float | None = None,
        guidance_scale: float = 1.0,
        condition: Tensor | None = None,
        cond: Conditions | None = None,
        uncond: Conditions | None = None,
        beside: Drawing | None = None,
        priority: int = 0,
        deadline: float | None = None,
        preview: Preview | None = None,
        preview_every: int = 10,
    ) -> Drawing:
        """Asks for one image.

        Args:
            seed: an integer in [0, 2**63); the image depends on it and on the request's own options.
            class_label: as ``class_labels`` of `Sampler.sample`, for one image.
            method: of the chain; None for the sampler's.
            num_inference_steps: likewise.
            eta: likewise; another method than the sampler's begins at 0.
            guidance_scale: as of `Sampler.sample`, as are the next three, with a batch of 1.
            condition: ``(1, Cc, H, W)``.
            cond: tensors ``(1, ...)`` by name.
            uncond: likewise.
            beside: a drawing of the same request: they count as one piece of work, under the first one's
                priority. One that has ended counts for nothing.
            priority: 0 to 9; each comes before requests of one less, unless these have 10,000 image-steps
                less left to draw.
            deadline: seconds from now after which the image is of no use; the drawing then fails with
                `DeadlinePassed`.
            preview: called by the scheduler's thread with (steps done, predicted x0 ``(C, H, W)``).
            preview_every: steps between two previews.

        Returns:
            A `Drawing`, a `concurrent.futures.Future` of the image, float32 ``(C, H, W)``. It fails with
            `NonFiniteSamples` where the image holds NaN, and with the model's own error where it raised one
            in a step that the image was in.

        Raises:
            ValueError: naming the argument, what was given and what is accepted.
            Busy: too many requests wait; ``retry_after`` says for how long about.
            Closed: after `close`.
        """
        [number] = seed_list([seed], "seed")
        priority = whole("priority", priority, least=0, most=PRIORITIES - 1)
        every = whole("preview_every", preview_every, least=1)
        until = None if deadline is None else time.monotonic() + check_number("deadline", deadline, above=0)
        plan = self._plans.get(method, num_inference_steps, eta)
        [batch] = make_batches(
            self.sampler.facts,
            seeds=[number],
            class_labels=class_label,
            guidance_scale=guidance_scale,
            condition=condition,
            cond=cond,
            uncond=uncond,
        )
        chain = Chain(
            Drawing(number, len(plan)),
            batch,
            plan,
            Kind.of(batch, plan, keep_x0=preview is not None),
            deadline=until,
            preview=preview,
            every=every,
        )
        self._workshop.join(chain, priority, beside)
        return chain.drawing

    def close(self, *, cancel: bool = False) -> None:
        """Takes no more requests, and waits for those that there are; with ``cancel`` these are cancelled."""
        self._workshop.close(cancel=cancel)

    def stats(self) -> Stats:
        """How much there is to do, and what was done."""
        return self._workshop.stats()
