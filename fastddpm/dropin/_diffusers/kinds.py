"""Which pipeline of diffusers an object is, by what it holds and how it is called.

Neither its class's name nor its module is looked at, and diffusers is not imported.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from fastddpm.dropin._diffusers.signature import parameters_of

if TYPE_CHECKING:
    from fastddpm.dropin.peer import Peer

PipelineKind = Literal["DDPMPipeline", "DDIMPipeline"]

_CALL = {"batch_size", "generator", "num_inference_steps", "output_type", "return_dict"}
_PIPELINES: dict[PipelineKind, set[str]] = {
    "DDPMPipeline": _CALL,
    "DDIMPipeline": _CALL | {"eta", "use_clipped_model_output"},
}


def pipeline_kind(obj: Peer) -> PipelineKind | None:
    """Which of the pipelines an object is, whatever its scheduler; or None. Never raises."""
    try:
        if isinstance(obj, type) or not callable(obj):
            return None
        if not all(hasattr(obj, name) for name in ("unet", "scheduler", "numpy_to_pil")):
            return None
        call, _ = parameters_of(obj.__call__)
        for kind, parameters in _PIPELINES.items():
            if call == parameters and callable(obj.unet) and hasattr(obj.scheduler, "step"):
                return kind
    except Exception:
        pass
    return None
