"""Bytes that kernels move, counted in the loads and stores of Triton's interpreter, tensor by tensor."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from triton.runtime.interpreter import InterpreterBuilder


class Traffic:
    """While it is active, counts the elements of tensors that are read and written, in units of the first.

    An access belongs to the tensor whose memory it is in; what is in none (tables, counters, vectors of
    channels) is counted as bytes under `other`.
    """

    def __init__(self, **tensors: torch.Tensor) -> None:
        self.tensors = tensors
        self.unit = next(iter(tensors.values())).numel()
        self.reads = dict.fromkeys(tensors, 0.0)
        self.writes = dict.fromkeys(tensors, 0.0)
        self.other = 0

    def __enter__(self) -> Traffic:
        self._load, self._store = (
            InterpreterBuilder.create_masked_load,
            InterpreterBuilder.create_masked_store,
        )
        load, store = self._load, self._store

        def create_masked_load(builder: Any, pointers: Any, mask: Any, *rest: Any) -> Any:
            self._count(pointers, mask, self.reads)
            return load(builder, pointers, mask, *rest)

        def create_masked_store(builder: Any, pointers: Any, value: Any, mask: Any, *rest: Any) -> Any:
            self._count(pointers, mask, self.writes)
            return store(builder, pointers, value, mask, *rest)

        InterpreterBuilder.create_masked_load = create_masked_load
        InterpreterBuilder.create_masked_store = create_masked_store
        return self

    def __exit__(self, *failure: object) -> None:
        InterpreterBuilder.create_masked_load = self._load
        InterpreterBuilder.create_masked_store = self._store

    def _count(self, pointers: Any, mask: Any, counts: dict[str, float]) -> None:
        addresses = np.broadcast_to(pointers.data, mask.data.shape)[mask.data]
        left = addresses.size
        for name, tensor in self.tensors.items():
            begin = tensor.data_ptr()
            inside = (addresses >= begin) & (addresses < begin + tensor.numel() * tensor.element_size())
            counts[name] += inside.sum() / self.unit
            left -= int(inside.sum())
        self.other += left * pointers.get_element_ty().primitive_bitwidth // 8

    def figures(self) -> dict[str, Any]:
        """Reads and writes in units of the first tensor, and the bytes of everything else."""
        reads = {name: round(float(n), 6) for name, n in self.reads.items()}
        writes = {name: round(float(n), 6) for name, n in self.writes.items()}
        return {"reads": reads, "writes": writes, "other": self.other}
