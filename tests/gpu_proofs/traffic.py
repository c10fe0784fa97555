"""Bytes that kernels move, counted in the loads and stores of Triton's interpreter, tensor by tensor."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from triton.runtime.interpreter import InterpreterBuilder


class Traffic:
    """While it is active, keeps the address of every element that kernels read or write."""

    def __init__(self) -> None:
        self.accesses: list[tuple[str, np.ndarray, int]] = []

    def __enter__(self) -> Traffic:
        builder = InterpreterBuilder
        self._load, self._store = builder.create_masked_load, builder.create_masked_store
        load, store = self._load, self._store

        def create_masked_load(builder: Any, pointers: Any, mask: Any, *rest: Any) -> Any:
            self._keep("reads", pointers, mask)
            return load(builder, pointers, mask, *rest)

        def create_masked_store(builder: Any, pointers: Any, value: Any, mask: Any, *rest: Any) -> Any:
            self._keep("writes", pointers, mask)
            return store(builder, pointers, value, mask, *rest)

        builder.create_masked_load, builder.create_masked_store = create_masked_load, create_masked_store
        return self

    def __exit__(self, *failure: object) -> None:
        InterpreterBuilder.create_masked_load = self._load
        InterpreterBuilder.create_masked_store = self._store

    def _keep(self, kind: str, pointers: Any, mask: Any) -> None:
        addresses = np.broadcast_to(pointers.data, mask.data.shape)[mask.data]
        self.accesses.append((kind, addresses, pointers.get_element_ty().primitive_bitwidth // 8))

    def figures(self, first: torch.Tensor, *tensors: torch.Tensor) -> dict[str, float]:
        """Elements of these tensors read and written, in units of the first one's, and other bytes likewise.

        An access belongs to the tensor in whose memory it is; `other` are tables, counters, vectors of
        channels, partial sums: their bytes over those of the first tensor.
        """
        counts = {"reads": 0.0, "writes": 0.0, "other": 0.0}
        for kind, addresses, size in self.accesses:
            inside = sum(int(_within(addresses, tensor).sum()) for tensor in (first, *tensors))
            counts[kind] += inside / first.numel()
            counts["other"] += (addresses.size - inside) * size / (first.numel() * first.element_size())
        return {name: round(count, 6) for name, count in counts.items()}


def _within(addresses: np.ndarray, tensor: torch.Tensor) -> np.ndarray:
    begin = tensor.data_ptr()
    return (addresses >= begin) & (addresses < begin + tensor.numel() * tensor.element_size())
