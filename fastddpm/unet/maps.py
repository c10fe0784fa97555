"""A map on its way through `fastddpm.unet.deferred`: what is still to be added to it waits for a norm."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fastddpm.unet.blocks import activate, normalize
from fastddpm.unet.config import Activation
from fastddpm_kernels import add_group_norm_silu, group_norm_silu


class Map:
    """A feature map ``(B, C, H, W)`` that may lack a residual: its values are x + residual."""

    def __init__(self, x: Tensor, residual: Tensor | None = None) -> None:
        self._x, self._residual = x, residual

    def settled(self) -> Tensor:
        """With the residual, added once."""
        if self._residual is not None:
            self._x, self._residual = self._x + self._residual, None
        return self._x

    def whole(self, owed: Tensor) -> Tensor:
        """With what it owes, a vector ``(C,)``, too."""
        x = self.settled()
        return x + (owed if owed.dtype == x.dtype else owed.to(x.dtype))[:, None, None]

    def normed(self, norm: nn.Module, activation: Activation | None, owed: Tensor) -> Tensor:
        """The norm of the whole map and the activation after it; the residual is added in passing."""
        if not isinstance(norm, nn.GroupNorm):
            return normalize(self.whole(owed), norm, activation)
        given = (norm.num_groups, norm.weight, norm.bias, norm.eps)
        fused = "silu" if activation == "silu" else "none"
        if self._residual is None:
            y = group_norm_silu(self._x, *given, pre_bias=owed[None], activation=fused)
        else:
            y, self._x = add_group_norm_silu(
                self._x, self._residual, *given, pre_bias=owed[None], activation=fused
            )
            self._residual = None
        return y if activation in ("silu", None) else activate(y, activation)

    def plus_product(self, weight: Tensor, pixels: Tensor) -> Map:
        """With a 1x1 convolution of another map added: in the product, or, compiled, at the next norm.

        Compiled, the product into the map would be a copy of it and a product.
        """
        x, product = self.settled(), weight.flatten(1).t()
        batch, channels, height, width = x.shape
        rows = pixels.permute(0, 2, 3, 1).reshape(-1, pixels.shape[1])
        is_last = x.permute(0, 2, 3, 1).is_contiguous()
        if torch.compiler.is_compiling() or not is_last or torch.is_autocast_enabled(x.device.type):
            added = (rows @ product).reshape(batch, height, width, channels).permute(0, 3, 1, 2)
            return Map(x, added)
        x.permute(0, 2, 3, 1).view(-1, channels).addmm_(rows, product)
        return Map(x)
