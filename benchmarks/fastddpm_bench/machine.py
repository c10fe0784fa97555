"""On what it was measured: processor, versions, commit, load, and a GPU's clocks, read and never set."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

import fastddpm

PACKAGES = (
    "torch",
    "triton",
    "numpy",
    "diffusers",
    "denoising-diffusion-pytorch",
    "onnxruntime",
)
GPU_STATE = {
    "clocks.sm": "sm_mhz",
    "clocks.mem": "memory_mhz",
    "power.draw": "watts",
    "power.limit": "watts_allowed",
    "temperature.gpu": "celsius",
    "utilization.gpu": "percent_busy",
}
ROOT = Path(__file__).parents[2]


def describe(device: torch.device) -> dict[str, Any]:
    """The machine as JSON values; what cannot be found out is None."""
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        # Ours as it is imported: an environment keeps the number that it was installed under.
        "packages": {"fastddpm": fastddpm.__version__, **{name: _version(name) for name in PACKAGES}},
        "device": _device(device),
        "commit": commit(),
    }


def state(device: torch.device) -> dict[str, Any]:
    """What changes while it is measured: the load of the CPU, clocks and power of a GPU."""
    load = list(os.getloadavg()) if hasattr(os, "getloadavg") else None
    return {
        "load": load,
        "mhz": _cpu_mhz(),
        "gpu": gpu_state(device.index) if device.type == "cuda" else None,
    }


def gpu_state(index: int | None = None) -> dict[str, float | None] | None:
    """Clocks, power and temperature by nvidia-smi, or None where there is none."""
    if shutil.which("nvidia-smi") is None:
        return None
    words = [
        "nvidia-smi",
        f"--id={index or 0}",
        f"--query-gpu={','.join(GPU_STATE)}",
        "--format=csv,noheader,nounits",
    ]
    try:
        done = subprocess.run(words, capture_output=True, text=True, check=True, timeout=10)
    except (subprocess.SubprocessError, OSError):
        return None
    return read_gpu_state(done.stdout)


def read_gpu_state(line: str) -> dict[str, float | None]:
    """nvidia-smi's numbers by name; None for what the card does not tell (``[N/A]``)."""
    return dict(zip(GPU_STATE.values(), map(_number, line.split(",")), strict=False))


def commit() -> str | None:
    """The commit of the checkout, with ``+`` where tracked files differ from it; None outside of one."""
    try:
        name = _git("rev-parse", "HEAD")
        changed = _git("status", "--porcelain", "--untracked-files=no")
    except (subprocess.SubprocessError, OSError):
        return None
    return name + ("+" if changed else "")


def _git(*words: str) -> str:
    done = subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=True, timeout=10)
    return done.stdout.strip()


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _device(device: torch.device) -> str:
    if device.type != "cuda":
        return device.type
    found = torch.cuda.get_device_properties(device)
    return f"{found.name}, {found.total_memory / 2**30:.0f} GiB, sm_{found.major}{found.minor}"


def _processor() -> str:
    for line in _cpuinfo():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def _cpu_mhz() -> float | None:
    values = [float(line.split(":")[1]) for line in _cpuinfo() if line.startswith("cpu MHz")]
    return max(values) if values else None


def _cpuinfo() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text().splitlines() if path.exists() else []


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
