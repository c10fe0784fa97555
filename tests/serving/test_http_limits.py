"""What the service refuses: who may not come in, what is too much, and bodies of every wrong kind."""

from __future__ import annotations

import base64
import json
import socket
import time

import pytest
from http_service import Client, live, tensor, wait_for
from test_http import make_sampler
from test_http_events import Gate, affine

from fastddpm.checks import BadArgument
from fastddpm.serving.http import bodies
from fastddpm.serving.http.limits import Limits
from fastddpm.serving.http.service import Service

INFER, GENERATE = "/v2/models/tiny/infer", "/v1/images/generations"
SEEDS = tensor("seeds", "INT64", [1])


@pytest.fixture(scope="module")
def client():
    with live(Service({"tiny": make_sampler()}, Limits(images=4, steps=20, body=20_000))) as found:
        yield found


BODIES = {
    "nothing": (b"", "body: not readable as JSON"),
    "no JSON": (b"{", "body: not readable as JSON"),
    "not UTF-8": (b'{"id": "\xff"}', "body: not readable as JSON"),
    "a list": (b"[1]", "body: JSON of list given"),
    "deep": (b"[" * 5000 + b"]" * 5000, "nested deeper than 32"),
    "deep object": (b'{"a":' * 40 + b"1" + b"}" * 40, "nested deeper than 32"),
    "a name twice": (b'{"id": "a", "id": "b"}', "'id' stands twice"),
    "many digits": (b'{"seed": 1' + b"0" * 4000 + b"}", "an integer of 4001 digits"),
}


@pytest.mark.parametrize("kind", BODIES)
@pytest.mark.parametrize("path", [INFER, GENERATE])
def test_bodies_that_are_no_request(client, path, kind):
    body, said = BODIES[kind]
    answer = client.ask("POST", path, body, content_type="application/json")
    assert (answer.status, said in answer.error) == (400, True), answer.body


