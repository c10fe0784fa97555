"""Any score model in the variables of Karras et al. 2022: y = x_t / a, and D(y; sigma) = E[x_0 | y].

y = x_0 + sigma z (their section 3, arXiv 2206.00364): sigma is sigma(t)/a(t), and with it alone as time
VP, sub-VP and VE processes are one. D(y; sigma) = (x_t + sigma(t)^2 s(x_t, t)) / a(t).
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastddpm.checks import BadArgument
from fastddpm.score.sdes import Score, denoised, like
from fastddpm.signatures import checked


class Denoiser:
    """D(y; sigma) of a score model.

    Attributes:
        sigma_min: sigma(t)/a(t) at t_min, the smallest accepted.
        sigma_max: at t = 1, the largest.
    """

    @checked
    def __init__(self, score: Score) -> None:
        self.score_model, self.sde = score, score.sde
        ends = self.sde.log_snr(torch.tensor([1.0, self.sde.t_min], dtype=torch.float64))
        self.sigma_max, self.sigma_min = torch.exp(-ends / 2).tolist()

    def __call__(self, y: Tensor, sigma: Tensor) -> Tensor:
        """D(y; sigma): y ``(B, ...)``, sigma float64 ``()`` or ``(B,)`` -> like y."""
        t = self.time(sigma)
        return denoised(self.score_model, like(self.sde.signal(t), y) * y, t)

    def score(self, y: Tensor, t: Tensor) -> Tensor:
        """The gradient of the log density of y at time t ``()``, (D(y; sigma) - y) / sigma^2."""
        signal = like(self.sde.signal(t), y)
        return signal * self.score_model(signal * y, t.expand(len(y)))

    def time(self, sigma: Tensor) -> Tensor:
        """The process's time at which sigma(t)/a(t) = sigma."""
        return self.sde.time_of_log_snr(-2 * sigma.to(torch.float64).log())

    def check(self, sigmas: Tensor) -> None:
        """ValueError where the process does not pass a sigma."""
        slack = 1e-6
        low, high = float(sigmas.min()), float(sigmas.max())
        if low < self.sigma_min * (1 - slack) or high > self.sigma_max * (1 + slack):
            raise BadArgument(
                "sigmas", f"{low:.6g} .. {high:.6g}", f"{self.sigma_min:.6g} .. {self.sigma_max:.6g}"
            )
