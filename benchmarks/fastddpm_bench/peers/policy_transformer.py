"""The transformer of policies as it is published, restated: its parts have the published names.

Source: real-stanford/diffusion_policy, diffusion_policy/model/diffusion/transformer_for_diffusion.py and
policy/diffusion_transformer_lowdim_policy.py (Chi et al. 2023). Only what draws.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from fastddpm_bench.peers.diffusion_policy import BasePolicy, TimeEmbedding


class TransformerForDiffusion(nn.Module):
    """``(B, T, A)``, a time, and observations ``(B, To, Do)``: all attend to one another.

    Args:
        input_dim: A.
        output_dim: of what it predicts.
        horizon: T at most.
        n_obs_steps: To.
        cond_dim: Do; 0 without observations.
        n_layer: of the decoder, or of the encoder where there is nothing to decode by.
        n_head: of attention.
        n_emb: of a token.
        causal_attn: whether a place attends to those before it alone.
        time_as_cond: whether the time is a condition, or a place in front of the trajectory.
        n_cond_layers: of the conditions' encoder; 0 for two layers of every condition by itself.
    """

    def __init__(
        self,
        input_dim: int,
        output_dim: int,
        horizon: int,
        n_obs_steps: int,
        *,
        cond_dim: int = 0,
        n_layer: int = 12,
        n_head: int = 12,
        n_emb: int = 768,
        causal_attn: bool = False,
        time_as_cond: bool = True,
        n_cond_layers: int = 0,
    ) -> None:
        super().__init__()
        places = horizon + (not time_as_cond)
        conditions = int(time_as_cond) + (n_obs_steps if cond_dim else 0)
        self.input_emb, self.time_emb = nn.Linear(input_dim, n_emb), TimeEmbedding(n_emb)
        self.pos_emb = nn.Parameter(torch.zeros(1, places, n_emb))
        self.cond_obs_emb = nn.Linear(cond_dim, n_emb) if cond_dim else None
        self.decoder = None
        rest: dict[str, Any] = {"dim_feedforward": 4 * n_emb, "activation": "gelu", "batch_first": True}
        encoder_layer = nn.TransformerEncoderLayer(n_emb, n_head, norm_first=True, **rest)
        if conditions:
            self.cond_pos_emb = nn.Parameter(torch.zeros(1, conditions, n_emb))
            decoder_layer = nn.TransformerDecoderLayer(n_emb, n_head, norm_first=True, **rest)
            self.decoder = nn.TransformerDecoder(decoder_layer, n_layer)
        if n_cond_layers or not conditions:
            layers = n_cond_layers if conditions else n_layer
            self.encoder: nn.Module = nn.TransformerEncoder(encoder_layer, layers, enable_nested_tensor=False)
        else:
            wide, narrow = nn.Linear(n_emb, 4 * n_emb), nn.Linear(4 * n_emb, n_emb)
            self.encoder = nn.Sequential(wide, nn.Mish(), narrow)
        mask = memory_mask = None
        if causal_attn:
            before = torch.ones(places, places).tril() == 1
            mask = torch.zeros(places, places).masked_fill(~before, float("-inf"))
        if causal_attn and cond_dim:
            # The time is the first of the conditions.
            seen = torch.arange(places)[:, None] >= torch.arange(conditions)[None] - 1
            memory_mask = torch.zeros(seen.shape).masked_fill(~seen, float("-inf"))
        self.register_buffer("mask", mask)
        self.register_buffer("memory_mask", memory_mask)
        self.ln_f, self.head = nn.LayerNorm(n_emb), nn.Linear(n_emb, output_dim)

    def forward(
        self, sample: Tensor, timestep: Tensor | int, cond: Tensor | None = None, **kwargs: Any
    ) -> Tensor:
        t = timestep if isinstance(timestep, Tensor) else torch.tensor([timestep], device=sample.device)
        time = self.time_emb(t.reshape(-1).to(sample.device).expand(len(sample)))[:, None]
        tokens = self.input_emb(sample)
        if self.decoder is None:
            tokens = torch.cat((time, tokens), dim=1)
            h = self.encoder(tokens + self.pos_emb[:, : tokens.shape[1]], mask=self.mask)[:, 1:]
        else:
            if self.cond_obs_emb is not None:
                time = torch.cat((time, self.cond_obs_emb(cond)), dim=1)
            memory = self.encoder(time + self.cond_pos_emb[:, : time.shape[1]])
            tokens = tokens + self.pos_emb[:, : tokens.shape[1]]
            h = self.decoder(tokens, memory, tgt_mask=self.mask, memory_mask=self.memory_mask)
        out: Tensor = self.head(self.ln_f(h))
        return out


class TransformerPolicy(BasePolicy):
    """``DiffusionTransformerLowdimPolicy``: its network takes the observations by place, as ``cond``.

    With ``obs_as="known"`` they are the known part of the trajectory.
    """

    def conditional_sample(
        self,
        condition_data: Tensor,
        condition_mask: Tensor,
        cond: Tensor | None = None,
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
            output = self.model(trajectory, t, cond)
            stepped = self.noise_scheduler.step(output, t, trajectory, generator=generator, **kwargs)
            trajectory = stepped.prev_sample
        trajectory[condition_mask] = condition_data[condition_mask]
        return trajectory

    def predict_action(self, obs_dict: dict[str, Tensor]) -> dict[str, Tensor]:
        seen, cond = obs_dict["obs"][:, : self.n_obs_steps], None
        width = self.action_dim + (self.obs_dim if self.obs_as == "known" else 0)
        data = torch.zeros(len(seen), self.horizon, width)
        mask = torch.zeros_like(data, dtype=torch.bool)
        if self.obs_as == "known":
            data[:, : self.n_obs_steps, self.action_dim :] = seen
            mask[:, : self.n_obs_steps, self.action_dim :] = True
        else:
            cond = seen
        sample = self.conditional_sample(data, mask, cond=cond, **self.kwargs)
        return {"action": sample[:, self.n_obs_steps - 1 :, : self.action_dim], "action_pred": sample}
