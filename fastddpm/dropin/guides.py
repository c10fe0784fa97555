"""How a value guides trajectories in jannerm/diffuser: gradients of it, added to the state before a step."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from fastddpm.checks import BadArgument, shown, whole
from fastddpm.dropin.peer import Peer, parameters_of

Guide = Callable[[Tensor, Mapping[int, Tensor], int], tuple[Tensor, Tensor]]
"""Of the state ``(B, T, D)``, the conditions and the timestep: the state moved, and its values ``(B,)``."""
_GIVEN = {"guide", "scale", "t_stopgrad", "n_guide_steps", "scale_grad_by_std"}
_GUIDED = {"model", "x", "cond", "t", *_GIVEN}
_STEP = "the published n_step_guided_p_sample, or none"


def guide_of(
    diffusion: Peer, sample_fn: Callable[..., object] | None, options: dict[str, object]
) -> Guide | None:
    """What moves the state before each step; None where nothing does.

    Args:
        diffusion: the GaussianDiffusion.
        sample_fn: of its loop: None or its default, or ``n_step_guided_p_sample``, known by its parameters.
        options: that function's: ``guide``, whose ``gradients(x, cond, t)`` are used, ``scale``,
            ``t_stopgrad``, ``n_guide_steps``, ``scale_grad_by_std``.

    Raises:
        ValueError: another function, or no guide.
        TypeError: an option that it does not have.
    """
    signature = parameters_of(diffusion.p_sample_loop)
    if sample_fn is None or ("sample_fn" in signature and sample_fn is default_step(diffusion)):
        if options:
            raise TypeError(f"default_sample_fn() got an unexpected keyword argument {next(iter(options))!r}")
        return None
    if set(parameters_of(sample_fn)) != _GUIDED:
        raise BadArgument("sample_fn", shown(sample_fn), _STEP)
    unknown = set(options) - _GIVEN
    if unknown:
        raise TypeError(f"n_step_guided_p_sample() got an unexpected keyword argument {min(unknown)!r}")
    if not hasattr(options.get("guide"), "gradients"):
        raise BadArgument("guide", shown(options.get("guide")), "an object with gradients(x, cond, t)")
    return _Steps(diffusion, **options)  # type: ignore[arg-type]


def default_step(diffusion: Peer) -> object:
    """The function of a step that the main branch's loop has where none is given."""
    return inspect.signature(diffusion.p_sample_loop).parameters["sample_fn"].default


class _Steps:
    """Moves a state along a guide's gradients, as ``n_step_guided_p_sample`` does before its step."""

    def __init__(
        self,
        diffusion: Peer,
        *,
        guide: Peer,
        scale: float = 0.001,
        t_stopgrad: int = 0,
        n_guide_steps: int = 1,
        scale_grad_by_std: bool = True,
    ) -> None:
        whole("n_guide_steps", n_guide_steps, least=1)
        self._diffusion, self._guide, self._scale = diffusion, guide, scale
        self._stop, self._count, self._scales = t_stopgrad, n_guide_steps, scale_grad_by_std

    def __call__(self, x: Tensor, cond: Mapping[int, Tensor], at: int) -> tuple[Tensor, Tensor]:
        t = torch.full((len(x),), at, device=x.device, dtype=torch.long)
        variance = torch.exp(self._diffusion.posterior_log_variance_clipped[at])
        x = x.clone()
        for _ in range(self._count):
            with torch.enable_grad():
                values, gradient = self._guide.gradients(x, cond, t)
            if self._scales:
                gradient = variance * gradient
            if at < self._stop:
                gradient = torch.zeros_like(gradient)
            x = x.detach() + self._scale * gradient
            for place, value in cond.items():
                x[:, place, self._diffusion.action_dim :] = value
        return x, values.detach()
