"""The service: its models and its state, and the wait for the drawings of a request."""

from __future__ import annotations

import asyncio
import concurrent.futures
from collections.abc import Mapping, Sequence
from contextlib import suppress

from starlette.requests import Request
from torch import Tensor

from fastddpm.checks import quoted
from fastddpm.finite import CAUSES, NAMED, NonFiniteSamples
from fastddpm.sampler import Sampler
from fastddpm.serving.drawing import Drawing
from fastddpm.serving.http.answers import Gone, Refused
from fastddpm.serving.http.asked import Asked
from fastddpm.serving.http.bodies import until_gone
from fastddpm.serving.http.limits import Limits
from fastddpm.serving.http.metrics import Metrics
from fastddpm.serving.http.models import ServedModel


class Service:
    """Models behind one address.

    Args:
        samplers: by name; the first is the one of requests that name none.
        limits: of each request, and of each model's queue.
        token: that requests have to bear; None for none.

    Attributes:
        is_stopping: no longer ready; requests that come are refused.
    """

    def __init__(
        self, samplers: Mapping[str, Sampler], limits: Limits | None = None, token: str | None = None
    ) -> None:
        self.limits, self.token, self.is_stopping = limits or Limits(), token, False
        self.models = {name: ServedModel(name, sampler, self.limits) for name, sampler in samplers.items()}
        self.metrics = Metrics({name: model.scheduler.stats for name, model in self.models.items()})

    def model(self, name: str | None) -> ServedModel:
        """A model by its name; None for the first.

        Raises:
            Refused: 404 for one that is not there.
        """
        if name is None:
            return next(iter(self.models.values()))
        if name not in self.models:
            raise Refused(404, f"model: {quoted(name)} given, {', '.join(self.models)} accepted")
        return self.models[name]

    def close(self, *, cancel: bool = False) -> None:
        """Ends the schedulers: with what they have drawn, or with ``cancel`` as they are."""
        for model in self.models.values():
            model.scheduler.close(cancel=cancel)

    async def draw(self, request: Request, model: ServedModel, asked: Sequence[Asked]) -> list[Tensor]:
        """The images of a request, each float32 ``(C, H, W)``.

        Raises:
            ValueError: naming the argument, what was given and what is accepted.
            NonFiniteSamples: naming all seeds whose images hold NaN or infinity.
            Gone: the client went away; its drawings are cancelled.
        """
        drawings = await asyncio.to_thread(model.submit, asked)
        gone = asyncio.ensure_future(until_gone(request.receive))
        ended = asyncio.ensure_future(all_ended(drawings))
        try:
            await asyncio.wait({gone, ended}, return_when=asyncio.FIRST_COMPLETED)
            if not ended.done():
                raise Gone
        finally:
            gone.cancel()
            ended.cancel()
            for drawing in drawings:
                drawing.cancel()
        images = whole_images(drawings)
        self.metrics.images.labels(model.name).inc(len(images))
        return images


async def all_ended(drawings: Sequence[Drawing]) -> None:
    """Returns when all drawings have ended, with an image or without."""
    loop, one_ended = asyncio.get_running_loop(), asyncio.Event()

    def tell(_: object) -> None:
        with suppress(RuntimeError):  # the loop has ended, and whoever waited with it
            loop.call_soon_threadsafe(one_ended.set)

    for drawing in drawings:
        drawing.add_done_callback(tell)
    while not all(drawing.done() for drawing in drawings):
        await one_ended.wait()
        one_ended.clear()


def whole_images(drawings: Sequence[Drawing]) -> list[Tensor]:
    """The images of drawings that have ended.

    Raises:
        NonFiniteSamples: naming all seeds.
        BaseException: what else the first of them failed with.
    """
    errors = [concurrent.futures.CancelledError() if one.cancelled() else one.exception() for one in drawings]
    for error in errors:
        if error is not None and not isinstance(error, NonFiniteSamples):
            raise error
    bad = [one.seed for one, error in zip(drawings, errors, strict=True) if error is not None]
    if bad:
        more = f" and {len(bad) - NAMED} more" if len(bad) > NAMED else ""
        named = f"{', '.join(map(str, bad[:NAMED]))}{more}"
        raise NonFiniteSamples(
            f"images: {len(bad)} of {len(drawings)} hold NaN or infinity (of seeds {named}); {CAUSES}"
        )
    return [one.result() for one in drawings]
