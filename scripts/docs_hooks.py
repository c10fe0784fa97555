"""Hooks of mkdocs.yml.

What pages link to outside docs/ is named, since the site holds docs/ alone; the commands stand where a page
wants them; pages have a link to be edited by, where the checkout says which repository it is of.
"""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
COMMANDS = "<!-- commands -->"
LINK = re.compile(r"(?<!!)\[([^\]]+)\]\((\.\./[^)#\s]+)(?:#[^)\s]*)?\)")

ORIGIN = re.compile(r"(?:https://|ssh://|git@)(?:[^@/]+@)?([\w.-]+)[:/]([\w./-]+?)(?:\.git)?/?$")
EDITED_AT = {"github.com": "edit/main/docs/", "gitlab.com": "-/edit/main/docs/"}


def on_config(config: Any) -> Any:
    """Where the repository is and its pages are edited, of the remote `origin`; nothing where it has none."""
    if config.repo_url is None and (found := edited(origin())):
        config.repo_url, config.edit_uri = found
        config.repo_name = config.repo_url.partition("://")[2].partition("/")[2]
    return config


def origin() -> str:
    """The address of the checkout's remote `origin`; empty where there is none."""
    if not (ROOT / ".git").exists():
        return ""
    asked = ["git", "-C", str(ROOT), "remote", "get-url", "origin"]
    return subprocess.run(asked, capture_output=True, text=True, check=False).stdout.strip()


def edited(address: str) -> tuple[str, str] | None:
    """Of a remote's address: that of the repository for people, and what is put after it to edit a page."""
    match = ORIGIN.match(address)
    if match is None or match[1] not in EDITED_AT:
        return None
    return f"https://{match[1]}/{match[2]}", EDITED_AT[match[1]]


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """``[the card](../fastddpm/x.md)`` -> ``the card (`fastddpm/x.md` in the repository)``.

    A link to what is not in the repository stays, and fails the strict build.
    """
    if COMMANDS in markdown:
        markdown = markdown.replace(COMMANDS, commands())
    folder = (ROOT / "docs" / page.file.src_uri).parent

    def named(match: re.Match[str]) -> str:
        target = (folder / match[2]).resolve()
        inside_docs = target.is_relative_to(ROOT / "docs")
        if inside_docs or not target.is_relative_to(ROOT) or not target.exists():
            return match[0]
        return f"{match[1]} (`{target.relative_to(ROOT).as_posix()}` in the repository)"

    return LINK.sub(named, markdown)


def commands() -> str:
    """Every command with its arguments and options, as Markdown."""
    import typer

    from fastddpm.cli.app import app

    group: Any = typer.main.get_command(app)
    context = group.make_context("fastddpm", ["sample"], resilient_parsing=True)
    parts = []
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        rows = [
            _row(one) for one in command.params if not getattr(one, "hidden", False) and one.name != "help"
        ]
        table = ["| | | default |", "| --- | --- | --- |", *rows]
        parts += [f"## fastddpm {name}", command.help or "", "\n".join(table)]
    return "\n\n".join(parts)


def _row(one: Any) -> str:
    names = ", ".join(f"`{word}`" for word in [*one.opts, *one.secondary_opts])
    if one.param_type_name == "argument":
        names = f"`{(one.metavar or one.name).upper()}`"
    default = one.default if one.default not in (None, False) and not callable(one.default) else ""
    text = " ".join(str(getattr(one, "help", None) or "").split()).replace("|", "\\|")
    return f"| {names} | {text} | {default if default == '' else f'`{default}`'} |"
