"""abarankab/DDPM restated: what its objects hold and do. Tests hold it to the outputs in tests/golden.

The networks and step loops are those of ddpm/unet.py and ddpm/diffusion.py, in their order of operations.
"""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn


def normalisation(kind: str | None, channels: int, groups: int) -> nn.Module:
    kinds: dict[str | None, Callable[[], nn.Module]] = {
        "gn": lambda: nn.GroupNorm(groups, channels),
        "bn": lambda: nn.BatchNorm2d(channels),
        "in": lambda: nn.InstanceNorm2d(channels, affine=True),
        None: nn.Identity,
    }
    return kinds[kind]()


class Frequencies(nn.Module):
    def __init__(self, dim: int, scale: float) -> None:
        super().__init__()
        self.dim, self.scale = dim, scale

    def forward(self, t: Tensor) -> Tensor:
        half = self.dim // 2
        powers = torch.exp(torch.arange(half, device=t.device) * -(math.log(10000) / half))
        angles = torch.outer(t * self.scale, powers)
        return torch.cat((angles.sin(), angles.cos()), dim=-1)


class Halve(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.downsample = nn.Conv2d(channels, channels, 3, stride=2, padding=1)

    def forward(self, x: Tensor, time_emb: Tensor, y: Tensor | None) -> Tensor:
        return self.downsample(x)


class Double(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.upsample = nn.Sequential(
            nn.Upsample(scale_factor=2, mode="nearest"), nn.Conv2d(channels, channels, 3, padding=1)
        )

    def forward(self, x: Tensor, time_emb: Tensor, y: Tensor | None) -> Tensor:
        return self.upsample(x)


class PixelAttention(nn.Module):
    def __init__(self, channels: int, norm: str | None, groups: int) -> None:
        super().__init__()
        self.in_channels = channels
        self.norm = normalisation(norm, channels, groups)
        self.to_qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.to_out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        q, k, v = torch.split(self.to_qkv(self.norm(x)), c, dim=1)
        q, v = (part.permute(0, 2, 3, 1).reshape(b, h * w, c) for part in (q, v))
        weights = torch.softmax(torch.bmm(q, k.reshape(b, c, h * w)) * c**-0.5, dim=-1)
        out = torch.bmm(weights, v).view(b, h, w, c).permute(0, 3, 1, 2)
        return self.to_out(out) + x


class Residual(nn.Module):
    def __init__(self, channels: int, width: int, options: dict[str, Any], attends: bool) -> None:
        super().__init__()
        norm, groups, classes = options["norm"], options["num_groups"], options["num_classes"]
        self.activation = options["activation"]
        self.norm_1 = normalisation(norm, channels, groups)
        self.conv_1 = nn.Conv2d(channels, width, 3, padding=1)
        self.norm_2 = normalisation(norm, width, groups)
        self.conv_2 = nn.Sequential(nn.Dropout(options["dropout"]), nn.Conv2d(width, width, 3, padding=1))
        self.time_bias = nn.Linear(options["time_emb_dim"], width)
        self.class_bias = nn.Embedding(classes, width) if classes is not None else None
        self.residual_connection = nn.Conv2d(channels, width, 1) if channels != width else nn.Identity()
        self.attention = PixelAttention(width, norm, groups) if attends else nn.Identity()

    def forward(self, x: Tensor, time_emb: Tensor, y: Tensor | None) -> Tensor:
        out = self.conv_1(self.activation(self.norm_1(x)))
        out += self.time_bias(self.activation(time_emb))[:, :, None, None]
        if self.class_bias is not None:
            out += self.class_bias(y)[:, :, None, None]
        out = self.conv_2(self.activation(self.norm_2(out))) + self.residual_connection(x)
        return self.attention(out)


class Network(nn.Module):
    """ddpm/unet.py's UNet, by its keyword arguments."""

    def __init__(
        self,
        img_channels: int,
        base_channels: int,
        channel_mults: Sequence[int] = (1, 2),
        num_res_blocks: int = 2,
        **given: Any,
    ) -> None:
        super().__init__()
        options: dict[str, Any] = {
            "time_emb_dim": 32,
            "time_emb_scale": 1.0,
            "num_classes": None,
            "activation": F.silu,
            "dropout": 0.1,
            "attention_resolutions": (),
            "norm": "gn",
            "num_groups": 4,
            "initial_pad": 0,
            **given,
        }
        self.activation, self.initial_pad = options["activation"], options["initial_pad"]
        self.num_classes = options["num_classes"]
        width = options["time_emb_dim"]
        self.time_mlp = nn.Sequential(
            Frequencies(base_channels, options["time_emb_scale"]),
            nn.Linear(base_channels, width),
            nn.SiLU(),
            nn.Linear(width, width),
        )
        self.init_conv = nn.Conv2d(img_channels, base_channels, 3, padding=1)
        self.downs, self.ups = nn.ModuleList(), nn.ModuleList()
        now, skips = base_channels, [base_channels]
        for level, mult in enumerate(channel_mults):
            attends = level in options["attention_resolutions"]
            for _ in range(num_res_blocks):
                self.downs.append(Residual(now, base_channels * mult, options, attends))
                now = base_channels * mult
                skips.append(now)
            if level < len(channel_mults) - 1:
                self.downs.append(Halve(now))
                skips.append(now)
        self.mid = nn.ModuleList([Residual(now, now, options, attends) for attends in (True, False)])
        for level, mult in reversed(list(enumerate(channel_mults))):
            attends = level in options["attention_resolutions"]
            for _ in range(num_res_blocks + 1):
                self.ups.append(Residual(skips.pop() + now, base_channels * mult, options, attends))
                now = base_channels * mult
            if level:
                self.ups.append(Double(now))
        self.out_norm = normalisation(options["norm"], base_channels, options["num_groups"])
        self.out_conv = nn.Conv2d(base_channels, img_channels, 3, padding=1)

    def forward(self, x: Tensor, time: Tensor | None = None, y: Tensor | None = None) -> Tensor:
        pad = self.initial_pad
        x = F.pad(x, (pad,) * 4) if pad else x
        time_emb = self.time_mlp(time)
        if self.num_classes is not None and y is None:
            raise ValueError("class conditioning was specified but y is not passed")
        x = self.init_conv(x)
        skips = [x]
        for layer in self.downs:
            x = layer(x, time_emb, y)
            skips.append(x)
        for layer in self.mid:
            x = layer(x, time_emb, y)
        for layer in self.ups:
            if isinstance(layer, Residual):
                x = torch.cat([x, skips.pop()], dim=1)
            x = layer(x, time_emb, y)
        x = self.out_conv(self.activation(self.out_norm(x)))
        return x[:, :, pad:-pad, pad:-pad] if pad else x


def extract(values: Tensor, t: Tensor, shape: Sequence[int]) -> Tensor:
    return values.gather(-1, t).reshape(len(t), *(1,) * (len(shape) - 1))


class Diffusion(nn.Module):
    """ddpm/diffusion.py's GaussianDiffusion: what it holds, and its sampling. Counts its steps."""

    steps_taken = 0
    remove_noise_coeff: Tensor
    reciprocal_sqrt_alphas: Tensor
    sigma: Tensor

    def __init__(
        self, model: nn.Module, img_size: tuple[int, int], img_channels: int, betas: npt.NDArray[np.float64]
    ) -> None:
        super().__init__()
        self.model, self.ema_model = model, copy.deepcopy(model)
        self.img_size, self.img_channels = img_size, img_channels
        self.num_timesteps = len(betas)
        alphas = 1.0 - betas
        abar = np.cumprod(alphas)
        buffers = {
            "betas": betas,
            "alphas": alphas,
            "alphas_cumprod": abar,
            "sqrt_alphas_cumprod": np.sqrt(abar),
            "sqrt_one_minus_alphas_cumprod": np.sqrt(1 - abar),
            "reciprocal_sqrt_alphas": np.sqrt(1 / alphas),
            "remove_noise_coeff": betas / np.sqrt(1 - abar),
            "sigma": np.sqrt(betas),
        }
        for name, values in buffers.items():
            self.register_buffer(name, torch.tensor(values, dtype=torch.float32))

    @torch.no_grad()
    def remove_noise(self, x: Tensor, t: Tensor, y: Tensor | None, use_ema: bool = True) -> Tensor:
        type(self).steps_taken += 1
        network = self.ema_model if use_ema else self.model
        return (x - extract(self.remove_noise_coeff, t, x.shape) * network(x, t, y)) * extract(
            self.reciprocal_sqrt_alphas, t, x.shape
        )

    @torch.no_grad()
    def sample_diffusion_sequence(
        self, batch_size: int, device: torch.device | str, y: Tensor | None = None, use_ema: bool = True
    ) -> list[Tensor]:
        if y is not None and batch_size != len(y):
            raise ValueError("sample batch size different from length of given y")
        x = torch.randn(batch_size, self.img_channels, *self.img_size, device=device)
        sequence = [x.cpu().detach()]
        for t in range(self.num_timesteps - 1, -1, -1):
            batched = torch.tensor([t], device=device).repeat(batch_size)
            x = self.remove_noise(x, batched, y, use_ema)
            if t > 0:
                x += extract(self.sigma, batched, x.shape) * torch.randn_like(x)
            sequence.append(x.cpu().detach())
        return sequence

    def sample(
        self, batch_size: int, device: torch.device | str, y: Tensor | None = None, use_ema: bool = True
    ) -> Tensor:
        return self.sample_diffusion_sequence(batch_size, device, y, use_ema)[-1]


def linear_betas(steps: int) -> npt.NDArray[np.float64]:
    return np.linspace(1e-4 * 1000 / steps, min(0.02 * 1000 / steps, 0.5), steps)


def cosine_betas(steps: int, s: float = 0.008) -> npt.NDArray[np.float64]:
    abar = [np.cos((t / steps + s) / (1 + s) * np.pi / 2) ** 2 for t in range(steps + 1)]
    return np.array([min(1 - b / a, 0.999) for a, b in itertools.pairwise(abar)])
