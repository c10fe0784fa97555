"""The training objective: what the network is asked for, how far off it is, and how much each t counts.

    L = E_{x_0, t, eps} w(t) * d(target, model(x_t, t))        x_t = sqrt(abar_t) x_0 + sqrt(1-abar_t) eps

With d = squared error, target = eps and w = 1 this is L_simple, Ho et al. 2020, eq. 14. t, eps and the
dropped classes of the i-th sample ever drawn follow from the run's seed and i alone (noise spec, training
rule), so that a run sees the same on any number of processes, and after it is resumed.
"""

from __future__ import annotations

import dataclasses
from typing import Literal, get_args

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from fastddpm.checks import check_choice, check_number
from fastddpm.plans.plan import PREDICTION_TYPES, PredictionType
from fastddpm.plans.time_input import TIME_INPUTS, TimeInput
from fastddpm.schedule import NoiseSchedule
from fastddpm.tasks.task import Task
from fastddpm_kernels import noise_mse, q_sample
from fastddpm_kernels.compat import runs_kernels
from fastddpm_kernels.noise import words

Loss = Literal["l2", "l1", "huber"]
Weighting = Literal["none", "min_snr", "p2"]
T_STREAM = 2


@dataclasses.dataclass(frozen=True)
class Objective:
    """The loss of a diffusion model.

    Attributes:
        prediction_type: the network's target: ``epsilon``, ``sample`` (x_0) or ``v_prediction``.
        loss: ``l2``, ``l1`` or ``huber`` (quadratic up to 1), averaged over the pixels of a sample.
        weighting: ``none``; ``min_snr`` (Hang et al. 2023: min(SNR, gamma) on x_0); ``p2`` (Choi et al. 2022:
            1/(1 + SNR)**gamma on epsilon). Both mean the same for every prediction type: a weight on
            epsilon's squared error is SNR times it on x_0's and abar times it on v's.
        gamma: of the weighting; None for 5 (min_snr) or 1 (p2).

    Raises:
        ValueError: naming the field, what was given and what is accepted.
    """

    prediction_type: PredictionType = "epsilon"
    loss: Loss = "l2"
    weighting: Weighting = "none"
    gamma: float | None = None

    def __post_init__(self) -> None:
        check_choice("prediction_type", self.prediction_type, PREDICTION_TYPES)
        check_choice("loss", self.loss, get_args(Loss))
        check_choice("weighting", self.weighting, get_args(Weighting))
        if self.gamma is not None:
            check_number("gamma", self.gamma, low=0.0)

    def weights(self, schedule: NoiseSchedule) -> Tensor:
        """w(t), float32 ``(T,)``, for the squared error of this prediction type."""
        snr, abar = schedule.snr, schedule.alphas_cumprod
        with np.errstate(divide="ignore", invalid="ignore"):
            if self.weighting == "none":
                weight = np.ones_like(snr)
            elif self.weighting == "min_snr":
                on_x_0 = np.minimum(snr, 5.0 if self.gamma is None else self.gamma)
                weight = {
                    "sample": on_x_0,
                    "epsilon": np.where(snr > 0, on_x_0 / snr, 1.0),
                    "v_prediction": on_x_0 * (1 - abar),
                }[self.prediction_type]
            else:
                on_epsilon = (1 + snr) ** -(1.0 if self.gamma is None else self.gamma)
                weight = {
                    "epsilon": on_epsilon,
                    "sample": on_epsilon * snr,
                    "v_prediction": on_epsilon * abar,
                }[self.prediction_type]
        return torch.tensor(weight, dtype=torch.float32)

    def target(self, x_0: Tensor, noise: Tensor, signal: Tensor, sigma: Tensor) -> Tensor:
        """What the network should return; signal = sqrt(abar_t), sigma = sqrt(1-abar_t), ``(B, 1, ...)``."""
        if self.prediction_type == "epsilon":
            return noise
        if self.prediction_type == "sample":
            return x_0
        # Salimans and Ho 2022: v = alpha*eps - sigma*x_0
        return signal * noise - sigma * x_0

    def distance(self, prediction: Tensor, target: Tensor) -> Tensor:
        """d of each sample: ``(B, ...)`` twice -> float32 ``(B,)``."""
        function = {"l2": F.mse_loss, "l1": F.l1_loss, "huber": F.smooth_l1_loss}[self.loss]
        return function(prediction.float(), target, reduction="none").flatten(1).mean(dim=1)


@dataclasses.dataclass
class NoisedBatch:
    """What one training step feeds the network, and what it wants back.

    Attributes:
        x_t: float32 ``(B, C, H, W)``.
        t: ``(B,)`` as the network takes it: int64 timesteps, or float32 noise levels.
        class_labels: int64 ``(B,)`` with dropped ones replaced by the null label, or None.
        target: float32 like x_t; or where its noise is drawn again, what `noise_mse` computes it from.
        weights: float32 ``(B,)``.
        condition: float32 ``(B, Cc, H, W)`` of a task, or None.
    """

    x_t: Tensor
    t: Tensor
    class_labels: Tensor | None
    target: Tensor | dict[str, Tensor]
    weights: Tensor
    condition: Tensor | None = None

    @property
    def inputs(self) -> Tensor:
        """x_t, behind the condition where there is one, as the sampler gives it (SR3)."""
        return self.x_t if self.condition is None else torch.cat((self.condition, self.x_t), dim=1)

    @property
    def conditioning(self) -> tuple[Tensor, ...]:
        """What the network is given besides x_t and t."""
        return () if self.class_labels is None else (self.class_labels,)


