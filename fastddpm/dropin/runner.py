"""The network of a peer as chains run it: the original module, or our UNet with its weights.

Our UNet tabulates its time path; it is used where the peer's module is of an architecture that it expresses
and gives the same numbers. It shares the original's weights, and looks before each chain whether they are
still the same tensors, so that an optimiser's step, an EMA update and `load_state_dict` are always seen.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Mapping
from dataclasses import replace
from operator import attrgetter
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from fastddpm.chain import without_grad
from fastddpm.checks import BadArgument
from fastddpm.copies import Copies
from fastddpm.dropin.arranged import ForGpu
from fastddpm.dropin.chains import Chains
from fastddpm.dropin.settings import DTYPES, NetworkChoice, Settings
from fastddpm.network import in_eval_mode, model_device_dtype, unwrapped
from fastddpm.precision import forced
from fastddpm.unet import UNet
from fastddpm.weights import Inventory

# Two orders of the same float32 sums, relative to the largest output.
LARGEST_DIFFERENCE = 1e-5


_shape: Any = attrgetter("shape")
_attributes: Any = attrgetter("__dict__")


class Dialect(Protocol):
    """A module of `fastddpm.unet` that reads a peer's networks."""

    def from_module(self, module: nn.Module, /) -> UNet | None:
        """Our UNet around the module's own weights; None where it is of another architecture."""

    def state_dict(self, theirs: Mapping[str, Tensor], /) -> dict[str, Tensor]:
        """Our state dict from that of the peer's network."""


class Adapter:
    """A peer's network, called as ``model(x, t, **cond)``.

    Args:
        module: the network.
        call: ``(module, x, t, **cond) -> output``, in the peer's way of calling it.
        dtype: run under autocast to this; None for the dtype of the weights.
    """

    def __init__(self, module: nn.Module, call: Callable[..., Any], dtype: torch.dtype | None = None) -> None:
        self.module, self.call, self.dtype = module, call, dtype

    def __call__(self, x: Tensor, t: Tensor, **cond: Tensor) -> Tensor:
        """The output for x ``(B, C, H, W)`` and t ``(B,)``."""
        if self.dtype is None:
            return unwrapped(self.call(self.module, x, t, **cond))
        # Without the cache: a captured graph would go on reading the weights as cast when captured.
        with torch.autocast(x.device.type, self.dtype, cache_enabled=False):
            return unwrapped(self.call(self.module, x, t, **cond))


class Runner:
    """Runs chains with one network of a peer.

    Args:
        source: the network.
        call: as of `Adapter`.
        dialect: reads it into our UNet.
        settings: noise, engine and dtype.
        choice: ``auto``: our UNet where it fits; ``original``; ``ours``, or an error.
        times: ``(N,)`` time inputs at which the two networks are compared.

    Attributes:
        chains: walks plans with the network chosen.
        unet: our UNet, or None where the original module runs.
        network: what runs, in words.

    Raises:
        ValueError: ``ours`` where it does not fit.
    """

    def __init__(
        self,
        source: nn.Module,
        call: Callable[..., Any],
        dialect: Dialect,
        settings: Settings,
        *,
        choice: NetworkChoice,
        times: Tensor,
    ) -> None:
        self.source, self.call = source, call
        self._inventory = Inventory([source])
        self.signature = signature(self._inventory, source)
        self._dialect = dialect
        self.unet: UNet | None = None
        self._merged: frozenset[str] = frozenset()
        self._places: int | None = None
        self._arranged: ForGpu | None = None
        reason = "as asked for"
        if choice != "original":
            self.unet, reason = same_network(source, Adapter(source, call), dialect, times)
        if choice == "ours" and self.unet is None:
            raise BadArgument("network", f"'ours', but {reason},", "auto or original")
        if self.unet is not None:
            self.network = f"our UNet with its weights, {reason}"
            self._merged = self._not_shared()
            if settings.dtype is not None:
                self.unet = self.unet.to(settings.dtype)
            self.chains = Chains(self.unet, settings, capacity=len(times))
        else:
            dtype = settings.dtype if settings.dtype != model_device_dtype(source)[1] else None
            self.network = f"the original module ({reason})"
            if choice == "auto" and model_device_dtype(source)[0].type == "cuda" and not is_altered(source):
                self._arranged = ForGpu(source)
                self.network += ", in channels_last, its norms fused"
            adapter = Adapter(source if self._arranged is None else self._arranged.module, call, dtype)
            self.chains = Chains(adapter, replace(settings, dtype=None), capacity=len(times))

    def fits(self, source: nn.Module) -> bool:
        """Whether this still is the runner for a network, whatever its weights are."""
        return source is self.source and signature(self._inventory, source) == self.signature

    def refresh(self) -> None:
        """Gives our UNet the original's weights as they are now.

        Weights of the same dtype are shared, so only tensors put in the place of others need anything done
        (and what is captured is captured again). Copies are what is in another dtype, and what several of the
        original's tensors are one of ours: chains copy them.
        """
        if self._arranged is not None:
            self.chains.copies = self._arranged.copies()  # which may make its module anew
            self.chains.model.module = self._arranged.module  # type: ignore[attr-defined]
        if self.unet is None:
            return
        # Nobody else reaches our UNet, whose own tensors stay where they are.
        places = self._inventory.look().places()
        if self._places == places:
            return
        ours, theirs = self.unet.state_dict(), self._dialect.state_dict(self.source.state_dict())
        in_dtype = self.chains.dtype != model_device_dtype(self.source)[1]
        copies = list(ours) if in_dtype else sorted(self._merged)
        shared = [name for name in ours if name not in copies]
        if any(ours[name].data_ptr() != theirs[name].data_ptr() for name in shared):
            self.unet.load_state_dict({name: theirs[name] for name in shared}, strict=False, assign=True)
            self.unet.requires_grad_(False)
        self._places = places
        self.chains.copies = None
        if copies:
            self.chains.copies = self._copying([ours[name] for name in copies], copies, places)

    def _copying(self, targets: list[Tensor], names: list[str], places: int) -> Copies:
        """Copies by the names of our tensors. A dialect that merges tensors merges them each time."""
        held, dialect = self.source.state_dict(), self._dialect

        def refresh() -> None:
            with torch.no_grad():
                theirs = dialect.state_dict(held)
                torch._foreach_copy_(targets, [theirs[name] for name in names])

        return Copies(refresh, places)

    def _not_shared(self) -> frozenset[str]:
        """Names of our tensors that are copies: a dialect that merges tensors makes new ones each time."""
        assert self.unet is not None
        theirs = self._dialect.state_dict(self.source.state_dict())
        return frozenset(
            name
            for name, value in self.unet.state_dict().items()
            if value.data_ptr() != theirs[name].data_ptr()
        )


