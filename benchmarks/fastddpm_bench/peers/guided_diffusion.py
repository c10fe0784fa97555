"""The sampling of guided-diffusion (OpenAI, commit 22e0df8) restated: slow, plain, on its own.

Written from the published formulas and the order of operations of gaussian_diffusion.py and respace.py:
float64 tables in NumPy, each number made float32 when a step reads it, one `torch.randn` a step whatever
comes of it. It shares no code with the drop-in. improved-diffusion has the same loops without cond_fn.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Table = npt.NDArray[np.floating[Any]]
Function = Callable[..., Tensor]


class ModelMeanType(enum.Enum):
    PREVIOUS_X = enum.auto()
    START_X = enum.auto()
    EPSILON = enum.auto()


class ModelVarType(enum.Enum):
    LEARNED = enum.auto()
    FIXED_SMALL = enum.auto()
    FIXED_LARGE = enum.auto()
    LEARNED_RANGE = enum.auto()


def linear_betas(steps: int) -> Table:
    """Ho et al. 2020, scaled so that other numbers of steps end at about the same noise."""
    return np.linspace(0.1 / steps, 20 / steps, steps, dtype=np.float64)


def cosine_betas(steps: int) -> Table:
    """Nichol and Dhariwal 2021, equation 17."""

    def alpha_bar(u: float) -> float:
        return math.cos((u + 0.008) / 1.008 * math.pi / 2) ** 2

    return np.array([min(0.999, 1 - alpha_bar((i + 1) / steps) / alpha_bar(i / steps)) for i in range(steps)])


class GaussianDiffusion:
    """betas: float64 ``[T]``. The types are of the enumerations above, or of others with the same names."""

    def __init__(
        self,
        *,
        betas: Table,
        model_mean_type: enum.Enum,
        model_var_type: enum.Enum,
        rescale_timesteps: bool = False,
        loss_type: Any = None,
    ) -> None:
        self.model_mean_type, self.model_var_type = model_mean_type, model_var_type
        self.rescale_timesteps, self.loss_type = rescale_timesteps, loss_type
        self.betas = np.asarray(betas, dtype=np.float64)
        self.num_timesteps = len(self.betas)
        abar = np.cumprod(1.0 - self.betas)
        before = np.concatenate([[1.0], abar[:-1]])
        self.alphas_cumprod, self.alphas_cumprod_prev = abar, before
        self.alphas_cumprod_next = np.concatenate([abar[1:], [0.0]])
        self.sqrt_alphas_cumprod, self.sqrt_one_minus_alphas_cumprod = np.sqrt(abar), np.sqrt(1.0 - abar)
        self.sqrt_recip_alphas_cumprod = np.sqrt(1.0 / abar)
        self.sqrt_recipm1_alphas_cumprod = np.sqrt(1.0 / abar - 1)
        self.posterior_variance = self.betas * (1.0 - before) / (1.0 - abar)
        first = self.posterior_variance[1:2]
        self.posterior_log_variance_clipped = np.log(np.concatenate([first, self.posterior_variance[1:]]))
        self.posterior_mean_coef1 = self.betas * np.sqrt(before) / (1.0 - abar)
        self.posterior_mean_coef2 = (1.0 - before) * np.sqrt(1.0 - self.betas) / (1.0 - abar)
        self.step_calls = 0

    # What a network or cond_fn is called with; `SpacedDiffusion` asks in the original process's steps.
    def asked(self, function: Function, x: Tensor, t: int, kwargs: dict[str, Any]) -> Tensor:
        told = torch.full((len(x),), t)
        if self.rescale_timesteps:
            told = told.float() * (1000.0 / self.num_timesteps)
        return function(x, told, **kwargs)

    def number(self, table: Table, t: int) -> Tensor:
        # With the dimensions of an image: a number of no dimensions would not make a half output float32.
        return torch.tensor(table[t], dtype=torch.float64).float().reshape(1, 1, 1, 1)

    def predicted(
        self,
        model: Function,
        x: Tensor,
        t: int,
        clip_denoised: bool,
        denoised_fn: Function | None,
        kwargs: dict[str, Any],
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """mean, variance, log variance, x0."""
        output, kind = self.asked(model, x, t, kwargs), self.model_var_type.name
        if kind in ("LEARNED", "LEARNED_RANGE"):
            assert output.shape[1] == 2 * x.shape[1]
            output, values = output[:, : x.shape[1]], output[:, x.shape[1] :]
            log_variance = values
            if kind == "LEARNED_RANGE":
                least = self.number(self.posterior_log_variance_clipped, t)
                most = self.number(np.log(self.betas), t)
                share = (values + 1) / 2
                log_variance = share * most + (1 - share) * least
            variance = torch.exp(log_variance)
        elif kind == "FIXED_LARGE":
            large = np.concatenate([self.posterior_variance[1:2], self.betas[1:]])
            variance, log_variance = self.number(large, t), self.number(np.log(large), t)
        else:
            variance = self.number(self.posterior_variance, t)
            log_variance = self.number(self.posterior_log_variance_clipped, t)
        kind = self.model_mean_type.name
        if kind == "EPSILON":
            x0 = self.x0_of_eps(x, t, output)
        elif kind == "START_X":
            x0 = output
        else:
            ratio = self.posterior_mean_coef2 / self.posterior_mean_coef1
            x0 = self.number(1.0 / self.posterior_mean_coef1, t) * output - self.number(ratio, t) * x
        if denoised_fn is not None:
            x0 = denoised_fn(x0)
        if clip_denoised:
            x0 = x0.clamp(-1, 1)
        mean = output if kind == "PREVIOUS_X" else self.posterior_mean(x0, x, t)
        return mean, variance, log_variance, x0

    def posterior_mean(self, x0: Tensor, x: Tensor, t: int) -> Tensor:
        return self.number(self.posterior_mean_coef1, t) * x0 + self.number(self.posterior_mean_coef2, t) * x

    def x0_of_eps(self, x: Tensor, t: int, eps: Tensor) -> Tensor:
        recip, recipm1 = self.sqrt_recip_alphas_cumprod, self.sqrt_recipm1_alphas_cumprod
        return self.number(recip, t) * x - self.number(recipm1, t) * eps

    def eps_of_x0(self, x: Tensor, t: int, x0: Tensor) -> Tensor:
        recip, recipm1 = self.sqrt_recip_alphas_cumprod, self.sqrt_recipm1_alphas_cumprod
        return (self.number(recip, t) * x - x0) / self.number(recipm1, t)

    def p_sample(
        self,
        model: Function,
        x: Tensor,
        t: int,
        clip_denoised: bool,
        denoised_fn: Function | None,
        cond_fn: Function | None,
        kwargs: dict[str, Any],
    ) -> dict[str, Tensor]:
        self.step_calls += 1
        mean, variance, log_variance, x0 = self.predicted(model, x, t, clip_denoised, denoised_fn, kwargs)
        noise = torch.randn_like(x)
        if cond_fn is not None:
            mean = mean.float() + variance * self.asked(cond_fn, x, t, kwargs).float()
        if t != 0:
            mean = mean + torch.exp(0.5 * log_variance) * noise
        return {"sample": mean, "pred_xstart": x0}

    def ddim_sample(
        self,
        model: Function,
        x: Tensor,
        t: int,
        clip_denoised: bool,
        denoised_fn: Function | None,
        cond_fn: Function | None,
        kwargs: dict[str, Any],
        eta: float,
    ) -> dict[str, Tensor]:
        self.step_calls += 1
        *_, x0 = self.predicted(model, x, t, clip_denoised, denoised_fn, kwargs)
        abar, before = self.number(self.alphas_cumprod, t), self.number(self.alphas_cumprod_prev, t)
        if cond_fn is not None:
            eps = self.eps_of_x0(x, t, x0) - (1 - abar).sqrt() * self.asked(cond_fn, x, t, kwargs)
            x0 = self.x0_of_eps(x, t, eps)
        eps = self.eps_of_x0(x, t, x0)
        sigma = eta * torch.sqrt((1 - before) / (1 - abar)) * torch.sqrt(1 - abar / before)
        noise = torch.randn_like(x)
        sample = x0 * torch.sqrt(before) + torch.sqrt(1 - before - sigma**2) * eps
        if t != 0:
            sample = sample + sigma * noise
        return {"sample": sample, "pred_xstart": x0}

    def p_sample_loop_progressive(
        self,
        model: Function,
        shape: Sequence[int],
        noise: Tensor | None = None,
        clip_denoised: bool = True,
        denoised_fn: Function | None = None,
        cond_fn: Function | None = None,
        model_kwargs: dict[str, Any] | None = None,
        device: torch.device | str | None = None,
        progress: bool = False,
    ) -> Iterator[dict[str, Tensor]]:
        x = torch.randn(*shape) if noise is None else noise
        for t in reversed(range(self.num_timesteps)):
            with torch.no_grad():
                out = self.p_sample(model, x, t, clip_denoised, denoised_fn, cond_fn, model_kwargs or {})
            yield out
            x = out["sample"]

    def ddim_sample_loop_progressive(
        self,
        model: Function,
        shape: Sequence[int],
        noise: Tensor | None = None,
        clip_denoised: bool = True,
        denoised_fn: Function | None = None,
        cond_fn: Function | None = None,
        model_kwargs: dict[str, Any] | None = None,
        device: torch.device | str | None = None,
        progress: bool = False,
        eta: float = 0.0,
    ) -> Iterator[dict[str, Tensor]]:
        x = torch.randn(*shape) if noise is None else noise
        for t in reversed(range(self.num_timesteps)):
            with torch.no_grad():
                out = self.ddim_sample(
                    model, x, t, clip_denoised, denoised_fn, cond_fn, model_kwargs or {}, eta
                )
            yield out
            x = out["sample"]

    def p_sample_loop(self, *args: Any, **kwargs: Any) -> Tensor:
        return list(self.p_sample_loop_progressive(*args, **kwargs))[-1]["sample"]

    def ddim_sample_loop(self, *args: Any, **kwargs: Any) -> Tensor:
        return list(self.ddim_sample_loop_progressive(*args, **kwargs))[-1]["sample"]


class SpacedDiffusion(GaussianDiffusion):
    """Visits some of a longer process's timesteps, with betas that keep its alphas_cumprod there."""

    def __init__(self, use_timesteps: Sequence[int] | set[int], *, betas: Table, **types: Any) -> None:
        kept = sorted(use_timesteps)
        abar = np.cumprod(1.0 - np.asarray(betas, dtype=np.float64))[kept]
        super().__init__(betas=1 - abar / np.concatenate([[1.0], abar[:-1]]), **types)
        self.use_timesteps, self.timestep_map, self.original_num_steps = set(kept), kept, len(betas)

    def asked(self, function: Function, x: Tensor, t: int, kwargs: dict[str, Any]) -> Tensor:
        told = torch.full((len(x),), self.timestep_map[t])
        if self.rescale_timesteps:
            told = told.float() * (1000.0 / self.original_num_steps)
        return function(x, told, **kwargs)
