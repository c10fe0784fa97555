"""Runs contests one after the other, keeping the document on disk as it grows."""

from __future__ import annotations

import datetime
import gc
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch

from fastddpm.precision import forced
from fastddpm.timing import Call, Clock, Effort, Times, interleaved, make_clock
from fastddpm_bench import limits, machine
from fastddpm_bench.contest import BenchSettings, Contest, Field, LeftOut, ParityError, assemble, first_call
from fastddpm_bench.isolation import WorkersClock, assemble_isolated, close
from fastddpm_bench.light import speed_of_light
from fastddpm_bench.limits import Limits
from fastddpm_bench.results import Document, Result, Row

QUICK = Effort(seconds=1.2, least=5, most=30, warm_up=1)
FULL = Effort(seconds=15.0, least=7, most=60, warm_up=1)
# Chains take longer than FULL's seconds for its least, and processes of their own differ more.
CHAINS = Effort(seconds=15.0, least=11, most=60, warm_up=1)

MOST_COMPILED = 64
"""Of one function, in a contest."""

Report = Callable[[Result], None]


def run(
    contests: Sequence[Contest], settings: BenchSettings, document: Document, path: Path, report: Report
) -> None:
    """Measures contests into a document, which is saved after each; those that it has are left out.

    Args:
        contests: what to measure.
        settings: where and how.
        document: gets the limits and results.
        path: where it is saved.
        report: called with each result.

    Raises:
        ParityError: contestants differ; everything before is saved.
        KeyboardInterrupt: likewise.
    """
    began, before = time.perf_counter(), document.seconds
    try:
        rates = document.limits or limits.measure(settings.device, quick=settings.quick)
        document.limits = rates
        for contest in contests:
            if document.has(contest.subject, contest.workload, settings.device.type):
                continue
            try:
                result = measured(contest, settings, rates)
            except (LeftOut, ImportError) as reason:
                skipped = {"subject": contest.subject, "workload": contest.workload}
                document.skipped.append({**skipped, "reason": str(reason)})
                continue
            document.results.append(result)
            report(result)
            document.seconds = before + time.perf_counter() - began
            document.save(path)
        document.complete = True
    except ParityError as failure:
        document.parity_failure = str(failure)
        raise
    finally:
        order = [(contest.subject, contest.workload) for contest in contests]
        document.results.sort(key=lambda r: order.index(r.key[:2]) if r.key[:2] in order else -1)
        document.seconds = before + time.perf_counter() - began
        document.finished = now()
        document.save(path)


def measured(contest: Contest, settings: BenchSettings, rates: Limits) -> Result:
    """One contest: set up, checked, timed.

    Raises:
        ParityError: before anything was timed.
        LeftOut, ImportError: it cannot run here.
    """
    contest.check_runs_on(settings.device)
    shared = contest.setup()
    isolated = contest.isolated and not settings.is_cuda
    with _compiling_as_often_as_asked():
        field = assemble_isolated(contest, settings) if isolated else exactly(contest, shared, settings)
        before = machine.state(settings.device)
        try:
            with forced(settings.precision if settings.is_cuda else None):
                times = _sampled(contest, field, settings)
        finally:
            close(field)
    after = machine.state(settings.device)
    work: dict[str, Any] | None = None
    if contest.costs is not None:
        light = speed_of_light(contest.costs(shared), rates)
        work = {"flops": light.flops, "bytes": light.bytes, "fused": light.fused}
        work["dispatched"] = light.dispatched
    ours = {contestant.name for contestant in contest.contestants if contestant.ours}
    rows = [
        Row(name, name in ours, taken.wall, taken.process, field.differences.get(name))
        for name, taken in times.items()
    ]
    left_out = field.left_out
    # Networks and compiled code go before the next contest's come; what is compiled of one function for many
    # networks would also reach torch's limit, and run eagerly from there on.
    del field, shared
    torch.compiler.reset()
    gc.collect()
    if settings.is_cuda:
        torch.cuda.empty_cache()
    return Result(
        subject=contest.subject,
        workload=contest.workload,
        device=settings.device.type,
        per=contest.per,
        per_name=contest.per_name,
        full_steps=contest.full_steps,
        unit=contest.unit,
        axis=contest.axis,
        rows=rows,
        left_out=left_out,
        work=work,
        before=before,
        after=after,
        commit=machine.commit(),
    )


def exactly(contest: Contest, shared: Any, settings: BenchSettings) -> Field:
    """The contest's calls, found to do the same work with TF32 off, which only a GPU has.

    Where they are timed in another precision, or do more than was compared, they are built anew for that:
    what is captured or compiled has the kernels of the precision that it was made in.
    """
    if not settings.is_cuda:
        return assemble(contest, shared)
    with forced("highest"):
        field = assemble(contest, shared if contest.brief is None else contest.brief())
    if settings.precision != "highest" or contest.brief is not None:
        with forced(settings.precision):
            for contestant in contest.contestants:
                if contestant.name in field.calls:
                    field.calls[contestant.name], _ = first_call(contestant, shared)
    return field


def _compiling_as_often_as_asked() -> AbstractContextManager[None]:
    """On a GPU a contest compiles one network for many contestants; from the ninth time on torch would run it
    eagerly, under the name of a compiled one."""
    import torch._dynamo

    limited: AbstractContextManager[None] = torch._dynamo.config.patch(recompile_limit=MOST_COMPILED)
    return limited


def now() -> str:
    """The time, UTC, to the second."""
    return datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")


def _sampled(contest: Contest, field: Field, settings: BenchSettings) -> dict[str, Times]:
    clock: Clock = ReturnedValue() if contest.unit == "B" else make_clock(settings.device)
    if contest.isolated and not settings.is_cuda:
        clock = WorkersClock()
    effort = contest.effort or (QUICK if settings.quick else CHAINS if contest.isolated else FULL)
    return interleaved(field.calls, clock, effort)


class ReturnedValue:
    """A clock for contestants that return what is measured: the number they return."""

    def time(self, call: Call, repeats: int) -> tuple[float, float]:
        """(value, 0); several calls add up."""
        return sum(float(call()) for _ in range(repeats)), 0.0
