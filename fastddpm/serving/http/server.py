"""The service from its start to its end: a socket, uvicorn, and the signals that stop it."""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import socket
from collections.abc import Callable, Iterator
from types import FrameType

import uvicorn

from fastddpm.checks import BadArgument, check_number, whole
from fastddpm.interruption import NAMES, put_back, taken
from fastddpm.serving.http.app import make_app
from fastddpm.serving.http.logs import LOGGER
from fastddpm.serving.http.service import Service

WAITING_CONNECTIONS = 2048
AFTER_GRACE = 5
"""Seconds in which cancelled requests are answered."""


class Server(uvicorn.Server):
    """uvicorn without its own signal handlers, which end the process by the signal."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Takes none."""
        yield


def listening(host: str, port: int) -> socket.socket:
    """A socket that listens.

    Args:
        host: a name or address, of IPv6 too.
        port: 0 for one that is free.

    Raises:
        ValueError: naming the argument.
        OSError: the address cannot be had.
    """
    port = whole("port", port, least=0, most=2**16 - 1)
    try:
        places = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as error:
        raise BadArgument("host", f"{host!r} ({error})", "a name or address of this machine") from error
    family, address = places[0][0], places[0][4]
    try:
        return socket.create_server(address, family=family, backlog=WAITING_CONNECTIONS)
    except OSError as error:
        raise OSError(f"{host}:{port}: cannot be listened at ({os.strerror(error.errno or 0)})") from error


def address_of(listener: socket.socket) -> str:
    """Where a socket is asked, such as ``http://127.0.0.1:8080``."""
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def run(
    service: Service,
    listener: socket.socket,
    *,
    grace: float = 30.0,
    started: Callable[[Server], None] | None = None,
) -> None:
    """Serves until SIGINT, SIGTERM or SIGHUP, or until ``should_exit`` of the server is set.

    Then nobody new is accepted, and those who were are answered. What is not drawn after ``grace`` is
    cancelled and answered 503. A second signal ends it at once. In another than the main thread no
    signals are taken.

    Args:
        service: closed at the end.
        listener: closed at the end.
        grace: seconds.
        started: called with the server before it runs.
    """
    grace = check_number("grace", grace, low=0)
    config = uvicorn.Config(
        make_app(service),
        http="h11",
        loop="asyncio",
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=math.ceil(grace) + AFTER_GRACE,
    )
    server = Server(config)
    if started is not None:
        started(server)
    try:
        asyncio.run(_serve(server, service, listener, grace))
    finally:
        service.close(cancel=True)


async def _serve(server: Server, service: Service, listener: socket.socket, grace: float) -> None:
    """Runs the server, and ends it by its rules."""
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()

    def signalled(number: int, frame: FrameType | None) -> None:
        server.force_exit = server.should_exit
        server.should_exit = service.is_stopping = True
        loop.call_soon_threadsafe(stopping.set)

    before = taken(signalled, ("SIGINT", *NAMES))
    cutting = asyncio.ensure_future(_cut(service, stopping, grace))
    try:
        await server.serve(sockets=[listener])
    finally:
        cutting.cancel()
        put_back(before)


async def _cut(service: Service, stopping: asyncio.Event, grace: float) -> None:
    """Once it is being stopped, cancels what is not drawn after the grace."""
    await stopping.wait()
    left = {name: model.scheduler.stats() for name, model in service.models.items()}
    fields = {"waiting": sum(one["waiting"] for one in left.values())}
    fields["running"] = sum(one["running"] for one in left.values())
    fields["parked"] = sum(one["parked"] for one in left.values())
    LOGGER.info("stopping", extra={"fields": {**fields, "grace": grace}})
    await asyncio.sleep(grace)
    LOGGER.warning("the grace is over; what is left is cancelled")
    await asyncio.to_thread(service.close, cancel=True)
