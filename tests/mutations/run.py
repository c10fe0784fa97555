"""Known breakages: applies each patch to a copy of the repository and expects the tests it names to fail.

    python tests/mutations/run.py [NAME ...]

A patch begins with lines `Test: PATH[::NAME]` and, where its tests run in Triton's interpreter,
`Interpreter: yes`; everything before the first `---` is prose. A mutation is caught when pytest reports
failed tests (exit code 1): a patch that does not apply, or tests that cannot be collected, are errors of the
suite.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
FOLDER = Path(__file__).resolve().parent


def copy_tree(target: Path) -> None:
    """The tracked files as they are in the working tree."""
    files = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True)
    for name in filter(None, files.stdout.split("\0")):
        if (ROOT / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, target / name)


def outcome(patch: Path) -> str:
    """`caught`, or what went wrong."""
    header = patch.read_text().split("\n--- ")[0]
    tests = re.findall(r"^Test: (\S+)$", header, re.M)
    interpreter = re.search(r"^Interpreter: yes$", header, re.M) is not None
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder)
        copy_tree(copy)
        applied = subprocess.run(["patch", "-p1", "-s", "-i", str(patch)], cwd=copy, check=False)
        if applied.returncode != 0:
            return "the patch does not apply"
        environment = {**os.environ, "PYTHONPATH": f"{copy}{os.pathsep}{copy / 'kernels'}"}
        environment.pop("TRITON_INTERPRET", None)
        if interpreter:
            environment["TRITON_INTERPRET"] = "1"
        command = [sys.executable, "-m", "pytest", "-x", "-q", "--no-header", *tests]
        done = subprocess.run(command, cwd=copy, env=environment, capture_output=True, text=True, check=False)
        if done.returncode == 1:
            return "caught"
        if done.returncode == 0:
            return "NOT CAUGHT: " + ", ".join(tests) + " passed"
        return f"pytest ended with {done.returncode}:\n{done.stdout[-2000:]}{done.stderr[-2000:]}"


def main() -> None:
    """Runs the named mutations, or all; exit code 1 unless each is caught."""
    wanted = sys.argv[1:]
    patches = [p for p in sorted(FOLDER.glob("*.patch")) if not wanted or p.stem in wanted]
    if not patches:
        sys.exit(f"no mutation named {wanted}; there are {[p.stem for p in sorted(FOLDER.glob('*.patch'))]}")
    missed = 0
    for patch in patches:
        result = outcome(patch)
        missed += result != "caught"
        print(f"{patch.stem:40s} {result}", flush=True)
    print(f"{len(patches) - missed} of {len(patches)} mutations caught")
    sys.exit(missed > 0)


if __name__ == "__main__":
    main()
