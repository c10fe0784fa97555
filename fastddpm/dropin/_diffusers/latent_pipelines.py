"""Drop-ins for diffusers' LDMPipeline, LDMSuperResolutionPipeline and PNDMPipeline: no text, no guidance."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from fastddpm.checks import BadArgument, whole
from fastddpm.dropin._diffusers.latent import Asked, Chain, LatentPipeline, begun
from fastddpm.dropin._diffusers.network import Way, image_shape
from fastddpm.dropin._diffusers.pictures import handed_out, picture
from fastddpm.dropin._diffusers.standin import stand_in
from fastddpm.dropin._diffusers.states import state_scale, unset_noise_sigma
from fastddpm.network import model_device_dtype
from fastddpm.plans import Plan


class FastLDMPipeline(LatentPipeline):
    """In the place of an LDMPipeline; its call and extras are `LatentPipeline`'s."""

    peer = "LDMPipeline"
    unscaled = ""

    def _chain(self, asked: Asked) -> Chain:
        plan = self._plan(asked["num_inference_steps"], eta=asked["eta"])
        count = self._count(asked, whole("batch_size", asked["batch_size"], least=1))
        # The original gives its generator to the first draw, not to the scheduler's steps.
        source = self._source(asked, count, generator=None)
        stand = stand_in(self.original, asked["num_inference_steps"])
        shape = (count, *image_shape(self.unet))
        latents = self._drawn(asked, shape, source, device=None, dtype=torch.float32)
        latents = latents * unset_noise_sigma(self.scheduler)
        scale = state_scale(self.scheduler, plan)
        return Chain(
            stand,
            self._ready(),
            plan,
            begun(latents, scale[0], source, {}),
            scale,
            model_device_dtype(stand.vqvae)[1],
        )

    def _finished(self, chain: Chain, latents: Tensor, asked: Asked) -> Any:
        coder = chain.stand.vqvae
        images = coder.decode(latents / coder.config.scaling_factor).sample
        # The original has no tensors to give.
        kind = "np" if asked["output_type"] == "pt" else asked["output_type"]
        return handed_out(self.original, (images / 2 + 0.5).clamp(0, 1), kind, asked["return_dict"])

    def _not_fused(self) -> list[str]:
        return ["the VQ model: the original's, after the chain"]


class FastPNDMPipeline(LatentPipeline):
    """In the place of a PNDMPipeline, which draws pixels; its call and extras are `LatentPipeline`'s."""

    peer = "PNDMPipeline"

    def _chain(self, asked: Asked) -> Chain:
        plan = self._plan(asked["num_inference_steps"])
        count = self._count(asked, whole("batch_size", asked["batch_size"], least=1))
        source = self._source(asked, count, generator=None)
        device, dtype = model_device_dtype(self.unet)
        shape = (count, *image_shape(self.unet))
        noise = self._drawn(asked, shape, source, device=device, dtype=torch.float32)
        scale = state_scale(self.scheduler, plan)
        return Chain(self.original, self._ready(), plan, begun(noise, scale[0], source, {}), scale, dtype)

    def _finished(self, chain: Chain, latents: Tensor, asked: Asked) -> Any:
        kind = "np" if asked["output_type"] == "pt" else asked["output_type"]
        return handed_out(self.original, (latents / 2 + 0.5).clamp(0, 1), kind, asked["return_dict"])


class FastLDMSuperResolutionPipeline(LatentPipeline):
    """In the place of an LDMSuperResolutionPipeline; its call and extras are `LatentPipeline`'s."""

    peer = "LDMSuperResolutionPipeline"
    unscaled = "which scales the low resolution together with the state"

    def _check_variance(self, plan: Plan) -> None:
        if plan.learned_range:
            raise BadArgument("variance_type", "a learned one", "fixed_small or fixed_large")

    def _way(self) -> Way:
        return Way("beside", _call_beside, False)

    def _chain(self, asked: Asked) -> Chain:
        low = picture("image", [asked["image"]], 32)  # one argument: the original takes no list
        plan = self._plan(asked["num_inference_steps"], eta=asked["eta"])
        source = self._source(asked, len(low), generator=None)
        stand = stand_in(self.original, asked["num_inference_steps"])
        device, dtype = model_device_dtype(self.unet)
        shape = (len(low), self.unet.config.in_channels // 2, *low.shape[-2:])
        latents = self._drawn(asked, shape, source, device=device, dtype=dtype)
        latents = latents * stand.scheduler.init_noise_sigma
        scale, runner = state_scale(self.scheduler, plan), self._ready()
        cond = {"low_resolution": low.to(device, runner.dtype)}
        return Chain(stand, runner, plan, begun(latents, scale[0], source, cond), scale, dtype)

    def _finished(self, chain: Chain, latents: Tensor, asked: Asked) -> Any:
        images = chain.stand.vqvae.decode(latents).sample.clamp(-1, 1) / 2 + 0.5
        return handed_out(self.original, images, asked["output_type"], asked["return_dict"])

    def _not_fused(self) -> list[str]:
        return ["the VQ model: the original's, after the chain"]


def _call_beside(unet: nn.Module, x: Tensor, t: Tensor, *, low_resolution: Tensor) -> object:
    """The output of a UNet that is given the low resolution behind x, ``(B, C + C', H, W)``."""
    return unet(torch.cat((x, low_resolution), dim=1), t)