TENSORS = [
    ({"inputs": []}, "inputs: none given, seeds"),
    ({}, "inputs: None given, a list of objects"),
    ({"inputs": {"name": "seeds"}}, "inputs: "),
    ({"inputs": [1]}, "inputs: "),
    ({"inputs": [SEEDS] * 17}, "inputs: "),
    ({"inputs": [SEEDS, SEEDS]}, "inputs: seeds, seeds given, each once"),
    ({"inputs": [{**SEEDS, "name": ["seeds"]}]}, "inputs, name: "),
    ({"inputs": [{**SEEDS, "name": "seed"}]}, "inputs, name: 'seed' given, one of seeds"),
    ({"inputs": [{**SEEDS, "name": "\ud800"}]}, "inputs, name: '\\ud800' given"),
    ({"inputs": [{**SEEDS, "more": 1}]}, "more: unknown to the tensor seeds"),
    ({"inputs": [{**SEEDS, "datatype": "INT32"}]}, "seeds: datatype 'INT32' given, INT64 accepted"),
    ({"inputs": [{**SEEDS, "datatype": None}]}, "seeds: datatype None given"),
    ({"inputs": [{**SEEDS, "shape": [2]}]}, "seeds, data: 1 values given, 2, as its shape says"),
    ({"inputs": [{**SEEDS, "shape": [1, 1]}]}, "seeds, shape: [1, 1] given, [-1] accepted"),
    ({"inputs": [{**SEEDS, "shape": []}]}, "seeds, shape: [] given"),
    ({"inputs": [{**SEEDS, "shape": [-1]}]}, "seeds, shape: [-1] given"),
    ({"inputs": [{**SEEDS, "shape": [True]}]}, "seeds, shape: [True] given"),
    ({"inputs": [{**SEEDS, "shape": 1}]}, "seeds, shape: 1 given"),
    ({"inputs": [{**SEEDS, "shape": [0], "data": []}]}, "seeds, shape: [0] given"),
    ({"inputs": [{**SEEDS, "data": 1}]}, "seeds, data: 1 given, a list"),
    ({"inputs": [{**SEEDS, "data": [[1]]}]}, "seeds: [1] given, integers of 64 bits"),
    ({"inputs": [{**SEEDS, "data": [1.0]}]}, "seeds: 1.0 given, integers of 64 bits"),
    ({"inputs": [{**SEEDS, "data": [True]}]}, "seeds: True given"),
    ({"inputs": [{**SEEDS, "data": [None]}]}, "seeds: None given"),
    ({"inputs": [{**SEEDS, "data": ["1"]}]}, "seeds: '1' given"),
    ({"inputs": [{**SEEDS, "data": [-1]}]}, "seeds: -1 given, integers in [0, 2**63)"),
    ({"inputs": [{**SEEDS, "data": [2**63]}]}, "seeds: 9223372036854775808 given, integers of 64 bits"),
    ({"inputs": [{**SEEDS, "data": [{}]}]}, "seeds: {} given"),
    ({"inputs": [tensor("seeds", "INT64", [1] * 5)]}, "seeds: 5 images given, 1 to 4 in one request"),
    ({"inputs": [SEEDS, tensor("class_labels", "INT64", [1, 2])]}, "class_labels, shape: [2] for 1 images"),
    ({"inputs": [SEEDS, tensor("class_labels", "INT64", [5])]}, "class_labels: 5 given, 0 to 3"),
    ({"inputs": [SEEDS, tensor("method", "BYTES", [1])]}, "method: 1 given, text"),
    ({"inputs": [SEEDS, tensor("method", "BYTES", ["x"])]}, "method: 'x' given, one of ddpm"),
    (
        {"inputs": [SEEDS, tensor("method", "BYTES", ["diffusers"])]},
        "method: 'diffusers' without a scheduler",
    ),
    ({"inputs": [SEEDS, tensor("method", "BYTES", ["\ud800\u202e"])]}, "method: '\\ud800\\u202e' given"),
    (
        {"inputs": [tensor("seeds", "INT64", [[1, 2], [3]], [3])]},
        "seeds, data: lists of other lengths than its shape says",
    ),
    ({"inputs": [SEEDS, tensor("num_inference_steps", "INT64", [0])]}, "num_inference_steps: 0 given"),
    (
        {"inputs": [SEEDS, tensor("num_inference_steps", "INT64", [21])]},
        "num_inference_steps: 21 given, 20 at most",
    ),
    ({"inputs": [SEEDS, tensor("eta", "FP32", [0.5])]}, "eta: 0.5, which belongs to ddim"),
    ({"inputs": [SEEDS, tensor("eta", "FP32", [float("nan")])]}, "eta: nan given, finite numbers"),
    ({"inputs": [SEEDS, tensor("guidance_scale", "FP32", [float("-inf")])]}, "guidance_scale: -inf given"),
    (
        {"inputs": [SEEDS, tensor("guidance_scale", "FP32", [1e300])]},
        "guidance_scale: a number beyond float32",
    ),
    ({"inputs": [SEEDS, tensor("guidance_scale", "FP32", [True])]}, "guidance_scale: True given"),
    (
        {"inputs": [SEEDS, tensor("guidance_scale", "FP32", [2.0])]},
        "guidance_scale: a number other than 1 without",
    ),
    (
        {"inputs": [SEEDS], "outputs": [{"name": "image"}]},
        "outputs, name: 'image' given, one of images, pixels",
    ),
    ({"inputs": [SEEDS], "outputs": [{"name": "images"}] * 2}, "outputs: images, images given, each once"),
    ({"inputs": [SEEDS], "outputs": ["images"]}, "outputs: "),
    ({"inputs": [SEEDS], "outputs": [{"name": "images", "data": 1}]}, "data: unknown to an output"),
    ({"inputs": [SEEDS], "parameters": {"binary_data_output": 1}}, "binary_data_output: 1 given, true or"),
    ({"inputs": [SEEDS], "parameters": 1}, "request, parameters: 1 given, an object"),
    ({"inputs": [SEEDS], "id": 7}, "id: 7 given, text"),
    ({"inputs": [SEEDS], "more": 7}, "more: unknown to a request"),
]


