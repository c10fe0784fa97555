"""Policies that draw actions by diffusion, restated: real-stanford/diffusion_policy's and LeRobot's.

Sources: diffusion_policy/model/diffusion/conditional_unet1d.py and
diffusion_policy/policy/diffusion_unet_lowdim_policy.py (Chi et al. 2023); lerobot, policies/diffusion/
modeling_diffusion.py. Only what draws: no losses, and observations are vectors.
"""

from __future__ import annotations

import math
from collections import deque
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn


class TimeEmbedding(nn.Module):
    """Sines and cosines of t, ``(B,) -> (B, dim)``."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim

    def forward(self, t: Tensor) -> Tensor:
        half = self.dim // 2
        rates = torch.exp(torch.arange(half, device=t.device) * -(math.log(10000) / (half - 1)))
        angles = t[:, None] * rates[None]
        return torch.cat((angles.sin(), angles.cos()), dim=-1)


class ConvBlock(nn.Sequential):
    """Conv1d, GroupNorm, Mish."""

    def __init__(self, inputs: int, outputs: int, groups: int = 4) -> None:
        layers = nn.Conv1d(inputs, outputs, 5, padding=2), nn.GroupNorm(groups, outputs), nn.Mish()
        super().__init__(*layers)


class ResidualBlock(nn.Module):
    """Two of these, the condition as a scale and a shift between them (FiLM)."""

    def __init__(self, inputs: int, outputs: int, cond_dim: int) -> None:
        super().__init__()
        self.outputs = outputs
        self.blocks = nn.ModuleList([ConvBlock(inputs, outputs), ConvBlock(outputs, outputs)])
        self.cond_encoder = nn.Sequential(nn.Mish(), nn.Linear(cond_dim, 2 * outputs))
        self.residual_conv = nn.Conv1d(inputs, outputs, 1) if inputs != outputs else nn.Identity()

    def forward(self, x: Tensor, cond: Tensor) -> Tensor:
        out = self.blocks[0](x)
        scale, bias = self.cond_encoder(cond)[..., None].chunk(2, dim=1)
        out = self.blocks[1](scale * out + bias)
        result: Tensor = out + self.residual_conv(x)
        return result


class ConditionalUnet1D(nn.Module):
    """``(B, T, A)``, a time, and a vector for the whole trajectory, or one of each of its places.

    Args:
        input_dim: A.
        global_cond_dim: of the vector; None without.
        local_cond_dim: of those of the places; None without.
        dims: channels of the levels.
    """

    def __init__(
        self,
        input_dim: int,
        global_cond_dim: int | None = None,
        local_cond_dim: int | None = None,
        dims: tuple[int, int] = (8, 16),
        embedding: int = 8,
    ) -> None:
        super().__init__()
        cond_dim = embedding + (global_cond_dim or 0)
        time = nn.Linear(embedding, 4 * embedding), nn.Mish(), nn.Linear(4 * embedding, embedding)
        self.diffusion_step_encoder = nn.Sequential(TimeEmbedding(embedding), *time)
        low, high = dims
        self.local_cond_encoder = None
        if local_cond_dim is not None:
            self.local_cond_encoder = ResidualBlock(local_cond_dim, low, cond_dim)
        self.down = nn.ModuleList(
            [ResidualBlock(input_dim, low, cond_dim), ResidualBlock(low, low, cond_dim)]
        )
        self.downsample = nn.Conv1d(low, low, 3, 2, 1)
        self.mid = nn.ModuleList([ResidualBlock(low, high, cond_dim), ResidualBlock(high, high, cond_dim)])
        self.upsample = nn.ConvTranspose1d(high, high, 4, 2, 1)
        self.up = ResidualBlock(high + low, low, cond_dim)
        self.final_conv = nn.Sequential(ConvBlock(low, low), nn.Conv1d(low, input_dim, 1))

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor | int,
        local_cond: Tensor | None = None,
        global_cond: Tensor | None = None,
    ) -> Tensor:
        x = sample.moveaxis(-1, -2)
        t = timestep if isinstance(timestep, Tensor) else torch.tensor([timestep], device=x.device)
        cond = self.diffusion_step_encoder(t.reshape(-1).to(x.device).expand(len(x)))
        if global_cond is not None:
            cond = torch.cat((cond, global_cond), dim=-1)
        x = self.down[0](x, cond)
        if local_cond is not None and self.local_cond_encoder is not None:
            x = x + self.local_cond_encoder(local_cond.moveaxis(-1, -2), cond)
        kept = x = self.down[1](x, cond)
        x = self.downsample(x)
        for block in self.mid:
            x = block(x, cond)
        x = self.up(torch.cat((self.upsample(x), kept), dim=1), cond)
        out: Tensor = self.final_conv(x).moveaxis(-1, -2)
        return out


class BasePolicy(nn.Module):
    """What a policy of low-dimensional observations holds."""

    def __init__(
        self,
        model: nn.Module,
        noise_scheduler: Any,
        horizon: int,
        obs_dim: int,
        action_dim: int,
        n_obs_steps: int,
        num_inference_steps: int,
        obs_as: str = "global",
        **kwargs: Any,
    ) -> None:
        super().__init__()
        self.model, self.noise_scheduler, self.kwargs = model, noise_scheduler, kwargs
        self.horizon, self.obs_dim, self.action_dim = horizon, obs_dim, action_dim
        self.n_obs_steps, self.num_inference_steps = n_obs_steps, num_inference_steps
        self.obs_as = obs_as


class LowdimPolicy(BasePolicy):
    """``DiffusionUnetLowdimPolicy``: actions of observations ``(B, T, Do)``, nothing normalised.

    Observations are a vector for all (``obs_as_global_cond``), one of each place (``obs_as_local_cond``), or
    the known part of the trajectory ``(B, T, Da + Do)``.
    """

    def conditional_sample(
        self,
        condition_data: Tensor,
        condition_mask: Tensor,
        local_cond: Tensor | None = None,
        global_cond: Tensor | None = None,
        generator: torch.Generator | None = None,
        **kwargs: Any,
    ) -> Tensor:
        trajectory = torch.randn(
            size=condition_data.shape,
            dtype=condition_data.dtype,
            device=condition_data.device,
            generator=generator,
        )
        self.noise_scheduler.set_timesteps(self.num_inference_steps)
        for t in self.noise_scheduler.timesteps:
            trajectory[condition_mask] = condition_data[condition_mask]
            output = self.model(trajectory, t, local_cond=local_cond, global_cond=global_cond)
            stepped = self.noise_scheduler.step(output, t, trajectory, generator=generator, **kwargs)
            trajectory = stepped.prev_sample
        trajectory[condition_mask] = condition_data[condition_mask]
        return trajectory

    def predict_action(self, obs_dict: dict[str, Tensor]) -> dict[str, Tensor]:
        obs = obs_dict["obs"]
        seen = obs[:, : self.n_obs_steps]
        local_cond = global_cond = None
        width = self.action_dim + (self.obs_dim if self.obs_as == "known" else 0)
        data = torch.zeros(len(obs), self.horizon, width)
        mask = torch.zeros_like(data, dtype=torch.bool)
        if self.obs_as == "known":
            data[:, : self.n_obs_steps, self.action_dim :] = seen
            mask[:, : self.n_obs_steps, self.action_dim :] = True
        elif self.obs_as == "local":
            local_cond = torch.zeros(len(obs), self.horizon, self.obs_dim)
            local_cond[:, : self.n_obs_steps] = seen
        else:
            global_cond = seen.reshape(len(obs), -1)
        sample = self.conditional_sample(
            data, mask, local_cond=local_cond, global_cond=global_cond, **self.kwargs
        )
        return {"action": sample[:, self.n_obs_steps - 1 :, : self.action_dim], "action_pred": sample}


class DiffusionModel(nn.Module):
    """LeRobot's: encoder, network and loop."""

    def __init__(self, encoder: nn.Module, unet: nn.Module, noise_scheduler: Any, config: Any) -> None:
        super().__init__()
        self.encoder, self.unet, self.noise_scheduler = encoder, unet, noise_scheduler
        self.config, self.num_inference_steps = config, config.num_inference_steps

    def conditional_sample(
        self,
        batch_size: int,
        global_cond: Tensor | None = None,
        generator: torch.Generator | None = None,
        noise: Tensor | None = None,
    ) -> Tensor:
        weight = next(self.parameters())
        shape = (batch_size, self.config.horizon, self.config.action_feature.shape[0])
        sample = noise
        if sample is None:
            sample = torch.randn(size=shape, dtype=weight.dtype, device=weight.device, generator=generator)
        self.noise_scheduler.set_timesteps(self.num_inference_steps)
        for t in self.noise_scheduler.timesteps:
            times = torch.full(sample.shape[:1], t, dtype=torch.long, device=sample.device)
            output = self.unet(sample, times, global_cond=global_cond)
            sample = self.noise_scheduler.step(output, t, sample, generator=generator).prev_sample
        return sample

    def generate_actions(self, batch: dict[str, Tensor], noise: Tensor | None = None) -> Tensor:
        state = batch["observation.state"]
        global_cond = self.encoder(state).flatten(start_dim=1)
        actions = self.conditional_sample(len(state), global_cond=global_cond, noise=noise)
        start = state.shape[1] - 1
        return actions[:, start : start + self.config.n_action_steps]


