"""Builds what goes to a package index: `python scripts/build_release.py OUT`, both distributions.

An index shows the README far from its repository, so that links and pictures become addresses in it, and
the metadata name it. Which one that is no file here says: it is `--repository`, or the checkout's remote
`origin`. What is built is what was committed.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from docs_hooks import EDITED_AT, ROOT, edited, origin

LINK = re.compile(r"(!?)\[([^\]]*)\]\((?!\w+:|#)([^)\s]+)\)")
"""To a file of the repository, or a picture in it."""
HERE = "<this repository>"
"""What the README has in the place of the address."""


def main() -> None:
    """Writes wheels and source distributions, or the source trees alone."""
    options = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    options.add_argument("out", type=Path, help="folder for them")
    options.add_argument("--repository", help="its address; the remote `origin`, if left out")
    options.add_argument("--ref", help="tag or commit that links lead to; v and the version, if left out")
    options.add_argument("--tree", action="store_true", help="write the source trees there and build nothing")
    given = options.parse_args()
    address = given.repository or origin()
    found = edited(address)
    if found is None:
        options.error(f"--repository: {address!r} given, one at {' or '.join(EDITED_AT)} accepted")
    if given.tree:
        write_trees(given.out, *found, given.ref)
        return
    with tempfile.TemporaryDirectory() as folder:
        for tree in write_trees(Path(folder), *found, given.ref):
            build = [sys.executable, "-m", "build", "--outdir", str(given.out), str(tree)]
            if code := subprocess.run(build, check=False).returncode:
                sys.exit(code)


def write_trees(folder: Path, repository: str, edit_uri: str, ref: str | None) -> list[Path]:
    """The source trees of both distributions, which setuptools can build.

    Args:
        folder: for them; new or empty.
        repository: its address.
        edit_uri: as of `docs_hooks.edited`.
        ref: that links lead to; None for the tag of the version.
    """
    folder.mkdir(parents=True, exist_ok=True)
    trees = [folder / "fastddpm", folder / "fastddpm-runtime"]
    archive = folder / "committed.tar"
    subprocess.run(["git", "-C", ROOT, "archive", "--output", archive.resolve(), "HEAD"], check=True)
    shutil.unpack_archive(archive, trees[0])
    archive.unlink()
    gather = [sys.executable, trees[0] / "scripts" / "build_runtime.py", "--tree", trees[1]]
    subprocess.run(gather, check=True)
    if ref is None:
        version = re.search(
            r'^__version__ = "(.*)"', (trees[0] / "fastddpm" / "__init__.py").read_text(), re.M
        )
        assert version is not None
        ref = f"v{version[1]}"
    base = repository + "/" + edit_uri.partition("edit/")[0]
    for tree in trees:
        readme, settings = tree / "README.md", tree / "pyproject.toml"
        readme.write_text(addressed(readme.read_text(), base, ref).replace(HERE, repository))
        settings.write_text(settings.read_text() + urls(repository, base, ref))
    return trees


def addressed(text: str, base: str, ref: str) -> str:
    """A document of the repository's root whose links lead there from anywhere.

    Args:
        text: Markdown.
        base: what addresses of files begin with.
        ref: tag or commit.
    """
    return LINK.sub(
        lambda link: f"{link[1]}[{link[2]}]({base}{'raw' if link[1] else 'blob'}/{ref}/{link[3]})", text
    )


def urls(repository: str, base: str, ref: str) -> str:
    """The table of addresses for a pyproject.toml."""
    found = {
        "Repository": repository,
        "Documentation": f"{base}tree/{ref}/docs",
        "Changelog": f"{base}blob/{ref}/CHANGELOG.md",
        "Issues": f"{base}issues",
    }
    lines = [f'{name} = "{address}"' for name, address in found.items()]
    return "\n".join(["", "[project.urls]", *lines, ""])


if __name__ == "__main__":
    main()
