"""Drop-ins for diffusers' StableDiffusionPipeline and StableDiffusionImg2ImgPipeline."""

from __future__ import annotations

import dataclasses

import numpy as np
from torch import Tensor

from fastddpm.checks import BadArgument
from fastddpm.dropin._diffusers.latent import Asked
from fastddpm.dropin._diffusers.options import Steps, plan_of
from fastddpm.dropin._diffusers.scheduler_kinds import scheduler_kind
from fastddpm.dropin._diffusers.text import TextPipeline, Texts, common_inputs, prompts
from fastddpm.dropin._diffusers.times import Times
from fastddpm.dropin.peer import Peer
from fastddpm.plans import Plan
from fastddpm.plans.diffusers.solver_classes import SOLVERS
from fastddpm.randomness import PhiloxNoise, TorchNoise


class FastStableDiffusionPipeline(TextPipeline):
    """In the place of a StableDiffusionPipeline; its call and extras are `LatentPipeline`'s."""

    peer = "StableDiffusionPipeline"

    def _check_inputs(self, stand: Peer, asked: Asked) -> None:
        asked["height"], asked["width"] = _size(stand, asked)
        stand.check_inputs(height=asked["height"], width=asked["width"], **common_inputs(asked))

    def _start(
        self, stand: Peer, asked: Asked, source: PhiloxNoise | TorchNoise, texts: Texts
    ) -> tuple[Tensor, int]:
        count, channels = len(texts.embeds), int(stand.unet.config.in_channels)
        height, width, latents = asked["height"], asked["width"], asked["latents"]
        if latents is None and isinstance(source, PhiloxNoise):
            factor = stand.vae_scale_factor
            latents = source.initial((count, channels, height // factor, width // factor)).to(
                texts.embeds.dtype
            )
        if latents is not None:
            _check_latents(latents, count, channels)
        started: Tensor = stand.prepare_latents(
            count,
            channels,
            height,
            width,
            texts.embeds.dtype,
            stand._execution_device,
            asked["generator"],
            latents,
        )
        return started, 0


class FastStableDiffusionImg2ImgPipeline(TextPipeline):
    """In the place of a StableDiffusionImg2ImgPipeline; its call and extras are `LatentPipeline`'s."""

    peer = "StableDiffusionImg2ImgPipeline"
    looks_up = False

    def check(self) -> None:
        """ValueError for a pipeline that cannot be reproduced, before any image is asked for."""
        super().check()
        if self.settings.noise == "philox":
            given = "'philox' for a pipeline that draws the latents of its image from a generator"
            raise BadArgument("noise", given, '"torch"')
        self._last_begun: tuple[Plan, int, Plan] | None = None

    def _check_inputs(self, stand: Peer, asked: Asked) -> None:
        strength, steps = asked["strength"], asked["num_inference_steps"]
        stand.check_inputs(strength=strength, **common_inputs(asked))
        if int(steps * strength) < 1:
            raise BadArgument(
                "strength", f"{strength} of {steps} steps, which is none,", f"{1 / steps:.3g} or more"
            )

    def _start(
        self, stand: Peer, asked: Asked, source: PhiloxNoise | TorchNoise, texts: Texts
    ) -> tuple[Tensor, int]:
        device, count = stand._execution_device, len(texts.embeds)
        image = stand.image_processor.preprocess(asked["image"])
        total = len(stand.scheduler.timesteps)
        left, _ = stand.get_timesteps(asked["num_inference_steps"], asked["strength"], device)
        if len(left) == 0:  # a solver that evaluates twice skips as many rows for each of its timesteps
            raise BadArgument("strength", f"{asked['strength']} of these timesteps, which is none,", "1")
        latents: Tensor = stand.prepare_latents(
            image,
            left[:1].repeat(count),
            prompts(asked),
            asked["num_images_per_prompt"],
            texts.embeds.dtype,
            device,
            asked["generator"],
        )
        if len(latents) != count:
            raise BadArgument("image", f"{len(latents)} for {count} images", "one for all, or one each")
        return latents, total - len(left)

    def _begun(self, plan: Plan, row: int, asked: Asked) -> Plan:
        """The plan for a chain from a row on, the same object as long as both are the same.

        What a solver remembers begins anew there, as in the original.
        """
        if row == 0 or scheduler_kind(self.scheduler) not in SOLVERS:
            return plan
        last = self._last_begun
        if last is None or last[0] is not plan or last[1] != row:
            steps = Steps(
                asked["num_inference_steps"],
                eta=asked["eta"],
                start=row,
                times=Times.of(asked),
                as_written=self._as_written,
            )
            rest = plan_of(self.scheduler, steps, self.options)
            table = np.concatenate((plan.table[:row], rest.table))
            starts = np.concatenate((np.asarray(plan.starts)[:row], np.asarray(rest.starts)))
            begun = dataclasses.replace(plan, table=table, starts=starts)
            self._last_begun = last = (plan, row, begun)
        return last[2]


def _size(stand: Peer, asked: Asked) -> tuple[int, int]:
    """Height and width in pixels: those asked for, or both of the network's own latents."""
    if asked["height"] and asked["width"]:
        return asked["height"], asked["width"]
    size = stand.unet.config.sample_size
    height, width = (size, size) if isinstance(size, int) else size
    return height * stand.vae_scale_factor, width * stand.vae_scale_factor


def _check_latents(latents: object, count: int, channels: int) -> None:
    if not isinstance(latents, Tensor) or latents.ndim != 4 or latents.shape[:2] != (count, channels):
        given = f"shape {tuple(latents.shape)}" if isinstance(latents, Tensor) else type(latents).__name__
        raise BadArgument("latents", given, f"a tensor ({count}, {channels}, H, W)")
