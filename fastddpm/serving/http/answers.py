"""Answers: JSON, and what an error becomes: ``{"error": "..."}`` with a status that says whose it is."""

from __future__ import annotations

import concurrent.futures
import json
import math
from collections.abc import Mapping

from starlette.exceptions import HTTPException
from starlette.responses import Response

from fastddpm.checks import BadArgument
from fastddpm.finite import NonFiniteSamples
from fastddpm.serving.errors import Busy, Closed, DeadlinePassed

INTERNAL = "an error of this service; its log has it under the id in the header x-request-id"
STOPPED = "this service is being stopped; another, or later, accepted"
LATER = 5
"""Seconds after which to come again, where nothing better is known."""


class Refused(Exception):
    """A request that is not answered as it was meant.

    Attributes:
        status: of the answer.
        headers: of it, besides.
    """

    def __init__(self, status: int, message: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.status, self.headers = status, dict(headers or {})


class Gone(Exception):
    """The client went away; nobody reads an answer."""


class Json(Response):
    """A document. It is plain ASCII, so that no text that a request gave can break it."""

    media_type = "application/json"

    def render(self, content: object) -> bytes:
        """The document's bytes, on one line; NaN is refused."""
        return json.dumps(content, allow_nan=False, separators=(",", ":")).encode("ascii")


def stopped() -> Refused:
    """What is said while the service ends."""
    return Refused(503, STOPPED, {"Retry-After": str(LATER)})


def refusal(error: BaseException) -> Refused:
    """An error as it is answered; status 500 for one that is none of the client's."""
    if isinstance(error, Refused):
        return error
    if isinstance(error, BadArgument):
        return Refused(400, str(error))
    if isinstance(error, Busy):
        return Refused(503, str(error), {"Retry-After": str(math.ceil(error.retry_after))})
    if isinstance(error, DeadlinePassed):
        return Refused(503, str(error), {"Retry-After": str(LATER)})
    if isinstance(error, (Closed, concurrent.futures.CancelledError)):
        return stopped()
    if isinstance(error, NonFiniteSamples):
        return Refused(422, str(error))
    if isinstance(error, HTTPException):
        return Refused(error.status_code, str(error.detail), error.headers)
    return Refused(500, INTERNAL)


def error_answer(error: BaseException) -> Response:
    """The answer to an error."""
    refused = refusal(error)
    return Json({"error": str(refused)}, refused.status, refused.headers)
