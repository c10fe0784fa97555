"""The Open Inference Protocol's binary extension: the same images as by JSON, and what is no such body."""

from __future__ import annotations

import json
import struct

import numpy as np
import pytest
from http_service import live, tensor
from test_http import make_sampler

from fastddpm.serving.http.limits import Limits
from fastddpm.serving.http.service import Service

INFER = "/v2/models/tiny/infer"
SEEDS = struct.pack("<3q", 5, 2**63 - 1, 0)
METHODS = struct.pack("<I4s", 4, b"ddim")
ETA = struct.pack("<f", 0.3)


@pytest.fixture(scope="module")
def client():
    with live(Service({"tiny": make_sampler()}, Limits(images=8))) as found:
        yield found


def binary(name, datatype, raw, shape):
    return {"name": name, "datatype": datatype, "shape": shape, "parameters": {"binary_data_size": len(raw)}}


ASKED = [
    binary("seeds", "INT64", SEEDS, [3]),
    tensor("class_labels", "INT64", [2, 0, 1]),
    binary("method", "BYTES", METHODS, [1]),
    tensor("num_inference_steps", "INT64", [4]),
    binary("eta", "FP32", ETA, [1]),
]
TAIL = SEEDS + METHODS + ETA


def post(client, document, tail, length=None, **headers):
    head = json.dumps(document).encode()
    headers = {"content_type": "application/octet-stream", **headers}
    length = str(len(head) if length is None else length)
    return client.ask("POST", INFER, head + tail, inference_header_content_length=length, **headers)


def by_json(client):
    inputs = [
        tensor("seeds", "INT64", [5, 2**63 - 1, 0]),
        tensor("class_labels", "INT64", [2, 0, 1]),
        tensor("method", "BYTES", ["ddim"]),
        tensor("num_inference_steps", "INT64", [4]),
        tensor("eta", "FP32", [0.3]),
    ]
    outputs = [{"name": "pixels"}, {"name": "images"}]
    found = client.post(INFER, {"inputs": inputs, "outputs": outputs}).json["outputs"]
    return [np.array(one["data"]).reshape(one["shape"]) for one in found]


def taken_apart(answer):
    """An answer's document, and its tensors by the sizes that it says."""
    assert answer.status == 200, answer.body
    assert answer.headers["content-type"] == "application/octet-stream"
    length = int(answer.headers["inference-header-content-length"])
    document, at, found = json.loads(answer.body[:length]), length, {}
    for one in document["outputs"]:
        kind = {"FP32": "<f4", "UINT8": "u1"}[one["datatype"]]
        if "data" in one:
            found[one["name"]] = np.array(one["data"], kind).reshape(one["shape"])
            continue
        size = one["parameters"]["binary_data_size"]
        found[one["name"]] = np.frombuffer(answer.body[at : at + size], kind).reshape(one["shape"])
        at += size
    assert at == len(answer.body)
    return document, found


def test_tensors_as_bytes_are_those_of_json(client):
    pixels, images = by_json(client)
    outputs = [{"name": "pixels", "parameters": {"binary_data": True}}, {"name": "images"}]
    document, found = taken_apart(post(client, {"id": "7", "inputs": ASKED, "outputs": outputs}, TAIL))
    assert (document["id"], document["model_name"]) == ("7", "tiny")
    assert ["data" in one for one in document["outputs"]] == [False, True]
    assert np.array_equal(found["pixels"], pixels)
    assert np.abs(found["images"] - images).max() < 1e-6
    everything = {"inputs": ASKED, "parameters": {"binary_data_output": True}}
    document, found = taken_apart(post(client, everything, TAIL))
    assert [one["name"] for one in document["outputs"]] == ["images"]
    assert np.abs(found["images"] - images).max() < 1e-6


