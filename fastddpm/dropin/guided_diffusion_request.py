"""What a caller asks of a ``GaussianDiffusion`` of guided-diffusion, by its own arguments, and seeds."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Concatenate, ParamSpec, TypeVar

import torch
from torch import Tensor

from fastddpm.checks import BadArgument, whole
from fastddpm.network import Model


@dataclass
class Request:
    """The arguments of ``p_sample_loop``, in its order; ``seeds`` is ours.

    Attributes:
        model: called as ``model(x, t, **model_kwargs)``.
        shape: ``(B, C, H, W)``.
        noise: float32 ``(B, C, H, W)`` to start from; None draws it.
        clip_denoised: bound x0 to [-1, 1].
        denoised_fn: ``x0 -> x0``, before the clip.
        cond_fn: ``(x, t, **model_kwargs) -> gradient`` of log p(y|x), of x's shape.
        model_kwargs: tensors are copied into the loop's buffers; anything else is a constant of it.
        device: where to draw; None for the network's.
        progress: show a progress bar.
        seeds: one per image, with ``noise="philox"`` chosen in `optimize`.
    """

    model: Model
    shape: Sequence[int]
    noise: Tensor | None = None
    clip_denoised: bool = True
    denoised_fn: Callable[[Tensor], Tensor] | None = None
    cond_fn: Callable[..., Tensor] | None = None
    model_kwargs: Mapping[str, object] | None = None
    device: torch.device | str | None = None
    progress: bool = False
    seeds: Sequence[int] | Tensor | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        if not isinstance(self.shape, (tuple, list, torch.Size)) or len(self.shape) != 4:
            raise BadArgument("shape", repr(self.shape), "(B, C, H, W)")
        for length in self.shape:
            whole("shape", length, least=1)
        if self.noise is not None and tuple(self.noise.shape) != tuple(self.shape):
            raise BadArgument("noise", f"shape {tuple(self.noise.shape)}", str(tuple(self.shape)))

    @property
    def is_guided(self) -> bool:
        """Whether functions of the caller take part in each step."""
        return self.denoised_fn is not None or self.cond_fn is not None

    def tensors(self) -> dict[str, Tensor]:
        """The tensors among model_kwargs."""
        return {k: v for k, v in (self.model_kwargs or {}).items() if isinstance(v, Tensor)}

    def constants(self) -> dict[str, object]:
        """The rest of model_kwargs."""
        return {k: v for k, v in (self.model_kwargs or {}).items() if not isinstance(v, Tensor)}


@dataclass
class DdimRequest(Request):
    """The arguments of ``ddim_sample_loop``: those of `Request` and eta, the amount of noise."""

    eta: float = 0.0


P = ParamSpec("P")
R = TypeVar("R", bound=Request)
S = TypeVar("S")
Given = TypeVar("Given")


def with_arguments_of(
    request: Callable[P, R],
) -> Callable[[Callable[[S, R], Given]], Callable[Concatenate[S, P], Given]]:
    """Makes a method of a request one of its fields."""

    def spread(
        method: Callable[[S, R], Given],
    ) -> Callable[Concatenate[S, P], Given]:
        def called(self: S, /, *args: P.args, **kwargs: P.kwargs) -> Given:
            return method(self, request(*args, **kwargs))

        called.__name__, called.__qualname__ = method.__name__, method.__qualname__
        called.__doc__ = method.__doc__
        return called

    return spread
