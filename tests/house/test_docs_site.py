"""The documentation site builds strictly: no broken link, no name that is not there."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

ROOT = Path(__file__).parents[2]

pytest.importorskip("mkdocs")
pytest.importorskip("mkdocstrings")
pytest.importorskip("latex2mathml")


FETCHED = r"""<(?:script|img|iframe|link(?! rel="canonical"))\b[^>]*(?:src|href)=["']?(?:https?:)?//[^>]*>"""


def written_formulas(markdown: str) -> int:
    """How many formulas a page holds: pairs of dollars outside of code."""
    prose = re.sub(r"```.*?```|`[^`\n]*`", "", markdown, flags=re.S)
    return len(re.findall(r"\$\$?", prose)) // 2


def hooks(name: str):
    """A module of scripts/ that mkdocs.yml names."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def build(root: Path, site: Path):
    """Runs mkdocs as `make docs` does."""
    return subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(site)],
        cwd=root,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        check=False,
    )


def test_every_page_and_the_reference_are_built(tmp_path):
    done = build(ROOT, tmp_path)
    assert done.returncode == 0, done.stderr
    for page in (ROOT / "docs").rglob("*.md"):
        assert (tmp_path / page.relative_to(ROOT / "docs")).with_suffix(".html").is_file()
    names = {
        "sampling": [
            "fastddpm.sampler.Sampler.sample",
            "fastddpm.sampler.Sampler.replace",
            "fastddpm.checkpoint.load",
        ],
        "jobs": ["fastddpm.jobs.job.Job.run", "fastddpm.evaluation.scores.score"],
        "score": ["fastddpm.score.network.NetworkScore", "fastddpm.score.likelihood.bits_per_dim"],
        "restoration": ["fastddpm.restoration.restorer.Restorer.restore"],
        "serving": ["fastddpm.serving.scheduler.Scheduler.submit"],
        "command": ["fastddpm-sample", "fastddpm-super-resolve"],
        "plans": ["fastddpm.schedule.NoiseSchedule.linear", "fastddpm.plans.ddim.ddim_plan"],
    }
    for page, wanted in names.items():
        html = (tmp_path / "reference" / f"{page}.html").read_text()
        assert all(f'id="{name}"' in html for name in wanted)
    # What a page says of a file that the site does not hold.
    card = (tmp_path / "training.html").read_text()
    assert "<code>fastddpm/assets/mnist/README.md</code> in the repository" in card
    # Nothing is fetched from elsewhere when a page is opened.
    for page in tmp_path.rglob("*.html"):
        assert re.findall(FETCHED, page.read_text()) == []
    # Every formula is drawn.
    for page in (ROOT / "docs").glob("*.md"):
        html = (tmp_path / page.name).with_suffix(".html").read_text()
        formulas = written_formulas(page.read_text())
        assert html.count("<math ") == formulas, page.name
        assert formulas > 100 or page.name != "math.md"


def test_a_broken_link_and_a_name_that_is_not_there_fail(tmp_path):
    site = (ROOT / "mkdocs.yml").read_text()
    (tmp_path / "mkdocs.yml").write_text(re.sub(r"(?m)^nav:\n(?: .*\n)+", "", site))  # of pages not here
    shutil.copytree(ROOT / "scripts", tmp_path / "scripts")
    (tmp_path / "docs").mkdir()
    links = "[there](nowhere.md), [there](../above.md), [there](#nothing)"
    for text, messages in (
        (links, ("'nowhere.md'", "'../above.md'", "'#nothing'")),
        ("::: json.nothing", ("json.nothing",)),
        ("That $\\nothing_0$ is.", ("has \\nothing, which is not known",)),
    ):
        (tmp_path / "docs" / "index.md").write_text(f"# A page\n\n{text}\n")
        done = build(tmp_path, tmp_path / "site")
        assert done.returncode != 0
        for message in messages:
            assert message in done.stderr
    (tmp_path / "docs" / "index.md").write_text("# A page\n\n[the hooks](../scripts/docs_hooks.py)\n")
    assert build(tmp_path, tmp_path / "site").returncode == 0
    assert "Edit this page" not in (tmp_path / "site" / "index.html").read_text()
    # Of a checkout that says where it is from.
    subprocess.run(["git", "init", "--quiet", str(tmp_path)], check=True)
    origin = ["remote", "add", "origin", "git@github.com:some/body.git"]
    subprocess.run(["git", "-C", str(tmp_path), *origin], check=True)
    assert build(tmp_path, tmp_path / "site").returncode == 0
    html = (tmp_path / "site" / "index.html").read_text()
    assert '"https://github.com/some/body/edit/main/docs/index.md" title="Edit this page"' in html


def test_links_out_of_the_pages_are_named():
    class File:
        src_uri = "reference/page.md"

    class Page:
        file = File

    def named(text):
        return hooks("docs_hooks").on_page_markdown(text, Page)

    assert named("[a b](../../README.md#what)") == "a b (`README.md` in the repository)"
    for kept in (
        "[a](../onnx.md)",
        "![a](../../README.md)",
        "[a](../../no.md)",
        "[a](../../../x)",
        "[a](b.md)",
    ):
        assert named(kept) == kept


@pytest.mark.parametrize(
    ("address", "repository"),
    [
        ("git@github.com:some/body.git", "https://github.com/some/body"),
        ("https://name:word@github.com/some/body", "https://github.com/some/body"),
        ("ssh://git@gitlab.com/some/group/body.git", "https://gitlab.com/some/group/body"),
        ("https://example.org/some/body.git", None),
        ("/srv/github.com/some/body", None),
        ("", None),
    ],
)
def test_pages_are_edited_where_the_checkout_is_from(address, repository):
    found = hooks("docs_hooks").edited(address)
    assert (found and found[0]) == repository


def test_formulas_are_mathml():
    mathml = hooks("docs_math").mathml
    math = ElementTree.fromstring(mathml(r"x_t = \sqrt{\bar\alpha_t} + \frac{1}{2} \log \sigma", True))
    row = math[0]
    name = "{http://www.w3.org/1998/Math/MathML}"
    assert (math.tag, math.get("display")) == (f"{name}math", "block")
    parts = [part.tag.removeprefix(name) for part in row]
    assert parts == ["msub", "mo", "msqrt", "mo", "mfrac", "mi", "mspace", "mi"]
    assert ["".join(part.itertext()) for part in row[4]] == ["1", "2"]
    assert "".join(row[2].itertext()) == "\u03b1\u00aft"
    # A name keeps its place in what takes two parts.
    assert "mspace" not in mathml(r"\cos^2", False)
    assert "<mi>clip</mi><mo" in mathml(r"\operatorname{clip}(a)", False)
    for broken in (r"\nothing", r"\frac{a", "a}", "a_b_c", r"\left( a"):
        with pytest.raises(ValueError, match="the formula"):
            mathml(broken, False)
