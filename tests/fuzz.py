"""The fuzz: sound files and lists of arguments damaged by hypothesis, read in a child that is watched.

`run(examples, seed, folder)` gives what went wrong; `tests/files/test_fuzz_readers.py` runs a few hundred
examples, `scripts/fuzz.py` as many as asked for.
"""

from __future__ import annotations

import json
import os
import queue
import shutil
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import fuzz_arguments
import hypothesis
from fuzz_arguments import MOST
from fuzz_mutations import damaged
from fuzz_samples import Sample, samples
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

MOST_SECONDS, MOST_MEMORY = 10.0, 2 * 2**30
"""Of processor time for one input, and bytes of the process that reads them."""
PATIENCE = 90.0
"""Seconds of waiting for an answer: a machine may have other work."""
HERE = Path(__file__).parent


class Worker:
    """A child that reads, started again when it died."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None
        self._lines: queue.Queue[str] = queue.Queue()

    def read(self, kind: str, root: Path, words: Sequence[str] = ()) -> dict[str, Any]:
        """What came of reading ``root``: as of `fuzz_worker`, or that the worker died or hung.

        Args:
            kind: of `fuzz_samples.READERS`, or ``command``.
            root: what is read; for a command the folder that it runs in.
            words: the command's arguments.
        """
        process = self._process if self._process is not None else self._start()
        assert process.stdin is not None
        process.stdin.write(json.dumps({"kind": kind, "root": str(root), "words": words}) + "\n")
        process.stdin.flush()
        try:
            line = self._lines.get(timeout=PATIENCE)
        except queue.Empty:
            self.close()
            return {"outcome": "wrong", "message": f"no answer within {PATIENCE} s"}
        if not line:
            code = process.wait()
            self._process = None
            return {"outcome": "wrong", "message": f"the process ended with code {code}"}
        answer: dict[str, Any] = json.loads(line)
        if answer["seconds"] > MOST_SECONDS:
            answer |= {"outcome": "wrong", "message": f"{answer['seconds']:.1f} s; {answer['message']}"}
        if answer["memory"] > MOST_MEMORY:
            answer |= {"outcome": "wrong", "message": f"{answer['memory']:,} bytes; {answer['message']}"}
            self.close()  # its mark never falls
        return answer

    def close(self) -> None:
        """Ends the child."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def _start(self) -> subprocess.Popen[str]:
        path = os.pathsep.join([str(HERE), *(one for one in sys.path if one)])
        self._process = process = subprocess.Popen(
            [sys.executable, str(HERE / "fuzz_worker.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env={**os.environ, "PYTHONPATH": path},
        )
        self._lines = lines = queue.Queue()

        def listen() -> None:
            assert process.stdout is not None
            for line in process.stdout:
                lines.put(line)
            lines.put("")

        threading.Thread(target=listen, daemon=True).start()
        return process


@dataclass
class Findings:
    """What a run of the fuzz found.

    Attributes:
        outcomes: how many inputs were read or refused, by kind of reader.
        wrong: a line for each input that met anything else.
        most_seconds: of processor time for one input.
        most_memory: of a worker, in bytes.
    """

    outcomes: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    most_seconds: float = 0.0
    most_memory: int = 0


def run(examples: int, seed: int, folder: Path) -> Findings:
    """Damages and reads so many files; those that went wrong stay in ``folder / "wrong"``.

    Args:
        examples: how many.
        seed: of what hypothesis draws.
        folder: a new or empty one.
    """
    sound = samples(folder / "sound")
    weighted = [sample for sample in sound for _ in range(sample.weight)]
    findings, worker = Findings(), Worker()
    for sample in sound:
        _judge(findings, worker, sample, sample.root, "sound", folder)
    for line in fuzz_arguments.LISTS:
        _command(findings, worker, line.split(), folder)

    @hypothesis.seed(seed)
    @settings(
        max_examples=examples,
        phases=[Phase.generate],
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(st.data())
    def damage_and_read(data: st.DataObject) -> None:
        if data.draw(st.integers(0, 3)) == 0:
            _command(findings, worker, fuzz_arguments.mutated(data.draw), folder)
            return
        sample, other = (data.draw(st.sampled_from(weighted)) for _ in range(2))
        content = sample.file.read_bytes()
        changed = damaged(data.draw, content, other.file.read_bytes(), sample.file.suffix)
        root, file = _copied(sample, folder / "damaged")
        file.write_bytes(changed)
        _judge(findings, worker, sample, root, "damaged", folder)

    try:
        damage_and_read()
    finally:
        worker.close()
    return findings


def _copied(sample: Sample, target: Path) -> tuple[Path, Path]:
    """A copy of what a sample reads, with its neighbours; its root and the file to damage."""
    shutil.rmtree(target, ignore_errors=True)
    base = sample.root if sample.root.is_dir() else sample.root.parent
    if base.name == "sound":  # files that lie beside everything else
        target.mkdir()
        shutil.copy(sample.root, target / sample.root.name)
        return target / sample.root.name, target / sample.root.name
    shutil.copytree(base, target)
    return target / sample.root.relative_to(base), target / sample.file.relative_to(base)


def _command(findings: Findings, worker: Worker, words: list[str], folder: Path) -> None:
    """Runs a command in a new folder with all that the sound lists name."""
    place = folder / "place"
    shutil.rmtree(place, ignore_errors=True)
    fuzz_arguments.sound(place, folder / "sound")
    answer = worker.read("command", place, words)
    _count(findings, "command", answer)
    if answer["outcome"] == "wrong":
        shown = " ".join(word if len(word) < 40 else f"{word[:20]}...{len(word)}" for word in words)
        findings.wrong.append(f"command {shown!r}: {answer['message']}")


def _count(findings: Findings, kind: str, answer: dict[str, Any]) -> None:
    findings.most_seconds = max(findings.most_seconds, answer.get("seconds", 0.0))
    findings.most_memory = max(findings.most_memory, answer.get("memory", 0))
    findings.outcomes[f"{kind} {answer['outcome']}"] += 1


def _judge(findings: Findings, worker: Worker, sample: Sample, root: Path, what: str, folder: Path) -> None:
    answer = worker.read(sample.kind, root)
    if answer["outcome"] == "refused":
        said = answer["message"].replace(str(root), "").replace(str(root.parent), "")
        many = sample.kind in ("picture", "table")  # whose broken files are listed, one a line
        if len(said) >= MOST or not said.replace("\n", " " if many else "\n").isprintable():
            answer |= {"outcome": "wrong", "message": f"{len(said)} characters: {said[:400]!r}"}
    _count(findings, sample.kind, answer)
    if answer["outcome"] == "wrong" or (what == "sound" and answer["outcome"] != "read"):
        kept = folder / "wrong" / str(len(findings.wrong))
        kept.parent.mkdir(exist_ok=True)
        (shutil.copytree if root.is_dir() else shutil.copy)(root, kept)
        findings.wrong.append(f"{what} {sample.kind} {sample.file.name} ({kept}): {answer['message']}")