class Noiser:
    """Draws t, noise and dropped classes for samples by their ordinals.

    Args:
        schedule: the noise schedule.
        objective: the loss.
        seed: of the run, in [0, 2**63).
        class_dropout: share of labels replaced by ``null_label``, for classifier-free guidance.
        null_label: the label of "no class", or None.
        task: what makes a condition from x_0; None for generation.
        time_input: what the network is told: ``timestep`` t, or a level: ``noise_level`` sqrt(abar)
            (WaveGrad, Chen et al. 2021; SR3, Saharia et al. 2021, section 2.3) or ``alphas_cumprod`` abar
            (Palette, Saharia et al. 2022). The noise is then of a level drawn evenly between those of t and
            t - 1 (1 before the first), and this is told.
        device: where batches are.

    Attributes:
        redraws: the loss and its gradient draw the noise again, so that a step keeps no target. So it is on
            CUDA, where a kernel draws it in passing, unless the target is x_0, which has no noise.
    """

    def __init__(
        self,
        schedule: NoiseSchedule,
        objective: Objective,
        *,
        seed: int,
        class_dropout: float = 0.0,
        null_label: int | None = None,
        task: Task | None = None,
        time_input: TimeInput = "timestep",
        device: torch.device | None = None,
    ) -> None:
        check_choice("time_input", time_input, TIME_INPUTS)
        self.task, self.time_input = task, time_input
        self.objective, self.seed = objective, seed
        self.class_dropout, self.null_label = class_dropout, null_label
        self.signal = schedule.tensor("sqrt_alphas_cumprod", device=device)
        is_abar = time_input == "alphas_cumprod"
        self.level = schedule.tensor("alphas_cumprod", device=device) if is_abar else self.signal
        self.sigma = schedule.tensor("sqrt_one_minus_alphas_cumprod", device=device)
        self.weights = objective.weights(schedule).to(self.signal.device)
        self.redraws = runs_kernels(self.signal.device) and objective.prediction_type != "sample"

    def __call__(self, x_0: Tensor, class_labels: Tensor | None, ordinals: Tensor) -> NoisedBatch:
        """Noises a batch.

        Args:
            x_0: float32 ``(B, C, H, W)``.
            class_labels: int64 ``(B,)`` or None.
            ordinals: int64 ``(B,)``, each sample's number over all samples the run has drawn.
        """
        seeds = torch.full_like(ordinals, self.seed)
        lanes = words(seeds, ordinals & 0xFFFFFFFF, 1, stream=T_STREAM, repeat=ordinals >> 32)
        for_t, for_class, for_level, _ = (lane[:, 0] for lane in lanes)
        # Multiply and shift: a 32-bit word w to floor(w * T / 2**32), even to 2**-32.
        t = (for_t * len(self.signal)) >> 32
        if class_labels is not None and self.class_dropout > 0 and self.null_label is not None:
            dropped = for_class < int(self.class_dropout * 2**32)
            class_labels = torch.where(dropped, self.null_label, class_labels)
        condition = None
        if self.task is not None:
            condition = self.task.condition(x_0, ordinals, self.seed)
            x_0 = self.task.target(x_0, condition)
        time, row, signals, sigmas = t, t, self.signal, self.sigma
        if self.time_input != "timestep":
            time = self._levels(t, for_level)
            is_signal = self.time_input == "noise_level"
            signals, abar = (time, time**2) if is_signal else (time.sqrt(), time)
            row, sigmas = torch.arange(len(t), device=t.device), (1 - abar).sqrt()
        target: Tensor | dict[str, Tensor]
        if self.redraws:
            x_t = q_sample(x_0, row, signals, sigmas, seeds=seeds, ordinals=ordinals)
            target = {"seeds": seeds, "ordinals": ordinals}
            if self.objective.prediction_type == "v_prediction":
                target |= {"x_0": x_0, "signal": signals[row], "sigma": sigmas[row]}
        else:
            x_t, noise = q_sample(
                x_0, row, signals, sigmas, seeds=seeds, ordinals=ordinals, return_noise=True
            )
            per_sample = (-1, *(1,) * (x_0.dim() - 1))
            signal, sigma = signals[row].reshape(per_sample), sigmas[row].reshape(per_sample)
            target = self.objective.target(x_0, noise, signal, sigma)
        return NoisedBatch(x_t, time, class_labels, target, self.weights[t], condition)

    def _levels(self, t: Tensor, word: Tensor) -> Tensor:
        """Levels drawn evenly between those of t and t - 1, float32 ``(B,)``, below 1."""
        lower = self.level[t]
        upper = torch.where(t > 0, self.level[(t - 1).clamp(min=0)], 1.0)
        return lower + (upper - lower) * ((word >> 8).float() * 2.0**-24)

    def loss(self, prediction: Tensor, batch: NoisedBatch) -> Tensor:
        """The weighted mean over the batch, a scalar."""
        if isinstance(batch.target, dict):
            return noise_mse(prediction, **batch.target, loss=self.objective.loss, weights=batch.weights)
        return (batch.weights * self.objective.distance(prediction, batch.target)).mean()
