"""A contest: contestants that do the same work, what they share, and the check that it is the same.

Making a contest is free: what its contestants share is set up when it begins, and each is built then.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from fastddpm.precision import Precision
from fastddpm.timing import Call, Effort
from fastddpm_bench.costs import OpCost


class ParityError(Exception):
    """Contestants do not compute the same: nothing is timed."""


class LeftOut(Exception):
    """A contestant or contest cannot run here; the message says why."""


@dataclasses.dataclass(frozen=True)
class BenchSettings:
    """What is measured.

    Attributes:
        device: where.
        quick: small sizes and no compilation, for a look in two minutes.
        precision: of float32 on a GPU while it is timed: ``highest``, ``tf32``, or None for what torch is set
            to. Outputs are held to each other with TF32 off.
    """

    device: torch.device
    quick: bool = False
    precision: Precision | None = None

    @property
    def is_cuda(self) -> bool:
        """Whether there is a GPU."""
        return self.device.type == "cuda"


@dataclasses.dataclass(frozen=True)
class Contestant:
    """One way of doing the work.

    Attributes:
        name: as reports show it.
        build: from what the contest's contestants share to the call that is timed. The output of its first
            call is held to the first contestant's. ImportError and `LeftOut` leave it out.
        ours: it is this project's.
        expected: what its first call is held to instead, such as the same formula on the noise it drew.
    """

    name: str
    build: Callable[[Any], Call]
    ours: bool = False
    expected: Callable[[Any], Tensor] | None = None


@dataclasses.dataclass(frozen=True, eq=False)
class Contest:
    """Contestants and what they share.

    Attributes:
        subject: what is measured, such as ``reverse_step``.
        workload: on what, with every size in it.
        setup: makes what the contestants share.
        brief: of a GPU, makes the same of less work, on which outputs are compared where rounding grows over
            the whole until nothing is alike; None for the whole.
        contestants: the first is the baseline: what people would otherwise use.
        tolerance: largest difference between outputs, relative to the largest value where that is above 1.
        per: steps or calls in one call of a contestant; reports divide by it.
        per_name: what one of them is.
        costs: operations and traffic that the work needs for all of ``per``, from what is shared.
        full_steps: steps of a whole chain, to which the time of ``per`` steps is extrapolated; 0 for none.
        unit: ``s``, or ``B`` where the contestants return a number of bytes and nothing is timed.
        axis: the number that a sweep varies, for its figure.
        needs_gpu: too large for a CPU.
        effort: how long to measure, where calls take seconds; None for what the run takes for all.
        isolated: on a CPU each contestant has a process of its own (`fastddpm_bench.isolation`),
            with ``--quick`` only for the headline: processes take longer to start than to measure.
    """

    subject: str
    workload: str
    setup: Callable[[], Any]
    contestants: Sequence[Contestant]
    tolerance: float = 1e-4
    per: int = 1
    per_name: str = "call"
    costs: Callable[[Any], list[OpCost]] | None = None
    full_steps: int = 0
    unit: str = "s"
    axis: float | None = None
    needs_gpu: bool = False
    effort: Effort | None = None
    isolated: bool = False
    brief: Callable[[], Any] | None = None

    def check_runs_on(self, device: torch.device) -> None:
        """Raises `LeftOut` where the contest is too large for the device."""
        if self.needs_gpu and device.type != "cuda":
            raise LeftOut("needs a CUDA or ROCm card; hours on a CPU")


class Subject(Protocol):
    """A module of `fastddpm_bench.subjects`."""

    def contests(self, settings: BenchSettings) -> list[Contest]:
        """Its contests, none of them set up."""


@dataclasses.dataclass
class Field:
    """The contestants of a contest that run here, built and found to do the same work.

    Attributes:
        calls: what is timed, by name.
        differences: from the expected output, by name.
        left_out: reasons, by name.
    """

    calls: dict[str, Any] = dataclasses.field(default_factory=dict)
    differences: dict[str, float] = dataclasses.field(default_factory=dict)
    left_out: dict[str, str] = dataclasses.field(default_factory=dict)


def assemble(contest: Contest, shared: Any, only: Sequence[str] | None = None) -> Field:
    """Builds the contestants and holds the output of each one's first call to what is expected.

    Args:
        contest: the contest.
        shared: of its setup.
        only: names to build beside the baseline, which is always needed; None for all.

    Raises:
        ParityError: naming the contestant, the difference and the tolerance.
        LeftOut: the baseline itself cannot run.
    """
    field = Field()
    reference: Tensor | None = None
    for contestant in contest.contestants:
        is_baseline = contestant is contest.contestants[0]
        if only is not None and contestant.name not in only and not is_baseline:
            continue
        try:
            call, output = first_call(contestant, shared)
        except LeftOut as reason:
            if is_baseline:
                raise LeftOut(f"{contestant.name}: {reason}") from reason
            field.left_out[contestant.name] = str(reason)
            continue
        field.calls[contestant.name] = call
        if contest.unit == "B" or output is None:
            continue
        if reference is None:
            reference = output
        expected = reference if contestant.expected is None else contestant.expected(shared).float().cpu()
        field.differences[contestant.name] = compare(contest, contestant.name, output, expected)
    return field


def first_call(contestant: Contestant, shared: Any) -> tuple[Call, Any]:
    """Builds a contestant: its call, and what the first one gives, a float32 tensor as a copy on the CPU.

    Raises:
        LeftOut: it cannot run here.
    """
    try:
        call = contestant.build(shared)
        output = call()
    except ImportError as reason:
        raise LeftOut(str(reason)) from reason
    except Exception as error:
        if not _is_no_compiler(error):
            raise
        raise LeftOut(f"torch.compile failed: {str(error).splitlines()[0]}") from error
    return call, output.detach().float().cpu().clone() if isinstance(output, Tensor) else output


def compare(contest: Contest, name: str, output: Tensor, expected: Tensor) -> float:
    """The largest difference of a contestant's output from what is expected.

    Raises:
        ParityError: it is above the contest's tolerance.
    """
    where = f"{contest.subject}, {contest.workload}: {name}"
    if output.shape != expected.shape:
        raise ParityError(f"{where} gives {tuple(output.shape)}, {tuple(expected.shape)} expected")
    difference = float((output - expected).abs().max())
    allowed = contest.tolerance * max(1.0, float(expected.abs().max()))
    # Also where the difference is NaN.
    if not difference <= allowed:
        raise ParityError(f"{where} differs by {difference:.2e}, {allowed:.2e} accepted; nothing was timed")
    return difference


def _is_no_compiler(error: Exception) -> bool:
    """Whether torch.compile's backend failed, as on a machine without a C++ compiler."""
    from torch._dynamo.exc import BackendCompilerFailed
    from torch._inductor.exc import InductorError

    return isinstance(error, (BackendCompilerFailed, InductorError))
