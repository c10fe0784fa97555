"""Drop-ins for diffusers' pipelines of pixels and of latents."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastddpm.dropin._diffusers.dit import FastDiTPipeline
from fastddpm.dropin._diffusers.exploding import FastKarrasVePipeline, FastScoreSdeVePipeline
from fastddpm.dropin._diffusers.kinds import PipelineKind, pipeline_kind
from fastddpm.dropin._diffusers.latent_pipelines import (
    FastLDMPipeline,
    FastLDMSuperResolutionPipeline,
    FastPNDMPipeline,
)
from fastddpm.dropin._diffusers.options import Options
from fastddpm.dropin._diffusers.pipeline import FastPipeline
from fastddpm.dropin._diffusers.pipelines import FastDDIMPipeline, FastDDPMPipeline
from fastddpm.dropin._diffusers.repaint import FastRePaintPipeline
from fastddpm.dropin._diffusers.stable_diffusion import (
    FastStableDiffusionImg2ImgPipeline,
    FastStableDiffusionPipeline,
)
from fastddpm.dropin.alterations import warn_if_random
from fastddpm.dropin.overrides import check_published
from fastddpm.dropin.peer import Peer
from fastddpm.dropin.settings import PeerOptions, Settings

if TYPE_CHECKING:
    from typing_extensions import Unpack

_KINDS: dict[PipelineKind, type[FastPipeline]] = {
    "StableDiffusionPipeline": FastStableDiffusionPipeline,
    "StableDiffusionImg2ImgPipeline": FastStableDiffusionImg2ImgPipeline,
    "DiTPipeline": FastDiTPipeline,
    "LDMPipeline": FastLDMPipeline,
    "LDMSuperResolutionPipeline": FastLDMSuperResolutionPipeline,
    "PNDMPipeline": FastPNDMPipeline,
    "RePaintPipeline": FastRePaintPipeline,
    "KarrasVePipeline": FastKarrasVePipeline,
    "ScoreSdeVePipeline": FastScoreSdeVePipeline,
    "DDPMPipeline": FastDDPMPipeline,
    "DDIMPipeline": FastDDIMPipeline,
}
DESCRIPTION = f"diffusers {', '.join(list(_KINDS)[:-1])} and {list(_KINDS)[-1]}"


def recognises(obj: object) -> bool:
    """Whether an object has the parts and the call of one of the pipelines."""
    return pipeline_kind(obj) is not None


def build(obj: Peer, settings: Settings, **options: Unpack[PeerOptions]) -> FastPipeline:
    """The drop-in for a pipeline that `recognises`.

    Args:
        obj: the pipeline.
        settings: noise, engine and dtype.
        **options: ``variance_type``, ``previous_timestep`` and ``network``, of `Options`.

    Raises:
        ValueError: an option is not as there, or a scheduler or configuration that cannot be reproduced.
    """
    check_published(obj, ("__call__",))
    kind = pipeline_kind(obj)
    assert kind is not None
    fast = _KINDS[kind](obj, settings, Options.of(options))
    warn_if_random(fast.unet, "transformer" if kind == "DiTPipeline" else "unet")
    return fast
