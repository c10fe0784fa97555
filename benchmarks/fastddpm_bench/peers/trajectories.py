"""jannerm/diffuser restated: its loop in both published forms, its network, a value that guides.

Source: diffuser/models/diffusion.py, temporal.py and helpers.py, diffuser/sampling/functions.py, guides.py
and policies.py (Janner et al. 2022). Only what draws.
"""

from __future__ import annotations

from collections import namedtuple
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from fastddpm_bench.peers.diffusion_policy import TimeEmbedding
from fastddpm_bench.peers.policy_unets import Sampling

Sample = namedtuple("Sample", "trajectories values chains")
Trajectories = namedtuple("Trajectories", "actions observations values")
Conditions = dict[int, Tensor]


class ConvBlock(nn.Module):
    """Conv1d, GroupNorm and Mish, with a reshape around the norm, which takes places in their stead here."""

    def __init__(self, inputs: int, outputs: int, kernel: int = 5, groups: int = 8) -> None:
        super().__init__()
        conv = nn.Conv1d(inputs, outputs, kernel, padding=kernel // 2)
        reshape = nn.Identity(), nn.Identity()
        self.block = nn.Sequential(conv, reshape[0], nn.GroupNorm(groups, outputs), reshape[1], nn.Mish())

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.block(x)
        return out


class Block(nn.Module):
    """Its ``ResidualTemporalBlock``: the time is a shift."""

    def __init__(self, inputs: int, outputs: int, embedding: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([ConvBlock(inputs, outputs), ConvBlock(outputs, outputs)])
        self.time_mlp = nn.Sequential(nn.Mish(), nn.Linear(embedding, outputs))
        self.residual_conv = nn.Conv1d(inputs, outputs, 1) if inputs != outputs else nn.Identity()

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        out = self.blocks[0](x) + self.time_mlp(t)[..., None]
        result: Tensor = self.blocks[1](out) + self.residual_conv(x)
        return result


class Attention(nn.Module):
    """Its ``LinearAttention`` over places, after a norm over channels, added to what went in."""

    def __init__(self, width: int, heads: int = 4, head: int = 32) -> None:
        super().__init__()
        self.heads, self.head = heads, head
        self.g, self.b = nn.Parameter(torch.ones(1, width, 1)), nn.Parameter(torch.zeros(1, width, 1))
        self.to_qkv = nn.Conv1d(width, 3 * heads * head, 1, bias=False)
        self.to_out = nn.Conv1d(heads * head, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        variance, mean = torch.var_mean(x, dim=1, correction=0, keepdim=True)
        normed = (x - mean) / (variance + 1e-5).sqrt() * self.g + self.b
        q, k, v = self.to_qkv(normed).unflatten(1, (3, self.heads, self.head)).unbind(1)
        context = k.softmax(dim=-1) @ v.mT
        out = context.mT @ (q * self.head**-0.5)
        result: Tensor = self.to_out(out.flatten(1, 2)) + x
        return result


class TemporalUnet(nn.Module):
    """``(B, T, D)``, conditions that it does not look at, and times."""

    def __init__(
        self,
        horizon: int,
        transition_dim: int,
        cond_dim: int,
        dim: int = 32,
        dim_mults: Sequence[int] = (1, 2, 4, 8),
        attention: bool = False,
    ) -> None:
        super().__init__()
        widths = [transition_dim, *(dim * factor for factor in dim_mults)]
        self.time_mlp = nn.Sequential(
            TimeEmbedding(dim), nn.Linear(dim, 4 * dim), nn.Mish(), nn.Linear(4 * dim, dim)
        )

        def level(before: int, after: int, sampling: nn.Module) -> nn.ModuleList:
            attends = Attention(after) if attention else nn.Identity()
            return nn.ModuleList([Block(before, after, dim), Block(after, after, dim), attends, sampling])

        self.downs, self.ups = nn.ModuleList(), nn.ModuleList()
        for before, after in pairwise(widths):
            is_last = after == widths[-1] and len(self.downs) == len(widths) - 2
            halve = nn.Identity() if is_last else Sampling(nn.Conv1d(after, after, 3, 2, 1))
            self.downs.append(level(before, after, halve))
        self.mid_block1, self.mid_block2 = (Block(widths[-1], widths[-1], dim) for _ in range(2))
        self.mid_attn = Attention(widths[-1]) if attention else nn.Identity()
        for above, below in reversed(list(pairwise(widths[1:]))):
            double = Sampling(nn.ConvTranspose1d(above, above, 4, 2, 1))
            self.ups.append(level(2 * below, above, double))
        self.final_conv = nn.Sequential(ConvBlock(dim, dim), nn.Conv1d(dim, transition_dim, 1))

    def forward(self, x: Tensor, cond: Conditions, time: Tensor) -> Tensor:
        x, t, kept = x.mT, self.time_mlp(time), []
        for level in self.downs:
            first, second, attends, halve = cast(nn.ModuleList, level)
            x = attends(second(first(x, t), t))
            kept.append(x)
            x = halve(x)
        x = self.mid_block2(self.mid_attn(self.mid_block1(x, t)), t)
        for level in self.ups:
            first, second, attends, double = cast(nn.ModuleList, level)
            x = torch.cat((x, kept.pop()), dim=1)
            x = double(attends(second(first(x, t), t)))
        out: Tensor = self.final_conv(x).mT
        return out


def conditioned(x: Tensor, cond: Conditions, action_dim: int) -> Tensor:
    """``apply_conditioning``, which writes into x."""
    for place, value in cond.items():
        x[:, place, action_dim:] = value.clone()
    return x


class Tables(nn.Module):
    """What both forms of its ``GaussianDiffusion`` hold, and the mean of a step."""

    sqrt_recip_alphas_cumprod: Tensor
    sqrt_recipm1_alphas_cumprod: Tensor
    posterior_mean_coef1: Tensor
    posterior_mean_coef2: Tensor
    posterior_variance: Tensor
    posterior_log_variance_clipped: Tensor
    conditional_sample: Callable[..., Any]

    def __init__(
        self,
        model: nn.Module,
        horizon: int,
        observation_dim: int,
        action_dim: int,
        n_timesteps: int = 1000,
        clip_denoised: bool = False,
        predict_epsilon: bool = True,
    ) -> None:
        super().__init__()
        self.model, self.horizon = model, horizon
        self.observation_dim, self.action_dim = observation_dim, action_dim
        self.transition_dim, self.n_timesteps = observation_dim + action_dim, n_timesteps
        self.clip_denoised, self.predict_epsilon = clip_denoised, predict_epsilon
        steps = np.linspace(0, n_timesteps + 1, n_timesteps + 1)
        levels = np.cos((steps / (n_timesteps + 1) + 0.008) / 1.008 * np.pi * 0.5) ** 2
        levels = levels / levels[0]
        betas = torch.tensor(np.clip(1 - levels[1:] / levels[:-1], 0, 0.999), dtype=torch.float32)
        abar = torch.cumprod(1 - betas, dim=0)
        before = torch.cat([torch.ones(1), abar[:-1]])
        variance = betas * (1 - before) / (1 - abar)
        tables = {
            "betas": betas,
            "alphas_cumprod": abar,
            "alphas_cumprod_prev": before,
            "sqrt_alphas_cumprod": abar.sqrt(),
            "sqrt_one_minus_alphas_cumprod": (1 - abar).sqrt(),
            "sqrt_recip_alphas_cumprod": (1 / abar).sqrt(),
            "sqrt_recipm1_alphas_cumprod": (1 / abar - 1).sqrt(),
            "posterior_variance": variance,
            "posterior_log_variance_clipped": variance.clamp(min=1e-20).log(),
            "posterior_mean_coef1": betas * before.sqrt() / (1 - abar),
            "posterior_mean_coef2": (1 - before) * (1 - betas).sqrt() / (1 - abar),
        }
        for name, table in tables.items():
            self.register_buffer(name, table)

    def p_mean_variance(self, x: Tensor, cond: Conditions, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        at = int(t[0])
        x0 = self.model(x, cond, t)
        if self.predict_epsilon:
            x0 = self.sqrt_recip_alphas_cumprod[at] * x - self.sqrt_recipm1_alphas_cumprod[at] * x0
        if self.clip_denoised:
            x0 = x0.clamp(-1, 1)
        mean = self.posterior_mean_coef1[at] * x0 + self.posterior_mean_coef2[at] * x
        return mean, self.posterior_variance[at], self.posterior_log_variance_clipped[at]

    def forward(self, cond: Conditions, *args: Any, **kwargs: Any) -> Any:
        return self.conditional_sample(cond, *args, **kwargs)


class Diffusion2022(Tables):
    """Its ``GaussianDiffusion`` of 2022."""

    def p_sample(self, x: Tensor, cond: Conditions, t: Tensor) -> Tensor:
        mean, _, log_variance = self.p_mean_variance(x, cond, t)
        noise = torch.randn_like(x)
        return mean + (t != 0).float().reshape(-1, 1, 1) * (0.5 * log_variance).exp() * noise

    @torch.no_grad()
    def p_sample_loop(
        self, shape: Sequence[int], cond: Conditions, verbose: bool = True, return_diffusion: bool = False
    ) -> Any:
        x = conditioned(torch.randn(tuple(shape)), cond, self.action_dim)
        states = [x]
        for i in reversed(range(self.n_timesteps)):
            t = torch.full((shape[0],), i, dtype=torch.long)
            x = conditioned(self.p_sample(x, cond, t), cond, self.action_dim)
            states.append(x)
        return (x, torch.stack(states, dim=1)) if return_diffusion else x

    @torch.no_grad()
    def conditional_sample(
        self, cond: Conditions, *args: Any, horizon: int | None = None, **kwargs: Any
    ) -> Any:
        shape = (len(cond[0]), horizon or self.horizon, self.transition_dim)
        return self.p_sample_loop(shape, cond, *args, **kwargs)


@torch.no_grad()
def default_sample_fn(model: Any, x: Tensor, cond: Conditions, t: Tensor) -> tuple[Tensor, Tensor]:
    mean, _, log_variance = model.p_mean_variance(x=x, cond=cond, t=t)
    noise = torch.randn_like(x)
    noise[t == 0] = 0
    return mean + torch.exp(0.5 * log_variance) * noise, torch.zeros(len(x))


@torch.no_grad()
def n_step_guided_p_sample(
    model: Any,
    x: Tensor,
    cond: Conditions,
    t: Tensor,
    guide: Any,
    scale: float = 0.001,
    t_stopgrad: int = 0,
    n_guide_steps: int = 1,
    scale_grad_by_std: bool = True,
) -> tuple[Tensor, Tensor]:
    log_variance = model.posterior_log_variance_clipped[t].reshape(-1, 1, 1)
    for _ in range(n_guide_steps):
        with torch.enable_grad():
            y, grad = guide.gradients(x, cond, t)
        if scale_grad_by_std:
            grad = torch.exp(log_variance) * grad
        grad[t < t_stopgrad] = 0
        x = conditioned(x + scale * grad, cond, model.action_dim)
    mean, _, _ = model.p_mean_variance(x=x, cond=cond, t=t)
    noise = torch.randn_like(x)
    noise[t == 0] = 0
    return mean + torch.exp(0.5 * log_variance) * noise, y


class Diffusion(Tables):
    """Its ``GaussianDiffusion`` of the main branch."""

    @torch.no_grad()
    def p_sample_loop(
        self,
        shape: Sequence[int],
        cond: Conditions,
        verbose: bool = True,
        return_chain: bool = False,
        sample_fn: Callable[..., Any] = default_sample_fn,
        **sample_kwargs: Any,
    ) -> Any:
        x = conditioned(torch.randn(tuple(shape)), cond, self.action_dim)
        chain, values = [x], torch.zeros(0)
        for i in reversed(range(self.n_timesteps)):
            t = torch.full((shape[0],), i, dtype=torch.long)
            x, values = sample_fn(self, x, cond, t, **sample_kwargs)
            x = conditioned(x, cond, self.action_dim)
            chain.append(x)
        order = torch.argsort(values, descending=True)
        return Sample(x[order], values[order], torch.stack(chain, dim=1) if return_chain else None)

    @torch.no_grad()
    def conditional_sample(self, cond: Conditions, horizon: int | None = None, **sample_kwargs: Any) -> Any:
        shape = (len(cond[0]), horizon or self.horizon, self.transition_dim)
        return self.p_sample_loop(shape, cond, **sample_kwargs)


class ValueGuide(nn.Module):
    """Its guide: a network of trajectories, conditions and times, that gives a number each."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def gradients(self, x: Tensor, *args: Any) -> tuple[Tensor, Tensor]:
        x.requires_grad_()
        y = self.model(x, *args).squeeze(dim=-1)
        grad = torch.autograd.grad([y.sum()], [x])[0]
        x.detach()
        return y, grad


class GuidedPolicy:
    """Its policy: observations in, a plan out. Nothing is normalised beyond a factor here."""

    def __init__(self, guide: Any, diffusion_model: Any, normalizer: float, **sample_kwargs: Any) -> None:
        self.guide, self.diffusion_model, self.normalizer = guide, diffusion_model, normalizer
        self.action_dim, self.sample_kwargs = diffusion_model.action_dim, sample_kwargs

    def __call__(self, conditions: dict[int, Any], batch_size: int = 1, verbose: bool = True) -> Any:
        device = next(iter(self.diffusion_model.parameters())).device
        given = {
            place: torch.as_tensor(value, dtype=torch.float32, device=device).repeat(batch_size, 1)
            / self.normalizer
            for place, value in conditions.items()
        }
        samples = self.diffusion_model(given, guide=self.guide, verbose=verbose, **self.sample_kwargs)
        drawn = samples.trajectories.numpy() * self.normalizer
        actions, observations = drawn[:, :, : self.action_dim], drawn[:, :, self.action_dim :]
        return actions[0, 0], Trajectories(actions, observations, samples.values)
