"""The ASGI application: routes, and the door in front of them."""

from __future__ import annotations

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Mount, Route

from fastddpm.serving.http import images, protocol, site
from fastddpm.serving.http.answers import Json, Refused, error_answer
from fastddpm.serving.http.door import Door, service_of
from fastddpm.serving.http.metrics import KIND
from fastddpm.serving.http.openapi import described
from fastddpm.serving.http.service import Service

WORDS = {
    404: "address: none of this service given, those of /openapi.json accepted",
    405: "method: none of this address given, those of /openapi.json accepted",
}
"""What is said where no route fits."""


async def metrics(request: Request) -> Response:
    """``GET /metrics``."""
    return Response(service_of(request).metrics.text(), headers={"content-type": KIND})


async def openapi(request: Request) -> Response:
    """``GET /openapi.json``."""
    return Json(described(has_token=service_of(request).token is not None))


ROUTES = (
    Route("/", site.index, methods=["GET"]),
    Route("/openapi.json", openapi, methods=["GET"]),
    Route("/metrics", metrics, methods=["GET"]),
    Route("/v1/models", images.models, methods=["GET"]),
    Route("/v1/images/generations", images.generations, methods=["POST"]),
    Route("/v1/images/{seed}.png", images.picture, methods=["GET"]),
    Route("/v2", protocol.server_metadata, methods=["GET"]),
    Route("/v2/health/live", protocol.live, methods=["GET"]),
    Route("/v2/health/ready", protocol.ready, methods=["GET"]),
    Route("/v2/models/{name}", protocol.model_metadata, methods=["GET"]),
    Route("/v2/models/{name}/ready", protocol.model_ready, methods=["GET"]),
    Route("/v2/models/{name}/infer", protocol.infer, methods=["POST"]),
)


def make_app(service: Service) -> Starlette:
    """The application of a service. Whoever runs it closes the service at the end.

    Args:
        service: what answers.

    Returns:
        An ASGI application.
    """
    app = Starlette(
        routes=[*ROUTES, Mount("/static", site.static_files())],
        middleware=[Middleware(Door, service=service)],
        exception_handlers={HTTPException: _refused},
    )
    app.state.service = service
    app.router.redirect_slashes = False  # an address is one address
    return app


async def _refused(request: Request, error: Exception) -> Response:
    if isinstance(error, HTTPException) and error.status_code in WORDS:
        error = Refused(error.status_code, WORDS[error.status_code], error.headers)
    return error_answer(error)
