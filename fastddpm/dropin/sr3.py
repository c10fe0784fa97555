"""Drop-in for the ``GaussianDiffusion`` of Janspiry's SR3 repository, both variants of it.

`sr3` (model/sr3_modules) tells its network the noise level sqrt(abar_t), `ddpm` (model/ddpm_modules) the
timestep t. Which one an object is shows once ``set_new_noise_schedule`` has been called, and may be called
again: everything is read anew by each call.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from fastddpm.batch import make_batch
from fastddpm.checks import BadArgument, check_choice, shown, whole
from fastddpm.dropin.alterations import warn_if_random
from fastddpm.dropin.network import PeerNetwork
from fastddpm.dropin.overrides import check_published
from fastddpm.dropin.peer import DropIn, Peer, holds
from fastddpm.dropin.settings import NETWORK_CHOICES, NetworkChoice, Report, Settings
from fastddpm.plans.method_options import StepOptions
from fastddpm.plans.plan import Plan
from fastddpm.plans.sr3 import STORED, from_sr3
from fastddpm.transfer import to_device
from fastddpm.unet import UNet, sr3

if TYPE_CHECKING:
    from typing_extensions import Unpack

DESCRIPTION = "GaussianDiffusion of Janspiry's SR3 repository (sr3 and ddpm variants)"

_STEPS = (
    "sample",
    "super_resolution",
    "p_sample_loop",
    "p_sample",
    "p_mean_variance",
    "predict_start_from_noise",
    "q_posterior",
)
Callback = Callable[[int, int, Tensor], None]


class LoopOptions(StepOptions, total=False):
    """Of `FastSR3.p_sample_loop`, those that are ours."""

    batched: bool
    seeds: Sequence[int] | Tensor | None
    callback: Callback | None
    progress: bool


def recognises(obj: object) -> bool:
    """Whether an object holds what SR3's GaussianDiffusion does, before or after its schedule is set."""
    parts = ("conditional", "channels", "image_size", "super_resolution", "set_new_noise_schedule")
    return holds(obj, modules=("denoise_fn",), anything=parts)


def build(obj: Peer, settings: Settings, *, network: NetworkChoice = "auto") -> FastSR3:
    """The drop-in for an object that `recognises`.

    Args:
        obj: a GaussianDiffusion of either variant.
        settings: noise, engine and dtype.
        network: ``auto``: our UNet where it fits; ``original`` or ``ours``.

    Raises:
        ValueError: an option is not as above, or ``ours`` where it does not fit.
    """
    check_choice("network", network, NETWORK_CHOICES)
    check_published(obj, _STEPS)
    warn_if_random(obj.denoise_fn, "denoise_fn")
    return FastSR3(obj, settings, network)


def _call_at_level(module: nn.Module, x: Tensor, t: Tensor) -> object:
    return module(x, t[:, None])


def _call_at_time(module: nn.Module, x: Tensor, t: Tensor) -> object:
    return module(x, t)


