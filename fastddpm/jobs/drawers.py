"""What makes images, or other states, of seeds, with its threads fixed: any drawer, and a sampler of PyTorch.

A drawer can be sent to another process (pickled), and says everything that its pixels depend on. An export
run by ONNX Runtime is the one of `fastddpm.jobs.onnx_drawer`.
"""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Callable
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from fastddpm.checks import BadArgument, whole
from fastddpm.engine import Engine, resolve_engine
from fastddpm.images import to_uint8
from fastddpm.inputs import Json
from fastddpm.jobs.conditions import Given
from fastddpm.jobs.shards import Samples
from fastddpm.network import Model
from fastddpm.options import RunOptions
from fastddpm.plans import Plan
from fastddpm.request import make_batches
from fastddpm.sampler import Sampler
from fastddpm.schedule import NoiseSchedule
from fastddpm.signatures import checked
from fastddpm.transfer import device_of

Int64 = npt.NDArray[np.int64]


# Options of `Sampler` that say where and how fast it runs, or what its classes are called; device and engine
# are described apart.
PLACES = ("device", "engine", "steps_per_graph", "class_names")


MOST_THREADS = 1024


def checked_threads(threads: int) -> int:
    """The number, from 1 to what a machine could have; ValueError otherwise."""
    return whole("threads", threads, least=1, most=MOST_THREADS)


class Drawer(Protocol):
    """Images for seeds, as pixels, or states of another shape, as they are."""

    threads: int

    @property
    def image_shape(self) -> tuple[int, ...]:
        """Of one state: (C, H, W) of an image."""

    @property
    def device(self) -> str:
        """``cpu`` or ``cuda``."""

    def describe(self) -> Json:
        """Everything but seeds, labels and batch size that the pixels depend on, as JSON values."""

    def made_on(self) -> str:
        """The processor and engine that draw here."""

    def check(self, labels: Int64 | None, given: Given | None = None) -> None:
        """ValueError where the model does not know these labels or conditions, or the guidance."""

    def draw(self, seeds: Int64, labels: Int64 | None, given: Given | None = None) -> Samples:
        """uint8 ``(B, H, W, C)``, or float32 ``(B, ...)`` of states that are no images, for ``(B,)`` seeds
        and labels, and conditions where a job has some."""


