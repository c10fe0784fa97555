"""A trained network as a score model: the same weights, read as the gradient of a density.

    s(x, t) = -eps(x, t) / sigma(t)

A DDPM network is a VP score network (Song et al. 2021, section 3.4). What it predicts is turned into eps by
the table of docs/math.md; nothing is clipped, since a clip of x_0 is no property of a density.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypedDict

import torch
from torch import Tensor

from fastddpm.checks import BadArgument, check_choice, check_number, whole
from fastddpm.facts import ModelFacts
from fastddpm.network import Model, in_eval_mode, model_device_dtype, unwrapped
from fastddpm.plans.plan import PREDICTION_TYPES, PredictionType
from fastddpm.plans.time_input import TIME_INPUTS, TimeInput, time_input_of
from fastddpm.score.schedule_sde import ScheduleSDE
from fastddpm.score.sdes import SDE, like
from fastddpm.signatures import checked

if TYPE_CHECKING:
    from fastddpm.sampler import Sampler


class NetworkOptions(TypedDict, total=False):
    """Of `NetworkScore`, what follows from a sampler."""

    prediction_type: PredictionType
    time_input: TimeInput
    cond: dict[str, Tensor]
    uncond: dict[str, Tensor]


class NetworkScore:
    """A network ``model(x, t, **cond)`` as the score of a process.

    Args:
        sde: the process that it was trained on.
        model: called with x ``(B, ...)`` in its weights' dtype and t float32 ``(B,)``: the timestep (whole or
            between two) for a `ScheduleSDE`, the time in [t_min, 1] for any other process.
        prediction_type: what the model predicts of x_t = a x_0 + sigma eps: ``epsilon``, ``sample``, or
            ``v_prediction`` a eps - sigma x_0, which is for VP processes alone.
        time_input: ``timestep``; or what the model takes instead, ``noise_level`` a(t), as SR3 does with
            sqrt(alphas_cumprod), or ``alphas_cumprod`` a(t)^2, as Palette does.
        cond: keyword tensors for the model, ``(B, ...)`` or ``(1, ...)`` for any B.
        uncond: with ``guidance_scale``: what replaces ``cond`` in the unconditional call.
        guidance_scale: w of classifier-free guidance, m_u + w (m_c - m_u); 1 makes no second call.

    Raises:
        ValueError: naming the argument, what was given and what is accepted.
    """

    @checked
    def __init__(
        self,
        sde: SDE,
        model: Model,
        *,
        prediction_type: PredictionType = "epsilon",
        time_input: TimeInput = "timestep",
        cond: dict[str, Tensor] | None = None,
        uncond: dict[str, Tensor] | None = None,
        guidance_scale: float = 1.0,
    ) -> None:
        check_choice("prediction_type", prediction_type, PREDICTION_TYPES)
        check_choice("time_input", time_input, TIME_INPUTS)
        check_number("guidance_scale", guidance_scale, low=0.0)
        if guidance_scale != 1 and not (cond and uncond):
            raise BadArgument(
                "guidance_scale", f"{guidance_scale!r} without cond and uncond", "1, or both of them,"
            )
        self.sde, self.model = sde, model
        self.prediction_type, self.time_input = prediction_type, time_input
        self.cond, self.uncond, self.guidance_scale = cond or {}, uncond or {}, guidance_scale
        self.device, self.dtype = model_device_dtype(model)

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        """s(x, t): x ``(B, ...)``, t float64 ``(B,)`` -> like x."""
        return -self.eps(x, t) / like(self.sde.sigma(t), x)

    def eps(self, x: Tensor, t: Tensor) -> Tensor:
        """The noise that the network sees in x, like x."""
        m = self._output(x, t)
        if self.prediction_type == "epsilon":
            return m
        signal, sigma = like(self.sde.signal(t), x), like(self.sde.sigma(t), x)
        if self.prediction_type == "sample":
            return (x - signal * m) / sigma
        return signal * m + sigma * x

    def _output(self, x: Tensor, t: Tensor) -> Tensor:
        m = self._call(x, t, self.cond)
        if self.guidance_scale != 1:
            m_u = self._call(x, t, self.uncond)
            m = m_u + self.guidance_scale * (m - m_u)
        return m

    def _call(self, x: Tensor, t: Tensor, cond: dict[str, Tensor]) -> Tensor:
        if self.time_input == "timestep":
            time = self.sde.index(t) if isinstance(self.sde, ScheduleSDE) else t
        else:
            signal = self.sde.signal(t)
            time = signal if self.time_input == "noise_level" else signal**2
        here = {name: value.expand(len(x), *value.shape[1:]) for name, value in cond.items()}
        with in_eval_mode(self.model):
            output = unwrapped(self.model(x.to(self.dtype), time.to(x.device, torch.float32), **here))
        # A learned variance comes in the channels behind the prediction.
        return output[:, : x.shape[1]].to(x.dtype)


@checked
def score_of(
    sampler: Sampler, *, class_labels: int | Tensor | None = None, guidance_scale: float = 1.0
) -> NetworkScore:
    """The score model of a `Sampler`: its network, schedule and prediction type; weights are shared.

    Args:
        sampler: from `fastddpm.load`, or any other with a schedule that does not end at zero SNR.
        class_labels: one label, or int64 ``(B,)`` for batches of B. None means the null label where the
            network has one.
        guidance_scale: w of classifier-free guidance.

    Raises:
        ValueError: naming the argument, what was given and what is accepted.
    """
    check_number("guidance_scale", guidance_scale, low=0.0)
    told = time_input_of(sampler.plan, sampler.schedule)
    if told is None:
        raise BadArgument(
            "sampler", "a plan that tells the network neither timesteps nor levels", "one of these"
        )
    options: NetworkOptions = {
        "prediction_type": sampler.plan.prediction_type,
        "time_input": told,
    }
    null = sampler.facts.null_label
    if class_labels is None:
        if guidance_scale != 1:
            raise BadArgument("guidance_scale", f"{guidance_scale!r} without class_labels", "1, or labels,")
        if null is not None:
            options["cond"] = {"class_labels": torch.tensor([null], device=sampler.device)}
        return NetworkScore(ScheduleSDE(sampler.schedule), sampler.model, **options)
    if isinstance(class_labels, Tensor):
        labels = class_labels.to(sampler.device)
    else:
        labels = torch.tensor([whole("class_labels", class_labels, least=0)], device=sampler.device)
    _check_labels(sampler.facts, labels)
    options["cond"] = {"class_labels": labels}
    if guidance_scale != 1:
        if null is None:
            raise BadArgument("guidance_scale", f"{guidance_scale!r} to a model without a null label", "1")
        options["uncond"] = {"class_labels": torch.tensor([null], device=sampler.device)}
    return NetworkScore(
        ScheduleSDE(sampler.schedule), sampler.model, guidance_scale=guidance_scale, **options
    )


def _check_labels(facts: ModelFacts, labels: Tensor) -> None:
    """ValueError for labels that a network of ours has no row for."""
    classes = facts.num_classes
    if labels.dtype != torch.int64 or labels.ndim != 1:
        raise BadArgument("class_labels", f"{labels.dtype} {tuple(labels.shape)}", "int64 (B,)")
    if facts.takes_labels is False:
        raise BadArgument("class_labels", "labels for a network without classes", "None")
    for label in labels.tolist():
        if label < 0 or (classes is not None and label >= classes and label != facts.null_label):
            accepted = "at least 0" if classes is None else f"0 to {classes - 1}"
            raise BadArgument("class_labels", str(label), accepted)
