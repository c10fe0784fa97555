"""The page of the documentation that draws in the browser, docs/try.md: a hook of mkdocs.yml.

It is examples/browser, put into the site with the model in the box and ONNX Runtime's files, which npm
brings. Where one of these is missing the site is built without them, and the page says so.
"""

from __future__ import annotations

import logging
import shutil
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File

ROOT = Path(__file__).parent.parent
PAGE = "try.md"
PLACE = "<!-- the sampler -->"
EXAMPLE = ROOT / "examples" / "browser"
ORT = EXAMPLE / "node_modules" / "onnxruntime-web" / "dist"
MODEL = ROOT / "build" / "try" / "model"
LEFT_OUT = (
    "<p><em>This copy of the site was built without {missing}: <code>make docs</code>, where npm is, puts the"
    " sampler here.</em></p>"
)

log = logging.getLogger("mkdocs.hooks.try")


def on_files(files: Any, config: Any) -> Any:
    """Adds what the page loads, under try/."""
    if files.get_file_from_path(PAGE) is None:
        return files
    if lacking := missing():
        log.info("%s is built without %s", PAGE, lacking)
        return files
    for name, path in served(model()).items():
        files.append(File.generated(config, f"try/{name}", abs_src_path=str(path)))
    return files


def on_page_content(content: str, page: Any, **_: Any) -> str:
    """The form and the canvas of examples/browser/index.html in their place."""
    if PLACE not in content:
        return content
    if lacking := missing():
        return content.replace(PLACE, LEFT_OUT.format(missing=lacking))
    body = (EXAMPLE / "index.html").read_text().partition("</h1>")[2].partition("</main>")[0]
    head = '<link rel="stylesheet" href="try/page.css"><script type="module" src="try/page.mjs"></script>'
    return content.replace(PLACE, f'<div class="sampler">{body}</div>{head}')


def missing() -> str:
    """What the page cannot be made without and is not here, or nothing."""
    if not ORT.is_dir():
        return "onnxruntime-web"
    if not (MODEL / "export.json").is_file() and not all(
        map(find_spec, ("onnx", "onnxscript", "onnxruntime"))
    ):
        return "ONNX"
    return ""


def served(model: Path) -> dict[str, Path]:
    """What the page loads, by its path beside page.mjs."""
    files = {name: EXAMPLE / name for name in ("page.css", "page.mjs", "worker.mjs")}
    files["sampler.mjs"] = EXAMPLE.parent / "sampler.mjs"
    for name in ("ort.wasm.bundle.min.mjs", "ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm"):
        files[f"ort/{name}"] = ORT / name
    for name in ("export.json", "sampler.onnx"):
        files[f"model/{name}"] = model / name
    return files


def model() -> Path:
    """The model in the box as ONNX files: those of an earlier build, unless their sources are newer."""
    made = MODEL / "export.json"
    sources = [*ROOT.glob("fastddpm/assets/mnist/*"), *ROOT.glob("fastddpm/export/*.py")]
    if not made.is_file() or any(path.stat().st_mtime > made.stat().st_mtime for path in sources):
        import fastddpm

        log.info("exporting the model of %s", PAGE)
        shutil.rmtree(MODEL, ignore_errors=True)
        fastddpm.export_onnx(fastddpm.load(), MODEL)
    return MODEL
