"""Drop-in for diffusers' DDPMPipeline and DDIMPipeline."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastddpm.dropin._diffusers.kinds import pipeline_kind
from fastddpm.dropin._diffusers.options import Options
from fastddpm.dropin._diffusers.pipelines import FastDDIMPipeline, FastDDPMPipeline, FastPipeline
from fastddpm.dropin.alterations import warn_if_random
from fastddpm.dropin.overrides import check_published
from fastddpm.dropin.peer import Peer
from fastddpm.dropin.settings import PeerOptions, Settings

if TYPE_CHECKING:
    from typing_extensions import Unpack

DESCRIPTION = "diffusers DDPMPipeline and DDIMPipeline"


def recognises(obj: object) -> bool:
    """Whether an object has a UNet, a scheduler and the call of one of the two pipelines."""
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
    kind = FastDDPMPipeline if pipeline_kind(obj) == "DDPMPipeline" else FastDDIMPipeline
    fast = kind(obj, settings, Options.of(options))
    warn_if_random(obj.unet, "unet")
    return fast
