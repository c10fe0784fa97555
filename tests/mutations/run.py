"""Known breakages: applies each patch to a copy of the repository and expects the tests it names to fail.

    python tests/mutations/run.py [NAME ...] [--share K/N]

A patch begins with lines `Test: PATH[::NAME]` and, where its tests run in Triton's interpreter,
`Interpreter: yes`; everything before the first `---` is prose. A mutation is caught when pytest reports a
failed test (exit code 1) which passes without the mutation: the tests that failed are run once more on an
unmutated copy. A patch that does not apply, or tests that cannot be collected, are errors of the suite.

With `--share 1/3` the tests of every third patch run, from the second on; that the others apply is looked at.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from xml.etree import ElementTree

ROOT = Path(__file__).resolve().parent.parent.parent
FOLDER = Path(__file__).resolve().parent


def copy_tree(target: Path) -> None:
    """The tracked files as they are in the working tree."""
    files = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True)
    for name in filter(None, files.stdout.split("\0")):
        if (ROOT / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, target / name)


def run_tests(copy: Path, tests: list[str], interpreter: bool, *options: str) -> tuple[int, list[str], str]:
    """Runs tests in a copy of the repository: pytest's exit code, the tests that failed, what it said."""
    places = [copy, copy / "kernels", copy / "benchmarks"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, places))}
    environment.pop("TRITON_INTERPRET", None)
    if interpreter:
        environment["TRITON_INTERPRET"] = "1"
    report = copy / "report.xml"
    # The family that says in which file a test is.
    reporting = [f"--junitxml={report}", "-o", "junit_family=xunit1"]
    command = [sys.executable, "-m", "pytest", "-q", "--no-header", *options, *reporting, *tests]
    done = subprocess.run(command, cwd=copy, env=environment, capture_output=True, text=True, check=False)
    cases = ElementTree.parse(report).iter("testcase") if report.is_file() else ()
    failed = [
        f"{case.get('file')}::{case.get('name')}"
        for case in cases
        if case.find("failure") is not None or case.find("error") is not None
    ]
    return done.returncode, failed, done.stdout[-2000:] + done.stderr[-2000:]


def applies(patch: Path, *options: str, to: Path = ROOT) -> bool:
    """Applies a patch, and whether that could be done."""
    command = ["patch", "-p1", "-s", *options, "-i", str(patch)]
    return subprocess.run(command, cwd=to, check=False).returncode == 0


def mutate(patch: Path) -> tuple[str, bool, list[str]]:
    """What came of a mutation, whether that was in the interpreter, and the tests that failed."""
    header = patch.read_text().split("\n--- ")[0]
    tests = re.findall(r"^Test: (\S+)$", header, re.M)
    interpreter = re.search(r"^Interpreter: yes$", header, re.M) is not None
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder)
        copy_tree(copy)
        if not applies(patch, to=copy):
            return "the patch does not apply", interpreter, []
        code, failed, output = run_tests(copy, tests, interpreter, "-x")
    if code == 1:
        return f"caught by {failed[0]}", interpreter, failed
    if code == 0:
        return "NOT CAUGHT: " + ", ".join(tests) + " passed", interpreter, []
    return f"pytest ended with {code}:\n{output}", interpreter, []


def failing_anyway(tests: list[str], interpreter: bool) -> list[str]:
    """Those of the tests that fail on an unmutated copy; pytest's words where it did not get to run them."""
    with tempfile.TemporaryDirectory() as folder:
        copy_tree(Path(folder))
        code, failed, output = run_tests(Path(folder), tests, interpreter)
    return failed if code in (0, 1) else [f"pytest ended with {code}:\n{output}"]


def main() -> None:
    """Runs the named mutations, or all, or a share; exit code 1 unless each is caught."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("names", nargs="*")
    parser.add_argument("--share", default="0/1", help="K/N: every N-th from the K-th on, counted from 0")
    given, known = parser.parse_args(), sorted(FOLDER.glob("*.patch"))
    every = [patch for patch in known if not given.names or patch.stem in given.names]
    if not every:
        sys.exit(f"no mutation named {given.names}; there are {[patch.stem for patch in known]}")
    first, step = map(int, given.share.split("/"))
    patches = every[first % step :: step]
    stale = [p.stem for p in every if p not in patches and not applies(p, "--dry-run")]
    if stale:
        sys.exit(f"patches that do not apply: {', '.join(stale)}")
    caught = 0
    catchers: dict[bool, set[str]] = {False: set(), True: set()}
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for patch, (result, interpreter, failed) in zip(patches, pool.map(mutate, patches), strict=True):
            caught += bool(failed)
            catchers[interpreter].update(failed)
            print(f"{patch.stem:28s} {result}", flush=True)
        kinds = [(sorted(tests), interpreter) for interpreter, tests in catchers.items() if tests]
        broken = [test for found in pool.map(lambda kind: failing_anyway(*kind), kinds) for test in found]
    if broken:
        sys.exit("nothing is shown: failing without any mutation\n" + "\n".join(broken))
    print(f"{caught} of {len(patches)} mutations caught")
    sys.exit(caught < len(patches))


if __name__ == "__main__":
    main()
