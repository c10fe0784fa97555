"""`OnnxSampler`: an exported sampler with the call of `fastddpm.Sampler`, without torch."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from fastddpm.checks import check_choice, whole
from fastddpm.finite import check_finite
from fastddpm.forks import ForkLock
from fastddpm.onnx.errors import OnnxFolderError, ProviderError
from fastddpm.onnx.folder import read_folder
from fastddpm.onnx.named import Numbers
from fastddpm.onnx.providers import CPU, CUDA, Session, choose_provider
from fastddpm.onnx.request import (
    Float32,
    PlanOptions,
    Request,
    check_output,
    make_request,
    resolved_plan,
    to_uint8,
)
from fastddpm.onnx.self_test import check_images, check_noise
from fastddpm.onnx.step_loop import SLOTS, StepLoop
from fastddpm.onnx.walk import check_rows, walked
from fastddpm.plans import Plan
from fastddpm.plans.method_options import MethodName, MethodOptions
from fastddpm.plans.spacing import Sigmas, Timesteps, TimestepSpacing
from fastddpm.progress import progress_bar
from fastddpm.signatures import checked

if TYPE_CHECKING:
    from typing_extensions import Unpack

LOOPS = ("auto", "file", "steps")
FILE_INPUTS = {"seeds", "timesteps", "method", "eta"}
STEP_INPUTS = {"x", "row", "time", "noise", "x0_prev"}


class OnnxSampler:
    """Draws images with the ONNX files of a folder. May be called from several threads.

    The image of a seed is that of `fastddpm.Sampler` on the exported model (to 1e-3 in [-1, 1], one uint8
    level), whatever else is in its batch.

    Args:
        folder: written by `fastddpm.export_onnx` or `fastddpm export`.
        provider: "auto" (CUDA where it starts, else the CPU), "cpu", "cuda", or ONNX Runtime's name of a
            provider, such as "OpenVINOExecutionProvider".
        threads: of one run on the CPU; None for ONNX Runtime's choice.
        loop: "file": sampler.onnx, everything in one run. "steps": step.onnx in a Python loop on fixed
            buffers, with noise from NumPy; one call at a time, others wait. "auto": "steps" on CUDA, whose
            graphs refuse control flow and whose provider lacks the integer operators, else "file".
        provider_options: options of the provider, as ONNX Runtime takes them, such as {"device_id": "1"}.

    Raises:
        OnnxFolderError: the folder is not an export, is damaged, or belongs to another version.
        ProviderError: the provider is not here, does not start, or computes wrong noise.
        ValueError: another argument is not as above.
    """

    @checked
    def __init__(
        self,
        folder: str | Path,
        provider: str = "auto",
        *,
        threads: int | None = None,
        loop: str = "auto",
        provider_options: Mapping[str, str] | None = None,
    ) -> None:
        check_choice("loop", loop, LOOPS)
        if threads is not None:
            whole("threads", threads, least=1)
        self.folder = read_folder(folder)
        self._threads, self._provider_options = threads, provider_options
        noise_file = self.folder.file("noise.onnx")
        self._provider = choose_provider(provider, noise_file, threads=threads, options=provider_options)
        if loop == "auto":
            loop = "steps" if self._provider.name == CUDA else "file"
        self.loop = loop
        self._lock = ForkLock()
        self._step_sessions: dict[bool, tuple[Session, bool]] = {}
        self._step_loops: dict[tuple[int, bool], StepLoop] = {}
        self._graphs: bool = self._provider.name == CUDA
        self._file_session: Any = None
        if loop == "file":
            check_noise(self._provider.session(noise_file), self._provider.name)
            outputs = {"images", *(["pixels"] if self.folder.draws_images else [])}
            self._file_session = self._session("sampler.onnx", FILE_INPUTS, outputs)
            if self._provider.name != CPU:
                self._check_file_loop()
        else:
            self._step_session(guided=False)

    def __reduce__(self) -> tuple[Callable[..., OnnxSampler], tuple[object, ...]]:
        """For pickle and copies: where the folder is and how it runs; sessions and buffers are made anew."""
        settings = {"threads": self._threads, "loop": self.loop, "provider_options": self._provider_options}
        return _reopened, (type(self), self.folder.path.absolute(), self.provider, settings)

    @property
    def provider(self) -> str:
        """ONNX Runtime's name of the provider that runs."""
        return self._provider.name

    @property
    def image_shape(self) -> tuple[int, ...]:
        """Of one state: (C, H, W) of an image."""
        return self.folder.image_shape

    @property
    def options(self) -> MethodOptions:
        """What was exported: the method, its steps and its options."""
        return self.folder.method.to_dict()

    def __repr__(self) -> str:
        return f"OnnxSampler({str(self.folder.path)!r}, provider={self.provider!r}, loop={self.loop!r})"

    def plan(self, **given: Unpack[PlanOptions]) -> Plan:
        """The plan for method, num_inference_steps, timestep_spacing, timesteps, sigmas, eta and
        solver_order, as of `sample`."""
        return resolved_plan(self.folder, given)[1]

    @checked
    def sample(
        self,
        batch_size: int | None = None,
        *,
        seeds: Sequence[int] | npt.ArrayLike | None = None,
        class_labels: int | str | Sequence[int | str] | npt.ArrayLike | None = None,
        guidance_scale: float = 1.0,
        condition: Float32 | None = None,
        cond: Mapping[str, Numbers] | None = None,
        uncond: Mapping[str, Numbers] | None = None,
        method: MethodName | None = None,
        num_inference_steps: int | None = None,
        timestep_spacing: TimestepSpacing | None = None,
        timesteps: Timesteps | None = None,
        sigmas: Sigmas | None = None,
        eta: float | None = None,
        solver_order: int | None = None,
        max_batch: int | None = None,
        output: str = "float",
        progress: bool = True,
    ) -> npt.NDArray[Any]:
        """Draws images.

        Args:
            batch_size: how many; None for one per seed, else 1.
            seeds: one integer in [0, 2**63) per image; the image depends on its own seed only. None draws
                fresh ones from the system's entropy.
            class_labels: one label, or one per image: a number, or a name where the export has
                ``class_names``. None means the null label where the model has one.
            guidance_scale: w of classifier-free guidance (Ho and Salimans 2022): m_u + w*(m_c - m_u). 1
                makes no second pass.
            condition: float32 [B or 1, Cc, H, W], of states that are no images likewise, concatenated in
                front of x at every step, as in SR3.
            cond: arrays [B or 1, ...] by name, of a network that was exported with some; of the dtype and
                shape that export.json says.
            uncond: with guidance: of each of them, what the half without conditions is given.
            method: one of `fastddpm.plans.METHODS`, whichever was exported, as of `fastddpm.Sampler`; None,
                here and below, for what was exported.
            num_inference_steps: S in 1 .. T.
            timestep_spacing: "leading", "linspace" or "trailing"; of solvers also "karras", "log_snr" (or
                "exponential") or "beta".
            timesteps: the timesteps themselves instead, strictly descending.
            sigmas: of a solver, its noise levels instead, as of `fastddpm.plans.Method`.
            eta: of ddim, in [0, 1].
            solver_order: of a solver that can have several.
            max_batch: larger batches are cut into batches of this size.
            output: "float", or, of images, "uint8": round((clamp(x, -1, 1) + 1) * 127.5).
            progress: show a progress bar on a terminal.

        Returns:
            float32 [B, ...], of images [B, C, H, W], in the model's range (usually [-1, 1]), unclamped; or
            uint8 [B, H, W, C].

        Raises:
            ValueError: naming the argument, what was given and what is accepted.
            NonFiniteSamples: NaN or infinity among the images of a batch (`fastddpm.finite`); a
                FloatingPointError that names their seeds.
        """
        check_output(self.folder, output)
        given: PlanOptions = {
            "method": method,
            "num_inference_steps": num_inference_steps,
            "timestep_spacing": timestep_spacing,
            "timesteps": timesteps,
            "sigmas": sigmas,
            "eta": eta,
            "solver_order": solver_order,
        }
        chosen, plan = resolved_plan(self.folder, given)
        if self.loop == "file":
            check_rows(self._file_session, self.folder, plan)
        chosen.warn_if_late(self.folder.schedule, plan)
        every = make_request(
            self.folder,
            batch_size=batch_size,
            seeds=seeds,
            class_labels=class_labels,
            guidance_scale=guidance_scale,
            condition=condition,
            cond=cond,
            uncond=uncond,
        )
        size = len(every) if max_batch is None else min(whole("max_batch", max_batch, least=1), len(every))
        pieces = []
        with progress_bar(progress, -(-len(every) // size) * len(plan)) as advance:
            for start in range(0, len(every), size):
                batch = every.rows(start, min(start + size, len(every)))
                if self.loop == "file":
                    pieces.append(self._run_file(plan, float(chosen.eta), batch))
                    advance(len(plan))
                else:
                    pieces.append(self._run_steps(plan, batch, advance))
                check_finite(pieces[-1], batch.seeds)
        images = np.concatenate(pieces)
        return images if output == "float" else to_uint8(images)

    def _run_file(self, plan: Plan, eta: float, batch: Request) -> Float32:
        """One run of sampler.onnx, which makes the rows or is given them, and draws the noise itself."""
        feeds: dict[str, Numbers] = {**batch.named, "seeds": batch.seeds}
        feeds |= walked(self._file_session, self.folder, plan, eta)
        if batch.labels is not None:
            feeds["class_labels"] = batch.labels
        if self.folder.guides:
            feeds["guidance_scale"] = np.asarray(batch.guidance_scale, dtype=np.float32)
        if batch.condition is not None:
            feeds["condition"] = np.ascontiguousarray(batch.condition)
        images: Float32 = self._file_session.run(["images"], feeds)[0]
        return images

    def _run_steps(self, plan: Plan, batch: Request, advance: Callable[[int], None]) -> Float32:
        """The plan walked step by step, by one thread at a time: buffers are shared."""
        guided, size = batch.guidance_scale != 1.0, buffer_size(len(batch))
        with self._lock:
            if (size, guided) not in self._step_loops:
                session, captures = self._step_session(guided=guided)
                first_graph = 1 + SLOTS * len(self._step_loops) if captures else None
                self._step_loops[size, guided] = StepLoop(
                    session, self.image_shape, size, self._provider.device, first_graph
                )
            loop = self._step_loops[size, guided]
            return loop.run(plan, batch.rows(0, size), advance)[: len(batch)]

    def _step_session(self, *, guided: bool) -> tuple[Session, bool]:
        """The session of step.onnx or step_guided.onnx, and whether it captures its runs."""
        if guided not in self._step_sessions:
            self._step_sessions[guided] = self._new_step_session(guided)
        return self._step_sessions[guided]

    def _new_step_session(self, guided: bool) -> tuple[Session, bool]:
        name = "step_guided.onnx" if guided else "step.onnx"
        try:
            return self._session(name, STEP_INPUTS, {"x_next", "x0"}, graphs=self._graphs), self._graphs
        except ProviderError as error:
            if not self._graphs:
                raise
            warnings.warn(f"{error}; running without CUDA graphs", stacklevel=2)
            self._graphs = False
            return self._session(name, STEP_INPUTS, {"x_next", "x0"}), False

    def _session(self, name: str, inputs: set[str], outputs: set[str], *, graphs: bool = False) -> Session:
        """A session on one of the folder's models that has the inputs and outputs it should have."""
        folder = self.folder
        inputs = inputs | ({"class_labels"} if folder.num_classes is not None else set())
        inputs |= {"condition"} if folder.condition_channels else set()
        inputs |= {f"cond_{one.name}" for one in folder.cond}
        if folder.guides and name != "step.onnx":
            inputs |= {"guidance_scale", *(f"uncond_{one.name}" for one in folder.cond)}
        session = self._provider.session(folder.file(name), graphs=graphs)
        for kind, found, wanted in (
            ("inputs", session.get_inputs(), inputs),
            ("outputs", session.get_outputs(), outputs),
        ):
            names = {one.name for one in found}
            if names != wanted:
                raise OnnxFolderError(
                    f"{folder.file(name)}: {kind} {', '.join(sorted(names))} found, "
                    f"{', '.join(sorted(wanted))} accepted"
                )
        return session

    def _check_file_loop(self) -> None:
        """Holds two steps of sampler.onnx, whose noise the provider computes, to step.onnx with NumPy's."""
        folder = self.folder
        last = len(folder.schedule) - 1
        asked: PlanOptions = {"method": "ddpm", "timesteps": sorted({last, last // 2}, reverse=True)}
        plan = self.plan(**(asked if folder.methods else {"num_inference_steps": 2}))
        shape = (1, *folder.condition_shape)
        batch = make_request(
            folder,
            batch_size=None,
            seeds=(5, 2**40 + 3),
            class_labels=None if folder.num_classes is None else 0,
            guidance_scale=1.0,
            condition=np.zeros(shape, dtype=np.float32) if folder.condition_channels else None,
            cond={one.name: np.zeros((1, *one.shape), dtype=one.dtype) for one in folder.cond},
        )
        session, _ = self._step_session(guided=False)
        loop = StepLoop(session, self.image_shape, len(batch), self._provider.device)
        self._step_sessions.clear()
        check_images(self._run_file(plan, 0.0, batch), loop.run(plan, batch, lambda n: None), self.provider)


def _reopened(
    cls: type[OnnxSampler], folder: Path, provider: str, settings: Mapping[str, Any]
) -> OnnxSampler:
    return cls(folder, provider, **settings)


def buffer_size(count: int) -> int:
    """The batch size of the buffers for ``count`` images: the next power of two, so that there are few."""
    return 1 << (count - 1).bit_length()
