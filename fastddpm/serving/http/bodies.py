"""The body of a request, read within limits, and the client's going away."""

from __future__ import annotations

import asyncio

from starlette.requests import Request
from starlette.types import Receive

from fastddpm.checks import quoted
from fastddpm.inputs import Json, parse_json
from fastddpm.serving.http.answers import Gone, Refused
from fastddpm.serving.http.limits import BODY_SECONDS

KINDS = ("application/json",)


async def read_body(request: Request, most: int, *kinds: str) -> bytes:
    """The body of a request, of JSON or of one of ``kinds``.

    Raises:
        Refused: 413 for more than ``most`` bytes, 408 for one that does not come, 415 for one that is not
            JSON, nor of ``kinds``.
        Gone: the client went away.
    """
    kind, _, parameters = request.headers.get("content-type", "").partition(";")
    charset = parameters.strip().lower().replace('"', "")
    if kind.strip().lower() not in (*KINDS, *kinds) or charset not in ("", "charset=utf-8"):
        given = quoted(request.headers.get("content-type", ""))
        raise Refused(415, f"content-type: {given} given, application/json accepted")
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        raise Refused(415, "content-encoding: an encoded body given, one as it is accepted")
    too_large = Refused(413, f"body: more than {most:,} bytes given, at most that accepted")
    length = request.headers.get("content-length", "")
    if length.isascii() and length.isdigit() and (len(length) > 15 or int(length) > most):
        raise too_large
    try:
        return await asyncio.wait_for(_pieces(request.receive, most, too_large), BODY_SECONDS)
    except asyncio.TimeoutError:
        raise Refused(408, f"body: not whole after {BODY_SECONDS:g} s, a faster one accepted") from None


def document(body: bytes) -> Json:
    """The JSON object of a body.

    Raises:
        Refused: 400 for anything else, one that is nested too deep, NaN among it.
    """
    try:
        found = parse_json(body.decode("utf-8"))
    except ValueError as error:
        raise Refused(400, f"body: not readable as JSON ({error}), an object accepted") from error
    if not isinstance(found, dict):
        raise Refused(400, f"body: JSON of {type(found).__name__} given, an object accepted")
    return found


async def until_gone(receive: Receive) -> None:
    """Returns when the client has gone away; the body has been read before."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def _pieces(receive: Receive, most: int, too_large: Refused) -> bytes:
    pieces: list[bytes] = []
    room, more = most, True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise Gone
        piece: bytes = message.get("body", b"")
        room -= len(piece)
        if room < 0:
            raise too_large
        pieces.append(piece)
        more = message.get("more_body", False)
    return b"".join(pieces)
