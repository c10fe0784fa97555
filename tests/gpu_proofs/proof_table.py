"""The figures of the proofs: rows that tests add, and the tables that CI prints and docs/gpu.md shows."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

TITLES = {
    "a": "Ahead-of-time builds: registers / instructions an element / widest access in bits",
    "b": "Numerics in Triton's interpreter, largest absolute error against float64",
    "c": "Launches through the just-in-time path",
    "d": "Capture safety of a whole step",
    "e": "Launches of a step (sm_90, bfloat16, channels_last, batch 4, 32x32)",
    "f": "Bytes moved, in tensors of the state's size",
    "g": "Kernels that Inductor generates for it, compiled to cubins",
    "h": "Recorded steps replayed with other seeds, labels, plan and weights",
    "i": "A step of a scheduler's twin, alone, after the first of its chain",
    "j": "Whole chains: what is sent to the card, from pageable memory, and read back before the end",
    "k": "Maps of a step of the networks of other libraries, by their order in memory",
}
BEGIN, END = "<!-- proofs: begin -->", "<!-- proofs: end -->"
DOCUMENT = Path(__file__).parents[2] / "docs" / "gpu.md"


class ProofTable:
    """Rows by proof and subject; figures of the same subject are joined into one row."""

    def __init__(self) -> None:
        self.rows: dict[str, dict[str, dict[str, str]]] = {}

    def add(self, proof: str, subject: str, **figures: object) -> None:
        """Adds figures to a row."""
        row = self.rows.setdefault(proof, {}).setdefault(subject, {})
        row.update({name: str(value) for name, value in figures.items()})

    def tables(self) -> Iterable[tuple[str, list[list[str]]]]:
        """(title, rows with the head first) of every proof that has figures, in the order of the letters."""
        for proof in sorted(self.rows):
            subjects = self.rows[proof]
            names = list(dict.fromkeys(name for row in subjects.values() for name in row))
            body = [[subject, *(row.get(name, "") for name in names)] for subject, row in subjects.items()]
            yield f"{proof}. {TITLES[proof]}", [["", *names], *body]

    def text(self) -> str:
        """For a terminal, in aligned columns."""
        lines = []
        for title, rows in self.tables():
            widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
            lines.append(f"\n{title}")
            lines += [
                "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
                for row in rows
            ]
        return "\n".join(lines)

    def markdown(self) -> str:
        """For docs/gpu.md."""
        parts = []
        for title, rows in self.tables():
            lines = ["| " + " | ".join(row) + " |" for row in rows]
            lines.insert(1, "| --- " * len(rows[0]) + "|")
            parts.append(f"**{title}**\n\n" + "\n".join(lines))
        return "\n\n".join(parts)

    def write(self, path: Path = DOCUMENT) -> None:
        """Puts the tables between the marks of a document.

        Raises:
            ValueError: the document has no such marks.
        """
        text = path.read_text()
        if BEGIN not in text or END not in text:
            raise ValueError(f"{path}: has no lines {BEGIN} and {END}")
        before, rest = text.split(BEGIN)
        after = rest.split(END)[1]
        path.write_text(f"{before}{BEGIN}\n\n{self.markdown()}\n\n{END}{after}")
