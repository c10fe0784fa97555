"""What the drop-ins for Stable Diffusion's pipelines share: texts, guidance, callbacks, the decoded images.

Rombach et al. 2022, "High-Resolution Image Synthesis with Latent Diffusion Models". Text encoder, autoencoder
and safety checker are the original's, called by the original's methods.
"""

from __future__ import annotations

import dataclasses
from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor, nn

from fastddpm.checks import BadArgument, check_number, quoted, whole
from fastddpm.dropin._diffusers.callbacks import StepEnd
from fastddpm.dropin._diffusers.generators import one_each
from fastddpm.dropin._diffusers.latent import Asked, Chain, LatentPipeline, Look, begun
from fastddpm.dropin._diffusers.network import Way, call, check_call
from fastddpm.dropin._diffusers.standin import stand_in
from fastddpm.dropin._diffusers.states import state_scale
from fastddpm.dropin._diffusers.times import Times
from fastddpm.dropin.peer import Peer
from fastddpm.network import unwrapped
from fastddpm.plans import Plan
from fastddpm.randomness import PhiloxNoise, TorchNoise

_REFUSED = ("ip_adapter_image", "ip_adapter_image_embeds", "cross_attention_kwargs")


@dataclasses.dataclass(frozen=True)
class Texts:
    """What the network is told.

    Attributes:
        embeds: of the prompts, ``(B, L, D)``.
        negative: of what is not wanted, likewise; without guidance as it was given, or None.
        guidance: the scale; None without guidance.
        rescale: of Lin et al. 2024, section 3.4; 0 without.
    """

    embeds: Tensor
    negative: Tensor | None
    guidance: float | None
    rescale: float

    @property
    def given(self) -> Tensor:
        """As the original gives them to its network: both halves under guidance."""
        if self.guidance is None or self.negative is None:
            return self.embeds
        return torch.cat((self.negative, self.embeds))


class TextPipeline(LatentPipeline):
    """A pipeline of texts; its call and extras are `LatentPipeline`'s."""

    unscaled = ""

    def _check_network(self) -> None:
        unet = self.unet
        check_call(
            unet, "unet", ("encoder_hidden_states",), "a network of texts, such as UNet2DConditionModel,"
        )
        is_image = getattr(unet.config, "encoder_hid_dim_type", None) == "ip_image_proj"
        if is_image or getattr(unet, "peft_config", None):
            raise BadArgument(
                "unet",
                "one with an IP-Adapter" if is_image else "one with LoRA weights or other adapters loaded",
                "one without, or with its LoRA weights in its own (fuse_lora, unload_lora_weights),",
            )

    def _check_variance(self, plan: Plan) -> None:
        if plan.learned_range:
            raise BadArgument(
                "variance_type",
                "a learned one, which the original guides with the noise,",
                "fixed_small or fixed_large",
            )
        super()._check_variance(plan)

    def _way(self) -> Way:
        return Way("texts", call, False)

    def _chain(self, asked: Asked) -> Chain:
        times, steps = Times.of(asked), asked["num_inference_steps"]
        self._check_network()
        plan = self._plan(steps, eta=check_number("eta", asked["eta"]), times=times)
        _check(asked)
        stand = stand_in(self.original, steps, device=self.original._execution_device, times=times)
        if times is not None:  # as of a solver that has more of them than steps: the original counts all
            asked["num_inference_steps"] = len(stand.scheduler.timesteps)
        _prepare(stand, asked)
        self._check_inputs(stand, asked)
        texts = _texts(stand, asked)
        count = len(texts.embeds)
        generator = asked["generator"]
        source = self._source(asked, count, generator=one_each(generator, count))
        scale = state_scale(self.scheduler, plan)
        latents, row = self._start(stand, asked, source, texts)
        stand._num_timesteps = len(plan) - row
        rescaled = (
            Way("rescaled", _call_rescaled, False)
            if texts.guidance is not None and texts.rescale > 0
            else None
        )
        runner = self._ready(rescaled)
        cond = _conditions(stand, texts, runner.dtype, is_rescaled=rescaled is not None)
        guidance = None if rescaled else texts.guidance
        return Chain(
            stand,
            runner,
            self._begun(plan, row, asked),
            begun(latents, scale[row], source, cond, guidance),
            scale,
            latents.dtype,
            row,
            {"prompt_embeds": texts.given, "negative_prompt_embeds": texts.negative},
        )

    @abstractmethod
    def _check_inputs(self, stand: Peer, asked: Asked) -> None:
        """The original's own check of its arguments."""

    @abstractmethod
    def _start(
        self, stand: Peer, asked: Asked, source: PhiloxNoise | TorchNoise, texts: Texts
    ) -> tuple[Tensor, int]:
        """The scheduler's state that the chain begins with, ``(B, C, H, W)``, and the row where it does."""

    def _begun(self, plan: Plan, row: int, asked: Asked) -> Plan:
        """The plan for a chain that begins at a row."""
        return plan

    def _look(self, chain: Chain, asked: Asked) -> Look | None:
        if asked["callback"] is None and asked["callback_on_step_end"] is None:
            return None
        return StepEnd(chain, asked)

    def _finished(self, chain: Chain, latents: Tensor, asked: Asked) -> Any:
        from diffusers.pipelines.stable_diffusion.pipeline_output import StableDiffusionPipelineOutput

        stand, kind = chain.stand, asked["output_type"]
        images, flagged = latents, None
        if kind != "latent":
            scaled = latents / stand.vae.config.scaling_factor
            (images,) = stand.vae.decode(scaled, return_dict=False, generator=asked["generator"])
            images, flagged = stand.run_safety_checker(images, stand._execution_device, chain.dtype)
        kept = [True] * len(images) if flagged is None else [not one for one in flagged]
        images = stand.image_processor.postprocess(images, output_type=kind, do_denormalize=kept)
        stand.maybe_free_model_hooks()
        if not asked["return_dict"]:
            return images, flagged
        output: Any = StableDiffusionPipelineOutput
        return output(images=images, nsfw_content_detected=flagged)

    def _fused(self) -> list[str]:
        return ["guidance"]

    def _not_fused(self) -> list[str]:
        return [
            "text encoder, autoencoder and safety checker: the original's, before and after the chain",
            "guidance_rescale, where it is asked for: the deviations of a sample are a pass of their own",
        ]


