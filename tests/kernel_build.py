"""Builds kernels for GPUs that are not there, and reads what the compiler made of them.

The launches go through Triton's own just-in-time path, with a driver that only names a target: so a build is
the specialisation that a launch with these tensors gets (which are aligned, which numbers are multiples of
16, which None), and the grid is the one it gets. The machine code is read with the tools inside Triton's
package.
"""

from __future__ import annotations

import contextlib
import itertools
import re
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime.driver import driver

CUDA_TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"

TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_86": GPUTarget("cuda", 86, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "sm_100": GPUTarget("cuda", 100, 32),
    "sm_120": GPUTarget("cuda", 120, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}


SHARED_LIMITS = {
    "sm_80": 163 << 10,
    "sm_86": 99 << 10,
    "sm_90": 227 << 10,
    "sm_100": 227 << 10,
    "sm_120": 99 << 10,
    "gfx942": 64 << 10,
}
"""Bytes of shared memory that a program may have: CUDA programming guide; CDNA 3 ISA."""

_numbers = itertools.count()


@dataclass(frozen=True)
class Build:
    """What a build uses; `opcodes` are the instructions of one thread."""

    registers: int
    stack_bytes: int
    spills: int
    shared_bytes: int
    opcodes: Counter[str]
    has_loop: bool
    elements_per_thread: float

    @property
    def instructions_per_element(self) -> float:
        return sum(self.opcodes.values()) / self.elements_per_thread

    @property
    def wide_loads(self) -> int:
        """128-bit ones."""
        return self._count(r"LDG\.E\S*\.128|(global|buffer)_load_dwordx4")

    @property
    def wide_stores(self) -> int:
        return self._count(r"STG\.E\S*\.128|(global|buffer)_store_dwordx4")

    @property
    def widest(self) -> int:
        """Bits of the widest access to global memory by one thread."""
        widths = [_width(code) for code in self.opcodes if re.match(GLOBAL_ACCESS, code)]
        return max(widths, default=0)

    @property
    def stores(self) -> int:
        return self._count(r"STG|(global|buffer)_store")

    def _count(self, pattern: str) -> int:
        return sum(n for name, n in self.opcodes.items() if re.match(pattern, name))


GLOBAL_ACCESS = r"LDG|STG|(global|buffer)_(load|store)_"


def _width(opcode: str) -> int:
    """Bits that an access to global memory moves."""
    for pattern, bits in (
        (r"\.128|dwordx4", 128),
        (r"dwordx3", 96),
        (r"\.64|dwordx2", 64),
        (r"\.[US]?16|short|d16", 16),
        (r"\.[US]8|byte", 8),
    ):
        if re.search(pattern, opcode):
            return bits
    return 32


class TargetDriver:
    """A Triton driver for compiling only: it has a target and no device."""

    def __init__(self, target: GPUTarget) -> None:
        self.target = target

    def get_current_target(self) -> GPUTarget:
        return self.target

    def get_current_device(self) -> str:
        # Triton keeps its builds by device: one pretended device per target.
        return f"pretended {self.target.arch}"

    def get_current_stream(self, device: str) -> int:
        return 0


@contextlib.contextmanager
def pretended(target: GPUTarget) -> Iterator[None]:
    """Triton and the launchers believe in a GPU of this kind."""
    before = driver._active
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.version, "hip", "pretended" if target.backend == "hip" else None)
        driver.set_active(TargetDriver(target))
        try:
            yield
        finally:
            driver._active = before


@dataclass(frozen=True)
class Launch:
    """One recorded launch: Triton's function, its grid, and the build that it would have run."""

    kernel: Any
    grid: tuple[int, int, int]
    compiled: Any


class RecordingDriver(TargetDriver):
    """A driver that compiles and loads nothing, and keeps the launches that it is asked for."""

    def __init__(self, target_name: str) -> None:
        super().__init__(TARGETS[target_name])
        self.max_shared = SHARED_LIMITS[target_name]
        # Triton keeps its builds by device: every recording has one of its own, and so its own builds.
        self.device = f"pretended {target_name}, number {next(_numbers)}"
        self.launches: list[Launch] = []

    def get_current_device(self) -> str:
        return self.device

    @property
    def utils(self) -> RecordingDriver:
        return self

    def get_device_properties(self, device: str) -> dict[str, int]:
        return {"max_shared_mem": self.max_shared}

    def load_binary(self, name: str, binary: bytes, shared: int, device: str) -> tuple[Any, ...]:
        module, function, registers, spills, max_threads = object(), object(), 0, 0, 1024
        return module, function, registers, spills, max_threads

    def unload_module(self, module: object) -> None:
        pass

    def launcher_cls(self, source: Any, metadata: Any) -> Callable[..., None]:
        def launch(x: int, y: int, z: int, stream: int, function: object, *rest: Any) -> None:
            builds = source.fn.device_caches[self.device][0].values()
            compiled = next(build for build in builds if build.function is function)
            self.launches.append(Launch(source.fn, (x, y, z), compiled))

        return launch