@pytest.mark.parametrize(("document", "said"), TENSORS, ids=lambda value: str(value)[:60])
def test_requests_of_the_protocol_that_are_wrong(client, document, said):
    answer = client.post(INFER, document)
    assert (answer.status, said in answer.error) == (400, True), answer.body


WISHES = [
    ({"model": "none"}, 404, "model: 'none' given, tiny accepted"),
    ({"model": 1}, 400, "model: int given, a name"),
    ({"seeds": []}, 400, "seeds: 0 images given"),
    ({"seeds": [1] * 5}, 400, "seeds: 5 images given, 1 to 4 in one request"),
    ({"seeds": "12"}, 400, "seeds: '12' given"),
    ({"seeds": [1.5]}, 400, "seeds: 1.5 given"),
    ({"seeds": [1], "seed": 1}, 400, "seed: one beside seeds given"),
    ({"seeds": [1], "n": 1}, 400, "n: one beside seeds given"),
    ({"seed": -1}, 400, "seed: -1 given"),
    ({"seed": 2**63}, 400, "seed: 9223372036854775808 given"),
    ({"seed": 2**63 - 1, "n": 2}, 400, "seed: 9223372036854775807 given"),
    ({"n": 0}, 400, "n: 0 given, an integer in [1, 4]"),
    ({"n": 5}, 400, "n: 5 given"),
    ({"n": True}, 400, "n: True given"),
    ({"class": "cat"}, 400, "class_labels: 'cat' to a model without class names"),
    ({"class": [1]}, 400, "class: [1] given"),
    ({"class": 1, "class_labels": 1}, 400, "class: one beside class_labels given"),
    ({"class_labels": [0, 1]}, 400, "class_labels: 2 for 1 images"),
    ({"class_labels": []}, 400, "class_labels: 0 for 1 images"),
    ({"class": 10**19}, 400, "class: 10000000000000000000 given"),
    ({"class": 9}, 400, "class_labels: 9 given, 0 to 3"),
    ({"method": 1}, 400, "method: 1 given, a name"),
    ({"method": "y" * 5000}, 400, "method: 'yyy"),
    ({"num_inference_steps": 1.0}, 400, "num_inference_steps: 1.0 given"),
    ({"num_inference_steps": 21}, 400, "num_inference_steps: 21 given, 20 at most by this service"),
    ({"num_inference_steps": 10**19}, 400, "num_inference_steps: 10000000000000000000 given"),
    ({"eta": "1"}, 400, "eta: '1' given"),
    ({"eta": 2, "method": "ddim"}, 400, "eta: 2.0 given, a finite number in [0, 1]"),
    ({"guidance_scale": float("nan")}, 400, "guidance_scale: nan given"),
    ({"guidance_scale": 2}, 400, "guidance_scale: a number other than 1 without class_labels"),
    ({"response_format": "gif"}, 400, "response_format: 'gif' given, one of b64_json, png"),
    ({"response_format": ["png"]}, 400, "response_format: "),
    ({"response_format": "png", "stream": True}, 400, "response_format: 'png' with a stream given"),
    ({"stream": 1}, 400, "stream: 1 given, true or false"),
    ({"preview_every": 2}, 400, "preview_every: 2 without a stream"),
    ({"preview_every": 0, "stream": True}, 400, "preview_every: 0 given"),
    ({"prompt": "a cat"}, 400, "prompt: unknown to a request"),
]


@pytest.mark.parametrize(("document", "status", "said"), WISHES, ids=lambda value: str(value)[:60])
def test_wishes_that_are_wrong(client, document, status, said):
    answer = client.post(GENERATE, document)
    assert (answer.status, said in answer.error) == (status, True), answer.body


