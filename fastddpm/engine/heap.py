"""Keeps what a step frees with the process, for the next step, where the C library is glibc.

By default glibc hands freed memory back to the system as soon as it can, and a step on a CPU allocates the
same activations again and again: each page is then faulted in and zeroed anew (docs/architecture.md, "On a
CPU").
"""

from __future__ import annotations

import ctypes
import functools
import os
import platform

SWITCH = "FASTDDPM_KEEP_HEAP"
MIB = 2**20
KEPT = 256 * MIB
LARGEST = 64 * MIB
LARGEST_OF_OLD_VERSIONS = 32 * MIB

# malloc.h
_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3


@functools.cache
def keep_heap() -> bool:
    """Raises glibc's limits to 256 MiB of freed memory kept, in blocks of up to 64 MiB; once a process.

    Not where ``FASTDDPM_KEEP_HEAP=0`` forbids it, where the environment sets glibc's limits itself
    (``MALLOC_TRIM_THRESHOLD_``, ``MALLOC_MMAP_THRESHOLD_``, ``GLIBC_TUNABLES``), and where another allocator
    is preloaded.

    Returns:
        Whether it was done.
    """
    environment = os.environ
    if environment.get(SWITCH) == "0" or platform.libc_ver()[0] != "glibc":
        return False
    if {"MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_"} & set(environment):
        return False
    if "malloc" in environment.get("GLIBC_TUNABLES", "") + environment.get("LD_PRELOAD", ""):
        return False
    mallopt = ctypes.CDLL(None).mallopt
    largest = mallopt(_M_MMAP_THRESHOLD, LARGEST) or mallopt(_M_MMAP_THRESHOLD, LARGEST_OF_OLD_VERSIONS)
    return bool(largest and mallopt(_M_TRIM_THRESHOLD, KEPT))