@contextlib.contextmanager
def recorded(target_name: str) -> Iterator[list[Launch]]:
    """Launches of kernels on CPU tensors are compiled for this GPU and recorded instead of run."""
    recording = RecordingDriver(target_name)
    with pretended(recording.target):
        driver.set_active(recording)
        yield recording.launches


def inspect(launch: Launch, target_name: str, tmp_path: Path) -> Build:
    """What the build of a launch uses."""
    target = TARGETS[target_name]
    constants = {launch.kernel.arg_names[place[0]]: value for place, value in _constants(launch)}
    threads = launch.compiled.metadata.num_warps * target.warp_size
    if "BLOCK_SIZE" in constants:
        elements = 4 * constants["BLOCK_SIZE"]
    else:
        pixels = constants.get("GROUP_PIXELS", constants["BLOCK_PIXELS"])
        elements = constants["GROUPS"] * constants["BLOCK_CHANNELS"] * pixels
    if target.backend == "hip":
        return _inspect_amd(launch.compiled, elements / threads)
    return inspect_nvidia(launch.compiled, elements / threads, tmp_path)


def _constants(launch: Launch) -> Any:
    return launch.compiled.src.constants.items()


def inspect_nvidia(compiled: Any, elements_per_thread: float, tmp_path: Path) -> Build:
    """Of a build for NVIDIA, by its cubin."""
    cubin = tmp_path / "kernel.cubin"
    cubin.write_bytes(compiled.asm["cubin"])
    usage = _tool("cuobjdump", "--dump-resource-usage", str(cubin))
    resources = {name: int(value) for name, value in re.findall(r"\b(REG|STACK|SHARED|LOCAL):(\d+)", usage)}
    sass = _tool("nvdisasm", "-c", str(cubin))
    opcodes = re.findall(r"^\s*/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_.]*)", sass, re.M)
    # Every program ends in a branch to itself and padding, which no thread reaches.
    counted = Counter(code for code in opcodes if code.split(".")[0] not in ("NOP", "BRA"))
    return Build(
        registers=resources["REG"],
        stack_bytes=resources["STACK"] + resources["LOCAL"],
        spills=sum(n for code, n in counted.items() if code.startswith(("LDL", "STL"))),
        shared_bytes=compiled.metadata.shared,
        opcodes=counted,
        has_loop=_branches_backward(sass),
        elements_per_thread=elements_per_thread,
    )


def spilled_bytes(compiled: Any, target_name: str, tmp_path: Path) -> int:
    """Bytes that ptxas spills. A stack alone is no spill: a library sine has one for large arguments."""
    arch = TARGETS[target_name].arch
    ptx = tmp_path / "kernel.ptx"
    ptx.write_text(compiled.asm["ptx"])
    tool = "ptxas-blackwell" if arch >= 100 else "ptxas"
    name = f"--gpu-name={target_name}{'a' if arch >= 90 else ''}"
    words = [str(CUDA_TOOLS / tool), "-v", name, str(ptx), "-o", str(tmp_path / "kernel.o")]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    return sum(map(int, re.findall(r"(\d+) bytes spill", done.stderr)))


def _branches_backward(sass: str) -> bool:
    """Whether a branch goes to an earlier label, other than the final one to itself."""
    seen: dict[str, int] = {}
    n_instructions = 0
    for line in sass.splitlines():
        if label := re.match(r"\s*(\.L_\w+):", line):
            seen[label[1]] = n_instructions
        elif re.match(r"\s*/\*[0-9a-f]{4,}\*/", line):
            branch = re.search(r"\bBRA\b.*\((\.L_\w+)\)", line)
            if branch and seen.get(branch[1], n_instructions) < n_instructions:
                return True
            n_instructions += 1
    return False


def _inspect_amd(compiled: Any, elements_per_thread: float) -> Build:
    assembly = compiled.asm["amdgcn"]
    fields = dict(re.findall(r"^\s+\.(\w+):\s+(\d+)$", assembly, re.M))
    opcodes = re.findall(r"^\s+((?:[vs]|global|buffer|ds|scratch|flat)_\w+)", assembly, re.M)
    return Build(
        registers=int(fields["vgpr_count"]),
        stack_bytes=int(fields["private_segment_fixed_size"]),
        spills=int(fields["vgpr_spill_count"]) + int(fields["sgpr_spill_count"]),
        shared_bytes=int(fields["group_segment_fixed_size"]),
        opcodes=Counter(code for code in opcodes if code not in ("s_nop", "s_code_end")),
        has_loop="Loop Header" in assembly,
        elements_per_thread=elements_per_thread,
    )


def _tool(name: str, *arguments: str) -> str:
    return subprocess.run(
        [str(CUDA_TOOLS / name), *arguments], capture_output=True, text=True, check=True
    ).stdout