class TorchDrawer:
    """A `Sampler`.

    Args:
        sampler: with a default ``shape``.
        guidance_scale: w of classifier-free guidance; 1 is none.
        threads: of one process on a CPU.
        device: where to draw: ``cpu``, ``cuda`` or ``cuda:1``; None for the sampler's. The model is moved
            when the first image is drawn, so that it may be a device of another machine.
        engine: as of `Sampler`; None for the sampler's.

    Raises:
        ValueError: naming the argument, what was given and what is accepted.
        EngineUnavailable: ``cudagraph`` or ``max`` for a CPU.
    """

    @checked
    def __init__(
        self,
        sampler: Sampler,
        *,
        guidance_scale: float = 1.0,
        threads: int = 1,
        device: str | None = None,
        engine: Engine | None = None,
    ) -> None:
        if sampler.shape is None:
            raise BadArgument("sampler", "one without a shape", "one made with a shape, as (C, H, W),")
        self.image_shape = sampler.shape
        self.threads = checked_threads(threads)
        self._sampler, self._guidance_scale = sampler, guidance_scale
        self._place = sampler.device if device is None else device_of(device)
        self._asked = sampler.options["engine"] if engine is None else engine
        self._engine: Engine = resolve_engine(self._asked, self._place)

    def __reduce__(self) -> tuple[Callable[..., TorchDrawer], tuple[object, ...]]:
        """What another process needs: model, schedule and plan; no buffers, no captured graphs."""
        sampler = self._sampler
        given = sampler.options
        options: RunOptions = {"null_label": given["null_label"], "shape": given["shape"]}
        options |= {"dtype": given["dtype"], "precision": given["precision"]}
        if given["precision"] == "int8":  # one engine's
            options["engine"] = given["engine"]
        settings = (self._guidance_scale, self.threads, self._place.type, self._asked)
        return _rebuilt, (sampler.model, sampler.schedule, sampler.plan, options, *settings)

    @property
    def device(self) -> str:
        """``cpu`` or ``cuda``."""
        return self._place.type

    def describe(self) -> Json:
        """Everything but seeds, labels and batch size that the pixels depend on, as JSON values."""
        sampler = self._sampler
        options: Json = {k: v for k, v in sampler.options.items() if k not in PLACES}
        options |= {"dtype": str(sampler.dtype).removeprefix("torch."), "shape": list(self.image_shape)}
        if options["precision"] is None:  # so that a job begun before there was this option goes on
            del options["precision"]
        return {
            "backend": f"torch {torch.__version__.split('+')[0]}",
            "model": _digest_of_model(sampler.model),
            **options,
            "method": sampler.plan.method,
            "num_inference_steps": len(sampler.plan),
            "plan": digest_of_plan(sampler.plan),
            "guidance_scale": float(self._guidance_scale),
            "device": self.device,
            "engine": self._engine,
            "threads": self.threads,
        }

    def made_on(self) -> str:
        """The processor and engine that draw here."""
        if self.device == "cuda":
            return f"{torch.cuda.get_device_name(self._place)}, engine {self._here().engine}"
        return f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}, engine {self._engine}"

    def check(self, labels: Int64 | None, given: Given | None = None) -> None:
        """ValueError where the model does not know these labels or conditions, or the guidance."""
        some = None if labels is None else np.unique(labels).tolist()
        seeds = range(1 if some is None else len(some))
        make_batches(
            self._sampler.facts,
            seeds=seeds,
            class_labels=some,
            guidance_scale=self._guidance_scale,
            **({} if given is None else given.tensors(first=True)),
        )

    def draw(self, seeds: Int64, labels: Int64 | None, given: Given | None = None) -> Samples:
        """uint8 ``(B, H, W, C)``, or float32 ``(B, ...)`` of states that are no images, for ``(B,)`` seeds
        and labels, and conditions where a job has some."""
        before = torch.get_num_threads()
        torch.set_num_threads(self.threads)
        try:
            images = self._here().sample(
                seeds=seeds.tolist(),
                class_labels=None if labels is None else labels.tolist(),
                guidance_scale=self._guidance_scale,
                progress=False,
                **({} if given is None else given.tensors()),
            )
            return to_uint8(images) if len(self.image_shape) == 3 else images.cpu().numpy()
        finally:
            torch.set_num_threads(before)

    def _here(self) -> Sampler:
        """The sampler on its device, with its engine."""
        sampler = self._sampler
        if sampler.device != self._place or sampler.options["engine"] != self._asked:
            if isinstance(sampler.model, nn.Module):
                sampler.model.to(self._place)
            self._sampler = sampler.replace(device=self._place, engine=self._asked)
        return self._sampler


def _rebuilt(
    model: Model,
    schedule: NoiseSchedule,
    plan: Plan,
    options: RunOptions,
    guidance_scale: float,
    threads: int,
    device: str,
    engine: Engine,
) -> TorchDrawer:
    sampler = Sampler.from_plan(model, schedule, plan, **options)
    return TorchDrawer(sampler, guidance_scale=guidance_scale, threads=threads, device=device, engine=engine)


def _digest_of_model(model: object) -> str:
    """SHA-256 over the tensors of a network by name, and the code's name where there are none."""
    digest = hashlib.sha256(getattr(model, "__qualname__", type(model).__qualname__).encode())
    digest.update(repr(getattr(model, "config", "")).encode())
    state = model.state_dict() if isinstance(model, nn.Module) else {}
    for name, value in sorted(state.items()):
        tensor = value.detach().cpu()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.flatten().clone().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def digest_of_plan(plan: Plan) -> str:
    """SHA-256 over the rows, and what else of a plan the chain depends on."""
    cases = (plan.prediction_type, plan.clip, plan.kept > 0, plan.learned_range, plan.thresholding)
    digest = hashlib.sha256(repr(cases).encode())
    # Columns that most plans leave 0 came later; jobs begun before go on.
    first, later = np.split(plan.table, [16], axis=1)
    for array in (plan.timesteps, plan.model_time, first, *([later] if later.any() else [])):
        digest.update(array.tobytes())
    return digest.hexdigest()
