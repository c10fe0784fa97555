"""The network in the precision that was asked for: itself, or a copy in another dtype that follows it."""

from __future__ import annotations

import torch

from fastddpm.checks import BadArgument
from fastddpm.copies import Copies, InDtype
from fastddpm.network import Model, model_device_dtype
from fastddpm.precision import Precision, dtype_of, precision_for
from fastddpm.unet import UNet


class InPrecision:
    """What a sampler's network computes in, and the copy that this may take.

    Args:
        model: as it was given.
        precision: what it is to compute in, None for its weights' dtype.
        dtype: what it takes x in; None for its weights'.

    Attributes:
        precision: of a `UNet`, what ``dtype`` means there, too.
        dtype: what it takes x in.

    Raises:
        ValueError: naming the argument, what was given and what is accepted.
    """

    def __init__(self, model: Model, precision: Precision | None, dtype: torch.dtype | None) -> None:
        _, seen = model_device_dtype(model)
        self.precision = precision_for(precision, dtype, seen) if isinstance(model, UNet) else precision
        self.dtype = dtype_of(self.precision, dtype) or seen
        if self.dtype not in (torch.float32, torch.float16, torch.bfloat16):
            raise BadArgument("model", f"{self.dtype} weights", "float32, float16 or bfloat16")
        self._copy: InDtype | None = None
        if self.precision in ("bf16", "fp16") and seen != self.dtype:
            self._check(model, seen)

    def model(self, given: Model) -> tuple[Model, Copies | None]:
        """The network to run for one that was given, and what brings its weights up to date."""
        if self.precision not in ("bf16", "fp16") or model_device_dtype(given)[1] == self.dtype:
            return given, None
        assert isinstance(given, torch.nn.Module)
        if self._copy is None or self._copy.original is not given:
            self._copy = InDtype(given, self.dtype)
        copies = self._copy.copies()  # which may make the copy anew
        return self._copy.module, copies

    def _check(self, model: Model, weights: torch.dtype) -> None:
        if not isinstance(model, torch.nn.Module):
            raise BadArgument(
                "precision",
                f"{self.precision!r} for a model that is no torch Module and cannot be cast",
                "highest, tf32 or None, and dtype= for a model that takes x in another dtype,",
            )
        if weights != torch.float32:
            raise BadArgument(
                "precision", f"{self.precision!r} for {weights} weights", f"float32 or {self.dtype} ones"
            )
