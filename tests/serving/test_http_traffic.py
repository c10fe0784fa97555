"""Many clients at once, some of them wrong and some that go away: every good answer is right."""

from __future__ import annotations

import base64
import json
import random
import threading

from http_service import live
from test_http import close, make_sampler, pixels_of, wanted

from fastddpm.serving.http.limits import Limits
from fastddpm.serving.http.service import Service

GENERATE = "/v1/images/generations"
THREADS, REQUESTS = 20, 8
KINDS = ("good", "good", "good", "wrong", "broken", "gone", "stream")
METHODS = (
    {},
    {"method": "ddim", "num_inference_steps": 4},
    {"method": "dpmpp_2m", "num_inference_steps": 5},
    {"method": "unipc", "num_inference_steps": 4},
)
WRONG = ({"seeds": []}, {"class": 99}, {"eta": 7}, {"num_inference_steps": 10**18}, {"x": 1}, [])


class Crowd:
    """Clients in threads, and what they were answered."""

    def __init__(self, client):
        self.client = client
        self.good: list[tuple[dict, bytes]] = []
        self.statuses: list[int] = []
        self.errors: list[BaseException] = []

    def run(self):
        threads = [threading.Thread(target=self._one, args=(number,)) for number in range(THREADS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(120)
            assert not thread.is_alive()

    def _one(self, number):
        draw = random.Random(number)
        try:
            for _ in range(REQUESTS):
                self._ask(draw)
        except BaseException as error:
            self.errors.append(error)

    def _ask(self, draw):
        kind = draw.choice(KINDS)
        asked = {"seed": draw.randrange(10**6), "class": draw.randrange(4), **draw.choice(METHODS)}
        asked["guidance_scale"] = draw.choice((1.0, 1.0, 2.0))
        if kind == "good":
            answer = self.client.post(GENERATE, asked)
            self.statuses.append(answer.status)
            if answer.status == 200:
                self.good.append((asked, base64.b64decode(answer.json["data"][0]["b64_json"])))
        elif kind == "wrong":
            self.statuses.append(self.client.post(GENERATE, draw.choice(WRONG)).status)
        elif kind == "broken":
            body = json.dumps(asked).encode()[: draw.randrange(1, 20)]
            answer = self.client.ask("POST", GENERATE, body, content_type="application/json")
            assert answer.status == 400
        elif kind == "gone":
            self.client.sent(GENERATE, {**asked, "num_inference_steps": 90}).close()
        else:
            connection, answer = self.client.begun(GENERATE, {**asked, "stream": True, "preview_every": 2})
            if answer.status == 200:
                answer.readline()
            answer.close()
            connection.close()


def test_a_crowd_is_answered_rightly():
    sampler = make_sampler()
    with live(Service({"tiny": sampler}, Limits(batch=8, waiting=16, images=4, steps=100))) as client:
        crowd = Crowd(client)
        crowd.run()
        assert not crowd.errors, crowd.errors[:3]
        assert client.get("/v2/health/ready").status == 200
    assert set(crowd.statuses) <= {200, 400, 503}
    assert len(crowd.good) > 30
    for asked, picture in crowd.good:
        options = {name: asked[name] for name in ("method", "num_inference_steps") if name in asked}
        expected = wanted(sampler, [asked["seed"]], asked["class"], asked["guidance_scale"], **options)
        assert close(pixels_of(picture), expected[0]), asked
