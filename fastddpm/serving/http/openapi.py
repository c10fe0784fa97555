"""The service as OpenAPI 3.1 describes it."""

from __future__ import annotations

from typing import Any


def described() -> dict[str, Any]:
    """The document."""
    return {"openapi": "3.1.0", "info": {"title": "fastddpm", "version": "1"}, "paths": {}}