def test_either_way_may_be_bytes_alone(client):
    pixels, images = by_json(client)
    answer = post(client, {"inputs": ASKED}, TAIL)
    assert answer.headers["content-type"] == "application/json"
    assert np.abs(np.array(answer.json["outputs"][0]["data"]) - images.reshape(-1)).max() < 1e-6
    inputs = [*ASKED[1:2], tensor("seeds", "INT64", [5, 2**63 - 1, 0])]
    outputs = [
        {"name": "images", "parameters": {"binary_data": False}},
        {"name": "pixels"},
    ]
    asked = {"inputs": inputs, "outputs": outputs, "parameters": {"binary_data_output": True}}
    document, found = taken_apart(client.post(INFER, asked))
    assert ["data" in one for one in document["outputs"]] == [True, False]
    assert found["pixels"].shape == pixels.shape


def test_a_body_without_a_kind_as_tritons_client_sends_it(client):
    head = json.dumps({"inputs": ASKED}).encode()
    assert (
        client.ask("POST", INFER, head + TAIL, inference_header_content_length=str(len(head))).status == 200
    )
    assert client.ask("POST", INFER, head).status == 415


def test_what_is_no_such_body(client):
    seeds = ASKED[:1]
    wrong = [
        (post(client, {"inputs": seeds}, SEEDS, length="x"), "inference-header-content-length: 'x' given, "),
        (post(client, {"inputs": seeds}, SEEDS, length=10**9), "inference-header-content-length: "),
        (post(client, {"inputs": seeds}, SEEDS, length=-1), "inference-header-content-length: "),
        (post(client, {"inputs": seeds}, SEEDS, length=9), "body: not readable as JSON"),
        (post(client, {"inputs": seeds}, SEEDS[:-1]), "seeds, binary_data_size: 24 given, at most the 23"),
        (post(client, {"inputs": seeds}, SEEDS + b"x"), "body: 1 bytes behind its tensors given, none"),
        (client.post(INFER, {"inputs": seeds}), "seeds, binary_data_size: 24 given, at most the 0 bytes"),
    ]
    one = seeds[0]
    for changed, tail, message in (
        ({"shape": [2]}, SEEDS, "seeds, binary_data_size: 24 given, 16, as its shape says, accepted"),
        ({"data": [1]}, SEEDS, "seeds, data: binary_data_size beside it given, one of the two"),
        ({"parameters": {"binary_data_size": -1}}, SEEDS, "seeds, binary_data_size: -1 given"),
        ({"parameters": {"binary_data_size": True}}, SEEDS, "seeds, binary_data_size: True given"),
        ({"parameters": {"binary_data": True}}, SEEDS, "seeds, binary_data: True given, binary_data_size"),
    ):
        wrong.append((post(client, {"inputs": [{**one, **changed}]}, tail), message))
    for name, datatype, raw, message in (
        ("eta", "FP32", struct.pack("<f", np.nan), "eta: NaN or infinity given, finite numbers accepted"),
        ("method", "BYTES", struct.pack("<I4s", 9, b"ddim"), "method, data: 8 bytes given, 1 texts"),
        ("method", "BYTES", b"\x01\x00\x00", "method, data: 3 bytes given, 1 texts"),
        (
            "method",
            "BYTES",
            struct.pack("<I2s", 2, b"\xff\xfe"),
            "method: b'\\xff\\xfe' given, UTF-8 accepted",
        ),
    ):
        inputs = [tensor("seeds", "INT64", [1]), binary(name, datatype, raw, [1])]
        wrong.append((post(client, {"inputs": inputs}, raw), message))
    for outputs, message in (
        ([{"name": "images", "parameters": {"binary_data": 1}}], "binary_data: 1 given, true or false"),
        ([{"name": "images", "parameters": {"binary_data_size": 4}}], "outputs, binary_data_size: 4 given"),
    ):
        asked = {"inputs": [tensor("seeds", "INT64", [1])], "outputs": outputs}
        wrong.append((client.post(INFER, asked), message))
    for answer, message in wrong:
        assert (answer.status, answer.error[: len(message)]) == (400, message)
