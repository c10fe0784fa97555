"""The drawer of an export, run by ONNX Runtime."""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from fastddpm.inputs import Json
from fastddpm.jobs.conditions import Given
from fastddpm.jobs.drawers import Int64, checked_threads, digest_of_plan
from fastddpm.jobs.shards import Samples
from fastddpm.signatures import checked

if TYPE_CHECKING:
    from fastddpm.onnx.request import PlanOptions


class OnnxDrawer:
    """An export of `fastddpm export`, run by ONNX Runtime.

    Args:
        folder: the export; every process reads it there.
        provider: as of `fastddpm.onnx.OnnxSampler`.
        guidance_scale: w of classifier-free guidance; 1 is none.
        threads: of one process on a CPU.
        options: ``method``, ``num_inference_steps``, ``timestep_spacing``, ``timesteps``, ``sigmas``,
            ``eta`` and ``solver_order`` of `OnnxSampler.sample`, where they are not to be the exported ones.
        provider_options: as of `OnnxSampler`.
    """

    @checked
    def __init__(
        self,
        folder: str | Path,
        provider: str = "auto",
        *,
        guidance_scale: float = 1.0,
        threads: int = 1,
        options: PlanOptions | None = None,
        provider_options: Mapping[str, str] | None = None,
    ) -> None:
        # Here and not above: the package of jobs is there without the extra `onnx`.
        from fastddpm.onnx import OnnxSampler

        self.threads = checked_threads(threads)
        self._guidance_scale = guidance_scale
        self._options: PlanOptions = {**(options or {})}
        self._provider_options = provider_options
        self._sampler = OnnxSampler(folder, provider, threads=threads, provider_options=provider_options)
        self.image_shape = self._sampler.image_shape
        self.num_classes = self._sampler.folder.num_classes
        self.class_names = self._sampler.folder.class_names
        self.condition_channels = self._sampler.folder.condition_channels
        self.plan = self._sampler.plan(**self._options)

    def __reduce__(self) -> tuple[Callable[..., OnnxDrawer], tuple[object, ...]]:
        """What another process needs: the folder and the options."""
        settings = {"guidance_scale": self._guidance_scale, "threads": self.threads, "options": self._options}
        settings["provider_options"] = self._provider_options
        return _reopened, (self._sampler.folder.path.absolute(), self._sampler.provider, settings)

    @property
    def device(self) -> str:
        """``cpu`` or ``cuda``."""
        return "cuda" if self._sampler.provider == "CUDAExecutionProvider" else "cpu"

    def describe(self) -> Json:
        """Everything but seeds, labels and batch size that the pixels depend on, as JSON values."""
        import onnxruntime  # type: ignore[import-untyped, unused-ignore]

        sampler = self._sampler
        eta = self._options.get("eta")
        return {
            "backend": f"onnxruntime {onnxruntime.__version__}",
            # export.json lists the SHA-256 of every other file.
            "model": hashlib.sha256(sampler.folder.file("export.json").read_bytes()).hexdigest(),
            "eta": float(sampler.options["eta"] if eta is None else eta),
            "shape": list(self.image_shape),
            "method": self.plan.method,
            "num_inference_steps": len(self.plan),
            "plan": digest_of_plan(self.plan),
            "guidance_scale": float(self._guidance_scale),
            "device": self.device,
            "engine": f"{sampler.provider}, loop {sampler.loop}",
            "threads": self.threads,
        }

    def made_on(self) -> str:
        """The processor and engine that draw here."""
        return f"{platform.machine()}, {self._sampler.provider}"

    def check(self, labels: Int64 | None, given: Given | None = None) -> None:
        """ValueError where the model does not know these labels or conditions, or the guidance."""
        from fastddpm.onnx.request import make_request

        some = None if labels is None else np.unique(labels).tolist()
        make_request(
            self._sampler.folder,
            batch_size=None,
            seeds=range(1 if some is None else len(some)),
            class_labels=some,
            guidance_scale=self._guidance_scale,
            condition=None,
            **({} if given is None else given.arrays(first=True)),
        )

    def draw(self, seeds: Int64, labels: Int64 | None, given: Given | None = None) -> Samples:
        """uint8 ``(B, H, W, C)``, or float32 ``(B, ...)`` of states that are no images, for ``(B,)`` seeds
        and labels, and conditions where a job has some."""
        samples: Samples = self._sampler.sample(
            seeds=seeds,
            class_labels=labels,
            guidance_scale=self._guidance_scale,
            output="uint8" if len(self.image_shape) == 3 else "float",
            progress=False,
            **({} if given is None else given.arrays()),
            **self._options,
        )
        return samples


def _reopened(folder: Path, provider: str, settings: Json) -> OnnxDrawer:
    return OnnxDrawer(folder, provider, **settings)
