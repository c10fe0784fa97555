"""The folder of results of scripts/card.sh, and the one document that is made of it.

    python scripts/card/results.py begin OUT [--tiny]      what is measured, where and when
    python scripts/card/results.py end OUT [--name NAME]   OUT/card.json; and NAME.json among the committed

Each part writes OUT/PART.json as it goes, so that a time limit loses only what would have come after.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
from pathlib import Path
from typing import Any

import goals
import torch
from tables import MORE

from fastddpm.files import write_json
from fastddpm_bench import machine
from fastddpm_bench.runner import now

ROOT = Path(__file__).parents[2]
CARDS = ROOT / "benchmarks" / "results" / "cards"
PARTS = ("environment", "doctor", "speed", "bandwidth", "profile", *MORE)
FORMAT = 1


def begin(out: Path, tiny: bool) -> None:
    """Notes the card, the code and the time; what an earlier run left there goes."""
    for part in (*PARTS, "card"):
        (out / f"{part}.json").unlink(missing_ok=True)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type != "cuda" and not tiny:
        raise SystemExit("card.sh: no CUDA device here; --tiny checks the script without one")
    described = machine.describe(device)
    described["driver"] = driver() if device.type == "cuda" else None
    described["cuda"] = torch.version.cuda
    write_json(out / "begun.json", {"format": FORMAT, "tiny": tiny, "date": now(), "machine": described})
    print(f"{described['device']}, torch {torch.__version__}")


def driver() -> str | None:
    """The driver's version by nvidia-smi."""
    words = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(words, capture_output=True, text=True, check=True, timeout=10)
    except (subprocess.SubprocessError, OSError):
        return None
    return done.stdout.splitlines()[0].strip()


def collect(out: Path) -> dict[str, Any]:
    """Everything that the parts wrote, with how they ended and the goals beside what was measured."""
    document: dict[str, Any] = json.loads((out / "begun.json").read_text())
    document["parts"] = (out / "parts.log").read_text().splitlines() if (out / "parts.log").exists() else []
    for part in PARTS:
        path = out / f"{part}.json"
        document[part] = json.loads(path.read_text()) if path.exists() else None
    document["tests"] = tests_of(out / "tests.log")
    document["goals"] = goals.held(document)
    return document


# Of a test as it ends: its place in front, or a worker's and its share of all.
ENDED = re.compile(r"^(?:\[gw\d+\] \[ *\d+%\] (\w+) (.+?) *|(tests/.+?) ([A-Z]+)\b.*)$")


def tests_of(log: Path) -> dict[str, Any] | None:
    """pytest's last line and what failed; of a run that was stopped, what had ended by then."""
    if not log.exists():
        return None
    lines = log.read_text(errors="replace").splitlines()
    over = re.compile(r"\d+ (passed|failed|skipped|deselected)\b.* in [\d.]+s")
    ends = [line.strip("= ") for line in lines if over.search(line)]
    failed = [line for line in lines if re.match(r"(FAILED|ERROR) ", line)]
    if ends:
        return {"end": ends[-1], "failed": failed}
    found = [(one[1] or one[4], one[2] or one[3]) for one in map(ENDED.match, lines) if one is not None]
    failed = [f"{how} {place}" for how, place in found if how in ("FAILED", "ERROR")]
    passed = sum(how == "PASSED" for how, _ in found)
    words = f"it did not come to its end; {len(failed)} failed, {passed} passed until then"
    return {"end": words, "failed": failed}


def end(out: Path, name: str | None) -> None:
    """Writes the document, also where the committed ones are."""
    document = collect(out)
    write_json(out / "card.json", document)
    print(out / "card.json")
    if name is not None:
        write_json(CARDS / f"{name}.json", document)
        print(f"{CARDS / name}.json; now: python scripts/card/tables.py")


def main() -> None:
    """From the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["begin", "end"])
    parser.add_argument("out", type=Path)
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--name")
    args = parser.parse_args()
    if args.what == "begin":
        begin(args.out, args.tiny)
    else:
        end(args.out, args.name)


if __name__ == "__main__":
    main()