def common_inputs(asked: Asked) -> dict[str, object]:
    """What ``check_inputs`` of both pipelines takes."""
    names = ("prompt", "negative_prompt", "prompt_embeds", "negative_prompt_embeds", "callback_steps")
    inputs = {name: asked[name] for name in names}
    tensors = asked["callback_on_step_end_tensor_inputs"]
    return {**inputs, "callback_on_step_end_tensor_inputs": tensors}


def prompts(asked: Asked) -> int:
    """How many prompts a call has."""
    if isinstance(asked["prompt"], str):
        return 1
    return len(asked["prompt_embeds"] if asked["prompt"] is None else asked["prompt"])


def _check(asked: Asked) -> None:
    """BadArgument for what no chain here does, before any work."""
    for name in _REFUSED:
        if asked[name] is not None and asked[name] != {}:
            raise BadArgument(name, quoted(asked[name]), "None, or the original pipeline for it,")
    check_number("guidance_scale", asked["guidance_scale"])
    check_number("guidance_rescale", asked.get("guidance_rescale", 0.0))
    whole("num_images_per_prompt", asked["num_images_per_prompt"], least=1)


def _prepare(stand: Peer, asked: Asked) -> None:
    """Leaves at the stand-in what the original's call leaves at the pipeline, for methods and callbacks."""
    on_end = asked["callback_on_step_end"]
    if on_end is not None and hasattr(on_end, "tensor_inputs"):  # a PipelineCallback of diffusers
        asked["callback_on_step_end_tensor_inputs"] = on_end.tensor_inputs
    stand._guidance_scale = asked["guidance_scale"]
    stand._guidance_rescale = asked.get("guidance_rescale", 0.0)
    stand._clip_skip = asked["clip_skip"]
    stand._cross_attention_kwargs = None
    stand._interrupt = False


def _texts(stand: Peer, asked: Asked) -> Texts:
    is_guided = bool(stand.do_classifier_free_guidance)
    embeds, negative = stand.encode_prompt(
        asked["prompt"],
        stand._execution_device,
        asked["num_images_per_prompt"],
        is_guided,
        asked["negative_prompt"],
        prompt_embeds=asked["prompt_embeds"],
        negative_prompt_embeds=asked["negative_prompt_embeds"],
        clip_skip=asked["clip_skip"],
    )
    if not is_guided:
        return Texts(embeds, negative, None, 0.0)
    return Texts(embeds, negative, float(asked["guidance_scale"]), float(stand._guidance_rescale))


def _conditions(stand: Peer, texts: Texts, dtype: torch.dtype, *, is_rescaled: bool) -> dict[str, Tensor]:
    """What the network is given by name, in its dtype."""
    embeds = texts.embeds.to(dtype)
    if is_rescaled and texts.negative is not None:
        scales = embeds.new_tensor([texts.guidance, texts.rescale], dtype=torch.float32)
        return {
            "encoder_hidden_states": embeds,
            "negative": texts.negative.to(dtype),
            "scales": scales.expand(len(embeds), 2),
        }
    cond = {"encoder_hidden_states": texts.given.to(dtype)}
    width = stand.unet.config.time_cond_proj_dim
    if width is not None:  # a distilled network, which is told the scale
        scale = torch.tensor(stand._guidance_scale - 1).repeat(len(embeds))
        told = stand.get_guidance_scale_embedding(scale, embedding_dim=width)
        cond["timestep_cond"] = told.to(embeds.device, dtype)
    return cond


def _call_rescaled(
    unet: nn.Module, x: Tensor, t: Tensor, *, encoder_hidden_states: Tensor, negative: Tensor, scales: Tensor
) -> Tensor:
    """The guided output, rescaled to the deviation of the one with the text (Lin et al. 2024, eq. 15, 16).

    Args:
        unet: called once, on both halves.
        x: ``(B, C, H, W)``.
        t: ``(B,)``.
        encoder_hidden_states: ``(B, L, D)``.
        negative: likewise.
        scales: ``(B, 2)``: guidance_scale and guidance_rescale.
    """
    states = torch.cat((negative, encoder_hidden_states))
    output = unwrapped(unet(torch.cat((x, x)), torch.cat((t, t)), encoder_hidden_states=states))
    without, text = output.chunk(2)
    scale, share = (column[:, None, None, None] for column in scales.unbind(1))
    guided = without + scale * (text - without)
    over = tuple(range(1, guided.ndim))
    rescaled = guided * (text.std(dim=over, keepdim=True) / guided.std(dim=over, keepdim=True))
    return share * rescaled + (1 - share) * guided
