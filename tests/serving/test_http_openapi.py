"""The description of the service: its paths are the routes, and what they answer is what it says."""

from __future__ import annotations

import re

import jsonschema
import pytest
from http_service import live, tensor
from starlette.routing import Mount, Route
from test_http import make_sampler

from fastddpm.serving.http.app import make_app
from fastddpm.serving.http.limits import Limits
from fastddpm.serving.http.openapi import described
from fastddpm.serving.http.service import Service

GOOD = {
    "/static/{file}": "/static/page.css",
    "/v2/models/{name}": "/v2/models/tiny",
    "/v2/models/{name}/ready": "/v2/models/tiny/ready",
    "/v2/models/{name}/infer": "/v2/models/tiny/infer",
    "/v1/images/{seed}.png": "/v1/images/3.png",
}
SENT = {
    "/v2/models/{name}/infer": {"inputs": [tensor("seeds", "INT64", [1])], "outputs": [{"name": "pixels"}]},
    "/v1/images/generations": {"seeds": [1], "class": 2, "class_labels": None, "response_format": "b64_json"},
}


@pytest.fixture(scope="module")
def client():
    with live(Service({"tiny": make_sampler()}, Limits(images=4))) as found:
        yield found


def test_the_paths_are_the_routes():
    service = Service({"tiny": make_sampler()})
    routes = set()
    for route in make_app(service).routes:
        if isinstance(route, Mount):
            routes.add((f"{route.path}/{{file}}", "GET"))
        else:
            assert isinstance(route, Route)
            routes |= {(route.path, method) for method in route.methods - {"HEAD"}}
    paths = described(has_token=True)["paths"]
    assert {(path, method.upper()) for path, item in paths.items() for method in item} == routes


@pytest.mark.parametrize("path", described(has_token=True)["paths"])
def test_every_path_answers_as_it_is_described(client, path):
    [(method, operation)] = described(has_token=True)["paths"][path].items()
    address = GOOD.get(path, path)
    if method == "post":
        jsonschema.validate(SENT[path], operation["requestBody"]["content"]["application/json"]["schema"])
        answer = client.post(address, SENT[path])
    else:
        answer = client.get(address)
    assert answer.status == 200, answer.body
    content = operation["responses"]["200"]["content"]
    kind = answer.headers["content-type"].partition(";")[0]
    assert kind in content
    if kind == "application/json":
        jsonschema.validate(answer.json, content[kind].get("schema", {}))


@pytest.mark.parametrize("path", ["/v2/models/{name}/infer", "/v1/images/generations"])
def test_what_a_schema_refuses_is_refused(client, path):
    schema = described(has_token=True)["paths"][path]["post"]["requestBody"]["content"]["application/json"][
        "schema"
    ]
    for wrong in (
        [],
        {"more": 1},
        {"inputs": []},
        {"seeds": "1"},
        {"n": 0},
        {"stream": 3},
        {"inputs": [{"name": 1}]},
    ):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(wrong, schema)
        assert client.post(GOOD.get(path, path), wrong).status == 400


def test_the_document_is_what_openapi_calls_one(client):
    document = client.get("/openapi.json").json
    assert document["openapi"].startswith("3.1")
    for path, item in document["paths"].items():
        for operation in item.values():
            named = {one["name"] for one in operation.get("parameters", []) if one["in"] == "path"}
            assert named == set(re.findall(r"{(\w+)}", path))
            assert operation["summary"].endswith(".")
            assert all(re.fullmatch(r"[1-5]\d\d", status) for status in operation["responses"])
            body = operation.get("requestBody", {}).get("content", {})
            for content in (body, *(answer.get("content", {}) for answer in operation["responses"].values())):
                for one in content.values():
                    jsonschema.Draft202012Validator.check_schema(one.get("schema", {}))
