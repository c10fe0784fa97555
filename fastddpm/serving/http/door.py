"""What every request passes: who may come in, how errors are answered, what is logged and counted."""

from __future__ import annotations

import base64
import binascii
import dataclasses
import hmac
import logging
import re
import secrets
import time
from typing import cast

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from fastddpm.serving.http.answers import Gone, Refused, error_answer, refusal, stopped
from fastddpm.serving.http.logs import LOGGER
from fastddpm.serving.http.service import Service

HEALTH = ("/v2/health/live", "/v2/health/ready")
"""Open to whoever asks."""
QUIET = (*HEALTH, "/metrics")
"""Asked for so often that only what goes wrong is logged."""
CHALLENGE = 'Bearer realm="fastddpm", Basic realm="fastddpm"'
GONE = 499
"""In logs and metrics, of a client that went away."""
REQUEST_ID = re.compile(r"[\w.-]{1,64}", re.ASCII)
HEADERS = {"x-content-type-options": "nosniff", "referrer-policy": "no-referrer"}


@dataclasses.dataclass
class Entry:
    """A request as the log has it; who answers it says which model and how many images."""

    id: str
    model: str | None = None
    images: int = 0
    status: int = 0


def entry_of(request: Request) -> Entry:
    """The log's entry of a request."""
    return cast("Entry", request.scope["entry of fastddpm"])


def service_of(request: Request) -> Service:
    """The service that a request came to."""
    return cast("Service", request.app.state.service)


class Door:
    """ASGI middleware around all routes of a service."""

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self._app, self._service = app, service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Lets a request in, and answers what goes wrong."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began, headers = time.perf_counter(), Headers(scope=scope)
        given = headers.get("x-request-id", "")
        entry = Entry(given if REQUEST_ID.fullmatch(given) else secrets.token_hex(8))
        scope["entry of fastddpm"] = entry

        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                entry.status = message["status"]
                answer = MutableHeaders(scope=message)
                answer["x-request-id"] = entry.id
                for name, value in HEADERS.items():
                    answer.setdefault(name, value)
            await send(message)

        try:
            self._check(scope["path"], headers)
            await self._app(scope, receive, sending)
        except Gone:
            entry.status = GONE
        except Exception as error:
            if refusal(error).status == 500:
                LOGGER.exception("a request failed", extra={"fields": {"id": entry.id}})
            if not entry.status:
                await error_answer(error)(scope, receive, sending)
        finally:
            self._record(scope, entry, time.perf_counter() - began)

    def _check(self, path: str, headers: Headers) -> None:
        if path in HEALTH:
            return
        if self._service.token is not None and not bears(
            headers.get("authorization", ""), self._service.token
        ):
            message = "authorization: no token, or another one, given; that of the service accepted"
            raise Refused(401, message, {"WWW-Authenticate": CHALLENGE})
        if self._service.is_stopping:
            raise stopped()

    def _record(self, scope: Scope, entry: Entry, seconds: float) -> None:
        route = getattr(scope.get("route"), "path", "none")  # an address that is none is no label
        method = scope["method"] if scope["method"] in ("GET", "HEAD", "POST") else "other"
        status = entry.status or GONE
        self._service.metrics.count(route, method, status, seconds)
        level = logging.DEBUG if route in QUIET and status < 400 else logging.INFO
        fields = {"id": entry.id, "method": method, "route": route, "status": status}
        fields |= {"seconds": round(seconds, 4), "images": entry.images, "model": entry.model}
        LOGGER.log(level, "request", extra={"fields": fields})


def bears(authorization: str, token: str) -> bool:
    """Whether a header bears the token: as Bearer, or as the password of Basic, for which browsers ask.

    It takes as long for any other token of its length.
    """
    kind, _, value = authorization.partition(" ")
    given = value.strip().encode("utf-8", "surrogateescape")
    if kind.lower() == "basic":
        try:
            given = base64.b64decode(given, validate=True).partition(b":")[2]
        except (ValueError, binascii.Error):
            return False
    elif kind.lower() != "bearer":
        return False
    return hmac.compare_digest(given, token.encode("utf-8"))
