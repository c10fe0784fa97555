"""The network of a peer as chains run it: the original module, a copy in another form, or our UNet.

Our UNet tabulates its time path; it is used where the peer's module is of an architecture that it expresses
and gives the same numbers. It shares the original's weights, and looks before each chain whether they are
still the same tensors, so that an optimiser's step, an EMA update and `load_state_dict` are always seen.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, Literal

import torch
from torch import Tensor, nn

from fastddpm.checks import BadArgument
from fastddpm.copies import Copied, Copies, InDtype
from fastddpm.dropin.alterations import is_altered, signature
from fastddpm.dropin.arranged import ForGpu
from fastddpm.dropin.comparison import Adapter, Dialect, Inputs, M, of_images, same_network
from fastddpm.dropin.settings import NetworkChoice, Settings
from fastddpm.network import model_device_dtype
from fastddpm.weights import Inventory


class PeerNetwork(Generic[M]):
    """A network of a peer, and what runs chains with it.

    Where it is not our UNet that runs, a GPU runs the module in channels_last with its norms fused.

    Args:
        source: the network.
        call: as of `Adapter`.
        dialect: reads it into our UNet; None where that is not tried.
        settings: noise, engine and dtype.
        choice: ``auto``: our UNet where it is tried and fits; ``original``; ``ours``, or an error.
        times: ``(N,)`` time inputs at which the two networks are compared.
        tries_ours: whether ``auto`` looks if our UNet fits.
        casts: how the original runs in another dtype: under ``autocast``, or as a ``copy`` of it.
        inputs: what they are compared with.
        arranges: whether a GPU runs the module in another form, where it is no UNet of ours.

    Attributes:
        runner: walks plans with the network chosen.
        unet: our UNet, or None where the original module runs.
        words: what runs.

    Raises:
        ValueError: ``ours`` where it does not fit.
    """

    def __init__(
        self,
        source: nn.Module,
        call: Callable[..., object],
        dialect: Dialect[M] | None,
        settings: Settings,
        *,
        choice: NetworkChoice,
        times: Tensor,
        tries_ours: bool = True,
        casts: Literal["autocast", "copy"] = "autocast",
        inputs: Inputs = of_images,
        arranges: bool = True,
    ) -> None:
        self.source, self.call = source, call
        self._dialect, self._settings, self._casts = dialect, settings, casts
        self._may_arrange = choice == "auto" and arranges
        self._inventory = Inventory([source])
        self._signature = signature(self._inventory, source)
        # Whatever its parts and hooks become, on this device it is the original that runs.
        on_gpu = self._signature[0].type == "cuda"
        tries_ours = tries_ours and dialect is not None
        self._is_settled = choice == "original" or (choice == "auto" and not tries_ours and not on_gpu)
        self.unet: M | None = None
        self._merged: frozenset[str] = frozenset()
        self._places: int | None = None
        self._copied: Copied | None = None
        reason = "as asked for" if choice == "original" else ""
        if dialect is not None and (choice == "ours" or (choice == "auto" and tries_ours)):
            self.unet, reason = same_network(source, Adapter(source, call), dialect, times, inputs)
        if choice == "ours" and self.unet is None:
            raise BadArgument("network", f"'ours', but {reason},", "auto or original")
        if self.unet is not None:
            self.words = f"our UNet with its weights, {reason}"
            self._merged = self._not_shared(self.unet)
            if settings.dtype is not None:
                self.unet = self.unet.to(settings.dtype)
            self.runner = settings.runner(self.unet, capacity=len(times), dtype=settings.dtype)
        else:
            self._run_the_original(reason, len(times))

    def _run_the_original(self, reason: str, capacity: int) -> None:
        device, seen = model_device_dtype(self.source)
        wanted = None if self._settings.dtype == seen else self._settings.dtype
        copy_dtype = wanted if self._casts == "copy" else None
        self.words = "the original module" + (f" ({reason})" if reason else "")
        self._copied = copied_for(self.source, device, copy_dtype, may_arrange=self._may_arrange)
        if isinstance(self._copied, ForGpu):
            self.words += f", {self._copied.words}"
        if copy_dtype is not None:
            self.words += f", copied to {copy_dtype} before each chain"
        autocast = wanted if self._casts == "autocast" else None
        module = self.source if self._copied is None else self._copied.module
        self._adapter = Adapter(module, self.call, autocast)
        self.runner = self._settings.runner(self._adapter, capacity=capacity)

    def fits(self, source: nn.Module) -> bool:
        """Whether this still is the one for a network, whatever its weights are."""
        if source is not self.source:
            return False
        if self._is_settled:
            return model_device_dtype(source) == self._signature[:2]
        return signature(self._inventory, source) == self._signature

    def refresh(self) -> None:
        """Gives what runs the original's weights as they are.

        Weights of the same dtype are shared with our UNet, so only tensors put in the place of others need
        anything done (and what is captured is captured again). Copies are what is in another dtype or order,
        and what several of the original's tensors are one of ours: chains copy them.
        """
        if self._copied is not None:
            self.runner.copies = self._copied.copies()  # which may make its module anew
            self._adapter.module = self._copied.module
        if self.unet is None or self._dialect is None:
            return
        # Nobody else reaches our UNet, whose own tensors stay where they are.
        places = self._inventory.look().places()
        if self._places == places:
            return
        ours, theirs = self.unet.state_dict(), self._dialect.state_dict(self.source.state_dict())
        in_dtype = self.runner.dtype != model_device_dtype(self.source)[1]
        copies = list(ours) if in_dtype else sorted(self._merged)
        shared = [name for name in ours if name not in copies]
        if any(ours[name].data_ptr() != theirs[name].data_ptr() for name in shared):
            self.unet.load_state_dict({name: theirs[name] for name in shared}, strict=False, assign=True)
            self.unet.requires_grad_(False)
        self._places = places
        self.runner.copies = None
        if copies:
            self.runner.copies = self._copying([ours[name] for name in copies], copies, places)

    def _copying(self, targets: list[Tensor], names: list[str], places: int) -> Copies:
        """Copies by the names of our tensors. A dialect that merges tensors merges them each time."""
        held, dialect = self.source.state_dict(), self._dialect
        assert dialect is not None

        def refresh() -> None:
            with torch.no_grad():
                theirs = dialect.state_dict(held)
                torch._foreach_copy_(targets, [theirs[name] for name in names])

        return Copies(refresh, places, places)

    def _not_shared(self, unet: M) -> frozenset[str]:
        """Names of our tensors that are copies: a dialect that merges tensors makes new ones each time."""
        assert self._dialect is not None
        theirs = self._dialect.state_dict(self.source.state_dict())
        return frozenset(
            name for name, value in unet.state_dict().items() if value.data_ptr() != theirs[name].data_ptr()
        )


def copied_for(
    source: nn.Module, device: torch.device, dtype: torch.dtype | None, *, may_arrange: bool
) -> Copied | None:
    """A copy in another dtype or, on a GPU, in another order, to run instead of a module; None for itself."""
    if may_arrange and device.type == "cuda" and not is_altered(source):
        return ForGpu(source, dtype)
    return None if dtype is None else InDtype(source, dtype)
