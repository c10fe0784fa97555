"""Many clients of a service at once, some of them wrong and some that go away."""

from __future__ import annotations

import base64
import json
import random
import threading
import time
from collections.abc import Callable
from typing import Any

from http_service import Client

GENERATE = "/v1/images/generations"
KINDS = ("good", "good", "good", "wrong", "broken", "gone", "stream")
METHODS: tuple[dict[str, Any], ...] = (
    {},
    {"method": "ddim", "num_inference_steps": 4},
    {"method": "dpmpp_2m", "num_inference_steps": 5},
    {"method": "unipc", "num_inference_steps": 4},
)
WRONG: tuple[Any, ...] = (
    {"seeds": []},
    {"class": 99},
    {"eta": 7},
    {"num_inference_steps": 10**18},
    {"x": 1},
    [],
)
OVERSIZED = 32 * 2**20
"""Bytes that a request of an image says it has, more than any service takes."""


class Crowd:
    """Clients in threads, and what they were answered.

    ``most`` requests a client, or as many as it can make in ``seconds``.
    """

    def __init__(self, client: Client, *, clients: int = 20, most: int | None = 8, seconds: float = 120.0):
        self._client, self._clients, self._most, self._seconds = client, clients, most, seconds
        self.good: list[tuple[dict[str, Any], bytes]] = []
        """What was asked for, and the picture."""
        self.statuses: list[int] = []
        self.errors: list[BaseException] = []

    def run(self) -> None:
        """Returns when all have been answered."""
        threads = [threading.Thread(target=self._ask_all, args=(number,)) for number in range(self._clients)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(self._seconds + 120)
            assert not thread.is_alive()

    def _ask_all(self, number: int) -> None:
        draw = random.Random(number)
        until, asked = time.monotonic() + self._seconds, 0
        try:
            while time.monotonic() < until and (self._most is None or asked < self._most):
                self._ways()[draw.choice(KINDS)](draw)
                asked += 1
        except BaseException as error:
            self.errors.append(error)

    def _ways(self) -> dict[str, Callable[[random.Random], None]]:
        return {
            "good": self._good,
            "wrong": self._wrong,
            "broken": self._broken,
            "gone": self._gone,
            "stream": self._stream,
        }

    def _good(self, draw: random.Random) -> None:
        asked = request(draw)
        answer = self._client.post(GENERATE, asked)
        self.statuses.append(answer.status)
        if answer.status == 200:
            self.good.append((asked, base64.b64decode(answer.json["data"][0]["b64_json"])))

    def _wrong(self, draw: random.Random) -> None:
        self.statuses.append(self._client.post(GENERATE, draw.choice(WRONG)).status)

    def _broken(self, draw: random.Random) -> None:
        """Half a document, or the announcement of one that is too long."""
        body = json.dumps(request(draw)).encode()[: draw.randrange(1, 20)]
        length = draw.choice(({}, {"content_length": str(OVERSIZED)}))
        answer = self._client.ask("POST", GENERATE, body, content_type="application/json", **length)
        assert answer.status == (413 if length else 400), answer
        self.statuses.append(answer.status)

    def _gone(self, draw: random.Random) -> None:
        self._client.sent(GENERATE, {**request(draw), "num_inference_steps": 90}).close()

    def _stream(self, draw: random.Random) -> None:
        asked = {**request(draw), "stream": True, "preview_every": 2}
        connection, answer = self._client.begun(GENERATE, asked)
        self.statuses.append(answer.status)
        if answer.status == 200:
            answer.readline()
        answer.close()
        connection.close()


def request(draw: random.Random) -> dict[str, Any]:
    """A good one."""
    asked = {"seed": draw.randrange(10**6), "class": draw.randrange(4), **draw.choice(METHODS)}
    return {**asked, "guidance_scale": draw.choice((1.0, 1.0, 2.0))}
