"""Drop-ins for diffusers' KarrasVePipeline and ScoreSdeVePipeline, whose states keep all their noise.

Their schedulers have no betas and are asked for more than a step; the plans are those of
`fastddpm.plans.diffusers.exploding`. They draw from the host's random state where no generator is given, also
on a card: all but the first state of KarrasVe and the predictor of ScoreSdeVe.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fastddpm.checks import BadArgument, whole
from fastddpm.dropin._diffusers.generators import one_each
from fastddpm.dropin._diffusers.latent import Asked, Chain, LatentPipeline, begun
from fastddpm.dropin._diffusers.network import Way, image_shape
from fastddpm.dropin._diffusers.pictures import handed_out
from fastddpm.dropin._diffusers.times import Times
from fastddpm.dropin.overrides import check_published
from fastddpm.network import model_device_dtype, unwrapped
from fastddpm.plans import Plan
from fastddpm.plans.diffusers.exploding import (
    first_churn,
    from_karras_ve_scheduler,
    from_score_sde_ve_scheduler,
)
from fastddpm.randomness import TorchNoise
from fastddpm.transfer import to_device


class _Exploding(LatentPipeline):
    """What the two have in common.

    Attributes:
        methods: of the scheduler, that make its steps.
        wanted: the scheduler, for messages.
    """

    methods: tuple[str, ...]
    wanted: str

    def _check_scheduler(self) -> None:
        """ValueError for another scheduler, or one with a step of its own."""
        if not all(hasattr(self.scheduler, name) for name in self.methods):
            raise BadArgument("scheduler", type(self.scheduler).__name__, self.wanted)
        check_published(self.scheduler, self.methods, "scheduler")

    def _check_network(self) -> None:
        super()._check_network()
        config = self.unet.config
        if config.out_channels != config.in_channels:
            given = (
                f"a network that returns {config.out_channels} channels for images of {config.in_channels}"
            )
            raise BadArgument("unet", given, "one that returns as many")

    def _begin(self, asked: Asked, device: torch.device | None) -> tuple[tuple[int, ...], Tensor]:
        """The shape of a batch, and torch's first draw for it."""
        count = whole("batch_size", asked["batch_size"], least=1)
        shape = (count, *image_shape(self.unet))
        source = TorchNoise(None, model_device_dtype(self.unet)[0])
        return shape, self._drawn(asked, shape, source, device=device, dtype=torch.float32)

    def _pictures(self, images: Tensor, asked: Asked) -> Any:
        # The originals have no tensors to give.
        kind = "np" if asked["output_type"] == "pt" else asked["output_type"]
        return handed_out(self.original, images.clamp(0, 1), kind, asked["return_dict"])


class FastKarrasVePipeline(_Exploding):
    """In the place of a KarrasVePipeline, which draws pixels; its call and extras are `LatentPipeline`'s."""

    peer = "KarrasVePipeline"
    methods = ("step", "step_correct", "add_noise_to_input", "set_timesteps")
    wanted = "a KarrasVeScheduler"

    def _way(self) -> Way:
        return Way("slope", _slope, False)

    def _plan(
        self,
        num_inference_steps: int,
        *,
        eta: float | None = None,
        use_clipped_model_output: bool = False,
        times: Times | None = None,
    ) -> Plan:
        self._check_scheduler()
        return from_karras_ve_scheduler(self.scheduler, num_inference_steps)

    def _times(self) -> Tensor:
        # Half of a sigma, of which the highest is sigma_max squared there.
        ends = (float(self.scheduler.config[name]) ** 2 / 2 for name in ("sigma_min", "sigma_max"))
        return torch.tensor(list(ends))

    def _chain(self, asked: Asked) -> Chain:
        steps = asked["num_inference_steps"]
        plan = self._plan(steps)
        highest, churn = float(self.scheduler.init_noise_sigma), first_churn(self.scheduler, steps)
        s_noise, device = float(self.scheduler.config["s_noise"]), model_device_dtype(self.unet)[0]
        if self.settings.noise == "philox":
            count = self._count(asked, whole("batch_size", asked["batch_size"], least=1))
            source = self._source(asked, count, generator=None)
            shape: tuple[int, ...] = (count, *image_shape(self.unet))
            # The two draws of the start are one.
            y = source.initial(shape) * math.hypot(highest, churn * s_noise)
        else:
            self.settings.source(1, device, seeds=asked["seeds"])  # which are refused
            shape, noise = self._begin(asked, device)
            generator = one_each(asked["generator"], shape[0])
            source = TorchNoise(torch.default_generator if generator is None else generator, device)
            y = noise * highest + churn * (s_noise * source.draw(shape))
        batch, scale = begun(y, 1.0, source, {}), np.ones(len(plan) + 1)
        return Chain(self.original, self._ready(), plan, batch, scale, torch.float32)

    def _finished(self, chain: Chain, latents: Tensor, asked: Asked) -> Any:
        return self._pictures(latents / 2 + 0.5, asked)

    def _not_fused(self) -> list[str]:
        return ["what the network is given and the slope of what it returns: passes of their own"]


