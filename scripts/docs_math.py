"""Formulas of the documentation as MathML, which browsers draw by themselves: a hook of mkdocs.yml.

Pages hold them as ``$...$`` and ``$$...$$``, which code hosts draw too. ``pymdownx.arithmatex`` finds them
and leaves ``\\(...\\)`` in an element of class ``arithmatex``.
"""

from __future__ import annotations

import html
import logging
import re
from typing import Any

from latex2mathml.converter import convert

log = logging.getLogger("mkdocs.hooks.math")
FORMULA = re.compile(r'<(span|div) class="arithmatex">\\([(\[])(.*?)\\[)\]]</\1>', re.S)
# As TeX has it: names of functions are set as names, not as operators with room on both sides, and a thin
# space parts them from what they are of.
OPERATOR = re.compile(r"<mo>([a-z]{2,})</mo>")
NAMED = re.compile(
    r"(?<!<msup>)(?<!<msub>)(<mi>[a-z]{2,}</mi>|<msub><mi>[a-z]{2,}</mi><mn>\d</mn></msub>)(?=<m(?:i|n|frac|su[bp]|sqrt)\b)"
)
THIN = '<mspace width="0.17em"></mspace>'


def on_page_content(content: str, page: Any, **_: Any) -> str:
    """Every formula of the page as MathML; one that cannot be read is warned of, and fails strict builds."""

    def drawn(match: re.Match[str]) -> str:
        tag, opening, text = match.groups()
        latex = " ".join(html.unescape(html.unescape(text)).split())
        try:
            return f'<{tag} class="arithmatex">{mathml(latex, opening == "[")}</{tag}>'
        except ValueError as error:
            log.warning("%s: %s", page.file.src_uri, error)
            return match[0]

    return FORMULA.sub(drawn, content)


def mathml(latex: str, display: bool) -> str:
    """A formula as one ``<math>`` element. ValueError: an unknown command, or braces that do not close."""
    try:
        drawn: str = convert(latex, display="block" if display else "inline")
    except Exception as error:  # of its own classes, and IndexError where a formula ends too soon
        raise ValueError(f"the formula {latex!r} cannot be read ({type(error).__name__})") from error
    if unknown := re.search(r"\\\w+", drawn):
        raise ValueError(f"the formula {latex!r} has {unknown[0]}, which is not known")
    if latex.count("{") != latex.count("}"):
        raise ValueError(f"the formula {latex!r} has braces that do not close")
    return NAMED.sub(r"\1" + THIN, OPERATOR.sub(r"<mi>\1</mi>", drawn))
