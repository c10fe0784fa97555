"""Damaged files and arguments, as many as wanted: `python scripts/fuzz.py --examples 5000`."""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

import fuzz  # type: ignore[import-not-found, unused-ignore]


def main() -> None:
    """Prints what was read, refused and went wrong; exit code 1 if anything did."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--examples", type=int, default=5000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="where damaged files that went wrong stay; a new folder")
    arguments = parser.parse_args()
    folder = arguments.folder or Path(tempfile.mkdtemp(prefix="fastddpm-fuzz-"))
    folder.mkdir(parents=True, exist_ok=True)
    began = time.perf_counter()
    findings = fuzz.run(arguments.examples, arguments.seed, folder)
    for name, count in sorted(findings.outcomes.items()):
        print(f"{count:6} {name}")
    for line in findings.wrong:
        print(f"WRONG {line}")
    total = sum(findings.outcomes.values())
    print(
        f"{total} inputs in {time.perf_counter() - began:.0f} s, {len(findings.wrong)} wrong; the slowest "
        f"took {findings.most_seconds:.1f} s of processor time, the largest process "
        f"{findings.most_memory / 2**20:.0f} MiB"
    )
    sys.exit(1 if findings.wrong else 0)


if __name__ == "__main__":
    main()
