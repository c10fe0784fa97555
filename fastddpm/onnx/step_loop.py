"""The reverse process as a Python loop over a one-step model, on buffers that stay where they are.

What a step reads lies on the device before it starts: noise (NumPy's Philox), rows of the table and times go
there a chunk of steps at a time, while a thread draws the next chunk. Each of the K steps of a chunk has a
binding of its own on fixed addresses, so that it can be captured as a CUDA graph and replayed:

    slot j: state[j % 2], x0[j % 2], chunk[j]  ->  state[(j + 1) % 2], x0[(j + 1) % 2]

Two states, because a step still reads x_t where it writes x_{t-1}. Of a solver that keeps more than the last
x0, the host puts a sum of what it keeps (`fastddpm.onnx.kept`) into the place of that x0, between two steps.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnxruntime  # type: ignore[import-untyped, unused-ignore]

from fastddpm.onnx.kept import Kept, keeps_more
from fastddpm.onnx.providers import Session
from fastddpm.onnx.request import Float32, Request
from fastddpm.plans import Plan
from fastddpm_kernels.noise.reference import normal
from fastddpm_kernels.table import Column

SLOTS = 8
"""Steps in a chunk, and graphs captured for a batch size; even, so that chunks begin at the same state."""

ALIGNMENT = 64
"""Floats: the noise of each slot starts on a 256-byte boundary, as an allocation of CUDA does."""


@dataclass(frozen=True)
class Chunk:
    """What up to K steps read: noise float32 [K, stride], rows float32 [K, columns], times [K], offsets [K].

    A time is a timestep with the offset to what lies between it and the next.
    """

    noise: Float32
    rows: Float32
    times: np.ndarray
    offsets: Float32


class StepLoop:
    """Buffers and bindings for batches of one size.

    Args:
        session: of step.onnx or step_guided.onnx.
        image: shape of one state, (C, H, W) of an image.
        batch: images in a run.
        device: kind and number of the device that the buffers lie on.
        first_graph: number of the first of K CUDA graphs of the session, or None for no graphs.
    """

    def __init__(
        self,
        session: Session,
        image: tuple[int, ...],
        batch: int,
        device: tuple[str, int],
        first_graph: int | None = None,
    ) -> None:
        self._session, self._device, self.batch = session, device, batch
        self._shape = (batch, *image)
        elements = int(np.prod(self._shape))
        self._elements, self._stride = elements, -(-elements // ALIGNMENT) * ALIGNMENT
        inputs = {one.name: one for one in session.get_inputs()}
        self._time_dtype = np.float32 if inputs["time"].type == "tensor(float)" else np.int64
        self._states = [self._buffer(self._shape) for _ in range(2)]
        self._cleans = [self._buffer(self._shape) for _ in range(2)]
        self._noise = self._buffer((SLOTS, self._stride))
        self._columns = int(inputs["row"].shape[0])
        self._rows = self._buffer((SLOTS, self._columns))
        self._times = self._buffer((SLOTS,), self._time_dtype)
        self._offsets = self._buffer((SLOTS,)) if takes_between(session) else None
        self._fixed: dict[str, onnxruntime.OrtValue] = {}
        if "class_labels" in inputs:
            self._fixed["class_labels"] = self._buffer((batch,), np.int64)
        if "guidance_scale" in inputs:
            self._fixed["guidance_scale"] = self._buffer(())
        if "condition" in inputs:
            channels = int(inputs["condition"].shape[1])
            self._fixed["condition"] = self._buffer((batch, channels, *image[1:]))
        kinds = {"tensor(float)": np.float32, "tensor(int32)": np.int32, "tensor(bool)": np.bool_}
        for name, one in inputs.items():
            if name.startswith(("cond_", "uncond_")):
                self._fixed[name] = self._buffer((batch, *one.shape[1:]), kinds.get(one.type, np.int64))
        self._bindings = [self._binding(slot) for slot in range(SLOTS)]
        self._run_options = [_run_options(first_graph, slot) for slot in range(SLOTS)]

    def run(self, plan: Plan, batch: Request, advance: Callable[[int], None]) -> Float32:
        """Draws one batch of this size, float32 [B, ...]; calls ``advance(1)`` after each step."""
        given = {
            **batch.named,
            "class_labels": batch.labels,
            "guidance_scale": np.asarray(batch.guidance_scale, dtype=np.float32),
            "condition": batch.condition,
        }
        for name, buffer in self._fixed.items():
            buffer.update_inplace(np.ascontiguousarray(given[name]).reshape(buffer.shape()))
        image = self._shape[1:]
        with ThreadPoolExecutor(1, "fastddpm-noise") as drawer:
            upcoming = drawer.submit(self._chunk, plan, batch, 0)
            # x_T is step 0 of the noise.
            self._states[0].update_inplace(normal(batch.seeds, 0, image, dtype=np.float32))
            # The first row multiplies it by 0.
            self._cleans[0].update_inplace(np.zeros(self._shape, dtype=np.float32))
            kept = Kept(plan, self._shape) if keeps_more(plan) else None
            for start in range(0, len(plan), SLOTS):
                chunk = upcoming.result()
                if start + SLOTS < len(plan):
                    upcoming = drawer.submit(self._chunk, plan, batch, start + SLOTS)
                # Runs are synchronous: nothing reads these buffers any more.
                self._noise.update_inplace(chunk.noise)
                self._rows.update_inplace(chunk.rows)
                self._times.update_inplace(chunk.times)
                if self._offsets is not None:
                    self._offsets.update_inplace(chunk.offsets)
                for slot in range(min(SLOTS, len(plan) - start)):
                    self._session.run_with_iobinding(self._bindings[slot], self._run_options[slot])
                    if kept is not None and start + slot + 1 < len(plan):
                        x0 = self._cleans[(slot + 1) % 2]
                        total = kept.after(start + slot, self._states[slot % 2].numpy(), x0.numpy())
                        x0.update_inplace(total)
                    advance(1)
        result: Float32 = self._states[len(plan) % 2].numpy().copy()
        return result

    def _chunk(self, plan: Plan, batch: Request, start: int) -> Chunk:
        stop = min(start + SLOTS, len(plan))
        noise = np.zeros((SLOTS, self._stride), dtype=np.float32)
        rows = np.zeros((SLOTS, self._columns), dtype=np.float32)
        times = np.zeros(SLOTS, dtype=self._time_dtype)
        rows[: stop - start] = plan.table[start:stop, : self._columns]
        if keeps_more(plan):  # the host multiplies
            rows[: stop - start, Column.FROM_KEPT_1] = 1.0
        offsets = np.zeros(SLOTS, dtype=np.float32)
        told = plan.model_time[start:stop]
        if self._offsets is not None:
            offsets[: stop - start] = told - np.floor(told)
            told = np.floor(told)
        times[: stop - start] = told
        for k in range(start, stop):
            if plan.table[k, Column.FROM_NOISE] != 0:
                # Plan row k is step k + 1 of the noise.
                z = normal(batch.seeds, k + 1, self._shape[1:], dtype=np.float32)
                noise[k - start, : self._elements] = z.ravel()
        return Chunk(noise, rows, times, offsets)

    def _buffer(self, shape: tuple[int, ...], dtype: npt.DTypeLike = np.float32) -> onnxruntime.OrtValue:
        return onnxruntime.OrtValue.ortvalue_from_shape_and_type(list(shape), dtype, *self._device)

    def _binding(self, slot: int) -> onnxruntime.IOBinding:
        here, there = slot % 2, (slot + 1) % 2
        item = np.dtype(self._time_dtype).itemsize
        sources = {
            "x": (np.float32, self._shape, self._states[here].data_ptr()),
            "x0_prev": (np.float32, self._shape, self._cleans[here].data_ptr()),
            "noise": (np.float32, self._shape, self._noise.data_ptr() + 4 * slot * self._stride),
            "row": (np.float32, (self._columns,), self._rows.data_ptr() + 4 * slot * self._columns),
            "time": (self._time_dtype, (), self._times.data_ptr() + item * slot),
        }
        if self._offsets is not None:
            sources["time_offset"] = (np.float32, (), self._offsets.data_ptr() + 4 * slot)
        binding = self._session.io_binding()
        for name, (dtype, shape, pointer) in sources.items():
            binding.bind_input(name, *self._device, dtype, list(shape), pointer)
        for name, buffer in self._fixed.items():
            binding.bind_ortvalue_input(name, buffer)
        binding.bind_ortvalue_output("x_next", self._states[there])
        binding.bind_ortvalue_output("x0", self._cleans[there])
        return binding


def takes_between(session: Session) -> bool:
    """Whether a model takes times between two of training."""
    return "time_offset" in {one.name for one in session.get_overridable_initializers()}


def _run_options(first_graph: int | None, slot: int) -> onnxruntime.RunOptions:
    options = onnxruntime.RunOptions()
    if first_graph is not None:
        # A graph is replayed on the addresses that it was captured with, so each binding has its own.
        options.add_run_config_entry("gpu_graph_id", str(first_graph + slot))
    return options