class FastSR3(DropIn):
    """``super_resolution``, ``sample`` and ``p_sample_loop`` as in the SR3 repository, by our loop.

    As there, and unlike what one would expect: ``continous=False`` returns the last image of the batch alone,
    without a batch axis (``batched=True`` returns all), and the unconditional `ddpm` variant ignores
    ``continous``.

    Attributes:
        original: the GaussianDiffusion; its schedule and weights are read anew by each call.
        settings: noise, engine and dtype.
    """

    def __init__(self, original: Peer, settings: Settings, network: NetworkChoice) -> None:
        super().__init__(original)
        self.settings, self._choice = settings, network
        self._last: PeerNetwork[UNet] | None = None
        if self._has_schedule:
            self._network()

    def super_resolution(
        self, x_in: Tensor, continous: bool = False, **options: Unpack[LoopOptions]
    ) -> Tensor:
        """Images from low-resolution ones; as :meth:`p_sample_loop`, whose other arguments it has."""
        return self.p_sample_loop(x_in, continous, **options)

    def sample(self, batch_size: int = 1, continous: bool = False, **options: Unpack[LoopOptions]) -> Tensor:
        """Images of an unconditional model; further arguments of :meth:`p_sample_loop`.

        Raises:
            ValueError: the model is conditional (the repository fails there too).
        """
        if self.original.conditional:
            raise BadArgument("sample", "a conditional model", "super_resolution(x_in)")
        size = self.original.image_size
        return self.p_sample_loop((batch_size, self.original.channels, size, size), continous, **options)

    def p_sample_loop(
        self,
        x_in: Tensor | Sequence[int],
        continous: bool = False,
        *,
        batched: bool = False,
        seeds: Sequence[int] | Tensor | None = None,
        callback: Callback | None = None,
        progress: bool = True,
        **method: Unpack[StepOptions],
    ) -> Tensor:
        """Walks the reverse process.

        Args:
            x_in: of a conditional model, float ``(B, C, H, W)`` in [-1, 1], upsampled to the final size; of
                an unconditional one, the shape ``(B, C, H, W)``.
            continous: return snapshots, after every step i = S-1 .. 0 that ``1 | S // 10`` divides, behind
                x_in (or the initial noise).
            batched: return all images. With ``continous``, frames apart from images.
            seeds: one per image, with ``noise="philox"``.
            callback: called after each step as ``callback(step, timestep, x)`` with the live state.
            progress: show a progress bar on a terminal.
            **method: ``method`` ("ddpm", "ddim" or "dpmpp_2m"), ``num_inference_steps``, ``eta`` and
                ``timestep_spacing``, as of `fastddpm.plans.sr3.from_sr3`.

        Returns:
            float32, on the network's device: the last image ``(C, H, W)``; ``(F * B, C, H, W)`` with
            continous; ``(B, C, H, W)`` with batched; ``(F, B, C, H, W)`` with both. The unconditional `ddpm`
            variant without batched: ``(B, C, H, W)``.

        Raises:
            ValueError: naming the argument, what was given and what is accepted.
        """
        plan = self._plan(**method)
        network = self._network()
        runner = network.runner
        is_conditional = bool(self.original.conditional)
        shape, condition = _checked(x_in, is_conditional, runner.device)
        source = self.settings.source(shape[0], runner.device, seeds=seeds)
        batch = make_batch(shape, source, condition=condition)
        network.refresh()

        steps, frames, x = len(plan), [] if condition is None else [condition], None
        interval = 1 | (steps // 10)
        every_step = continous or callback is not None
        for done, x, _ in runner.walk(plan, batch, every_step=every_step, progress=progress):
            if callback is not None and done:
                callback(done - 1, int(plan.timesteps[done - 1]), x)
            is_frame = (steps - done) % interval == 0 if done else condition is None
            if continous and is_frame:
                frames.append(x.clone())
        assert x is not None
        if batched:
            return torch.stack(frames) if continous else x.clone()
        if not is_conditional and self._levels is None:
            return x.clone()
        return torch.cat(frames) if continous else x[-1].clone()

    def report(self) -> Report:
        """What became of the original: network, engine, noise, what is fused and what is not."""
        drawn = self.settings.noise == "philox"
        network = self._network() if self._has_schedule else None
        variant = "" if network is None else f", {'ddpm' if self._levels is None else 'sr3'} variant"
        return Report(
            peer=f"GaussianDiffusion of the SR3 repository{variant}",
            network="waits for set_new_noise_schedule" if network is None else network.words,
            engine=self.settings.engine if network is None else network.runner.engine_in_words(),
            noise="philox, one seed per image" if drawn else "torch, in the original's order",
            precision="" if network is None else network.runner.computes_in(self.settings.dtype),
            fused=(
                "predict_start_from_noise",
                "clamp",
                "q_posterior",
                "exp(logvar / 2) * z",
                *(("the noise z",) if drawn else ()),
            ),
            not_fused=() if drawn else ("the noise z: torch's generator draws it before the step",),
        )

    @property
    def _has_schedule(self) -> bool:
        return holds(self.original, tensors=STORED)

    @property
    def _levels(self) -> Tensor | None:
        """sqrt_alphas_cumprod_prev of the `sr3` variant, None in the `ddpm` variant."""
        levels = getattr(self.original, "sqrt_alphas_cumprod_prev", None)
        return None if levels is None else torch.as_tensor(levels, dtype=torch.float64, device="cpu")

    def _plan(self, **method: Unpack[StepOptions]) -> Plan:
        if not self._has_schedule:
            raise ValueError("the model has no noise schedule yet; call set_new_noise_schedule first")
        return from_sr3({name: getattr(self.original, name) for name in STORED}, self._levels, **method)

    def _network(self) -> PeerNetwork[UNet]:
        """The network, read anew where it is another one, or was moved."""
        source = self.original.denoise_fn
        if isinstance(source, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
            source = source.module
        levels = self._levels
        call = _call_at_time if levels is None else _call_at_level
        if self._last is None or self._last.call is not call or not self._last.fits(source):
            times = torch.arange(len(self.original.betas)) if levels is None else levels[1:].float()
            self._last = PeerNetwork(source, call, sr3, self.settings, choice=self._choice, times=times)
        return self._last


def _checked(
    x_in: Tensor | Sequence[int], is_conditional: bool, device: torch.device
) -> tuple[tuple[int, ...], Tensor | None]:
    """The shape of the images, and the condition of a conditional model."""
    if not is_conditional:
        if isinstance(x_in, Tensor) or len(x_in) != 4:
            raise BadArgument("x_in", "images for an unconditional model", "the shape (B, C, H, W)")
        return tuple(whole("x_in", n, least=1) for n in x_in), None
    if not isinstance(x_in, Tensor) or x_in.ndim != 4 or not len(x_in):
        raise BadArgument("x_in", shown(x_in), "images (B, C, H, W) to condition on")
    return tuple(x_in.shape), to_device(x_in.detach(), device, torch.float32)
