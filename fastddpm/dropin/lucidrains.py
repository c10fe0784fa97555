"""Drop-in for denoising-diffusion-pytorch (lucidrains): ``GaussianDiffusion`` and its learned variance.

The class for classifier-free guidance is recognised here too; its drop-in is `lucidrains_guidance`.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fastddpm.checks import BadArgument, check_choice, whole
from fastddpm.dropin.chains import Chains
from fastddpm.dropin.peer import DropIn, holds
from fastddpm.dropin.runner import Adapter, warn_if_random
from fastddpm.dropin.settings import Report, Settings
from fastddpm.engine import Engine
from fastddpm.network import model_device_dtype
from fastddpm.plans import Plan
from fastddpm.plans.lucidrains import BUFFERS, OBJECTIVES, Habits, ancestral_plan, ddim_plan
from fastddpm.randomness import PhiloxNoise

DESCRIPTION = "denoising-diffusion-pytorch (lucidrains) GaussianDiffusion"

_HELD = ("channels", "objective", "num_timesteps", "sampling_timesteps", "is_ddim_sampling", "sample")
# Its other classes, by what only they hold, and why they are refused.
_REFUSED = {
    "seq_length": "GaussianDiffusion1D: its state is not (B, C, H, W)",
    "pred_x_start_loss_weight": "WeightedObjectiveGaussianDiffusion: its own sample fails, as its "
    "p_mean_variance does not take x_self_cond",
    "num_sample_steps": "ContinuousTimeGaussianDiffusion: its timesteps are log SNRs in the loop's order",
}
_REFUSED_ARGUMENTS = {
    "cond_fn": "the GaussianDiffusion of its guided_diffusion.py: its cond_fn prints and looks at the mean",
    "gt": "the GaussianDiffusion of its repaint.py: it jumps back and forth in time",
}


def recognises(obj: Any) -> bool:
    """Whether an object holds the network, buffers and objective of one of the library's classes."""
    if not holds(obj, modules=("model",)):
        return False
    if holds(obj, anything=("log_snr", "num_sample_steps", "sample")):
        return True
    return holds(obj, tensors=BUFFERS, anything=_HELD) and obj.objective in tuple(OBJECTIVES)


def build(obj: Any, settings: Settings, **options: Any) -> FastLucidrains:
    """The drop-in for an object that `recognises`.

    Args:
        obj: a GaussianDiffusion.
        settings: noise, engine and dtype (the network's, under autocast).
        **options: none; ``repair`` for the class with classifier-free guidance.

    Raises:
        ValueError: an option that is not accepted, or a class of the library that is not supported.
    """
    for name, reason in _REFUSED.items():
        if hasattr(obj, name):
            raise BadArgument("obj", reason, f"{DESCRIPTION}, with or without guidance,")
    for name, reason in _REFUSED_ARGUMENTS.items():
        if name in _parameters(obj.sample) or name in _parameters(getattr(obj, "p_sample", obj.sample)):
            raise BadArgument("obj", reason, f"{DESCRIPTION}, with or without guidance,")
    warn_if_random(obj.model, "model")
    if hasattr(obj.model, "forward_with_cond_scale"):
        from fastddpm.dropin.lucidrains_guidance import FastGuidedLucidrains

        return FastGuidedLucidrains(obj, settings, **options)
    if options:
        raise BadArgument(", ".join(options), "an option", f"none for {DESCRIPTION}")
    return FastLucidrains(obj, settings)


