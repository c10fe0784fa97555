"""The page at ``/``: files of this package's folder `page`, which load nothing from elsewhere."""

from __future__ import annotations

from pathlib import Path

from starlette.requests import Request
from starlette.responses import FileResponse, Response
from starlette.staticfiles import StaticFiles

FOLDER = Path(__file__).parent / "page"
POLICY = "default-src 'self'; img-src 'self' data: blob:; base-uri 'none'; frame-ancestors 'none'"


async def index(request: Request) -> Response:
    """``GET /``."""
    headers = {"content-security-policy": POLICY, "cache-control": "no-cache"}
    return FileResponse(FOLDER / "index.html", headers=headers)


def static_files() -> StaticFiles:
    """What is at ``/static``: the other files of the page."""
    return StaticFiles(directory=FOLDER)
