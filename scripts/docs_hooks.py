"""Hooks of mkdocs.yml: what the pages link to outside docs/ is named, since the site holds docs/ alone."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
LINK = re.compile(r"(?<!!)\[([^\]]+)\]\((\.\./[^)#\s]+)(?:#[^)\s]*)?\)")


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """``[the card](../fastddpm/x.md)`` -> ``the card (`fastddpm/x.md` in the repository)``.

    A link to what is not in the repository stays, and fails the strict build.
    """
    folder = (ROOT / "docs" / page.file.src_uri).parent

    def named(match: re.Match[str]) -> str:
        target = (folder / match[2]).resolve()
        inside_docs = target.is_relative_to(ROOT / "docs")
        if inside_docs or not target.is_relative_to(ROOT) or not target.exists():
            return match[0]
        return f"{match[1]} (`{target.relative_to(ROOT).as_posix()}` in the repository)"

    return LINK.sub(named, markdown)
