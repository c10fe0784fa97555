"""Class guidance by a classifier's gradient: Bayes' rule for scores.

    grad_x log p_t(x | y) = s(x, t) + w grad_x log p_t(y | x)          w = 1

(Song et al. 2021, equation 14; Dhariwal and Nichol 2021 for w above 1.) The classifier reads noisy states.
One that knows clean images alone is given the image that the score model expects behind the state, E[x_0 |
x_t], and the gradient goes through both: exact only as far as p(y | x_t) is p(y | E[x_0 | x_t]), which it is
at low noise.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from fastddpm.checks import BadArgument, check_number
from fastddpm.score.sdes import SDE, Score, denoised
from fastddpm.signatures import checked

# x (B, ...), t (B,) -> logits (B, K), differentiable in x
Classifier = Callable[[Tensor, Tensor], Tensor]


class GuidedScore:
    """A score model bent toward a class.

    Args:
        score: the score model without classes, or with a null label.
        classifier: ``classifier(x, t)`` -> logits ``(B, K)`` of the noisy state x at time t, differentiable
            in x; `on_denoised` makes one of a classifier of clean images.
        class_labels: int64 ``(B,)``, or ``(1,)`` for any B.
        scale: w.
    """

    @checked
    def __init__(
        self, score: Score, classifier: Classifier, class_labels: Tensor, scale: float = 1.0
    ) -> None:
        check_number("scale", scale, low=0.0)
        if class_labels.dtype != torch.int64 or class_labels.ndim != 1:
            raise BadArgument(
                "class_labels", f"{class_labels.dtype} {tuple(class_labels.shape)}", "int64 (B,)"
            )
        self.score, self.classifier, self.scale = score, classifier, scale
        self.class_labels = class_labels.to(score.device)

    @property
    def sde(self) -> SDE:
        """The process of the score model."""
        return self.score.sde

    @property
    def device(self) -> torch.device:
        """Its device."""
        return self.score.device

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        """s(x, t) + w grad_x log p(y | x, t), differentiable where the caller asks for gradients."""
        differentiable = torch.is_grad_enabled() and x.requires_grad
        with torch.enable_grad():
            state = x if differentiable else x.detach().requires_grad_()
            logits = self.classifier(state, t)
            labels = self.class_labels.expand(len(x)).unsqueeze(1)
            chosen = logits.log_softmax(dim=1).gather(1, labels).sum()
            (gradient,) = torch.autograd.grad(chosen, state, create_graph=differentiable)
        return self.score(x, t) + self.scale * gradient.to(x.dtype)


@checked
def on_denoised(score: Score, classifier: Callable[[Tensor], Tensor]) -> Classifier:
    """A classifier of clean images ``(B, C, H, W)``, float32, as one of noisy states: reads E[x_0 | x_t]."""

    def read(x: Tensor, t: Tensor) -> Tensor:
        return classifier(denoised(score, x, t).float())

    return read
