"""Draws docs/images/serve.png: the page of `fastddpm serve` with digits, as a headless Chromium shows it.

    python scripts/draw_serve.py

Needs Node, npm and Chromium, and what tests need.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from PIL import Image

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))

import javascript  # noqa: E402
import onnx_exports  # noqa: E402
from http_service import live  # noqa: E402

import fastddpm  # noqa: E402
from fastddpm.pictures import opened  # noqa: E402
from fastddpm.serving.http.service import Service  # noqa: E402

COLOURS = 32
STATUS = "document.querySelector('#status').textContent"


def main() -> None:
    """Writes the picture."""
    with tempfile.TemporaryDirectory() as scratch, live(Service({"mnist": fastddpm.load()})) as client:
        onnx_exports.home = Path(scratch)
        shot = Path(scratch) / "page.png"
        acts = [
            ["wait", f"{STATUS} == 'Ready'"],
            ["fill", "#seeds", "0-19"],
            ["click", "#draw"],
            ["wait", f"{STATUS}.endsWith('done')"],
            ["screenshot", str(shot)],
        ]
        javascript.visited(f"http://127.0.0.1:{client.port}/", acts)
        with opened(shot) as picture:
            small = picture.convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE)
            small.save(ROOT / "docs" / "images" / "serve.png", optimize=True)


if __name__ == "__main__":
    main()
