"""Janspiry's SR3 repository restated, both variants: what its objects hold and do.

Tests hold it to the outputs in tests/golden. The networks and step loops are those of model/*_modules/unet.py
and diffusion.py, in their order of operations.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn


class Swish(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(x)


class LevelEncoding(nn.Module):
    """The `sr3` variant's: of noise levels (B, 1)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim

    def forward(self, level: Tensor) -> Tensor:
        half = self.dim // 2
        step = torch.arange(half, dtype=level.dtype, device=level.device) / half
        angles = level.unsqueeze(1) * torch.exp(-math.log(1e4) * step.unsqueeze(0))
        return torch.cat([torch.sin(angles), torch.cos(angles)], dim=-1)


class TimeEncoding(nn.Module):
    """The `ddpm` variant's: of timesteps (B,)."""

    inv_freq: Tensor

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim
        powers = torch.exp(torch.arange(0, dim, 2, dtype=torch.float32) * (-math.log(10000) / dim))
        self.register_buffer("inv_freq", powers)

    def forward(self, t: Tensor) -> Tensor:
        angles = torch.ger(t.view(-1).float(), self.inv_freq)
        return torch.cat([angles.sin(), angles.cos()], dim=-1).view(*t.shape, self.dim)


class Double(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.up = nn.Upsample(scale_factor=2, mode="nearest")
        self.conv = nn.Conv2d(dim, dim, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(self.up(x))


class Halve(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(dim, dim, 3, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


class Block(nn.Module):
    def __init__(self, dim: int, width: int, groups: int, dropout: float = 0) -> None:
        super().__init__()
        self.block = nn.Sequential(
            nn.GroupNorm(groups, dim),
            Swish(),
            nn.Dropout(dropout) if dropout else nn.Identity(),
            nn.Conv2d(dim, width, 3, padding=1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.block(x)


class LevelBias(nn.Module):
    def __init__(self, dim: int, width: int) -> None:
        super().__init__()
        self.noise_func = nn.Sequential(nn.Linear(dim, width))

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        return x + self.noise_func(embedding).view(x.shape[0], -1, 1, 1)


class Residual(nn.Module):
    def __init__(self, kind: str, dim: int, width: int, time_dim: int, groups: int, dropout: float) -> None:
        super().__init__()
        if kind == "sr3":
            self.noise_func = LevelBias(time_dim, width)
        else:
            self.mlp = nn.Sequential(Swish(), nn.Linear(time_dim, width))
        self.kind = kind
        self.block1 = Block(dim, width, groups)
        self.block2 = Block(width, width, groups, dropout)
        self.res_conv = nn.Conv2d(dim, width, 1) if dim != width else nn.Identity()

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        h = self.block1(x)
        if self.kind == "sr3":
            h = self.noise_func(h, embedding)
        else:
            h += self.mlp(embedding)[:, :, None, None]
        return self.block2(h) + self.res_conv(x)


class Attention(nn.Module):
    def __init__(self, dim: int, groups: int) -> None:
        super().__init__()
        self.n_head = 1
        self.norm = nn.GroupNorm(groups, dim)
        self.qkv = nn.Conv2d(dim, 3 * dim, 1, bias=False)
        self.out = nn.Conv2d(dim, dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        query, key, value = self.qkv(self.norm(x)).view(b, 1, 3 * c, h, w).chunk(3, dim=2)
        weights = torch.einsum("bnchw, bncyx -> bnhwyx", query, key).contiguous() / math.sqrt(c)
        weights = torch.softmax(weights.view(b, 1, h, w, -1), -1).view(b, 1, h, w, h, w)
        out = torch.einsum("bnhwyx, bncyx -> bnchw", weights, value).contiguous()
        return self.out(out.view(b, c, h, w)) + x


class Layer(nn.Module):
    def __init__(
        self, kind: str, dim: int, width: int, time_dim: int, groups: int, dropout: float, with_attn: bool
    ) -> None:
        super().__init__()
        self.with_attn = with_attn
        self.res_block = Residual(kind, dim, width, time_dim, groups, dropout)
        if with_attn:
            self.attn = Attention(width, groups)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        x = self.res_block(x, embedding)
        return self.attn(x) if self.with_attn else x


class Network(nn.Module):
    """The repository's UNet of either variant, by its keyword arguments."""

    def __init__(
        self,
        kind: str,
        in_channel: int,
        out_channel: int,
        inner_channel: int,
        norm_groups: int = 32,
        **given: Any,
    ) -> None:
        super().__init__()
        options: dict[str, Any] = {
            "channel_mults": (1, 2),
            "attn_res": (8,),
            "res_blocks": 1,
            "dropout": 0.0,
            **given,
        }
        # The sr3 variant has no option for its 32 groups; the tests' networks are narrower.
        groups, mults = norm_groups, options["channel_mults"]
        wide = 4 * inner_channel
        mlp = [nn.Linear(inner_channel, wide), Swish(), nn.Linear(wide, inner_channel)]
        if kind == "sr3":
            self.noise_level_mlp = nn.Sequential(LevelEncoding(inner_channel), *mlp)
        else:
            self.time_mlp = nn.Sequential(TimeEncoding(inner_channel), *mlp)
        self.kind = kind

        def layer(dim: int, width: int, attends: bool) -> Layer:
            return Layer(kind, dim, width, inner_channel, groups, options["dropout"], attends)

        now, skips, resolution = inner_channel, [inner_channel], options.get("image_size", 16)
        downs: list[nn.Module] = [nn.Conv2d(in_channel, inner_channel, 3, padding=1)]
        for level, mult in enumerate(mults):
            for _ in range(options["res_blocks"]):
                downs.append(layer(now, inner_channel * mult, resolution in options["attn_res"]))
                now = inner_channel * mult
                skips.append(now)
            if level < len(mults) - 1:
                downs.append(Halve(now))
                skips.append(now)
                resolution //= 2
        self.downs = nn.ModuleList(downs)
        self.mid = nn.ModuleList([layer(now, now, True), layer(now, now, False)])
        ups: list[nn.Module] = []
        for level, mult in reversed(list(enumerate(mults))):
            for _ in range(options["res_blocks"] + 1):
                ups.append(layer(now + skips.pop(), inner_channel * mult, resolution in options["attn_res"]))
                now = inner_channel * mult
            if level:
                ups.append(Double(now))
                resolution *= 2
        self.ups = nn.ModuleList(ups)
        self.final_conv = Block(now, out_channel, groups)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        t = self.noise_level_mlp(time) if self.kind == "sr3" else self.time_mlp(time)
        feats = []
        for part in self.downs:
            x = part(x, t) if isinstance(part, Layer) else part(x)
            feats.append(x)
        for part in self.mid:
            x = part(x, t)
        for part in self.ups:
            x = part(torch.cat((x, feats.pop()), dim=1), t) if isinstance(part, Layer) else part(x)
        return self.final_conv(x)


def betas_of(schedule: str, steps: int, start: float, end: float) -> npt.NDArray[np.float64]:
    if schedule == "linear":
        return np.linspace(start, end, steps)
    if schedule == "quad":
        return np.linspace(start**0.5, end**0.5, steps) ** 2
    if schedule == "const":
        return end * np.ones(steps)
    if schedule == "jsd":
        return 1.0 / np.linspace(steps, 1, steps)
    if schedule == "warmup10":
        betas = end * np.ones(steps)
        betas[: int(steps * 0.1)] = np.linspace(start, end, int(steps * 0.1))
        return betas
    assert schedule == "cosine"
    angles = (np.arange(steps + 1) / steps + 8e-3) / (1 + 8e-3) * math.pi / 2
    abar = np.cos(angles) ** 2
    return np.minimum(1 - abar[1:] / abar[:-1], 0.999)


class Diffusion(nn.Module):
    """The repository's GaussianDiffusion: what it holds, and its sampling. Counts its steps."""

    steps_taken = 0
    num_timesteps: int
    betas: Tensor
    sqrt_recip_alphas_cumprod: Tensor
    sqrt_recipm1_alphas_cumprod: Tensor
    posterior_log_variance_clipped: Tensor
    posterior_mean_coef1: Tensor
    posterior_mean_coef2: Tensor

    def __init__(
        self,
        denoise_fn: nn.Module,
        image_size: int,
        channels: int = 3,
        conditional: bool = True,
        kind: str = "sr3",
    ) -> None:
        super().__init__()
        self.denoise_fn, self.image_size, self.channels = denoise_fn, image_size, channels
        self.conditional, self.kind = conditional, kind

    def set_new_noise_schedule(
        self, schedule_opt: dict[str, Any], device: torch.device | str = "cpu"
    ) -> None:
        betas = betas_of(
            schedule_opt["schedule"],
            schedule_opt["n_timestep"],
            schedule_opt["linear_start"],
            schedule_opt["linear_end"],
        )
        self.set_betas(betas, device)

    def set_betas(self, betas: npt.NDArray[np.float64], device: torch.device | str = "cpu") -> None:
        alphas = 1.0 - betas
        abar = np.cumprod(alphas)
        before = np.append(1.0, abar[:-1])
        self.num_timesteps = len(betas)
        if self.kind == "sr3":
            self.sqrt_alphas_cumprod_prev = np.sqrt(np.append(1.0, abar))
        variance = betas * (1.0 - before) / (1.0 - abar)
        with np.errstate(divide="ignore"):
            buffers = {
                "betas": betas,
                "alphas_cumprod": abar,
                "alphas_cumprod_prev": before,
                "sqrt_alphas_cumprod": np.sqrt(abar),
                "sqrt_one_minus_alphas_cumprod": np.sqrt(1.0 - abar),
                "log_one_minus_alphas_cumprod": np.log(1.0 - abar),
                "sqrt_recip_alphas_cumprod": np.sqrt(1.0 / abar),
                "sqrt_recipm1_alphas_cumprod": np.sqrt(1.0 / abar - 1),
                "posterior_variance": variance,
                "posterior_log_variance_clipped": np.log(np.maximum(variance, 1e-20)),
                "posterior_mean_coef1": betas * np.sqrt(before) / (1.0 - abar),
                "posterior_mean_coef2": (1.0 - before) * np.sqrt(alphas) / (1.0 - abar),
            }
        for name, values in buffers.items():
            self.register_buffer(name, torch.tensor(values, dtype=torch.float32, device=device))

    @torch.no_grad()
    def p_sample(self, x: Tensor, i: int, condition_x: Tensor | None = None) -> Tensor:
        type(self).steps_taken += 1
        if self.kind == "sr3":
            time = torch.FloatTensor([self.sqrt_alphas_cumprod_prev[i + 1]]).repeat(len(x), 1).to(x.device)
        else:
            time = torch.full((len(x),), i, device=x.device, dtype=torch.long)
        given = x if condition_x is None else torch.cat([condition_x, x], dim=1)
        eps = self.denoise_fn(given, time)
        x0 = self.sqrt_recip_alphas_cumprod[i] * x - self.sqrt_recipm1_alphas_cumprod[i] * eps
        x0.clamp_(-1.0, 1.0)
        mean = self.posterior_mean_coef1[i] * x0 + self.posterior_mean_coef2[i] * x
        sigma = (0.5 * self.posterior_log_variance_clipped[i]).exp()
        if self.kind == "sr3":
            return mean + (torch.randn_like(x) if i > 0 else torch.zeros_like(x)) * sigma
        noise = torch.randn(x.shape, device=x.device)
        return mean + (1 - float(i == 0)) * sigma * noise

    @torch.no_grad()
    def p_sample_loop(self, x_in: Any, continous: bool = False) -> Tensor:
        condition = x_in if self.conditional else None
        img = torch.randn(x_in.shape if self.conditional else x_in, device=self.betas.device)
        ret_img = x_in if self.conditional else img
        for i in reversed(range(self.num_timesteps)):
            img = self.p_sample(img, i, condition)
            if i % (1 | (self.num_timesteps // 10)) == 0:
                ret_img = torch.cat([ret_img, img], dim=0)
        if self.kind == "ddpm" and not self.conditional:
            return img
        return ret_img if continous else ret_img[-1]

    def sample(self, batch_size: int = 1, continous: bool = False) -> Tensor:
        shape = (batch_size, self.channels, self.image_size, self.image_size)
        return self.p_sample_loop(shape, continous)

    def super_resolution(self, x_in: Tensor, continous: bool = False) -> Tensor:
        return self.p_sample_loop(x_in, continous)
