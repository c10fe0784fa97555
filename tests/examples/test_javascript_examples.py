"""examples/node and examples/browser: `sampler.onnx` draws in JavaScript as it does in Python."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import javascript
import numpy as np
import onnx_exports
import pytest
from PIL import Image

from fastddpm.onnx import OnnxSampler
from fastddpm.plans import spaced_timesteps

LARGE = 2**63 - 2
"""A seed that no double of JavaScript holds."""


@pytest.fixture(scope="module")
def folder():
    return onnx_exports.exported("classes")


def differences(pixels, folder, **call):
    """Of pixels (B, H, W, C) from those of `OnnxSampler`, in levels: the largest."""
    expected = OnnxSampler(folder, "cpu", threads=1).sample(output="uint8", progress=False, **call)
    assert pixels.shape == expected.shape
    assert expected.std() > 20  # a picture that no other could be taken for
    return np.abs(pixels.astype(int) - expected).max()


def tiles(picture, columns, count):
    """Images (B, 8, 8, 3) of a grid."""
    rows = [np.split(row, columns, axis=1) for row in np.split(picture, len(picture) // 8)]
    return np.concatenate(rows)[:count]


def evaluated(code):
    """What an expression over examples/sampler.mjs gives, as JSON."""
    module = (javascript.ROOT / "examples" / "sampler.mjs").as_uri()
    text = f"import * as it from {json.dumps(module)}; console.log(JSON.stringify({code}))"
    done = javascript.node("--input-type=module", given=text)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_timesteps_are_pythons():
    counts = [1, 2, 3, 7, 50, 61, 333, 999, 1000]
    for spacing in ("leading", "linspace", "trailing"):
        for method in ("ddim", "dpmpp_2m"):
            about = {"num_train_timesteps": 1000, "defaults": {"timestep_spacing": spacing}}
            about = json.dumps(about)
            found = evaluated(f"{counts}.map((steps) => it.spaced({about}, '{method}', steps))")
            skip = method == "dpmpp_2m"
            for steps, timesteps in zip(counts, found, strict=True):
                expected = spaced_timesteps(1000, steps, spacing, skip_last=skip)
                assert timesteps == expected.tolist(), (spacing, method, steps)


def test_node_draws_what_python_draws(folder, tmp_path):
    script = javascript.installed("examples/node") / "sample.mjs"
    words = [
        "--seeds",
        f"3-5,{LARGE},9",
        "--class",
        "1,3",
        "--method",
        "ddim",
        "--steps",
        "7",
        "--eta",
        "0.5",
    ]
    words += ["--guidance", "2", "--columns", "3", "--threads", "1"]
    done = javascript.node(script, folder, *words, "--out", tmp_path / "drawn.png")
    assert (done.returncode, done.stderr) == (0, "")
    drawn = np.array(Image.open(tmp_path / "drawn.png"))
    assert drawn.shape == (16, 24, 3)
    assert [path.name for path in tmp_path.iterdir()] == ["drawn.png"]
    call = {"seeds": [3, 4, 5, LARGE, 9], "class_labels": [3, 1, 3, 1, 3], "guidance_scale": 2.0}
    call |= {"method": "ddim", "num_inference_steps": 7, "eta": 0.5}
    assert differences(tiles(drawn, 3, 5), folder, **call) <= 1
    assert (drawn[8:, 16:] == 0).all()  # the place of a sixth


def test_node_draws_as_exported_unless_told_otherwise(folder, tmp_path):
    script = javascript.installed("examples/node") / "sample.mjs"
    done = javascript.node(script, folder, "--seeds", "0-3", "--out", tmp_path / "drawn.png")
    assert (done.returncode, done.stderr) == (0, "")
    drawn = np.array(Image.open(tmp_path / "drawn.png"))
    assert differences(tiles(drawn, 2, 4), folder, seeds=range(4), class_labels=[0, 1, 2, 3]) <= 1


def test_a_solver_is_drawn_by_the_rows_in_its_file(folder):
    about = json.loads((folder / "export.json").read_text())
    about["defaults"] |= {"method": "unipc", "timestep_spacing": "karras"}
    assert evaluated(f"it.plan({json.dumps(about)})") == {"method": 3, "timesteps": [], "eta": 0}
    named = evaluated(f"it.plan({json.dumps(about)}, {{ method: 'ddim', steps: 4 }})")
    assert named == {"method": 1, "timesteps": [750, 500, 250, 0], "eta": 0}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--seeds", "5-3"], "--seeds: '5-3' given, integers and rising ranges"),
        (["--seeds", str(2**63)], f"seeds: [{2**63}] given, one or more integers from 0 to 2^63 - 1"),
        (["--class", "9"], "class: [9,9,9,9,9,9,9,9,9,9] for 10 images given, a label from 0 to 3 for each"),
        (["--method", "heun"], "method: heun given, ddpm, ddim, dpmpp_2m accepted"),
        (["--steps", "0"], "steps: 0 given, an integer from 1 to 1000 accepted"),
        (["--eta", "1"], "eta: 1 with ddpm given, 0, or up to 1 with ddim accepted"),
        (["--columns", "none"], "--columns: 'none' given, a number accepted"),
    ],
)
def test_node_says_what_it_does_not_accept(folder, tmp_path, words, said):
    script = javascript.installed("examples/node") / "sample.mjs"
    done = javascript.node(script, folder, *words, "--out", tmp_path / "drawn.png")
    assert done.returncode == 1
    assert done.stderr.startswith(said)
    assert done.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_node_refuses_another_file_than_the_exported_one(folder, tmp_path):
    script = javascript.installed("examples/node") / "sample.mjs"
    other = tmp_path / "other"
    shutil.copytree(folder, other)
    with (other / "sampler.onnx").open("ab") as file:
        file.write(b"\0")
    done = javascript.node(script, other)
    assert done.returncode == 1
    assert done.stderr.startswith("sampler.onnx: a file of sha256 ")
    about = json.loads((other / "export.json").read_text())
    (other / "export.json").write_text(json.dumps({**about, "condition_channels": 3}))
    assert "a model that is given conditions" in javascript.node(script, other).stderr


@pytest.fixture
def served(tmp_path):
    """Starts the server of examples/browser, or one of the documentation: the address of a page for it."""
    started = []

    def serve(*command: object) -> str:
        process = subprocess.Popen([*map(str, command)], stdout=subprocess.PIPE, text=True)
        started.append(process)
        return re.search("http://.*/", process.stdout.readline())[0]

    def example(model: Path) -> str:
        script = javascript.installed("examples/browser") / "server.mjs"
        return serve(javascript.program("node"), script, model, "0")

    def documentation(model: Path) -> str:
        pytest.importorskip("mkdocs")
        pytest.importorskip("mkdocstrings")
        site = built_site(tmp_path, model)
        return serve(sys.executable, "-um", "http.server", "0", "-b", "127.0.0.1", "-d", site) + "try.html"

    yield {"example": example, "documentation": documentation}
    for process in started:
        process.kill()
        process.wait()


def built_site(root: Path, model: Path) -> Path:
    """The documentation's page that draws, alone, built where npm's packages and an export are."""
    text = (javascript.ROOT / "mkdocs.yml").read_text()
    (root / "mkdocs.yml").write_text(re.sub(r"(?m)^nav:\n(?: .*\n)+", "", text))
    (root / "docs").mkdir()
    (root / "docs" / "index.md").write_text("# Nothing\n")
    page = (javascript.ROOT / "docs" / "try.md").read_text()
    (root / "docs" / "try.md").write_text(page.replace("(onnx.md)", "(index.md)"))
    shutil.copy(javascript.ROOT / "docs" / "site.css", root / "docs")
    shutil.copytree(javascript.ROOT / "scripts", root / "scripts")
    packages = javascript.installed("examples/browser")
    (root / "examples").mkdir()
    (root / "examples" / "browser").symlink_to(packages)
    shutil.copy(packages.parent / "sampler.mjs", root / "examples")
    shutil.copytree(javascript.ROOT / "examples" / "node", root / "examples" / "node")
    shutil.copytree(model, root / "build" / "try" / "model")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict"]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return root / "build" / "site"


STATUS = "document.querySelector('#status').textContent"
PIXELS = """(() => {
    const canvas = document.querySelector('#images');
    const { data } = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height);
    return [canvas.width, canvas.height, Array.from(data)];
})()"""


@pytest.mark.parametrize("page", ["example", "documentation"])
def test_a_browser_draws_what_python_draws(folder, served, page):
    javascript.chromium()
    address = served[page](folder)
    visit = javascript.visited(
        address,
        [
            ["wait", f"{STATUS} != 'Loading the model'"],
            ["evaluate", STATUS],
            ["fill", "#seeds", f"7,{LARGE},9"],
            ["fill", "#classes", "2"],
            ["select", "#method", "dpmpp_2m"],
            ["fill", "#steps", "6"],
            ["fill", "#guidance", "1.5"],
            ["press", "#steps", "Enter"],
            ["wait", f"{STATUS} == '3 images drawn' || {STATUS}.includes('accepted')"],
            ["evaluate", PIXELS],
            ["fill", "#seeds", "9-7"],
            ["click", "#draw"],
            ["wait", f"{STATUS}.includes('accepted')"],
            ["evaluate", STATUS],
        ],
    )
    assert visit.results[1] == "Ready"
    width, height, numbers = visit.results[9]
    assert (width, height) == (24, 8)
    drawn = np.array(numbers, np.uint8).reshape(height, width, 4)
    call = {"seeds": [7, LARGE, 9], "class_labels": 2, "guidance_scale": 1.5}
    call |= {"method": "dpmpp_2m", "num_inference_steps": 6}
    assert differences(tiles(drawn[..., :3], 3, 3), folder, **call) <= 1
    assert visit.results[-1].startswith("seeds: '9-7' given")
    assert visit.said == []
    own = (address.removesuffix("try.html"), "data:")
    assert {one for one in visit.asked if not one.startswith(own)} == set()
