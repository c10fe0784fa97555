"""The service as OpenAPI 3.1 describes it."""

from __future__ import annotations

from typing import Any

import fastddpm
from fastddpm.checks import MAX_SEED
from fastddpm.serving.http.generations import FORMATS
from fastddpm.serving.http.schemas import INFER, INFERRED, MODELS, OIP_MODEL, Schema

OK_JSON = "application/json"
ERRORS = {
    400: "What was asked for does not fit; the sentence names it, what was given and what is accepted.",
    401: "No token, or another one.",
    404: "No such model.",
    408: "The body did not come in time.",
    413: "The body is too large.",
    415: "The body is not JSON.",
    422: "Images hold NaN or infinity; the sentence names their seeds.",
    500: "An error of the service's own.",
    503: "Too many wait, a deadline passed, or the service is being stopped; header Retry-After.",
}
DRAWN = (400, 401, 404, 422, 500, 503)
POSTED = (*DRAWN, 408, 413, 415)
SEED: Schema = {"type": "integer", "minimum": 0, "maximum": MAX_SEED}
LABEL: Schema = {"type": ["integer", "string", "null"], "description": "A number, or a name of a class."}
METHOD: Schema = {"type": ["string", "null"], "description": "One of the model's methods."}
STEPS: Schema = {"type": ["integer", "null"], "minimum": 1}
NUMBER: Schema = {"type": ["number", "null"]}


def described(*, has_token: bool) -> Schema:
    """The document, of a service that wants a token or none."""
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "fastddpm",
            "version": fastddpm.__version__,
            "description": "Images of diffusion models, each a function of its seed and its own request.",
        },
        "security": [{"bearer": []}, {"basic": []}] if has_token else [],
        "paths": {**_probes(), **_protocol(), **_pictures()},
        "components": {
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer"},
                "basic": {
                    "type": "http",
                    "scheme": "basic",
                    "description": "The token as password, for browsers.",
                },
            },
            "schemas": {
                "Error": {
                    "type": "object",
                    "required": ["error"],
                    "properties": {"error": {"type": "string"}},
                }
            },
        },
    }


def _probes() -> Schema:
    ready = _object(ready={"type": "boolean"})
    stopping = {"description": "It is being stopped.", "content": {OK_JSON: {"schema": ready}}}
    return {
        "/": {"get": _operation("The page.", {"text/html": {}}, errors=(401, 503))},
        "/static/{file}": {
            "get": _operation(
                "A file of the page.",
                {"text/css": {}, "text/javascript": {}, "text/html": {}},
                errors=(401, 404, 503),
                parameters=[_in_path("file")],
            )
        },
        "/openapi.json": {"get": _operation("This document.", _json({"type": "object"}), errors=(401, 503))},
        "/metrics": {
            "get": _operation("Metrics, as Prometheus reads them.", {"text/plain": {}}, errors=(401, 503))
        },
        "/v2/health/live": {"get": _open("Whether it lives.", _object(live={"type": "boolean"}))},
        "/v2/health/ready": {"get": _open("Whether it takes requests.", ready, {"503": stopping})},
    }


def _protocol() -> Schema:
    name = [_in_path("name")]
    strings = {"type": "array", "items": {"type": "string"}}
    server = _object(name={"type": "string"}, version={"type": "string"}, extensions=strings)
    ready = _object(name={"type": "string"}, ready={"type": "boolean"})
    return {
        "/v2": {"get": _operation("Of the service.", _json(server), errors=(401, 503))},
        "/v2/models/{name}": {
            "get": _operation(
                "What infer takes and gives.", _json(OIP_MODEL), errors=(401, 404, 503), parameters=name
            )
        },
        "/v2/models/{name}/ready": {
            "get": _operation(
                "Whether a model takes requests.", _json(ready), errors=(401, 404, 503), parameters=name
            )
        },
        "/v2/models/{name}/infer": {
            "post": _operation(
                "Images as tensors, by the Open Inference Protocol; of its extensions, binary_tensor_data.",
                {**_json(INFERRED), "application/octet-stream": {}},
                errors=POSTED,
                parameters=name,
                body=INFER,
            )
        },
    }


