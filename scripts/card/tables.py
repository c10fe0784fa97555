"""The section of docs/gpu.md that says which cards ran this, and what they measured.

python scripts/card/tables.py            writes it, from every file in benchmarks/results/cards
python scripts/card/tables.py --check    exit code 1 where docs/gpu.md says something else
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from fastddpm.files import replacing
from fastddpm_bench.tables import markdown_table

ROOT = Path(__file__).parents[2]
CARDS = ROOT / "benchmarks" / "results" / "cards"
PAGE = ROOT / "docs" / "gpu.md"
BEGIN, END = "<!-- cards: begin -->", "<!-- cards: end -->"
MORE = {
    "dropins": "Drop-ins of other libraries, 32x32 pixels, a step",
    "policies": "A chunk of a diffusion policy, batch 1",
    "in_flight": "Requests that come at random, of the model in the box",
    "precisions": "50 DDIM steps in each precision, a step",
    "large_pictures": "Pictures restored by rows of tiles",
}
"""Parts whose rows are shown with all their figures."""
NOBODY = "No card has run this yet: there is no file in `benchmarks/results/cards`."


def section(folder: Path = CARDS) -> str:
    """Markdown: every card's file, in the order of their names."""
    paths = sorted(folder.glob("*.json"))
    if not paths:
        return NOBODY
    return "\n\n".join("\n".join(card(path.name, json.loads(path.read_text()))) for path in paths)


def card(name: str, document: dict[str, Any]) -> list[str]:
    """Lines of one card."""
    machine = document["machine"]
    versions = ", ".join(f"{name} {machine['packages'][name]}" for name in ("torch", "triton"))
    lines = [
        f"### {machine['device']}",
        "",
        f"`benchmarks/results/cards/{name}`: commit {machine['commit']}, {document['date']}, {versions}, "
        f"driver {machine['driver']}.",
        "",
        *(f"- {line}" for line in document["parts"]),
        *correct(document),
        "",
        *markdown_table(
            ["goal (set before a card ran)", "must", "goal", "stretch", "measured", "reached"],
            goals(document),
        ),
    ]
    rows = [row for row in (document["speed"] or {}).get("rows", [])]
    if rows:
        lines += [
            "",
            "50 DDIM steps of the CIFAR-10 UNet, a step:",
            "",
            *markdown_table(SPEED_HEAD, speed_rows(rows)),
        ]
    rows = [row for row in (document["bandwidth"] or {}).get("rows", []) if "us" in row]
    if rows:
        body = [
            [r["name"], f"{r['us']:.1f}", f"{r['gb_per_s']:.0f}", f"{r['percent_of_copy']:.0f} %"]
            for r in rows
        ]
        lines += ["", *markdown_table(["kernel", "us", "GB/s", "of a copy"], body)]
    for part, words in MORE.items():
        rows = (document.get(part) or {}).get("rows", [])
        if rows:
            lines += ["", f"{words}:", "", *figures(rows)]
    return lines


def figures(rows: list[dict[str, Any]]) -> list[str]:
    """Rows with every figure that one of them has; what could not be measured says why."""
    names = [name for name in dict.fromkeys(name for row in rows for name in row) if name != "ours"]
    return markdown_table(names, [[_cell(row.get(name)) for name in names] for row in rows])


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value).replace("|", "/")[:80]


def correct(document: dict[str, Any]) -> list[str]:
    """What the doctor and the tests found."""
    lines = []
    if document["doctor"] is not None:
        checks = document["doctor"]["checks"]
        failed = [check["name"] for check in checks if check["status"] == "failed"]
        passed = sum(check["status"] == "passed" for check in checks)
        ended = "" if document["doctor"].get("complete", True) else ", before its time was up"
        counts = f"{passed} checks passed, {len(failed)} failed{ended}"
        lines.append(f"- `fastddpm doctor`: {counts}{_listed(failed)}")
    if document["tests"] is not None:
        failed = document["tests"]["failed"]
        lines.append(f"- `pytest -m gpu`: {document['tests']['end']}{_listed(failed)}")
    return lines


def _listed(names: list[str]) -> str:
    return f" ({'; '.join(names)})" if names else ""


def goals(document: dict[str, Any]) -> list[list[str]]:
    """A row a goal."""
    return [
        [
            f"{goal['what']}, {goal['unit']}",
            *(f"{goal[level]:g}" for level in ("must", "goal", "stretch")),
            "-" if goal["measured"] is None else f"{goal['measured']:.3g}",
            goal["reached"] or ("-" if goal["measured"] is None else "no"),
        ]
        for goal in document["goals"]
    ]


SPEED_HEAD = ["contestant", "dtype", "batch", "ms", "images/s", "first call, s", "differs by"]


def speed_rows(rows: list[dict[str, Any]]) -> list[list[str]]:
    """A row a contestant; what could not be measured says why."""
    found = []
    for row in rows:
        start = [row["name"], row["dtype"], str(row["batch"])]
        if "error" in row:
            found.append([*start, row["error"].replace("|", "/")[:80], "", "", ""])
            continue
        figures = [f"{row['ms_per_step']:.3f}", f"{row['images_per_s']:.0f}", f"{row['first_s']:.1f}"]
        found.append([*start, *figures, f"{row['largest_difference']:.0e}"])
    return found


def written(page: str, folder: Path = CARDS) -> str:
    """The page with the section as the files have it."""
    before, rest = page.split(BEGIN)
    return f"{before}{BEGIN}\n\n{section(folder)}\n\n{END}{rest.split(END)[1]}"


def main() -> None:
    """From the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true")
    args = parser.parse_args()
    page = PAGE.read_text()
    if args.check:
        raise SystemExit(int(written(page) != page))
    with replacing(PAGE) as temporary:
        temporary.write_text(written(page))


if __name__ == "__main__":
    main()
