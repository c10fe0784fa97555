"""Drawings on their way, as server-sent events.

start     {id, model, method, num_inference_steps, ..., images: [{index, seed, class_label}]}
progress  {index, step, steps, share}
preview   {index, step, b64_json}     the predicted clean image
image     {index, seed, class_label, b64_json}
error     {index, seed, status, error}     of one image; the others go on
done      {images, failed, seconds}     always the last
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import json
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import suppress
from typing import Any

from starlette.responses import Response
from starlette.types import Receive, Scope, Send
from torch import Tensor

from fastddpm.serving.drawing import Drawing, Preview
from fastddpm.serving.http.answers import Gone, refusal
from fastddpm.serving.http.bodies import until_gone
from fastddpm.serving.http.logs import LOGGER
from fastddpm.serving.http.pictures import b64_png

TICK = 0.1
"""Seconds between two looks at how far the drawings are."""
SILENCE = 15.0
"""Seconds after which a comment is sent, so that nobody between takes the stream for dead."""
KEPT_PREVIEWS = 64
"""That wait to be sent; a client that reads more slowly misses the oldest, never an image."""


class News:
    """What the scheduler's thread says of the drawings of a request. Made where a loop runs."""

    def __init__(self) -> None:
        self.previews: deque[tuple[int, int, Tensor]] = deque(maxlen=KEPT_PREVIEWS)
        self._loop, self._event = asyncio.get_running_loop(), asyncio.Event()

    def watch(self, index: int) -> Preview:
        """What one image shows its previews to."""

        def show(step: int, x0: Tensor) -> None:
            self.previews.append((index, step, x0))
            self.tell()

        return show

    def tell(self, *_: object) -> None:
        """Says, from any thread, that there is something new."""
        with suppress(RuntimeError):  # the loop has ended, and whoever waited with it
            self._loop.call_soon_threadsafe(self._event.set)

    async def wait(self) -> None:
        """Returns when there is something new, or after a tick."""
        with suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._event.wait(), TICK)
        self._event.clear()


async def events(
    drawings: list[Drawing],
    news: News,
    about: dict[str, Any],
    labels: list[Any],
    count: Callable[[int], None],
) -> AsyncGenerator[bytes, None]:
    """The events of drawings; empty bytes where there is nothing to say. Ended early, it cancels them.

    Args:
        drawings: of a request.
        news: that their previews are shown to.
        about: of all of them, for ``start``.
        labels: of each.
        count: called with the place of every image that was drawn.
    """
    began, failed, left = time.perf_counter(), 0, list(range(len(drawings)))
    told = [0] * len(drawings)
    who = [
        {"index": i, "seed": one.seed, "class_label": label}
        for i, (one, label) in enumerate(zip(drawings, labels, strict=True))
    ]
    for drawing in drawings:
        drawing.add_done_callback(news.tell)
    try:
        yield event("start", {**about, "images": who})
        while left:
            ended = [index for index in left if drawings[index].done()]
            for index in left:
                done, steps = drawings[index].done_steps, drawings[index].steps
                if done != told[index]:
                    told[index] = done
                    yield event(
                        "progress", {"index": index, "step": done, "steps": steps, "share": done / steps}
                    )
            while news.previews:
                index, step, x0 = news.previews.popleft()
                picture = await asyncio.to_thread(b64_png, x0)
                yield event("preview", {"index": index, "step": step, "b64_json": picture})
            for index in ended:
                left.remove(index)
                error = failure(drawings[index])
                if error is None:
                    picture = await asyncio.to_thread(b64_png, drawings[index].result())
                    count(index)
                    yield event("image", {**who[index], "b64_json": picture})
                else:
                    failed += 1
                    refused = refusal(error)
                    if refused.status == 500:
                        LOGGER.error("an image failed", exc_info=error, extra={"fields": {"id": about["id"]}})
                    said = {"status": refused.status, "error": str(refused)}
                    yield event("error", {"index": index, "seed": drawings[index].seed, **said})
            if left:
                yield b""
                await news.wait()
        counted = {"images": len(drawings) - failed, "failed": failed}
        yield event("done", {**counted, "seconds": round(time.perf_counter() - began, 4)})
    finally:
        for drawing in drawings:
            drawing.cancel()


def failure(drawing: Drawing) -> BaseException | None:
    """Why a drawing that has ended has no image; None where it has."""
    if drawing.cancelled():
        return concurrent.futures.CancelledError()
    return drawing.exception()


def event(name: str, data: dict[str, Any]) -> bytes:
    """One event, as a stream holds it."""
    return f"event: {name}\ndata: {json.dumps(data, allow_nan=False)}\n\n".encode("ascii")


class EventStream(Response):
    """An answer of events, which ends when the client goes away.

    Args:
        stream: of `events`.
        drawings: cancelled at the end too: a stream whose answer could not begin has not begun itself, and
            then cancels nothing.
    """

    media_type = "text/event-stream"

    def __init__(self, stream: AsyncGenerator[bytes, None], drawings: Sequence[Drawing]) -> None:
        super().__init__(headers={"cache-control": "no-store", "x-accel-buffering": "no"})
        del self.headers["content-length"]
        self._stream, self._drawings = stream, drawings

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Sends the events.

        Raises:
            Gone: the client went away.
        """
        gone = asyncio.ensure_future(until_gone(receive))
        try:
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            spoke = time.monotonic()
            async for chunk in self._stream:
                if gone.done():
                    raise Gone
                if chunk or time.monotonic() - spoke > SILENCE:
                    spoke = time.monotonic()
                    await send({"type": "http.response.body", "body": chunk or b":\n\n", "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        finally:
            gone.cancel()
            await self._stream.aclose()
            for drawing in self._drawings:
                drawing.cancel()