class FastLucidrains(DropIn):
    """``sample``, ``p_sample_loop``, ``ddim_sample`` and ``interpolate`` as in the library, by our loop.

    Attributes:
        original: the GaussianDiffusion; its attributes, buffers and weights are read anew by each call.
        settings: noise, engine and dtype.
    """

    def __init__(self, original: Any, settings: Settings) -> None:
        super().__init__(original)
        self.settings = settings
        self._chains: dict[Any, Chains] = {}
        self._plain()

    def sample(self, batch_size: int = 16, return_all_timesteps: bool = False, **options: Any) -> Tensor:
        """Draws images, by DDIM if the original's sampling_timesteps are fewer than its timesteps.

        Args:
            batch_size: how many.
            return_all_timesteps: every state, from the noise on.
            **options: ``seeds`` (one per image, with ``noise="philox"``), ``generator`` (instead of torch's
                global one) and ``progress``.

        Returns:
            float32 ``(batch_size, C, H, W)``, or ``(batch_size, S + 1, C, H, W)``, in [0, 1] if the original
            normalises by itself and in [-1, 1] if not; the states before the last are not bounded.

        Raises:
            ValueError: naming the argument, what was given and what is accepted.
        """
        whole("batch_size", batch_size, least=1)
        loop = self.ddim_sample if self.original.is_ddim_sampling else self.p_sample_loop
        return loop((batch_size, self.original.channels, *self._size()), return_all_timesteps, **options)

    def p_sample_loop(
        self, shape: Sequence[int], return_all_timesteps: bool = False, **options: Any
    ) -> Tensor:
        """`sample` for a shape ``(B, C, H, W)``, with every timestep."""
        return self._images(self.ancestral_plan(), shape, return_all_timesteps, **options)

    def ddim_sample(self, shape: Sequence[int], return_all_timesteps: bool = False, **options: Any) -> Tensor:
        """`sample` for a shape ``(B, C, H, W)``, by DDIM with the original's sampling_timesteps."""
        return self._images(self.ddim_plan(), shape, return_all_timesteps, **options)

    def interpolate(
        self, x1: Tensor, x2: Tensor, t: int | None = None, lam: float = 0.5, *, progress: bool = True
    ) -> Tensor:
        """Between two images: both are noised to timestep t, mixed as (1 - lam)*x1 + lam*x2, and denoised.

        Args:
            x1, x2: float32 ``(B, C, H, W)`` in the network's range.
            t: 0 .. T-1; None is T-1.
            lam: 0 for x1, 1 for x2.
            progress: show a progress bar.

        Returns:
            float32 ``(B, C, H, W)`` in the network's range, as the original's.

        Raises:
            ValueError: naming the argument; ``noise="philox"``.
        """
        return self._interpolated(x1, x2, t, lam, self._plain(), {}, progress)

    def ancestral_plan(self) -> Plan:
        """The plan of `p_sample_loop`."""
        return ancestral_plan(self._buffers(), self._habits())

    def ddim_plan(self) -> Plan:
        """The plan of `ddim_sample`."""
        steps, eta = self.original.sampling_timesteps, self.original.ddim_sampling_eta
        return ddim_plan(self._buffers(), self._habits(), steps=steps, eta=eta)

    def report(self) -> Report:
        """What became of the original: network, engine, noise, what is fused and what is not."""
        drawn = self.settings.noise == "philox"
        fused = (f"x0 from {self.original.objective}", "clip", f"the {self._method()} update", "sigma * z")
        not_fused: tuple[str, ...] = ()
        if not drawn:
            not_fused += ("the noise z: torch's generator draws it before the step",)
        if self.settings.dtype not in (None, torch.float32):
            not_fused += (f"casts of weights to {self.settings.dtype}: autocast makes them in each step",)
        return Report(
            peer=self.description,
            network="the original module",
            engine=self._engine(),
            noise="philox, one seed per image" if drawn else "torch, in the original's order",
            precision=self._plain().computes_in(self.settings.dtype),
            fused=(*fused, *(("the noise z",) if drawn else ())),
            not_fused=not_fused,
        )

    description = DESCRIPTION

    def _method(self) -> str:
        obj = self.original
        if obj.is_ddim_sampling:
            return (
                f"DDIM ({obj.sampling_timesteps} of {obj.num_timesteps} steps, eta {obj.ddim_sampling_eta:g})"
            )
        return f"DDPM ({obj.num_timesteps} steps)"

    def _engine(self) -> Engine:
        return next(reversed(self._chains.values())).engine

    def _images(
        self,
        plan: Plan,
        shape: Sequence[int],
        return_all_timesteps: bool,
        *,
        seeds: Sequence[int] | Tensor | None = None,
        generator: torch.Generator | None = None,
        progress: bool = True,
    ) -> Tensor:
        chains = self._plain()
        batch = chains.batch(shape, chains.source(int(shape[0]), seeds=seeds, generator=generator))
        options = {
            "progress": progress,
            "self_condition": bool(getattr(self.original, "self_condition", False)),
        }
        if not return_all_timesteps:
            x = chains.run(plan, batch, **options)
        else:
            x = torch.stack([x.clone() for _, x, _ in chains.walk(plan, batch, **options)], dim=1)
        images: Tensor = self.original.unnormalize(x)
        return images

    def _interpolated(
        self,
        x1: Tensor,
        x2: Tensor,
        t: int | None,
        lam: float,
        chains: Chains,
        cond: dict[str, Tensor],
        progress: bool,
    ) -> Tensor:
        total = self.original.num_timesteps
        t = total - 1 if t is None else t
        whole("t", t, least=0, most=total - 1)
        if x1.shape != x2.shape:
            raise BadArgument("x2", f"shape {tuple(x2.shape)}", f"that of x1, {tuple(x1.shape)}")
        source = chains.source(len(x1))
        if isinstance(source, PhiloxNoise):
            raise BadArgument(
                "noise", "'philox' to interpolate, which draws its noise as the original does,", "'torch'"
            )
        at = torch.full((len(x1),), t, device=x1.device)
        with torch.no_grad():
            noised = [self.original.q_sample(x, t=at) for x in (x1, x2)]
            x: Tensor = (1 - lam) * noised[0] + lam * noised[1]
        if t == 0:
            return x
        batch = chains.batch(x.shape, source, x=x, cond=cond)
        self_condition = bool(getattr(self.original, "self_condition", False))
        options = {"progress": progress, "self_condition": self_condition}
        # Timesteps t-1 .. 0 stand in the last t rows.
        return chains.run(self.ancestral_plan(), batch, row=total - t, **options)

    def _plain(self) -> Chains:
        """The chains of this class, whose network is given x and t and perhaps the last x0."""
        return self._runner("plain", _learned if self._habits().learned else _self_conditioned)

    def _runner(self, key: Any, call: Callable[..., Any]) -> Chains:
        """The chains for one way to call the network; made anew where it is another one or was moved."""
        module = self.original.model
        chains = self._chains.pop(key, None)
        if (
            chains is None
            or chains.model.module is not module  # type: ignore[attr-defined]
            or chains.device != model_device_dtype(module)[0]
        ):
            dtype = None if self.settings.dtype == torch.float32 else self.settings.dtype
            settings = dataclasses.replace(self.settings, dtype=torch.float32)
            chains = Chains(Adapter(module, call, dtype), settings, capacity=self.original.num_timesteps)
        while len(self._chains) >= 4:
            del self._chains[next(iter(self._chains))]
        self._chains[key] = chains
        return chains

    def _buffers(self) -> dict[str, Tensor]:
        return {name: getattr(self.original, name) for name in BUFFERS}

    def _habits(self) -> Habits:
        check_choice("objective", self.original.objective, tuple(OBJECTIVES))
        return Habits(
            self.original.objective,
            # Versions before 1.3, and the class for guidance, do not have it.
            rederives="rederive_pred_noise" in _parameters(self.original.model_predictions),
            learned=hasattr(self.original, "vb_loss_weight"),
        )

    def _size(self) -> tuple[int, int]:
        size = self.original.image_size
        height, width = (size, size) if isinstance(size, int) else size
        return int(height), int(width)


def _learned(module: nn.Module, x: Tensor, t: Tensor) -> Any:
    return module(x, t)


def _self_conditioned(module: nn.Module, x: Tensor, t: Tensor, x_self_cond: Tensor | None = None) -> Any:
    # Positional, as there: networks of the library name the third argument in two ways.
    return module(x, t, x_self_cond)


def _parameters(function: Any) -> tuple[str, ...]:
    return tuple(inspect.signature(function).parameters)
