"""Drop-in for denoising-diffusion-pytorch (lucidrains): its classes, recognised by what they hold."""

from __future__ import annotations

from fastddpm.checks import BadArgument
from fastddpm.dropin.alterations import warn_if_random
from fastddpm.dropin.lucidrains_1d import FastLucidrains1D
from fastddpm.dropin.lucidrains_guidance import FastGuidedLucidrains
from fastddpm.dropin.lucidrains_loops import DESCRIPTION, FastLucidrains
from fastddpm.dropin.overrides import check_published
from fastddpm.dropin.peer import Peer, holds, parameters_of
from fastddpm.dropin.settings import NetworkChoice, Settings
from fastddpm.plans.lucidrains import BUFFERS, OBJECTIVES

_HELD = ("channels", "objective", "num_timesteps", "sampling_timesteps", "is_ddim_sampling", "sample")
_STEPS = (
    "sample",
    "p_sample_loop",
    "ddim_sample",
    "p_sample",
    "p_mean_variance",
    "model_predictions",
    "predict_start_from_noise",
    "predict_noise_from_start",
    "predict_start_from_v",
    "q_posterior",
    "interpolate",
)
# Its other classes, by what only they hold, and why they are refused.
_REFUSED = {
    "pred_x_start_loss_weight": "WeightedObjectiveGaussianDiffusion: its own sample fails, as its "
    "p_mean_variance does not take x_self_cond",
    "num_sample_steps": "ContinuousTimeGaussianDiffusion: its timesteps are log SNRs in the loop's order",
}
_REFUSED_ARGUMENTS = {
    "cond_fn": "the GaussianDiffusion of its guided_diffusion.py: its cond_fn prints and looks at the mean",
    "gt": "the GaussianDiffusion of its repaint.py: it jumps back and forth in time",
}


def recognises(obj: Peer) -> bool:
    """Whether an object holds the network, buffers and objective of one of the library's classes."""
    if not holds(obj, modules=("model",)):
        return False
    if holds(obj, anything=("log_snr", "num_sample_steps", "sample")):
        return True
    return holds(obj, tensors=BUFFERS, anything=_HELD) and obj.objective in tuple(OBJECTIVES)


def build(
    obj: Peer, settings: Settings, *, network: NetworkChoice = "auto", **options: bool
) -> FastLucidrains:
    """The drop-in for an object that `recognises`.

    Args:
        obj: a GaussianDiffusion or GaussianDiffusion1D.
        settings: noise, engine and dtype (the network's, under autocast).
        network: ``auto``: on a GPU a copy in channels_last; ``original``.
        **options: none; ``repair`` for the class with classifier-free guidance.

    Raises:
        ValueError: an option that is not accepted, or a class of the library that is not supported.
    """
    for name, reason in _REFUSED.items():
        if hasattr(obj, name):
            raise BadArgument("obj", reason, f"{DESCRIPTION}, with or without guidance,")
    for name, reason in _REFUSED_ARGUMENTS.items():
        if name in parameters_of(obj.sample) or name in parameters_of(getattr(obj, "p_sample", obj.sample)):
            raise BadArgument("obj", reason, f"{DESCRIPTION}, with or without guidance,")
    check_published(obj, _STEPS)
    warn_if_random(obj.model, "model")
    if hasattr(obj.model, "forward_with_cond_scale"):
        if "rescaled_phi" not in parameters_of(obj.model.forward_with_cond_scale):
            given = "a network whose forward_with_cond_scale has no rescaled_phi, as of early versions,"
            raise BadArgument("obj", given, "one of a later version")
        return FastGuidedLucidrains(obj, settings, network=network, **options)
    if options:
        raise BadArgument(", ".join(options), "an option", f"none for {DESCRIPTION}")
    kind = FastLucidrains1D if hasattr(obj, "seq_length") else FastLucidrains
    return kind(obj, settings, network=network)
