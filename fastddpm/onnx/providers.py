"""Execution providers of ONNX Runtime: which one to use, and sessions that run on it or not at all.

ONNX Runtime goes on with the CPU when a provider does not start; here that is an error, or, for "auto", a
warning.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

import onnxruntime  # type: ignore[import-untyped, unused-ignore]

from fastddpm.onnx.errors import OnnxFolderError, ProviderError

Session: TypeAlias = onnxruntime.InferenceSession
CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"
SHORT = {"cpu": CPU, "cuda": CUDA}
PACKAGES = {
    CUDA: "onnxruntime-gpu",
    "TensorrtExecutionProvider": "onnxruntime-gpu",
    "MIGraphXExecutionProvider": "onnxruntime-migraphx",
    "OpenVINOExecutionProvider": "onnxruntime-openvino",
    "DmlExecutionProvider": "onnxruntime-directml",
    "QNNExecutionProvider": "onnxruntime-qnn",
}
"""The package that brings a provider."""

CUDA_OPTIONS = {
    # The exhaustive search times every algorithm at every new shape, and may choose another one next time.
    "cudnn_conv_algo_search": "HEURISTIC",
    "use_tf32": "0",
}


@dataclass(frozen=True)
class Provider:
    """Where and how sessions run.

    Attributes:
        name: of ONNX Runtime.
        threads: of one session on the CPU; None for ONNX Runtime's choice, one a core.
        options: of the provider, over our own.
    """

    name: str
    threads: int | None = None
    options: Mapping[str, str] = field(default_factory=dict)

    @property
    def device(self) -> tuple[str, int]:
        """Kind and number of the device that buffers of a step loop lie on."""
        on_cuda = self.name in (CUDA, "TensorrtExecutionProvider")
        return ("cuda", int(self.options.get("device_id", 0))) if on_cuda else ("cpu", 0)

    def session(self, file: Path, *, graphs: bool = False) -> Session:
        """A session that runs ``file`` on this provider.

        Args:
            file: a model.
            graphs: capture runs as CUDA graphs and replay them (the CUDA provider alone).

        Raises:
            ProviderError: the provider does not start.
            OnnxFolderError: ONNX Runtime cannot read the file.
        """
        settings = onnxruntime.SessionOptions()
        settings.log_severity_level = 3
        if self.threads is not None:
            settings.intra_op_num_threads = self.threads
        options: dict[str, str] = {}
        if self.name == CUDA:
            options = {**CUDA_OPTIONS, **({"enable_cuda_graph": "1"} if graphs else {})}
        options |= self.options
        wanted: list[str | tuple[str, dict[str, str]]] = (
            [(self.name, options)] if self.name == CPU else [(self.name, options), CPU]
        )
        try:
            session = onnxruntime.InferenceSession(str(file), settings, providers=wanted)
        except Exception as error:  # ONNX Runtime's exceptions have no common class of their own
            reason = " ".join(str(error).split())[:300]
            if self.name == CPU:
                raise OnnxFolderError(f"{file}: ONNX Runtime cannot load it ({reason})") from error
            other = ', or loop="steps",' if file.name == "sampler.onnx" else ""
            given = f"{self.name}, which cannot run {file.name} ({reason}),"
            raise ProviderError("provider", given, f"cpu{other}") from error
        if session.get_providers()[0] != self.name:
            raise ProviderError(
                "provider",
                f"{self.name}, which does not start here (its driver or libraries are missing or of another "
                "version),",
                "cpu",
            )
        session.disable_fallback()
        return session


def choose_provider(
    name: str, test_file: Path, *, threads: int | None = None, options: Mapping[str, str] | None = None
) -> Provider:
    """The provider by name; "auto" is CUDA where it starts, else the CPU.

    Args:
        name: "auto", "cpu", "cuda", or ONNX Runtime's name of a provider.
        test_file: a small model, to see whether the provider starts.
        threads: as of `Provider`.
        options: likewise.

    Raises:
        ProviderError: unknown, not here (naming the package that brings it), or it does not start.
    """
    here = onnxruntime.get_available_providers()
    given = dict(options or {})
    if name == "auto":
        if CUDA in here:
            try:
                Provider(CUDA, threads, given).session(test_file)
                return Provider(CUDA, threads, given)
            except ProviderError as error:
                warnings.warn(f"{error}; the CPU is used", stacklevel=4)
        return Provider(CPU, threads)
    full = SHORT.get(name, name)
    if full not in here:
        accepted = ", ".join(["auto", *(short for short, long in SHORT.items() if long in here)])
        others = ", ".join(one for one in here if one not in SHORT.values() and one in PACKAGES)
        known = full in onnxruntime.get_all_providers() or full in PACKAGES
        package = PACKAGES.get(full, "another build of onnxruntime")
        why = f"not in the installed onnxruntime; {package} has it (in place of onnxruntime)"
        raise ProviderError(
            "provider",
            f"{name!r}, {why if known else 'unknown'},",
            f"{accepted}{', ' if others else ''}{others}",
        )
    provider = Provider(full, threads, given)
    provider.session(test_file)
    return provider
