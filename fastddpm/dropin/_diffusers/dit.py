"""Drop-in for diffusers' DiTPipeline: a transformer with classes, guided on the channels that are the noise.

Peebles and Xie 2022, "Scalable Diffusion Models with Transformers".
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor, nn

from fastddpm.checks import BadArgument, check_number, is_whole
from fastddpm.dropin._diffusers.latent import Asked, Chain, LatentPipeline, begun
from fastddpm.dropin._diffusers.network import Way, check_call
from fastddpm.dropin._diffusers.pictures import handed_out
from fastddpm.dropin._diffusers.standin import stand_in
from fastddpm.dropin._diffusers.states import state_scale
from fastddpm.dropin.peer import Peer
from fastddpm.network import model_device_dtype, unwrapped
from fastddpm.plans import Plan
from fastddpm.randomness import TorchNoise

NULL = 1000
"""The label of no class: ImageNet's, whatever the transformer's number of classes, as in the original."""


class FastDiTPipeline(LatentPipeline):
    """In the place of a DiTPipeline; its call and extras are `LatentPipeline`'s."""

    peer = "DiTPipeline"
    unscaled = "whose scaled state the original takes for the state"

    @property
    def unet(self) -> Peer:
        """The original's transformer, as it is now."""
        return self.original.transformer

    def _check_network(self) -> None:
        check_call(
            self.unet, "transformer", ("class_labels",), "one of classes, such as DiTTransformer2DModel,"
        )

    def _check_variance(self, plan: Plan) -> None:
        if plan.learned_range:
            raise BadArgument(
                "variance_type",
                "a learned one, of which the original leaves the network's half out,",
                "fixed_small or fixed_large",
            )

    def _way(self) -> Way:
        return Way("labelled", functools.partial(_call_labelled, self.unet.config.in_channels), False)

    def _chain(self, asked: Asked) -> Chain:
        plan = self._plan(asked["num_inference_steps"])
        scale_of_guidance = check_number("guidance_scale", asked["guidance_scale"])
        is_guided = scale_of_guidance > 1
        labels = self._labels(asked["class_labels"], is_guided)
        count = len(labels)
        device, dtype = model_device_dtype(self.unet)
        source = self._source(asked, count, generator=None)
        if is_guided and isinstance(source, TorchNoise):
            # The original's scheduler draws for both halves of the batch.
            source = TorchNoise(None, device, dtype, rows=2 * count)
        config = self.unet.config
        shape = (count, config.in_channels, config.sample_size, config.sample_size)
        latents = self._drawn(asked, shape, source, device=device, dtype=dtype)
        both = torch.cat((torch.full_like(labels, NULL), labels)) if is_guided else labels
        scale = state_scale(self.scheduler, plan)
        batch = begun(
            latents, scale[0], source, {"class_labels": both}, scale_of_guidance if is_guided else None
        )
        stand = stand_in(self.original, asked["num_inference_steps"])
        return Chain(stand, self._ready(), plan, batch, scale, dtype)

    def _labels(self, class_labels: Any, is_guided: bool) -> Tensor:
        """int64 ``(B,)``; BadArgument for labels that the transformer does not have."""
        classes = int(self.unet.config.num_embeds_ada_norm)
        values = class_labels.tolist() if isinstance(class_labels, Tensor) else class_labels
        known = isinstance(values, (list, tuple)) and len(values) > 0
        if not known or not all(is_whole(value) and 0 <= value <= classes for value in values):
            raise BadArgument("class_labels", repr(class_labels), f"a list of integers in 0 .. {classes}")
        if is_guided and classes < NULL:
            raise BadArgument(
                "guidance_scale",
                f"a number above 1 for {classes} classes, among which diffusers takes {NULL} for none,",
                "1",
            )
        return torch.tensor(values, dtype=torch.int64)

    def _finished(self, chain: Chain, latents: Tensor, asked: Asked) -> Any:
        coder, kind = chain.stand.vae, asked["output_type"]
        images = coder.decode(1 / coder.config.scaling_factor * latents).sample
        images = (images / 2 + 0.5).clamp(0, 1)
        result = handed_out(
            self.original, images if kind == "pt" else images.float(), kind, asked["return_dict"]
        )
        chain.stand.maybe_free_model_hooks()
        return result

    def _fused(self) -> list[str]:
        return ["guidance of the noise's channels"]

    def _not_fused(self) -> list[str]:
        return ["the autoencoder: the original's, after the chain"]


def _call_labelled(
    channels: int, transformer: nn.Module, x: Tensor, t: Tensor, *, class_labels: Tensor
) -> Tensor:
    """The noise that a transformer predicts, ``(B, C, H, W)``: of 2C channels, the first C."""
    m = unwrapped(transformer(x, timestep=t, class_labels=class_labels))
    return m[:, :channels].contiguous() if m.shape[1] == 2 * channels else m