ADDRESSES = [
    ("/v1/images/-1.png", 400, "seed: '-1' given"),
    ("/v1/images/9223372036854775808.png", 400, "seed: '9223372036854775808' given"),
    ("/v1/images/%D9%A1.png", 400, "seed: "),
    ("/v1/images/1e3.png", 400, "seed: '1e3' given"),
    ("/v1/images/1.png?step=3", 400, "step: unknown to an address"),
    ("/v1/images/1.png?steps=3&steps=4", 400, "steps: 2 times given, once"),
    ("/v1/images/1.png?steps=x", 400, "steps: 'x' given, an integer"),
    ("/v1/images/1.png?steps=21", 400, "steps: 21 given, 20 at most"),
    ("/v1/images/1.png?class=cat", 400, "class: 'cat' to a model without class names"),
    ("/v1/images/1.png?class=9", 400, "class: 9 given, 0 to 3"),
    ("/v1/images/1.png?guidance_scale=inf", 400, "guidance_scale: 'inf' given"),
    ("/v1/images/1.png?guidance_scale=1_0", 400, "guidance_scale: '1_0' given"),
    ("/v1/images/1.png?method=%ff%00", 400, "method: "),
    ("/v1/images/1.png?model=none", 404, "model: 'none' given, tiny accepted"),
    ("/v2/models/none/ready", 404, "model: 'none' given"),
    ("/v2/models/%2e%2e", 404, "model: '..' given"),
    ("/v1/models/", 404, "address: none of this service"),
    ("/v1/images/1.gif", 404, "address: none of this service"),
    ("/v1/images/generations", 405, "method: none of this address"),
]


@pytest.mark.parametrize(("path", "status", "said"), ADDRESSES)
def test_addresses_that_are_wrong(client, path, status, said):
    answer = client.get(path)
    assert (answer.status, said in answer.error) == (status, True), answer.body


def test_kinds_of_bodies(client):
    body = b'{"seed": 1, "num_inference_steps": 1}'
    for kind, status in (
        ("application/json", 200),
        ("Application/JSON; charset=UTF-8", 200),
        ("application/json; charset=latin-1", 415),
        ("application/x-www-form-urlencoded", 415),
        ("text/plain", 415),
        ("", 415),
    ):
        assert client.ask("POST", GENERATE, body, content_type=kind).status == status, kind
    zipped = client.ask("POST", GENERATE, body, content_type="application/json", content_encoding="gzip")
    assert zipped.status == 415


def test_a_body_that_is_too_large_is_not_read(client):
    fits = {"seed": 1, "num_inference_steps": 1, "model": None}
    room = 20_000 - len(json.dumps(fits))
    for extra, status in ((room, 200), (room + 1, 413)):
        body = json.dumps(fits).encode() + b" " * extra
        assert client.ask("POST", GENERATE, body, content_type="application/json").status == status
    head = f"POST {GENERATE} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
    with socket.create_connection(("127.0.0.1", client.port), timeout=30) as said:
        said.sendall(f"{head}content-length: 99999999999999999999\r\n\r\n".encode())
        assert said.recv(100).startswith(b"HTTP/1.1 413")
    with socket.create_connection(("127.0.0.1", client.port), timeout=30) as said:
        said.sendall(f"{head}transfer-encoding: chunked\r\n\r\n".encode())
        piece = b"1000\r\n" + b" " * 4096 + b"\r\n"
        said.sendall(piece * 5)
        assert said.recv(100).startswith(b"HTTP/1.1 413")


def test_a_body_that_does_not_come_is_given_up(client, monkeypatch):
    monkeypatch.setattr(bodies, "BODY_SECONDS", 0.1)
    with socket.create_connection(("127.0.0.1", client.port), timeout=30) as said:
        head = f"POST {GENERATE} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
        said.sendall(f"{head}content-length: 10\r\n\r\n{{".encode())
        assert said.recv(100).startswith(b"HTTP/1.1 408")


