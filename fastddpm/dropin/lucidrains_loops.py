"""The drop-in for denoising-diffusion-pytorch's ``GaussianDiffusion`` and its learned variance."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TypedDict

import torch
from torch import Tensor, nn

from fastddpm.batch import make_batch
from fastddpm.checks import BadArgument, check_choice, whole
from fastddpm.dropin.network import PeerNetwork
from fastddpm.dropin.peer import DropIn, Peer, parameters_of
from fastddpm.dropin.settings import NetworkChoice, Report, Settings
from fastddpm.engine import Engine
from fastddpm.network import model_device_dtype
from fastddpm.plans import Plan
from fastddpm.plans.lucidrains import BUFFERS, OBJECTIVES, Habits, ancestral_plan, ddim_plan
from fastddpm.randomness import PhiloxNoise
from fastddpm.runner import Runner
from fastddpm.unet import UNet

if TYPE_CHECKING:
    from typing_extensions import Unpack

DESCRIPTION = "denoising-diffusion-pytorch (lucidrains) GaussianDiffusion"


class DrawOptions(TypedDict, total=False):
    """Of `FastLucidrains.sample`, those that are ours."""

    seeds: Sequence[int] | Tensor | None
    generator: torch.Generator | None
    progress: bool


class FastLucidrains(DropIn):
    """``sample``, ``p_sample_loop``, ``ddim_sample`` and ``interpolate`` as in the library, by our loop.

    Attributes:
        original: the GaussianDiffusion; its attributes, buffers and weights are read anew by each call.
        settings: noise, engine and dtype.
    """

    arranges = True
    """Whether a GPU runs the network in channels_last: not those of sequences, which have no such order."""

    def __init__(self, original: Peer, settings: Settings, *, network: NetworkChoice = "auto") -> None:
        super().__init__(original)
        check_choice("network", network, ("auto", "original"))
        self.settings, self._choice = settings, network
        self._networks: dict[object, PeerNetwork[UNet]] = {}
        self._plain()

    def sample(
        self, batch_size: int = 16, return_all_timesteps: bool = False, **options: Unpack[DrawOptions]
    ) -> Tensor:
        """Draws images, by DDIM if the original's sampling_timesteps are fewer than its timesteps.

        Args:
            batch_size: how many.
            return_all_timesteps: every state, from the noise on.
            **options: ``seeds`` (one per image, with ``noise="philox"``), ``generator`` (instead of torch's
                global one) and ``progress``.

        Returns:
            float32 ``(batch_size, C, H, W)``, or ``(batch_size, S + 1, C, H, W)``, in [0, 1] if the original
            normalises by itself and in [-1, 1] if not; the states before the last are not bounded.

        Raises:
            ValueError: naming the argument, what was given and what is accepted.
        """
        whole("batch_size", batch_size, least=1)
        loop = self.ddim_sample if self.original.is_ddim_sampling else self.p_sample_loop
        return loop((batch_size, self.original.channels, *self._size()), return_all_timesteps, **options)

    def p_sample_loop(
        self, shape: Sequence[int], return_all_timesteps: bool = False, **options: Unpack[DrawOptions]
    ) -> Tensor:
        """`sample` for a shape ``(B, C, H, W)``, with every timestep."""
        return self._images(self.ancestral_plan(), shape, return_all_timesteps, **options)

    def ddim_sample(
        self, shape: Sequence[int], return_all_timesteps: bool = False, **options: Unpack[DrawOptions]
    ) -> Tensor:
        """`sample` for a shape ``(B, C, H, W)``, by DDIM with the original's sampling_timesteps."""
        return self._images(self.ddim_plan(), shape, return_all_timesteps, **options)

    def interpolate(
        self, x1: Tensor, x2: Tensor, t: int | None = None, lam: float = 0.5, *, progress: bool = True
    ) -> Tensor:
        """Between two images: both are noised to timestep t, mixed as (1 - lam)*x1 + lam*x2, and denoised.

        Args:
            x1, x2: float32 ``(B, C, H, W)`` in the network's range.
            t: 0 .. T-1; None is T-1.
            lam: 0 for x1, 1 for x2.
            progress: show a progress bar.

        Returns:
            float32 ``(B, C, H, W)`` in the network's range, as the original's.

        Raises:
            ValueError: naming the argument; ``noise="philox"``.
        """
        return self._interpolated(x1, x2, t, lam, self._plain(), {}, progress)

    def ancestral_plan(self) -> Plan:
        """The plan of `p_sample_loop`."""
        return ancestral_plan(self._buffers(), self._habits())

    def ddim_plan(self) -> Plan:
        """The plan of `ddim_sample`."""
        steps, eta = self.original.sampling_timesteps, self.original.ddim_sampling_eta
        return ddim_plan(self._buffers(), self._habits(), steps=steps, eta=eta)

    def report(self) -> Report:
        """What became of the original: network, engine, noise, what is fused and what is not."""
        drawn = self.settings.noise == "philox"
        fused = (f"x0 from {self.original.objective}", "clip", f"the {self._method()} update", "sigma * z")
        not_fused: tuple[str, ...] = ()
        self._plain()
        if not drawn:
            not_fused += ("the noise z: torch's generator draws it before the step",)
        if self.settings.dtype not in (None, torch.float32):
            not_fused += (f"casts of weights to {self.settings.dtype}: autocast makes them in each step",)
        return Report(
            peer=self.description,
            network=self._last().words,
            engine=self._engine(),
            noise="philox, one seed per image" if drawn else "torch, in the original's order",
            precision=self._last().runner.computes_in(self.settings.dtype),
            fused=(*fused, *(("the noise z",) if drawn else ())),
            not_fused=not_fused,
        )

    description = DESCRIPTION

    def _method(self) -> str:
        obj = self.original
        if obj.is_ddim_sampling:
            return (
                f"DDIM ({obj.sampling_timesteps} of {obj.num_timesteps} steps, eta {obj.ddim_sampling_eta:g})"
            )
        return f"DDPM ({obj.num_timesteps} steps)"

    def _engine(self) -> Engine:
        return self._last().runner.engine

    def _last(self) -> PeerNetwork[UNet]:
        """What ran last, or was made last."""
        return next(reversed(self._networks.values()))

    def _images(
        self,
        plan: Plan,
        shape: Sequence[int],
        return_all_timesteps: bool,
        *,
        seeds: Sequence[int] | Tensor | None = None,
        generator: torch.Generator | None = None,
        progress: bool = True,
    ) -> Tensor:
        runner = self._plain()
        source = self.settings.source(int(shape[0]), runner.device, seeds=seeds, generator=generator)
        batch = make_batch(shape, source)
        options = {
            "progress": progress,
            "self_condition": bool(getattr(self.original, "self_condition", False)),
        }
        if not return_all_timesteps:
            x = runner.run(plan, batch, **options)
        else:
            x = torch.stack([x.clone() for _, x, _ in runner.walk(plan, batch, **options)], dim=1)
        return self._unnormalized(x)

    def _unnormalized(self, x: Tensor) -> Tensor:
        """As the original has it; early versions (0.27, 1.0) always map [-1, 1] to [0, 1] and hold none."""
        if not hasattr(self.original, "unnormalize"):
            return (x + 1) * 0.5
        images: Tensor = self.original.unnormalize(x)
        return images

    def _interpolated(
        self,
        x1: Tensor,
        x2: Tensor,
        t: int | None,
        lam: float,
        runner: Runner,
        cond: dict[str, Tensor],
        progress: bool,
    ) -> Tensor:
        total = self.original.num_timesteps
        t = total - 1 if t is None else t
        whole("t", t, least=0, most=total - 1)
        if x1.shape != x2.shape:
            raise BadArgument("x2", f"shape {tuple(x2.shape)}", f"that of x1, {tuple(x1.shape)}")
        source = self.settings.source(len(x1), runner.device)
        if isinstance(source, PhiloxNoise):
            raise BadArgument(
                "noise", "'philox' to interpolate, which draws its noise as the original does,", "'torch'"
            )
        at = torch.full((len(x1),), t, device=x1.device)
        with torch.no_grad():
            noised = [self.original.q_sample(x, t=at) for x in (x1, x2)]
            x: Tensor = (1 - lam) * noised[0] + lam * noised[1]
        if t == 0:
            return x
        batch = make_batch(x.shape, source, x=x, cond=cond)
        self_condition = bool(getattr(self.original, "self_condition", False))
        options = {"progress": progress, "self_condition": self_condition}
        # Timesteps t-1 .. 0 stand in the last t rows.
        return runner.run(self.ancestral_plan(), batch, row=total - t, **options)

    def _plain(self) -> Runner:
        """The runner of this class, whose network is given x and t and perhaps the last x0."""
        return self._runner("plain", _learned if self._habits().learned else _self_conditioned)

    def _runner(self, key: object, call: Callable[..., object]) -> Runner:
        """The runner for one way to call the network; made anew where it is another one or was moved."""
        module = self.original.model
        kept = self._networks.pop(key, None)
        if kept is None or not kept.fits(module):
            dtype = model_device_dtype(module)[1]
            is_half = dtype in (torch.float16, torch.bfloat16)
            kept = PeerNetwork(
                module,
                functools.partial(_in_half, dtype, call) if is_half else call,
                None,
                self.settings,
                choice=self._choice,
                times=torch.arange(self.original.num_timesteps),
                tries_ours=False,
                arranges=self.arranges,
            )
        while len(self._networks) >= 4:
            del self._networks[next(iter(self._networks))]
        self._networks[key] = kept
        kept.refresh()
        return kept.runner

    def _buffers(self) -> dict[str, Tensor]:
        return {name: getattr(self.original, name) for name in BUFFERS}

    def _habits(self) -> Habits:
        check_choice("objective", self.original.objective, tuple(OBJECTIVES))
        return Habits(
            self.original.objective,
            # Versions before 1.3, and the class for guidance, do not have it.
            rederives="rederive_pred_noise" in parameters_of(self.original.model_predictions),
            learned=hasattr(self.original, "vb_loss_weight"),
        )

    def _size(self) -> tuple[int, int]:
        size = self.original.image_size
        height, width = (size, size) if isinstance(size, int) else size
        return int(height), int(width)


def _in_half(
    dtype: torch.dtype, call: Callable[..., object], module: nn.Module, x: Tensor, t: Tensor, **cond: Tensor
) -> object:
    """The network of weights in half precision under autocast: it embeds its times in float32."""
    # Without the cache: a captured graph would go on reading the weights as cast when captured.
    with torch.autocast(x.device.type, dtype, cache_enabled=False):
        return call(module, x, t, **cond)


def _learned(module: nn.Module, x: Tensor, t: Tensor) -> object:
    return module(x, t)


def _self_conditioned(module: nn.Module, x: Tensor, t: Tensor, x_self_cond: Tensor | None = None) -> object:
    # Positional, as there: networks of the library name the third argument in two ways.
    return module(x, t, x_self_cond)
