"""A map on its way through `fastddpm.unet.deferred`: what is still to be added to it waits for a norm."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastddpm.unet.blocks import activate, normalize
from fastddpm.unet.config import Activation
from fastddpm_kernels import add_group_norm_silu, cat_group_norm_silu, group_norm_silu, pad_sum


class Map:
    """A feature map ``(B, C, H, W)``: x + residual, and behind its channels those of another map."""

    def __init__(self, x: Tensor, residual: Tensor | None = None, other: Tensor | None = None) -> None:
        self._x, self._residual, self._other = x, residual, other

    def beside(self, other: Map) -> Map:
        """The concatenation of both, which is made where it is normalised.

        Compiled, where nothing is to be added: Inductor writes a doubled map's phases right into it.
        """
        if self._residual is None and torch.compiler.is_compiling():
            return Map(torch.cat((self._x, other.settled()), dim=1))
        return Map(self._x, self._residual, other.settled())

    def settled(self) -> Tensor:
        """With the residual, and of one piece; made once."""
        if self._residual is not None:
            self._x, self._residual = self._x + self._residual, None
        if self._other is not None:
            self._x, self._other = torch.cat((self._x, self._other), dim=1), None
        return self._x

    def whole(self, owed: Tensor) -> Tensor:
        """With what it owes, a vector ``(C,)``, too."""
        return self.padded(owed, 0)

    def padded(self, owed: Tensor, pad: int) -> Tensor:
        """The same with rows and columns of zeros below and to the right; one pass where kernels run.

        Compiled, Inductor makes one of these operators itself.
        """
        if torch.compiler.is_compiling() or self._other is not None:
            x = self.settled()
            whole = x + (owed if owed.dtype == x.dtype else owed.to(x.dtype))[:, None, None]
            return F.pad(whole, (0, pad, 0, pad)) if pad else whole
        padded, self._x = pad_sum(self._x, self._residual, owed, pad=pad)
        self._residual = None
        return padded

    def normed(self, norm: nn.Module, activation: Activation | None, owed: Tensor) -> Tensor:
        """The norm of the whole map and the activation after it; what it lacks is added in passing."""
        if not isinstance(norm, nn.GroupNorm):
            return normalize(self.whole(owed), norm, activation)
        given = (norm.num_groups, norm.weight, norm.bias, norm.eps)
        fused = "silu" if activation == "silu" else "none"
        pre_bias, residual = owed[None], self._residual
        if self._other is not None:
            y, self._x = cat_group_norm_silu(
                self._x, self._other, *given, residual=residual, pre_bias=pre_bias, activation=fused
            )
        elif residual is not None:
            y, self._x = add_group_norm_silu(self._x, residual, *given, pre_bias=pre_bias, activation=fused)
        else:
            y = group_norm_silu(self._x, *given, pre_bias=pre_bias, activation=fused)
        self._residual = self._other = None
        return y if activation in ("silu", None) else activate(y, activation)

    def plus(self, residual: Tensor) -> Map:
        """With another map to be added, at the next norm."""
        return Map(self.settled(), residual)

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
