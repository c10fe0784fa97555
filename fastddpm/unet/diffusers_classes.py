"""Networks of diffusers by the name of their class: which is a DDPM's, and what the others want or are.

Source: diffusers 0.42.1, models/. diffusers is not imported here.
"""

from __future__ import annotations

from collections.abc import Mapping

from fastddpm.checks import BadArgument, shortened

NETWORK = "UNet2DModel"
_CODES = "turns pictures into latents and back and draws none"
_TOKENS = "draws latents or tokens, not pixels"
_WHY: Mapping[str, str] = {
    "UNet2DConditionModel": "needs encoder_hidden_states: Sampler(unet, schedule).sample("
    "cond={'encoder_hidden_states': states}) gives it some",
    "UNet1DModel": "draws signals, not pictures",
    "UNet3DConditionModel": "draws films and needs encoder_hidden_states",
    "UNetSpatioTemporalConditionModel": "draws films and needs encoder_hidden_states",
    "ConsistencyDecoderVAE": _CODES,
    "VQModel": _CODES,
}
_KINDS = (("Autoencoder", _CODES), ("Transformer", _TOKENS), ("ControlNet", "steers another network"))


def is_coder(name: str) -> bool:
    """Whether the class of that name turns pictures into latents and back."""
    return _reason(name) == _CODES


def check_class(name: object, argument: str = "_class_name") -> None:
    """BadArgument for the name of a class that is no ``UNet2DModel``; None, which nobody said, passes."""
    if name is None or name == NETWORK:
        return
    if not isinstance(name, str):
        raise BadArgument(argument, shortened(repr(name)), NETWORK)
    reason = _reason(name) or "is another network, for Sampler(model, schedule) with model(x, t) -> epsilon"
    raise BadArgument(argument, f"{shortened(name)}, which {reason},", NETWORK)


def check_live(kind: type, argument: str) -> None:
    """As `check_class`, for a live network's class; only diffusers' own are known by their names."""
    if kind.__module__.startswith("diffusers.") and _reason(kind.__name__) is not None:
        check_class(kind.__name__, argument)


def _reason(name: str) -> str | None:
    return _WHY.get(name) or next((reason for kind, reason in _KINDS if kind in name), None)
