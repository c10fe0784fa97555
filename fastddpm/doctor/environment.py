"""What is installed here, and what each missing part disables."""

from __future__ import annotations

import dataclasses
import shutil
import subprocess
from importlib.metadata import PackageNotFoundError, version

import torch

from fastddpm.checks import shortened

OLDEST = (8, 0)
"""Compute capability of the oldest card that the kernels are built for in the tests: sm_80, Ampere."""

PACKAGES = {
    "triton": "the GPU kernels",
    "onnxruntime": "`backend=onnx`; pip install 'fastddpm[onnx]'",
    "onnx": "`fastddpm export`; pip install 'fastddpm[onnx]'",
    "diffusers": "drop-ins and folders of diffusers; pip install 'fastddpm[diffusers]'",
    "accelerate": "`fastddpm train`; pip install 'fastddpm[train]'",
}
"""Packages that may be missing, and what they serve."""


@dataclasses.dataclass(frozen=True)
class Part:
    """A part of the environment.

    Attributes:
        name: of the part.
        found: its version or description, None where it is missing.
        disables: what does not work because of its absence or age; empty where all is well.
    """

    name: str
    found: str | None
    disables: str = ""


def parts() -> list[Part]:
    """torch, the packages, the driver, the cards and ONNX Runtime's providers."""
    built_for = torch.version.cuda or torch.version.hip
    torch_part = Part(
        "torch",
        f"{torch.__version__}, built for {'CUDA' if torch.version.cuda else 'ROCm'} {built_for}"
        if built_for
        else f"{torch.__version__}, built for the CPU",
        "" if built_for else "GPUs: this build of torch has no CUDA",
    )
    found = [torch_part]
    for name, serves in PACKAGES.items():
        number = _version(name)
        found.append(Part(name, number, "" if number else serves))
    return [*found, _providers(), _driver(), *cards()]


def cards() -> list[Part]:
    """The cards that torch sees, those that are too old named as such."""
    if not torch.cuda.is_available():
        return [Part("card", None, "kernels, CUDA graphs; everything runs in plain PyTorch on the CPU")]
    described = []
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        capability = (properties.major, properties.minor)
        described.append(
            card(
                f"cuda:{index}",
                properties.name,
                capability,
                properties.total_memory,
                rocm=torch.version.hip is not None,
            )
        )
    return described


def card(index: str, name: str, capability: tuple[int, int], memory: int, *, rocm: bool = False) -> Part:
    """One card; ``capability`` is CUDA's (major, minor), ``memory`` in bytes."""
    major, minor = capability
    kind = f"{name}, sm_{major}{minor}, {memory / 2**30:.0f} GiB" if not rocm else f"{name}, ROCm"
    if rocm or capability >= OLDEST:
        return Part(index, kind)
    oldest = f"sm_{OLDEST[0]}{OLDEST[1]}"
    return Part(index, kind, f"older than {oldest}: unsupported, its kernels were never built or checked")


def _driver() -> Part:
    """NVIDIA's driver by nvidia-smi."""
    missing = Part("driver", None, "NVIDIA cards: nvidia-smi is not there or finds none")
    if shutil.which("nvidia-smi") is None:
        return missing
    words = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(words, capture_output=True, text=True, check=True, timeout=30)
    except (subprocess.SubprocessError, OSError):
        return missing
    lines = done.stdout.split()
    return Part("driver", lines[0]) if lines else missing


def _providers() -> Part:
    """Execution providers of ONNX Runtime."""
    name = "onnxruntime providers"
    if _version("onnxruntime") is None and _version("onnxruntime-gpu") is None:
        return Part(name, None, "`backend=onnx`")
    try:
        import onnxruntime  # type: ignore[import-untyped, unused-ignore]
    except ImportError as error:  # installed, but for another CUDA, or in part
        why = shortened(str(error))
        return Part(name, None, f"`backend=onnx`: it is installed and cannot be imported ({why})")

    available = onnxruntime.get_available_providers()
    has_cuda = "CUDAExecutionProvider" in available
    return Part(name, ", ".join(available), "" if has_cuda else "exported models on a GPU: onnxruntime-gpu")


def _version(name: str) -> str | None:
    names = (name, "onnxruntime-gpu") if name == "onnxruntime" else (name,)
    for candidate in names:
        try:
            return version(candidate)
        except PackageNotFoundError:
            continue
    return None
