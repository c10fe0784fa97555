"""glibc keeps what a step frees: fewer page faults, unless somebody else has decided."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

FAULTS = """
import resource, torch
from fastddpm.engine.heap import keep_heap
print(keep_heap())
def churn():
    for _ in range(4):
        torch.ones(12 * 2**20)  # 48 MiB: by default glibc maps what is above 32 MiB anew each time
churn()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
churn()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")


def churned(**environment: str) -> tuple[bool, int]:
    """Whether the limits were raised, and the page faults of four blocks of 48 MiB."""
    clean = {name: value for name, value in os.environ.items() if "MALLOC" not in name}
    done = subprocess.run(
        [sys.executable, "-c", FAULTS],
        env={**clean, **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    raised, faults = done.stdout.split()
    return raised == "True", int(faults)


@glibc
def test_freed_memory_stays():
    raised, faults = churned()
    left_alone, usual = churned(FASTDDPM_KEEP_HEAP="0")
    assert (raised, left_alone) == (True, False)
    assert faults < 100
    assert usual > 1000


@glibc
@pytest.mark.parametrize("variable", ["MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_"])
def test_limits_of_the_environment_stand(variable):
    assert churned(**{variable: "131072"})[0] is False
