"""The drop-in for denoising-diffusion-pytorch's ``GaussianDiffusion1D``: sequences ``(B, C, T)``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from fastddpm.batch import make_batch
from fastddpm.checks import BadArgument, shown, whole
from fastddpm.dropin.lucidrains_loops import DrawOptions, FastLucidrains
from fastddpm.dropin.peer import parameters_of
from fastddpm.plans import Plan
from fastddpm.plans.lucidrains import Habits, ddim_plan
from fastddpm.runner import Runner

if TYPE_CHECKING:
    from typing_extensions import Unpack

Sampled = Tensor | tuple[Tensor, Tensor]
"""Sequences, or, where it is asked for, these and the noise that they were drawn from."""


class FastLucidrains1D(FastLucidrains):
    """``sample``, ``p_sample_loop``, ``ddim_sample`` and ``interpolate`` as in the library, by our loop.

    Attributes:
        original: the GaussianDiffusion1D; its attributes, buffers and weights are read anew by each call.
        settings: noise, engine and dtype.
    """

    description = "denoising-diffusion-pytorch (lucidrains) GaussianDiffusion1D"
    arranges = False

    def sample(  # type: ignore[override]
        self,
        batch_size: int = 16,
        return_noise: bool = False,
        model_forward_kwargs: Mapping[str, Tensor] | None = None,
        **options: Unpack[DrawOptions],
    ) -> Sampled:
        """Draws sequences, by DDIM if the original's sampling_timesteps are fewer than its timesteps.

        Args:
            batch_size: how many.
            return_noise: give the noise that they were drawn from too.
            model_forward_kwargs: tensors that the network is given by name.
            **options: ``seeds`` (one per sequence, with ``noise="philox"``), ``generator`` (instead of
                torch's global one) and ``progress``.

        Returns:
            float32 ``(batch_size, C, T)``, or ``(batch_size, T, C)`` of an original that is not
            ``channel_first``, in [0, 1] if it normalises by itself and in [-1, 1] if not; with
            ``return_noise`` these and the noise.

        Raises:
            ValueError: naming the argument, what was given and what is accepted.
        """
        whole("batch_size", batch_size, least=1)
        sides = (self.original.channels, self.original.seq_length)
        shape = (batch_size, *(sides if getattr(self.original, "channel_first", True) else sides[::-1]))
        if self.original.is_ddim_sampling:
            return self.ddim_sample(
                shape, return_noise=return_noise, model_forward_kwargs=model_forward_kwargs, **options
            )
        return self.p_sample_loop(shape, return_noise, model_forward_kwargs, **options)

    def p_sample_loop(  # type: ignore[override]
        self,
        shape: Sequence[int],
        return_noise: bool = False,
        model_forward_kwargs: Mapping[str, Tensor] | None = None,
        **options: Unpack[DrawOptions],
    ) -> Sampled:
        """`sample` for a shape ``(B, C, T)``, with every timestep."""
        return self._sequences(self.ancestral_plan(), shape, return_noise, model_forward_kwargs, **options)

    def ddim_sample(  # type: ignore[override]
        self,
        shape: Sequence[int],
        clip_denoised: bool = True,
        model_forward_kwargs: Mapping[str, Tensor] | None = None,
        return_noise: bool = False,
        **options: Unpack[DrawOptions],
    ) -> Sampled:
        """`sample` for a shape ``(B, C, T)``, by DDIM with the original's sampling_timesteps; x0 is clipped
        to [-1, 1] unless ``clip_denoised`` is False.

        The noise that ``return_noise`` gives is that of the start; the original's is the last step's.
        """
        steps, eta = self.original.sampling_timesteps, self.original.ddim_sampling_eta
        plan = ddim_plan(self._buffers(), self._habits(), steps=steps, eta=eta, clip=clip_denoised)
        return self._sequences(plan, shape, return_noise, model_forward_kwargs, **options)

    def _sequences(
        self,
        plan: Plan,
        shape: Sequence[int],
        return_noise: bool,
        given: Mapping[str, Tensor] | None,
        *,
        seeds: Sequence[int] | Tensor | None = None,
        generator: torch.Generator | None = None,
        progress: bool = True,
    ) -> Sampled:
        runner = self._plain()
        source = self.settings.source(int(shape[0]), runner.device, seeds=seeds, generator=generator)
        noise = source.initial(tuple(shape)) if return_noise else None
        batch = make_batch(shape, source, x=noise, cond=_named(given))
        x = self._unnormalized(
            runner.run(plan, batch, self_condition=bool(self.original.self_condition), progress=progress)
        )
        return x if noise is None else (x, noise)

    def _plain(self) -> Runner:
        by_name = "model_forward_kwargs" in parameters_of(self.original.model_predictions)
        return self._runner("1d", _by_name if by_name else _by_place)

    def _habits(self) -> Habits:
        # Its ddim_sample does not ask for the eps of the clipped x0.
        return Habits(self.original.objective, rederives=False)


def _named(given: Mapping[str, Tensor] | None) -> dict[str, Tensor]:
    for name, value in (given or {}).items():
        if not isinstance(value, Tensor):
            raise BadArgument(f"model_forward_kwargs[{name!r}]", shown(value), "a tensor")
    return dict(given or {})


def _by_name(module: nn.Module, x: Tensor, t: Tensor, **cond: Tensor) -> object:
    return module(x, t, **cond)


def _by_place(module: nn.Module, x: Tensor, t: Tensor, x_self_cond: Tensor | None = None) -> object:
    # As versions without model_forward_kwargs call it.
    return module(x, t, x_self_cond)
