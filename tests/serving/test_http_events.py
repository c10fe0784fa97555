"""Streams of events: their order, what their previews show, and clients that go away."""

from __future__ import annotations

import asyncio
import base64
import gc
import threading

import pytest
import torch
from http_service import events_of, live, wait_for
from test_http import close, make_sampler, pixels_of, wanted

from fastddpm.serving.http import events
from fastddpm.serving.http.app import make_app
from fastddpm.serving.http.limits import Limits
from fastddpm.serving.http.service import Service

PATH = "/v1/images/generations"


def affine(x, t):
    return 0.3 * x


class Gate:
    """A model whose calls wait until it is opened."""

    def __init__(self, model=affine):
        self.model, self.open, self.reached = model, threading.Event(), threading.Event()

    def __call__(self, x, t, **cond):
        self.reached.set()
        assert self.open.wait(30)
        return self.model(x, t, **cond)


@pytest.fixture(scope="module")
def sampler():
    return make_sampler()


@pytest.fixture(scope="module")
def client(sampler):
    with live(Service({"tiny": sampler})) as found:
        yield found


def test_a_stream_tells_of_every_image_in_order(client, sampler):
    asked = {"seeds": [3, 4], "class_labels": [0, 2], "stream": True, "preview_every": 3}
    answer = client.post(PATH, asked)
    assert (answer.status, answer.headers["content-type"]) == (200, "text/event-stream; charset=utf-8")
    assert answer.headers["cache-control"] == "no-store"
    found = events_of(answer.body)
    assert found[0][0] == "start"
    assert [(one["seed"], one["class_label"]) for one in found[0][1]["images"]] == [(3, 0), (4, 2)]
    assert (found[0][1]["model"], found[0][1]["num_inference_steps"]) == ("tiny", 7)
    assert found[-1][0] == "done"
    assert (found[-1][1]["images"], found[-1][1]["failed"]) == (2, 0)
    expected = wanted(sampler, [3, 4], [0, 2])
    predicted = sampler.sample_trajectory(seeds=[3, 4], class_labels=[0, 2], predicted=True, progress=False)
    for index in (0, 1):
        mine = [(name, data) for name, data in found[1:-1] if data["index"] == index]
        assert mine[-1][0] == "image"
        assert (mine[-1][1]["seed"], mine[-1][1]["class_label"]) == ([3, 4][index], [0, 2][index])
        assert close(pixels_of(base64.b64decode(mine[-1][1]["b64_json"])), expected[index])
        steps = [data["step"] for name, data in mine if name == "progress"]
        assert steps == sorted(set(steps))
        assert steps[-1] == 7
        assert all(data["share"] == data["step"] / 7 for name, data in mine if name == "progress")
        previews = [data for name, data in mine if name == "preview"]
        assert [data["step"] for data in previews] == [3, 6]
        for data in previews:
            assert close(pixels_of(base64.b64decode(data["b64_json"])), predicted[data["step"] - 1, index])


def test_the_header_asks_for_a_stream_too(client):
    for headers, body, kind in (
        ({"accept": "text/event-stream"}, {}, "text/event-stream; charset=utf-8"),
        ({"accept": "text/event-stream"}, {"stream": False}, "application/json"),
        ({}, {"stream": True}, "text/event-stream; charset=utf-8"),
    ):
        assert client.post(PATH, {"seed": 1, **body}, **headers).headers["content-type"] == kind


def test_what_is_wrong_is_answered_before_a_stream_begins(client):
    answer = client.post(PATH, {"seed": 1, "class": 99, "stream": True})
    assert (answer.status, answer.error) == (400, "class_labels: 99 given, 0 to 3 accepted")


def test_one_image_that_fails_leaves_the_others():
    def sometimes_nan(x, t, class_labels):
        bad = (class_labels > 0).view(-1, 1, 1, 1)
        return affine(x, t).masked_fill(bad, float("nan"))

    with live(Service({"tiny": make_sampler(sometimes_nan)})) as client:
        asked = {"seeds": [1, 2, 3], "class_labels": [0, 1, 0]}
        found = events_of(client.post(PATH, {**asked, "stream": True}).body)
        assert sorted(data["index"] for name, data in found if name == "image") == [0, 2]
        [error] = [data for name, data in found if name == "error"]
        assert (error["index"], error["seed"], error["status"]) == (1, 2, 422)
        assert "of seeds 2" in error["error"]
        assert found[-1][0] == "done"
        assert (found[-1][1]["images"], found[-1][1]["failed"]) == (2, 1)
        whole = client.post(PATH, {**asked, "class_labels": [1, 0, 1]})
        assert whole.status == 422
        assert whole.error.startswith("images: 2 of 3 hold NaN or infinity (of seeds 1, 3); ")


