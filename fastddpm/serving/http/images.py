"""Pictures for people: `/v1/models`, `/v1/images/generations` and `/v1/images/{seed}.png`."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

import fastddpm
from fastddpm.checks import BadArgument
from fastddpm.serving.http.answers import Json
from fastddpm.serving.http.asked import Asked
from fastddpm.serving.http.bodies import document, read_body
from fastddpm.serving.http.door import entry_of, service_of
from fastddpm.serving.http.events import EventStream, News, events
from fastddpm.serving.http.generations import Generation, from_address, from_json, in_address
from fastddpm.serving.http.models import ServedModel
from fastddpm.serving.http.pictures import check_pictures, grid_png, png_of

SEEDS = "fastddpm-seeds"
"""The header that says the seeds of a picture whose body cannot."""
PREVIEW_EVERY = 10


async def models(request: Request) -> Response:
    """``GET /v1/models``."""
    return Json({"models": [model.described() for model in service_of(request).models.values()]})


async def generations(request: Request) -> Response:
    """``POST /v1/images/generations``."""
    service, entry = service_of(request), entry_of(request)
    wants_events = "text/event-stream" in request.headers.get("accept", "")
    body = await read_body(request, service.limits.body)

    def read() -> tuple[ServedModel, Generation]:
        given = document(body)
        name = given.get("model")
        if name is not None and not isinstance(name, str):
            raise BadArgument("model", str(type(name).__name__), "a name")
        model = service.model(name)
        check_pictures(model.shape)
        return model, from_json(given, service.limits, stream=wants_events)

    model, wanted = await asyncio.to_thread(read)
    entry.model = model.name
    about = {"model": model.name, **model.resolved(wanted.asked[0])}
    if wanted.stream:
        return await _stream(request, model, wanted, about)
    images = await service.draw(request, model, wanted.asked)
    entry.images = len(images)
    if wanted.response_format == "png":
        seeds = ",".join(str(one.seed) for one in wanted.asked)
        picture = await asyncio.to_thread(grid_png, images)
        return Response(picture, media_type="image/png", headers={SEEDS: seeds, "cache-control": "no-store"})
    pictures = await asyncio.to_thread(lambda: [png_of(image) for image in images])
    data = [
        {
            "index": index,
            "seed": one.seed,
            "class_label": one.class_label,
            "b64_json": base64.b64encode(picture).decode("ascii"),
        }
        for index, (one, picture) in enumerate(zip(wanted.asked, pictures, strict=True))
    ]
    return Json({**about, "data": data})


async def picture(request: Request) -> Response:
    """``GET /v1/images/{seed}.png``: a function of its address, while the model's digest is the same."""
    service, entry = service_of(request), entry_of(request)
    model = service.model(request.query_params.get("model"))
    entry.model = model.name
    try:
        check_pictures(model.shape)
        asked = from_address(request.path_params["seed"], request.query_params, model.facts.class_names)
        tag = _tag(model, asked)
        # Caches ask whether it is still the same, which costs nobody a drawing.
        headers = {"etag": tag, "cache-control": "private, no-cache", SEEDS: str(asked.seed)}
        known = [one.strip() for one in request.headers.get("if-none-match", "").split(",")]
        if tag in known:
            return Response(status_code=304, headers=headers)
        [image] = await service.draw(request, model, [asked])
    except BadArgument as error:
        raise in_address(error) from error
    entry.images = 1
    return Response(await asyncio.to_thread(png_of, image), media_type="image/png", headers=headers)


async def _stream(
    request: Request, model: ServedModel, wanted: Generation, about: dict[str, Any]
) -> Response:
    service, entry, news = service_of(request), entry_of(request), News()
    watch = None if wanted.preview_every is None else news.watch
    drawings = await asyncio.to_thread(
        model.submit, wanted.asked, watch, wanted.preview_every or PREVIEW_EVERY
    )

    def count(_: object) -> None:
        entry.images += 1
        service.metrics.images.labels(model.name).inc()

    labels = [one.class_label for one in wanted.asked]
    return EventStream(events(drawings, news, {"id": entry.id, **about}, labels, count), drawings)


def _tag(model: ServedModel, asked: Asked) -> str:
    """A weak ETag: how an image rounds depends on the batch that it was drawn in, by one level at most."""
    said = [fastddpm.__version__, model.digest, asked.seed, asked.class_label, model.resolved(asked)]
    return f'W/"{hashlib.sha256(json.dumps(said).encode()).hexdigest()[:32]}"'
