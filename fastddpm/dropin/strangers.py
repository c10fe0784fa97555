"""Objects of other libraries that have no drop-in, known by what they hold: what to give instead."""

from __future__ import annotations

from dataclasses import dataclass

from fastddpm.dropin.peer import holds

_ONES_OWN = (
    "its own loop, or fastddpm.Sampler(model, schedule) with model(x, t) -> epsilon around its backbone,"
)


@dataclass(frozen=True)
class Stranger:
    """A kind of object.

    Attributes:
        owner: whose it is.
        instead: what to give.
        modules: attributes that are modules.
        tensors: attributes that are tensors.
        anything: other attributes.
    """

    owner: str
    instead: str
    modules: tuple[str, ...] = ()
    tensors: tuple[str, ...] = ()
    anything: tuple[str, ...] = ()


_STRANGERS = (
    Stranger(
        "w86763777's sampler",
        "fastddpm.optimize(obj.model, schedule=fastddpm.NoiseSchedule.from_betas(obj.betas), "
        "variance_type='fixed_large' or as its var_type)",
        modules=("model",),
        tensors=("betas", "posterior_mean_coef1", "posterior_mean_coef2"),
        anything=("T", "var_type", "mean_type"),
    ),
    Stranger(
        "Palette's network",
        "fastddpm.load(obj.state_dict(), config=...) with the content of its JSON",
        modules=("denoise_fn",),
        tensors=("gammas",),
        anything=("restoration", "state_dict"),
    ),
    Stranger(
        "lucidrains' EDM",
        "fastddpm.score.NetworkScore(sde, model, prediction_type='sample') with model(x, t) from its "
        "preconditioned_network_forward",
        modules=("net",),
        anything=("preconditioned_network_forward", "num_sample_steps"),
    ),
    Stranger("azula's sampler", _ONES_OWN, modules=("denoiser",), anything=("start", "stop", "steps")),
    Stranger("azula's denoiser", _ONES_OWN, modules=("backbone", "schedule")),
)


def known_as(obj: object) -> Stranger | None:
    """Which of them an object is; None if none. Never raises."""
    for one in _STRANGERS:
        if holds(obj, tensors=one.tensors, modules=one.modules, anything=one.anything):
            return one
    return None
