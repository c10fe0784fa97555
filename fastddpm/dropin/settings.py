"""What a caller of `optimize` chose, and what a drop-in says about itself."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Literal, TypedDict

import torch
from torch import Tensor

from fastddpm.checks import BadArgument, check_choice
from fastddpm.engine import ENGINES, Engine
from fastddpm.network import Model
from fastddpm.precision import PRECISIONS, Precision
from fastddpm.randomness import Generators, NoiseKind, PhiloxNoise, TorchNoise, noise_source
from fastddpm.runner import Runner

NetworkChoice = Literal["auto", "original", "ours"]
NETWORK_CHOICES = ("auto", "original", "ours")
DTYPES = (torch.float32, torch.float16, torch.bfloat16)


class PeerOptions(TypedDict, total=False):
    """What some drop-ins are told besides `Settings`; docs/dropin.md says which, each refuses the others.

    Attributes:
        network: ``auto``, ``original`` or ``ours``.
        variance_type: of diffusers, in place of a DDPMScheduler's.
        previous_timestep: of diffusers: ``original`` or ``consistent``.
        repair: of denoising-diffusion-pytorch's guidance: each image its own prediction at cond_scale 1.
    """

    network: NetworkChoice
    variance_type: str | None
    previous_timestep: str
    repair: bool


@dataclasses.dataclass(frozen=True)
class Settings:
    """The options that every drop-in has.

    Attributes:
        noise: ``torch``: the random stream is consumed exactly as the original consumes it, so that the same
            seed gives the same images. ``philox``: noise spec v1, one seed per image.
        engine: as of :class:`fastddpm.Sampler`.
        dtype: what the network runs in; None for what the original runs in. The state stays float32.
        precision: as of :class:`fastddpm.Sampler`; with ``bf16`` and ``fp16``, dtype is theirs.

    Raises:
        ValueError: naming the option, what was given and what is accepted.
    """

    noise: NoiseKind = "torch"
    engine: Engine = "auto"
    dtype: torch.dtype | None = None
    precision: Precision | None = None

    def __post_init__(self) -> None:
        check_choice("noise", self.noise, ("torch", "philox"))
        check_choice("engine", self.engine, ENGINES)
        if self.precision is not None:
            check_choice("precision", self.precision, PRECISIONS)
        if self.dtype is not None and self.dtype not in DTYPES:
            raise BadArgument("dtype", repr(self.dtype), "None, float32, float16 or bfloat16")

    def runner(
        self,
        model: Model,
        *,
        capacity: int,
        dtype: torch.dtype | None = None,
        device: torch.device | None = None,
    ) -> Runner:
        """Runs chains of a model so; ``dtype`` is what it takes x in, the rest is as of `Runner`."""
        return Runner(
            model,
            device=device,
            dtype=dtype,
            engine=self.engine,
            precision=self.precision,
            capacity=capacity,
        )

    def source(
        self,
        count: int,
        device: torch.device,
        *,
        seeds: Sequence[int] | Tensor | None = None,
        generator: Generators | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> PhiloxNoise | TorchNoise:
        """Where the noise of ``count`` images comes from, as of `fastddpm.randomness.noise_source`."""
        return noise_source(self.noise, count, device, seeds=seeds, generator=generator, dtype=dtype)


@dataclasses.dataclass(frozen=True)
class Report:
    """What became of an object: printed by `print(fast.report())`.

    Attributes:
        peer: the library and class recognised.
        network: which network runs: the original module, or our UNet with its weights.
        engine: the engine that runs.
        noise: where noise comes from.
        precision: what the network computes in; empty where that is not known yet.
        fused: what one kernel does, in order.
        not_fused: what runs as plain torch passes, and why.
    """

    peer: str
    network: str
    engine: str
    noise: str
    precision: str = ""
    fused: tuple[str, ...] = ()
    not_fused: tuple[str, ...] = ()

    def __str__(self) -> str:
        lines = [
            f"{self.peer}",
            f"  network   {self.network}",
            f"  engine    {self.engine}",
            f"  noise     {self.noise}",
            *([f"  precision {self.precision}"] if self.precision else []),
            f"  fused     {', '.join(self.fused) or 'nothing'}",
        ]
        lines += [f"  not fused {text}" for text in self.not_fused]
        return "\n".join(lines)