def _pictures() -> Schema:
    seeds = {"fastddpm-seeds": {"schema": {"type": "string"}, "description": "Of the images, in order."}}
    drawn = {**_json({"type": "object"}), "image/png": {}, "text/event-stream": {}}
    picture = _operation(
        "The image of a seed.",
        {"image/png": {}},
        errors=DRAWN,
        parameters=[
            {"name": "seed", "in": "path", "required": True, "schema": SEED},
            _in_query("model", {"type": "string"}),
            _in_query("class", {"type": "string", "description": LABEL["description"]}),
            _in_query("method", {"type": "string", "description": METHOD["description"]}),
            _in_query("steps", {"type": "integer", "minimum": 1}),
            _in_query("eta", {"type": "number"}),
            _in_query("guidance_scale", {"type": "number"}),
        ],
    )
    tag = {"etag": {"schema": {"type": "string"}}, **seeds}
    picture["responses"]["200"]["headers"] = tag
    picture["responses"]["304"] = {"description": "As it was, by If-None-Match.", "headers": tag}
    return {
        "/v1/models": {"get": _operation("What there is.", _json(MODELS), errors=(401, 503))},
        "/v1/images/generations": {
            "post": _operation(
                "Images as PNG files, or events on their way.", drawn, errors=POSTED, body=WISH
            )
        },
        "/v1/images/{seed}.png": {"get": picture},
    }


WISH: Schema = {
    "type": "object",
    "additionalProperties": False,
    "properties": {
        "model": {"type": ["string", "null"], "description": "The first, if left out."},
        "seeds": {"type": ["array", "null"], "items": SEED, "minItems": 1},
        "seed": {**SEED, "type": ["integer", "null"], "description": "The first of n, each one more."},
        "n": {"type": ["integer", "null"], "minimum": 1, "description": "Without seeds; 1, if left out."},
        "class_labels": {
            "type": ["integer", "string", "array", "null"],
            "items": LABEL,
            "description": "One for all, or one each.",
        },
        "class": LABEL,
        "method": METHOD,
        "num_inference_steps": STEPS,
        "eta": NUMBER,
        "guidance_scale": NUMBER,
        "response_format": {"type": ["string", "null"], "enum": [*FORMATS, None]},
        "stream": {"type": ["boolean", "null"]},
        "preview_every": {"type": ["integer", "null"], "minimum": 1, "description": "Steps; in a stream."},
    },
}


def _operation(
    summary: str,
    content: Schema,
    *,
    errors: tuple[int, ...],
    parameters: list[Schema] | None = None,
    body: Schema | None = None,
) -> Schema:
    error = {OK_JSON: {"schema": {"$ref": "#/components/schemas/Error"}}}
    responses: Schema = {"200": {"description": "As asked.", "content": content}}
    for status in sorted(errors):
        responses[str(status)] = {"description": ERRORS[status], "content": error}
    found: Schema = {"summary": summary, "responses": responses}
    if parameters:
        found["parameters"] = parameters
    if body is not None:
        found["requestBody"] = {"required": True, "content": _json(body)}
    return found


def _open(summary: str, schema: Schema, others: Schema | None = None) -> Schema:
    """An operation that needs no token."""
    well = {"description": "As asked.", "content": _json(schema)}
    return {"summary": summary, "security": [], "responses": {"200": well, **(others or {})}}


def _json(schema: Schema) -> Schema:
    return {OK_JSON: {"schema": schema}}


def _object(**properties: Any) -> Schema:
    return {"type": "object", "required": list(properties), "properties": properties}


def _in_path(name: str) -> Schema:
    return {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}


def _in_query(name: str, schema: Schema) -> Schema:
    return {"name": name, "in": "query", "schema": schema}