def _slope(unet: nn.Module, y: Tensor, t: Tensor) -> Tensor:
    """(y - x0)/sigma of states y ``(B, C, H, W)`` at sigma = 2t, t float32 ``(B,)``; float32.

    Computed as there: where sigma is small it is mostly rounding, which the correction then divides by sigma.
    """
    half = t.view(-1, *(1,) * (y.dim() - 1))
    m = half * unwrapped(unet((y + 1) / 2, t))
    sigma = 2 * half
    return (y - (y + sigma * m)) / sigma


class FastScoreSdeVePipeline(_Exploding):
    """In the place of a ScoreSdeVePipeline, of pixels; its call is `LatentPipeline`'s, without seeds.

    The length of the corrector's steps follows from the whole batch, so that no image depends on its own seed
    alone.
    """

    peer = "ScoreSdeVePipeline"
    methods = ("step_pred", "step_correct", "set_timesteps", "set_sigmas", "get_adjacent_sigma")
    wanted = "a ScoreSdeVeScheduler"

    def check(self) -> None:
        """ValueError for a pipeline that cannot be reproduced, before any image is asked for."""
        if self.settings.noise == "philox":
            raise BadArgument("noise", "'philox' for a ScoreSdeVePipeline", '"torch", or fastddpm.score,')
        super().check()

    def sample_trajectory(
        self, *args: Any, frames: int | None = None, predicted: bool = False, **options: Any
    ) -> Tensor:
        """As of `LatentPipeline`, of states alone: a row of the corrector predicts no image.

        Raises:
            ValueError: ``predicted``, or an argument of the call.
        """
        if predicted:
            raise BadArgument("predicted", "True for a ScoreSdeVePipeline", "False")
        return super().sample_trajectory(*args, frames=frames, **options)

    def _plan(
        self,
        num_inference_steps: int,
        *,
        eta: float | None = None,
        use_clipped_model_output: bool = False,
        times: Times | None = None,
    ) -> Plan:
        self._check_scheduler()
        return from_score_sde_ve_scheduler(self.scheduler, num_inference_steps)

    def _times(self) -> Tensor:
        config = self.scheduler.config
        return torch.tensor([float(config["sigma_min"]), float(config["sigma_max"])])

    def _chain(self, asked: Asked) -> Chain:
        plan = self._plan(asked["num_inference_steps"])
        device = model_device_dtype(self.unet)[0]
        self.settings.source(1, device, seeds=asked["seeds"])  # which are refused
        shape, noise = self._begin(asked, None)
        x = to_device(noise, device) * float(self.scheduler.init_noise_sigma)
        generator = one_each(asked["generator"], shape[0])
        source = TorchNoise(generator, device)
        if generator is None and plan.langevin is not None:
            source = InTurn(TorchNoise(torch.default_generator, device), source, plan.langevin[1])
        batch, scale = begun(x, 1.0, source, {}), np.ones(len(plan) + 1)
        return Chain(self.original, self._ready(), plan, batch, scale, torch.float32)

    def _finished(self, chain: Chain, latents: Tensor, asked: Asked) -> Any:
        return self._pictures(latents, asked)

    def _not_fused(self) -> list[str]:
        return ["the corrector's step: norms over the batch, in passes of their own before the update"]


class InTurn(TorchNoise):
    """Noise of a corrector's rows from one source, and of the predictor's from another.

    Args:
        corrector: the one.
        predictor: the other.
        passes: rows of the corrector before each of the predictor.
    """

    def __init__(self, corrector: TorchNoise, predictor: TorchNoise, passes: int) -> None:
        super().__init__(predictor.generator, predictor.device, predictor.dtype)
        self._corrector, self._predictor, self._passes = corrector, predictor, passes

    def fill(self, ring: Tensor, plan: Plan, start: int, stop: int) -> None:
        """As of `TorchNoise`, row by row."""
        for k in range(start, stop):
            corrects = k % (self._passes + 1) < self._passes
            (self._corrector if corrects else self._predictor).fill(ring, plan, k, k + 1)