def test_a_token_opens_everything_and_only_health_is_open_without():
    token = "s3cret-token"
    with live(Service({"tiny": make_sampler()}, token=token)) as client:
        paths = (
            "/",
            "/static/page.css",
            "/metrics",
            "/openapi.json",
            "/v2",
            "/v1/models",
            "/v1/images/1.png",
            "/x",
        )
        wrong = ("", token, f"Bearer {token}x", "Bearer ", f"Digest {token}", "Basic x", "Bearer \xe9")
        for path in paths:
            for header in wrong:
                answer = client.get(path, authorization=header)
                assert answer.status == 401, (path, header)
                assert answer.headers["www-authenticate"].startswith("Bearer")
            assert client.get(path).status == 401
        assert client.post(GENERATE, {"seed": 1}).status == 401
        basic = base64.b64encode(f"me:{token}".encode()).decode()
        for header in (f"Bearer {token}", f"bearer {token}", f"Basic {basic}"):
            for path in paths[:-1]:
                assert client.get(path, authorization=header).status == 200, path
            assert client.get("/x", authorization=header).status == 404
        for path in ("/v2/health/live", "/v2/health/ready"):
            assert client.get(path).status == 200
        bearing = Client(client.port, {"authorization": f"Bearer {token}"})
        assert bearing.post(GENERATE, {"seed": 1}).status == 200


def test_more_than_may_wait_is_answered_503_with_when_to_come_again():
    gate = Gate()
    limits = Limits(batch=1, waiting=3, images=3)
    with live(Service({"tiny": make_sampler(gate)}, limits)) as client:
        scheduler = client.service.models["tiny"].scheduler
        first = client.sent(GENERATE, {"seed": 1})
        assert gate.reached.wait(30)
        second = client.sent(GENERATE, {"seeds": [2, 3]})
        wait_for(lambda: scheduler.stats()["waiting"] == 2)
        busy = client.post(GENERATE, {"seeds": [4, 5, 6]})
        assert busy.status == 503
        assert busy.error.startswith("max_waiting: 3 requests wait")
        assert 1 <= int(busy.headers["retry-after"]) < 60
        gate.open.set()
        for connection in (first, second):
            answer = connection.getresponse()
            assert answer.status == 200
            answer.read()
            connection.close()
        # What was accepted of the one that was refused is taken back.
        wait_for(lambda: scheduler.stats()["waiting"] + scheduler.stats()["running"] == 0)
        assert scheduler.stats()["steps"] == 3 * 7
        assert client.post(GENERATE, {"seeds": [4, 5, 6]}).status == 200


def test_an_image_that_is_too_late_is_answered_503():
    gate = Gate()
    with live(Service({"tiny": make_sampler(gate)}, Limits(deadline=0.05))) as client:
        waits = client.sent(GENERATE, {"seed": 1})
        assert gate.reached.wait(30)
        time.sleep(0.06)
        gate.open.set()
        answer = waits.getresponse()
        body = json.loads(answer.read())
        waits.close()
    assert answer.status == 503
    assert body["error"].startswith("deadline: ")
    assert answer.getheader("retry-after") == "5"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"images": 0}, r"^max_images: 0 given"),
        ({"images": 9, "waiting": 8}, r"^max_images: 9 with max_waiting 8 given"),
        ({"deadline": 0}, r"^deadline: 0 given"),
        ({"body": 1.5}, r"^max_body: 1.5 given"),
    ],
)
def test_limits_that_are_wrong(options, said):
    with pytest.raises(BadArgument, match=said):
        Limits(**options)


def test_models_that_cannot_be_served():
    with pytest.raises(BadArgument, match=r"^MODEL: the name 'a/b' given"):
        Service({"a/b": make_sampler()})
    with pytest.raises(BadArgument, match=r"^MODEL: x, which says no shape"):
        Service({"x": make_sampler(affine, shape=None)})
    flat = Service({"two": make_sampler(affine, shape=(2, 4, 4))})
    with live(flat) as client:
        answer = client.post(GENERATE, {"seed": 1})
        assert (answer.status, answer.error[:39]) == (400, "model: one with images of 2 channels gi")
        [output] = client.post("/v2/models/two/infer", {"inputs": [SEEDS]}).json["outputs"]
        assert output["shape"] == [1, 2, 4, 4]
