"""Contestants in processes of their own: what one leaves in the memory allocator changes what the next costs.

On a CPU a step can have thousands of page faults, of memory that the C library gave back and asks for again;
whether it does depends on everything that the process has freed before. So whole chains are timed as their
users would run them, each contestant in its own process; rounds are interleaved as everywhere.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastddpm.timing import make_clock
from fastddpm_bench.contest import BenchSettings, Contest, Field, LeftOut, compare, first_call

HOME = str(Path(__file__).parents[1])
"""Where this package is: on the path of a worker too, installed or not, behind what is there already."""


class Worker:
    """A process with one contestant, built and called once.

    Args:
        contest: one that `fastddpm_bench.subjects` lists.
        name: the contestant.
        settings: as of the contest.
        folder: for what its first call gives.

    Attributes:
        output: of the first call.
        expected: what it is held to instead of the baseline's output, or None.

    Raises:
        LeftOut: it cannot run here.
        RuntimeError: it failed.
    """

    def __init__(self, contest: Contest, name: str, settings: BenchSettings, folder: Path) -> None:
        places = [*filter(None, [os.environ.get("PYTHONPATH")]), HOME]
        self._process = subprocess.Popen(
            [sys.executable, "-m", "fastddpm_bench.isolation"],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(places)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        path = folder / f"{len(list(folder.iterdir()))}.npz"
        self._name = name
        answer = self._ask(
            subject=contest.subject,
            workload=contest.workload,
            name=name,
            device=str(settings.device),
            quick=settings.quick,
            threads=torch.get_num_threads(),
            path=str(path),
        )
        if "left_out" in answer:
            self.close()
            raise LeftOut(answer["left_out"])
        with np.load(path) as arrays:
            self.output = torch.from_numpy(arrays["output"])
            self.expected = torch.from_numpy(arrays["expected"]) if "expected" in arrays else None

    def time(self, repeats: int) -> tuple[float, float]:
        """(wall, process) seconds of some calls."""
        answer = self._ask(repeats=repeats)
        return answer["wall"], answer["process"]

    def close(self) -> None:
        """Ends the process."""
        if self._process.stdin is not None:
            self._process.stdin.close()
        self._process.wait()

    def _ask(self, **question: Any) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(question) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer:
            raise RuntimeError(f"{self._name}: its process ended with code {self._process.wait()}")
        found: dict[str, Any] = json.loads(answer)
        return found


class WorkersClock:
    """The times that the workers take of themselves."""

    def time(self, call: Any, repeats: int) -> tuple[float, float]:
        """(wall, process) seconds of all the calls together."""
        seconds: tuple[float, float] = call.time(repeats)
        return seconds


def assemble_isolated(contest: Contest, settings: BenchSettings) -> Field:
    """`assemble`, each contestant in a process of its own; its calls are :class:`Worker`.

    Raises:
        ParityError: naming the contestant, the difference and the tolerance.
        LeftOut: the baseline cannot run.
    """
    field = Field()
    reference: Tensor | None = None
    with tempfile.TemporaryDirectory(prefix="fastddpm-bench-") as folder:
        try:
            for contestant in contest.contestants:
                try:
                    worker = Worker(contest, contestant.name, settings, Path(folder))
                except LeftOut as reason:
                    if reference is None:
                        raise LeftOut(f"{contestant.name}: {reason}") from reason
                    field.left_out[contestant.name] = str(reason)
                    continue
                field.calls[contestant.name] = worker
                reference = worker.output if reference is None else reference
                expected = reference if worker.expected is None else worker.expected
                field.differences[contestant.name] = compare(
                    contest, contestant.name, worker.output, expected
                )
        except BaseException:
            close(field)
            raise
    return field


def close(field: Field) -> None:
    """Ends the processes of a field."""
    for worker in field.calls.values():
        if isinstance(worker, Worker):
            worker.close()


def main() -> None:
    """A worker: reads what to build, then how often to call it, a line of JSON each, until its input ends."""
    from fastddpm_bench.subjects import contests

    # What libraries print must not come between the answers.
    answers = sys.stdout
    sys.stdout = sys.stderr

    def answer(**values: Any) -> None:
        print(json.dumps(values), file=answers, flush=True)

    asked = json.loads(sys.stdin.readline())
    torch.set_num_threads(asked["threads"])
    settings = BenchSettings(torch.device(asked["device"]), quick=asked["quick"])
    contest = _named(contests(settings, [asked["subject"]]), asked["workload"])
    contestant = next(c for c in contest.contestants if c.name == asked["name"])
    shared = contest.setup()
    try:
        call, output = first_call(contestant, shared)
    except LeftOut as reason:
        answer(left_out=str(reason))
        return
    arrays = {"output": output.numpy()}
    if contestant.expected is not None:
        arrays["expected"] = contestant.expected(shared).float().cpu().numpy()
    np.savez(asked["path"], **arrays)
    answer(ready=True)
    clock = make_clock(settings.device)
    for line in sys.stdin:
        wall, process = clock.time(call, json.loads(line)["repeats"])
        answer(wall=wall, process=process)


def _named(contests: Sequence[Contest], workload: str) -> Contest:
    return next(contest for contest in contests if contest.workload == workload)


if __name__ == "__main__":
    main()
