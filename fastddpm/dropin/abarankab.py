"""Drop-in for abarankab/DDPM's ``GaussianDiffusion`` (ddpm/diffusion.py)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from fastddpm.batch import make_batch
from fastddpm.checks import check_choice, whole
from fastddpm.dropin.alterations import warn_if_random
from fastddpm.dropin.network import PeerNetwork
from fastddpm.dropin.overrides import check_published
from fastddpm.dropin.peer import DropIn, Peer, check_device, holds
from fastddpm.dropin.settings import NETWORK_CHOICES, NetworkChoice, Report, Settings
from fastddpm.plans.abarankab import STORED, from_abarankab
from fastddpm.plans.method_options import StepOptions
from fastddpm.unet import UNet, abarankab

if TYPE_CHECKING:
    from typing_extensions import Unpack

DESCRIPTION = "abarankab/DDPM GaussianDiffusion"

Callback = Callable[[int, int, Tensor], None]


def recognises(obj: object) -> bool:
    """Whether an object holds the networks and buffers of abarankab's GaussianDiffusion."""
    return holds(
        obj, tensors=STORED, modules=("model", "ema_model"), anything=("img_size", "img_channels", "sample")
    )


def build(obj: Peer, settings: Settings, *, network: NetworkChoice = "auto") -> FastAbarankab:
    """The drop-in for an object that `recognises`.

    Args:
        obj: a GaussianDiffusion.
        settings: noise, engine and dtype.
        network: ``auto``: our UNet where it fits; ``original`` or ``ours``.

    Raises:
        ValueError: an option is not as above, or ``ours`` where it does not fit.
    """
    check_choice("network", network, NETWORK_CHOICES)
    check_published(obj, ("sample", "sample_diffusion_sequence", "remove_noise"))
    for name in ("model", "ema_model"):
        warn_if_random(getattr(obj, name), name)
    return FastAbarankab(obj, settings, network)


def _call(module: nn.Module, x: Tensor, t: Tensor, class_labels: Tensor | None = None) -> object:
    return module(x, t, class_labels)


class FastAbarankab(DropIn):
    """``sample`` and ``sample_diffusion_sequence`` as in abarankab/DDPM, by our loop.

    Attributes:
        original: the GaussianDiffusion; its buffers and weights are read anew by each call.
        settings: noise, engine and dtype.
    """

    def __init__(self, original: Peer, settings: Settings, network: NetworkChoice) -> None:
        super().__init__(original)
        self.settings, self._choice = settings, network
        self._networks: dict[str, PeerNetwork[UNet]] = {}
        for name in ("model", "ema_model"):
            self._network(name)

    def sample(
        self,
        batch_size: int,
        device: torch.device | str,
        y: Tensor | None = None,
        use_ema: bool = True,
        *,
        seeds: Sequence[int] | Tensor | None = None,
        callback: Callback | None = None,
        progress: bool = True,
        **method: Unpack[StepOptions],
    ) -> Tensor:
        """Draws images.

        Args:
            batch_size: how many.
            device: where the network is.
            y: ``(batch_size,)`` int64 classes, for a class-conditional network.
            use_ema: the averaged network, or the trained one.
            seeds: one per image, with ``noise="philox"``.
            callback: called after each step as ``callback(step, timestep, x)`` with the live state.
            progress: show a progress bar on a terminal.
            **method: ``method`` ("ddpm", "ddim" or "dpmpp_2m"), ``num_inference_steps``, ``eta`` and
                ``timestep_spacing``, as of `fastddpm.plans.abarankab.from_abarankab`.

        Returns:
            float32 ``(batch_size, C, H, W)`` on the CPU, unclamped.

        Raises:
            ValueError: naming the argument, what was given and what is accepted.
        """
        states = self._states(
            batch_size, device, y, use_ema, seeds=seeds, callback=callback, progress=progress, **method
        )
        x = None
        for x in states:  # noqa: B007
            pass
        assert x is not None
        return x.to("cpu", copy=True)

    def sample_diffusion_sequence(
        self,
        batch_size: int,
        device: torch.device | str,
        y: Tensor | None = None,
        use_ema: bool = True,
        *,
        seeds: Sequence[int] | Tensor | None = None,
        callback: Callback | None = None,
        progress: bool = True,
        **method: Unpack[StepOptions],
    ) -> list[Tensor]:
        """Draws images and keeps every state: S + 1 tensors as of :meth:`sample`, whose arguments it has."""
        states = self._states(
            batch_size,
            device,
            y,
            use_ema,
            seeds=seeds,
            callback=callback,
            progress=progress,
            every_step=True,
            **method,
        )
        return [x.to("cpu", copy=True) for x in states]

    def report(self) -> Report:
        """What became of the original: network, engine, noise, what is fused and what is not."""
        model, ema = self._network("model"), self._network("ema_model")
        networks = ema.words if model.words == ema.words else f"{ema.words}; model: {model.words}"
        drawn = self.settings.noise == "philox"
        return Report(
            peer=DESCRIPTION,
            network=networks,
            engine=ema.runner.engine_in_words(),
            noise="philox, one seed per image" if drawn else "torch, in the original's order",
            precision=ema.runner.computes_in(self.settings.dtype),
            fused=("remove_noise and sigma * z", *(("the noise z",) if drawn else ())),
            not_fused=() if drawn else ("the noise z: torch's generator draws it before the step",),
        )

    def _states(
        self,
        batch_size: int,
        device: torch.device | str,
        y: Tensor | None,
        use_ema: bool,
        *,
        seeds: Sequence[int] | Tensor | None = None,
        callback: Callback | None = None,
        progress: bool = True,
        every_step: bool = False,
        **method: Unpack[StepOptions],
    ) -> Iterator[Tensor]:
        """The live state at the start of a chain and after each of its steps or segments."""
        if y is not None and batch_size != len(y):
            raise ValueError("sample batch size different from length of given y")
        whole("batch_size", batch_size, least=1)
        plan = from_abarankab({name: getattr(self.original, name) for name in STORED}, **method)
        network = self._network("ema_model" if use_ema else "model")
        runner = network.runner
        check_device(device, runner.device)
        shape = (batch_size, self.original.img_channels, *self.original.img_size)
        source = self.settings.source(batch_size, runner.device, seeds=seeds)
        batch = make_batch(shape, source, cond=self._cond(network, y))
        network.refresh()
        every_step = every_step or callback is not None
        for done, x, _ in runner.walk(plan, batch, every_step=every_step, progress=progress):
            if callback is not None and done:
                callback(done - 1, int(plan.timesteps[done - 1]), x)
            yield x

    def _cond(self, network: PeerNetwork[UNet], y: Tensor | None) -> dict[str, Tensor]:
        """What the network is given besides x and t; a network without classes ignores y."""
        unet = network.unet
        num_classes = (
            getattr(network.source, "num_classes", None) if unet is None else unet.config.num_classes
        )
        if y is None:
            if num_classes is not None:
                raise ValueError("class conditioning was specified but y is not passed")
            return {}
        if unet is not None and num_classes is None:
            return {}
        return {"class_labels": torch.as_tensor(y)}

    def _network(self, name: str) -> PeerNetwork[UNet]:
        """A network, read anew where it is another one or was moved."""
        source = getattr(self.original, name)
        if name not in self._networks or not self._networks[name].fits(source):
            times = torch.arange(len(self.original.betas))
            self._networks[name] = PeerNetwork(
                source, _call, abarankab, self.settings, choice=self._choice, times=times
            )
        return self._networks[name]