def same_network(
    source: nn.Module, adapter: Adapter, dialect: Dialect, times: Tensor
) -> tuple[UNet | None, str]:
    """Our UNet with a module's weights if it gives the module's outputs, with how near; or None and why."""
    device, dtype = model_device_dtype(source)
    if dtype not in DTYPES:
        return None, f"its weights are {dtype}"
    if is_altered(source):
        return None, "it has hooks or a forward of its own"
    try:
        unet = dialect.from_module(source)
        if unet is None:
            return None, "of another architecture than our UNet's"
        unet.requires_grad_(False)
        times = times[:: max(1, len(times) - 1)].to(device)
        if dtype == torch.float32:
            difference = largest_difference(adapter, unet, times)
        else:
            # Half precision would hide a difference of architecture behind its rounding.
            exact = copy.deepcopy(source).float()
            compared = dialect.from_module(exact)
            assert compared is not None
            difference = largest_difference(Adapter(exact, adapter.call), compared, times)
    except (RuntimeError, TypeError, ValueError) as error:
        return None, f"not to be compared with our UNet: {str(error).splitlines()[0]}"
    if not difference <= LARGEST_DIFFERENCE:
        return None, f"our UNet's outputs differ by {difference:.0e}"
    return unet, f"outputs within {difference:.0e} of the original's"


def largest_difference(adapter: Adapter, unet: UNet, times: Tensor) -> float:
    """Between two networks' outputs for noise, relative to the largest output of the first."""
    config, count = unet.config, len(times)
    size = 4 * config.size_multiple - 2 * config.initial_pad
    noise = torch.randn(count, config.in_channels, size, size, generator=torch.Generator().manual_seed(0))
    x, cond = noise.to(times.device), {}
    if config.num_classes is not None:
        cond["class_labels"] = torch.arange(count, device=times.device) % config.num_classes
    plain = torch.autocast(x.device.type, enabled=False)
    with without_grad(), in_eval_mode(adapter), plain, forced("highest"):
        theirs, ours = adapter(x, times, **cond), unet(x, times, **cond)
    return float((ours - theirs).abs().max() / theirs.abs().max())


def signature(inventory: Inventory, module: nn.Module) -> tuple[Any, ...]:
    """What a `Runner` depends on besides the weights' values: device, dtype, parts, shapes, hooks.

    Args:
        inventory: of the module.
        module: the network.
    """
    parts = inventory.look().parts
    kinds = hash((*map(type, parts), *map(_shape, inventory.tensors())))
    return (*model_device_dtype(module), kinds, _is_altered(inventory))


def is_altered(module: nn.Module) -> bool:
    """Whether hooks, or a forward set on an instance, make a module do something else than its class."""
    return _is_altered(Inventory([module]))


def _is_altered(inventory: Inventory) -> bool:
    return inventory.is_hooked() or any("forward" in held for held in map(_attributes, inventory.parts))


def warn_if_random(module: nn.Module, name: str) -> None:
    """UserWarning for a network in training mode with parts that behave otherwise there."""
    random = [
        part
        for part in module.modules()
        if part.training
        and (
            (isinstance(part, nn.modules.dropout._DropoutNd) and part.p > 0)
            or (isinstance(part, nn.modules.batchnorm._NormBase) and part.track_running_stats)
        )
    ]
    if random:
        warnings.warn(
            f"{name}: in training mode with active {type(random[0]).__name__}, so that the original's images "
            "depend on more than the noise; chains here run it in eval mode, and put it back",
            UserWarning,
            stacklevel=4,
        )