class Policy(nn.Module):
    """LeRobot's ``DiffusionPolicy``: the last observations in, an action out, drawn some at a time."""

    def __init__(self, diffusion: DiffusionModel) -> None:
        super().__init__()
        self.diffusion, self.config = diffusion, diffusion.config
        self.reset()

    def reset(self) -> None:
        self._queues: dict[str, deque[Tensor]] = {
            "observation.state": deque(maxlen=self.config.n_obs_steps),
            "action": deque(maxlen=self.config.n_action_steps),
        }

    @torch.no_grad()
    def predict_action_chunk(self, batch: dict[str, Tensor], noise: Tensor | None = None) -> Tensor:
        batch = {"observation.state": torch.stack(list(self._queues["observation.state"]), dim=1)}
        return self.diffusion.generate_actions(batch, noise=noise)

    @torch.no_grad()
    def select_action(self, batch: dict[str, Tensor], noise: Tensor | None = None) -> Tensor:
        seen = self._queues["observation.state"]
        seen.append(batch["observation.state"])
        while len(seen) < self.config.n_obs_steps:
            seen.append(batch["observation.state"])
        if not self._queues["action"]:
            self._queues["action"].extend(self.predict_action_chunk(batch, noise=noise).transpose(0, 1))
        return self._queues["action"].popleft()


def config(**changes: Any) -> SimpleNamespace:
    """What of LeRobot's ``DiffusionConfig`` is read here."""
    chosen = {"horizon": 16, "n_obs_steps": 2, "n_action_steps": 8, "num_inference_steps": 100}
    return SimpleNamespace(action_feature=SimpleNamespace(shape=(3,)), **chosen | changes)
