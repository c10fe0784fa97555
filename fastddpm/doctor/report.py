"""An examination: what is installed, what was checked with what result, and how it is written down."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import torch

from fastddpm.doctor import bandwidth, chains, environment, kernels
from fastddpm.doctor.comparison import Check, compared
from fastddpm.doctor.environment import Part
from fastddpm.files import write_json
from fastddpm.inputs import Json
from fastddpm.precision import forced
from fastddpm_kernels import compat

EXACT = "float32 with TF32 off, whatever torch is set to; checks named after another precision run in that"
"""What checks run in: two right TF32 kernels differ by more over a chain than exact checks accept."""


@dataclasses.dataclass
class Examination:
    """All that was found.

    Attributes:
        device: what was examined.
        precision: what the checks ran in.
        parts: of the environment.
        checks: the comparisons.
        rates: kernels' bandwidths as (name, bytes a second, share of a copy's of as many bytes); none on a
            CPU.
        complete: whether it came to its end.
    """

    device: str
    precision: str = EXACT
    parts: list[Part] = dataclasses.field(default_factory=list)
    checks: list[Check] = dataclasses.field(default_factory=list)
    rates: list[tuple[str, float, float]] = dataclasses.field(default_factory=list)
    complete: bool = False

    @property
    def ok(self) -> bool:
        """Whether no check failed; a missing part of the environment is not a failure."""
        return all(check.status != "failed" for check in self.checks)

    def to_dict(self) -> Json:
        """As JSON values."""
        return {**dataclasses.asdict(self), "ok": self.ok}

    def save(self, path: Path) -> None:
        """Writes it as JSON, whole or not at all.

        Raises:
            OSError: the folder is not there or not writable.
        """
        write_json(path, self.to_dict())


def examine(
    device: torch.device,
    tell: Callable[[str], None] = lambda line: None,
    keep: Callable[[Examination], None] = lambda found: None,
) -> Examination:
    """Examines this machine.

    Args:
        device: a CUDA device, or the CPU where there is none; then the kernels run in Triton's interpreter,
            if it is installed, and CUDA graphs and bandwidths are left out.
        tell: called with the name of each check before it runs.
        keep: called after each, with what was found so far.
    """
    found = Examination(str(device), parts=environment.parts())
    comparisons = [*kernels.references(), *kernels.comparisons(device), *chains.comparisons(device)]
    with forced("highest"):
        for comparison in comparisons:
            tell(comparison.name)
            found.checks.append(compared(comparison))
            keep(found)
    if device.type != "cuda":
        tell("kernels in Triton's interpreter")
        found.checks += kernels.interpreted()
        found.checks.append(Check("graphs and bandwidth", "skipped", note="need a CUDA device"))
    elif not compat.HAS_TRITON:
        found.checks.append(Check("kernels and bandwidth", "skipped", note="triton is not installed"))
    else:
        together = bandwidth.working_set(device)
        for movement in bandwidth.examined(device):
            tell(movement.name)
            rate = bandwidth.measure(movement, device, together)
            found.rates.append((rate.name, rate.bytes_per_second, rate.share))
            keep(found)
    found.complete = True
    return found
