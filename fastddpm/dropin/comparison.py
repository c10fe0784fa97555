"""Whether our UNet, around the weights of a peer's network, gives that network's outputs."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Protocol, TypeVar

import torch
from torch import Tensor, nn

from fastddpm.dropin.alterations import is_altered
from fastddpm.dropin.settings import DTYPES
from fastddpm.network import in_eval_mode, model_device_dtype, unwrapped, without_grad
from fastddpm.precision import forced
from fastddpm.unet import UNet

# Two orders of the same float32 sums, relative to the largest output.
LARGEST_DIFFERENCE = 1e-5


M_co = TypeVar("M_co", bound=nn.Module, covariant=True)
M = TypeVar("M", bound=nn.Module)
Inputs = Callable[[nn.Module, Tensor], tuple[Tensor, dict[str, Tensor]]]
"""Of our network and times ``(N,)``: a state ``(N, ...)``, and conditions by name, to compare with."""


class Dialect(Protocol[M_co]):
    """A module of `fastddpm.unet` or `fastddpm.unet1d` that reads a peer's networks."""

    def from_module(self, module: nn.Module, /) -> M_co | None:
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

    def __init__(
        self, module: nn.Module, call: Callable[..., object], dtype: torch.dtype | None = None
    ) -> None:
        self.module, self.call, self.dtype = module, call, dtype

    def __call__(self, x: Tensor, t: Tensor, **cond: Tensor) -> Tensor:
        """The output for x ``(B, C, H, W)`` and t ``(B,)``."""
        if self.dtype is None:
            return unwrapped(self.call(self.module, x, t, **cond))
        # Without the cache: a captured graph would go on reading the weights as cast when captured.
        with torch.autocast(x.device.type, self.dtype, cache_enabled=False):
            return unwrapped(self.call(self.module, x, t, **cond))


def of_images(unet: nn.Module, times: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Noise of a size that our UNet takes, and classes where it has some."""
    assert isinstance(unet, UNet)
    config, count = unet.config, len(times)
    size = 4 * config.size_multiple - 2 * config.initial_pad
    noise = torch.randn(count, config.in_channels, size, size, generator=torch.Generator().manual_seed(0))
    if config.num_classes is None:
        return noise, {}
    return noise, {"class_labels": torch.arange(count) % config.num_classes}


def same_network(
    source: nn.Module, adapter: Adapter, dialect: Dialect[M], times: Tensor, inputs: Inputs = of_images
) -> tuple[M | None, str]:
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
            difference = largest_difference(adapter, unet, times, inputs)
        else:
            # Half precision would hide a difference of architecture behind its rounding.
            exact = copy.deepcopy(source).float()
            compared = dialect.from_module(exact)
            assert compared is not None
            difference = largest_difference(Adapter(exact, adapter.call), compared, times, inputs)
    except (RuntimeError, TypeError, ValueError) as error:
        return None, f"not to be compared with our UNet: {str(error).splitlines()[0]}"
    if not difference <= LARGEST_DIFFERENCE:
        return None, f"our UNet's outputs differ by {difference:.0e}"
    return unet, f"outputs within {difference:.0e} of the original's"


def largest_difference(adapter: Adapter, unet: nn.Module, times: Tensor, inputs: Inputs = of_images) -> float:
    """Between two networks' outputs for noise, relative to the largest output of the first."""
    noise, given = inputs(unet, times)
    x, cond = noise.to(times.device), {name: value.to(times.device) for name, value in given.items()}
    plain = torch.autocast(x.device.type, enabled=False)
    with without_grad(), in_eval_mode(adapter), plain, forced("highest"):
        theirs, ours = adapter(x, times, **cond), unet(x, times, **cond)
    return float((ours - theirs).abs().max() / theirs.abs().max())