def test_an_error_of_the_model_is_the_services_own(caplog):
    def raises(x, t):
        raise RuntimeError("a secret of the model")

    with live(Service({"tiny": make_sampler(raises)})) as client:
        answer = client.post(PATH, {"seed": 1})
        assert answer.status == 500
        assert "secret" not in answer.error
        name, data = events_of(client.post(PATH, {"seed": 1, "stream": True}).body)[-2]
        assert (name, data["status"]) == ("error", 500)
        assert "secret" not in data["error"]
    assert sum("secret" in str(record.exc_info) for record in caplog.records) == 2


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_goes_away_cancels_its_images(stream, caplog):
    gate = Gate()
    with live(Service({"tiny": make_sampler(gate)}, Limits(batch=2))) as client:
        scheduler = client.service.models["tiny"].scheduler
        stays = client.sent(PATH, {"seeds": [7]})
        assert gate.reached.wait(30)
        asked = {"seeds": [1, 2, 3, 4], "num_inference_steps": 90, "stream": stream}
        if stream:
            goes, answer = client.begun(PATH, asked)
            assert answer.readline() == b"event: start\n"
            answer.close()
        else:
            goes = client.sent(PATH, asked)
        wait_for(lambda: scheduler.stats()["submitted"] == 5)
        goes.close()
        wait_for(lambda: _gone(client) == 1)
        steps = scheduler.stats()["steps"]
        gate.open.set()
        answer = stays.getresponse()
        assert answer.status == 200
        answer.read()
        stays.close()
        wait_for(lambda: scheduler.stats()["running"] == 0)
        assert scheduler.stats()["waiting"] == 0
        assert scheduler.stats()["steps"] - steps <= 7 + 2
    gc.collect()  # what asyncio has to say of futures that nobody asks, it says then
    assert [record.message for record in caplog.records if record.levelname in ("WARNING", "ERROR")] == []


def test_a_stream_that_cannot_begin_cancels_its_images():
    """A client is gone before the first word, which servers say by an OSError or by nothing."""
    gate = Gate()
    service = Service({"tiny": make_sampler(gate)})
    given = [{"type": "http.request", "body": b'{"seed": 1, "num_inference_steps": 90, "stream": true}'}]
    scope = {"type": "http", "method": "POST", "path": PATH, "query_string": b"", "root_path": ""}
    scope["headers"] = [(b"content-type", b"application/json")]

    async def receive():
        return given.pop() if given else {"type": "http.disconnect"}

    async def send(message):
        raise OSError("nobody is there")

    asyncio.run(make_app(service)(scope, receive, send))
    gate.open.set()
    scheduler = service.models["tiny"].scheduler
    scheduler.close()
    assert scheduler.stats()["submitted"] == 1
    assert scheduler.stats()["steps"] <= 2


def _gone(client):
    lines = client.get("/metrics").body.decode().splitlines()
    return sum(
        float(line.split()[-1]) for line in lines if "requests_total" in line and 'status="499"' in line
    )


def test_a_slow_reader_misses_previews_and_no_image(monkeypatch, client):
    monkeypatch.setattr(events, "KEPT_PREVIEWS", 2)
    asked = {"seed": 1, "num_inference_steps": 60, "stream": True, "preview_every": 1}
    found = events_of(client.post(PATH, asked).body)
    assert [name for name, _ in found[-2:]] == ["image", "done"]
    steps = [data["step"] for name, data in found if name == "preview"]
    assert steps == sorted(set(steps))
    assert steps[-1] == 60

    async def shown():
        news = events.News()
        for step in range(5):
            news.watch(0)(step, torch.zeros(1))
        return [step for _, step, _ in news.previews]

    assert asyncio.run(shown()) == [3, 4]


def test_silence_is_broken_by_comments(monkeypatch):
    monkeypatch.setattr(events, "SILENCE", 0.15)
    gate = Gate()
    with live(Service({"tiny": make_sampler(gate)})) as client:
        connection, answer = client.begun(PATH, {"seed": 1, "stream": True})
        lines = [answer.readline() for _ in range(5)]
        gate.open.set()
        answer.read()
        connection.close()
    assert lines[0] == b"event: start\n"
    assert b":\n" in lines[3:]
