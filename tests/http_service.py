"""A service that listens while a test runs, and a client without any library of its own."""

from __future__ import annotations

import contextlib
import dataclasses
import http.client
import json
import threading
import time
from collections.abc import Iterator
from typing import Any

from fastddpm.serving.http.server import Server, listening, run
from fastddpm.serving.http.service import Service

HOST = "127.0.0.1"
JSON = {"content-type": "application/json"}


@dataclasses.dataclass(frozen=True)
class Answer:
    """What came back."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> str:
        return str(self.json["error"])


@dataclasses.dataclass(frozen=True)
class Client:
    """Of a service at a port; ``headers`` go with every request."""

    port: int
    headers: dict[str, str] = dataclasses.field(default_factory=dict)

    def ask(self, method: str, path: str, body: bytes | None = None, **headers: str) -> Answer:
        connection = http.client.HTTPConnection(HOST, self.port, timeout=60)
        try:
            named = {name.replace("_", "-"): value for name, value in headers.items()}
            connection.request(method, path, body, {**self.headers, **named})
            answer = connection.getresponse()
            found = {name.lower(): value for name, value in answer.getheaders()}
            return Answer(answer.status, found, answer.read())
        finally:
            connection.close()

    def get(self, path: str, **headers: str) -> Answer:
        return self.ask("GET", path, **headers)

    def post(self, path: str, document: Any, **headers: str) -> Answer:
        return self.ask(
            "POST", path, json.dumps(document).encode(), **{"content_type": JSON["content-type"], **headers}
        )

    def begun(self, path: str, document: Any) -> tuple[http.client.HTTPConnection, http.client.HTTPResponse]:
        """A connection whose answer has begun, to be read or closed by the caller."""
        connection = http.client.HTTPConnection(HOST, self.port, timeout=60)
        connection.request("POST", path, json.dumps(document), JSON)
        return connection, connection.getresponse()

    def sent(self, path: str, document: Any) -> http.client.HTTPConnection:
        """A connection whose request is sent, and whose answer nobody has waited for."""
        connection = http.client.HTTPConnection(HOST, self.port, timeout=60)
        connection.request("POST", path, json.dumps(document), JSON)
        return connection


@dataclasses.dataclass(frozen=True)
class Live(Client):
    """A client of a service in this process."""

    service: Service = dataclasses.field(kw_only=True)
    server: Server = dataclasses.field(kw_only=True)


@contextlib.contextmanager
def live(service: Service, *, grace: float = 5.0) -> Iterator[Live]:
    """The service listens in a thread until the end of the body."""
    began: list[Server] = []
    listener = listening(HOST, 0)
    port = listener.getsockname()[1]
    thread = threading.Thread(
        target=run, args=(service, listener), kwargs={"grace": grace, "started": began.append}, daemon=True
    )
    thread.start()
    try:
        wait_for(lambda: bool(began) and began[0].started)
        yield Live(port, service=service, server=began[0])
    finally:
        if began:
            began[0].should_exit = True
        thread.join(30)
        assert not thread.is_alive()


def wait_for(condition: Any, seconds: float = 30.0) -> None:
    """Returns when a condition holds; fails when it does not in time."""
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "what was waited for did not come"
        time.sleep(0.005)


def events_of(stream: bytes) -> list[tuple[str, dict[str, Any]]]:
    """Names and data of server-sent events, by the rules of the HTML standard, as far as they are used."""
    found = []
    for block in stream.decode().split("\n\n"):
        lines = [line for line in block.split("\n") if line and not line.startswith(":")]
        if lines:
            fields = dict(line.split(": ", 1) for line in lines)
            found.append((fields["event"], json.loads(fields["data"])))
    return found


def tensor(name: str, datatype: str, data: list[Any], shape: list[int] | None = None) -> dict[str, Any]:
    """A tensor of the Open Inference Protocol."""
    return {"name": name, "datatype": datatype, "shape": shape or [len(data)], "data": data}
