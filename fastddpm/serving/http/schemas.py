"""What documents of the service look like, as JSON Schema."""

from __future__ import annotations

from typing import Any, TypeAlias

Schema: TypeAlias = dict[str, Any]

TEXT: Schema = {"type": "string"}
SHAPE: Schema = {"type": "array", "items": {"type": "integer"}}
PARAMETERS: Schema = {"type": ["object", "null"]}
DATATYPES = ("INT64", "FP32", "UINT8", "BYTES")


def _closed(required: list[str], **properties: Schema) -> Schema:
    """An object of these fields and no others."""
    return {
        "type": "object",
        "additionalProperties": False,
        "required": required,
        "properties": properties,
    }


def _listed(schema: Schema, **bounds: int) -> Schema:
    return {"type": "array", "items": schema, **bounds}


_METADATA = _closed(
    ["name", "datatype", "shape"],
    name=TEXT,
    datatype={"type": "string", "enum": list(DATATYPES)},
    shape=SHAPE,
)
_TENSOR = _closed(
    ["name", "datatype", "shape", "data"],
    name=TEXT,
    datatype={"type": "string", "enum": list(DATATYPES)},
    shape=SHAPE,
    data={"type": "array"},
    parameters=PARAMETERS,
)

OIP_MODEL = _closed(
    ["name", "versions", "platform", "inputs", "outputs"],
    name=TEXT,
    versions=_listed(TEXT),
    platform=TEXT,
    inputs=_listed(_METADATA),
    outputs=_listed(_METADATA),
)
"""``GET /v2/models/{name}``."""

INFER = _closed(
    ["inputs"],
    id={"type": ["string", "null"]},
    parameters=PARAMETERS,
    inputs=_listed(_TENSOR, minItems=1, maxItems=16),
    outputs={
        "type": ["array", "null"],
        "maxItems": 16,
        "items": _closed(
            ["name"], name={"type": "string", "enum": ["images", "pixels"]}, parameters=PARAMETERS
        ),
    },
)
"""The body of ``POST /v2/models/{name}/infer``."""

INFERRED = _closed(["model_name", "outputs"], model_name=TEXT, id=TEXT, outputs=_listed(_TENSOR))
"""Its answer."""

_MODEL = _closed(
    [
        "name",
        "shape",
        "classes",
        "class_names",
        "guidance",
        "condition",
        "methods",
        "methods_with_eta",
        "defaults",
        "limits",
        "digest",
    ],
    name=TEXT,
    shape=SHAPE,
    classes={"type": ["integer", "null"]},
    class_names={"type": ["array", "null"], "items": TEXT},
    guidance={"type": "boolean"},
    condition={"type": ["array", "null"], "items": {"type": "integer"}},
    methods=_listed(TEXT),
    methods_with_eta=_listed(TEXT),
    defaults=_closed(
        ["method", "num_inference_steps", "eta", "guidance_scale"],
        method=TEXT,
        num_inference_steps={"type": "integer"},
        eta={"type": "number"},
        guidance_scale={"type": "number"},
    ),
    limits=_closed(
        ["images", "steps", "body_bytes", "waiting", "deadline_seconds"],
        images={"type": "integer"},
        steps={"type": "integer"},
        body_bytes={"type": "integer"},
        waiting={"type": "integer"},
        deadline_seconds={"type": ["number", "null"]},
    ),
    digest=TEXT,
)

MODELS = _closed(["models"], models=_listed(_MODEL))
"""``GET /v1/models``."""
