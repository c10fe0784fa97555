"""`unfolded` on buffers that stay: where Python runs every operator, half of the time is not the products'.

A state between two convolutions lies in the next one's buffer, ``(B, T + K - 1, C)`` with its border of
zeros, where the operator before writes it. Weights are those of the modules, where they are.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastddpm.checks import BadArgument
from fastddpm.unet1d.unet1d import Block, Pair, UNet1D, parts


class Convolution:
    """A convolution from a buffer into a buffer.

    Args:
        conv: the convolution.
        batch: trajectories.
        places: of each.

    Attributes:
        input: ``(B, T, C_in)``, to be written before a call.
        output: ``(B, C_out, T)``, or half as many places: what a call writes.
    """

    def __init__(self, conv: nn.Conv1d, batch: int, places: int) -> None:
        (kernel,), (stride,), weight = conv.kernel_size, conv.stride, conv.weight
        border = kernel // 2
        padded = weight.new_zeros(batch, places + 2 * border, conv.in_channels)
        self.input = padded[:, border : border + places]
        self._seen = padded.unfold(1, kernel, stride)
        count = self._seen.shape[1]
        self._columns = padded[..., None]
        if kernel > 1:
            self._columns = torch.empty_like(self._seen, memory_format=torch.contiguous_format)
        self._rows = self._columns.view(batch * count, conv.in_channels * kernel)
        self._product = weight.new_empty(batch * count, conv.out_channels)
        self.output = self._product.view(batch, count, conv.out_channels).transpose(1, 2)
        self._conv = conv
        self.refresh()

    def refresh(self) -> None:
        """Reads where the weights lie."""
        assert self._conv.bias is not None
        self._weight, self._bias = self._conv.weight.detach().flatten(1).t(), self._conv.bias.detach()

    def __call__(self) -> Tensor:
        """The output."""
        if self._columns.shape[3] > 1:
            self._columns.copy_(self._seen)
        torch.addmm(self._bias, self._rows, self._weight, out=self._product)
        return self.output


class Doubling:
    """The transposed convolution of kernel 4 and stride 2 that doubles the places, from a buffer.

    A place gives four, of which two lie upon those of either neighbour: place 2m is the second of m and the
    fourth of m - 1, place 2m + 1 the third of m and the first of m + 1.

    Args:
        conv: the convolution.
        batch: trajectories.
        places: of each, before.

    Attributes:
        input: ``(B, T, C_in)``, to be written before a call.
    """

    def __init__(self, conv: nn.ConvTranspose1d, batch: int, places: int) -> None:
        padded = conv.weight.new_zeros(batch, places + 2, conv.in_channels)
        self.input, self._rows = padded[:, 1:-1], padded.view(-1, conv.in_channels)
        self._product = conv.weight.new_empty(len(self._rows), conv.out_channels * 4)
        four = self._product.view(batch, places + 2, conv.out_channels, 4)
        here, before, after = four[:, 1:-1], four[:, :-2], four[:, 2:]
        self._even, self._odd = (here[..., 1], before[..., 3]), (here[..., 2], after[..., 0])
        self._conv = conv
        self.refresh()

    def refresh(self) -> None:
        """Reads where the weights lie."""
        assert self._conv.bias is not None
        self._weight, self._bias = self._conv.weight.detach().flatten(1), self._conv.bias.detach()

    def __call__(self, target: Tensor) -> None:
        """Writes ``(B, 2T, C_out)``."""
        torch.mm(self._rows, self._weight, out=self._product)
        twos = target.view(len(target), -1, 2, target.shape[2])
        torch.add(*self._even, out=twos[:, :, 0])
        torch.add(*self._odd, out=twos[:, :, 1])
        target.add_(self._bias)


class Norm:
    """GroupNorm and Mish.

    Args:
        norm: the norm.
    """

    def __init__(self, norm: nn.GroupNorm) -> None:
        self._norm = norm
        self.refresh()

    def refresh(self) -> None:
        """Reads where the weights lie."""
        self._weight, self._bias = self._norm.weight.detach(), self._norm.bias.detach()
        self._groups, self._eps = self._norm.num_groups, self._norm.eps

    def __call__(self, h: Tensor) -> Tensor:
        """Of ``(B, C, T)``."""
        return F.mish(torch.group_norm(h, self._groups, self._weight, self._bias, self._eps), inplace=True)


class BufferedBlock:
    """A `Block` from its buffer into another's.

    Args:
        block: the block.
        batch: trajectories.
        places: of each.
        film: ``(B, C or 2C)``, where FiLM's numbers will be.
    """

    def __init__(self, block: Block, batch: int, places: int, film: Tensor) -> None:
        self.first, self._second = (
            Convolution(block.conv1, batch, places),
            Convolution(block.conv2, batch, places),
        )
        self._norms = Norm(block.norm1), Norm(block.norm2)
        self._between = self._second.input.transpose(1, 2)
        channels = block.conv1.out_channels
        self._scale = film[:, :channels, None] if film.shape[1] > channels else None
        self._shift = film[:, -channels:, None]
        self._residual = None if block.residual is None else Convolution(block.residual, batch, places)

    def refresh(self) -> None:
        """Reads where the weights lie."""
        for part in (self.first, self._second, *self._norms, self._residual):
            if part is not None:
                part.refresh()

    def __call__(self, target: Tensor) -> None:
        """Writes ``(B, T, C)``."""
        h = self._norms[0](self.first())
        if self._scale is None:
            torch.add(h, self._shift, out=self._between)
        else:
            torch.addcmul(self._shift, h, self._scale, out=self._between)
        h = self._norms[1](self._second())
        added = self.first.input
        if self._residual is not None:
            self._residual.input.copy_(added)
            added = self._residual().transpose(1, 2)
        torch.add(h.transpose(1, 2), added, out=target)


def _check_groups(model: UNet1D, batch: int, places: int) -> None:
    """BadArgument where a group of a norm has one number in all trajectories together."""
    config, lowest = model.config, places // model.config.length_multiple
    last = config.down_dims[-1] // config.num_groups * batch * lowest
    if last == 1 or config.down_dims[0] // config.final_groups * batch * places == 1:
        raise BadArgument(
            "x",
            f"{batch} of {places} places, so that groups of a norm have one number each,",
            f"more than {config.length_multiple} places, or trajectories drawn together",
        )


class BufferedPair:
    """A `Pair`: as of `BufferedBlock`, with FiLM's numbers of both."""

    def __init__(self, pair: Pair, batch: int, places: int, films: list[Tensor]) -> None:
        self.blocks = [
            BufferedBlock(block, batch, places, films.pop(0)) for block in (pair.first, pair.second)
        ]
        self.input = self.blocks[0].first.input

    def __call__(self, target: Tensor) -> None:
        """Writes ``(B, T, C)``."""
        self.blocks[0](self.blocks[1].first.input)
        self.blocks[1](target)


class Buffered:
    """A network on buffers, for one number of trajectories and places.

    Args:
        model: whose weights it reads.
        batch: trajectories.
        places: of each, a multiple of the network's.

    Raises:
        ValueError: a norm would have groups of one number alone, which torch's modules refuse too.
    """

    def __init__(self, model: UNet1D, batch: int, places: int) -> None:
        _check_groups(model, batch, places)
        weight, self._channels = model.conv_out.weight, model.config.down_dims
        self._film = weight.new_zeros(batch, model.bias_width)
        films = list(torch.split(self._film, [block.film.out_features for block in model.blocks()], dim=1))
        down, lengths = parts(model.down, Pair), [places >> i for i in range(len(model.down))]
        self._down = [BufferedPair(pair, batch, n, films) for pair, n in zip(down, lengths, strict=True)]
        halves = parts(model.downsample, nn.Conv1d)
        self._halves = [Convolution(conv, batch, n) for conv, n in zip(halves, lengths, strict=False)]
        self._mid = BufferedPair(model.mid, batch, lengths[-1], films)
        up = parts(model.up, Pair)
        self._up = [BufferedPair(pair, batch, n, films) for pair, n in zip(up, lengths[:0:-1], strict=True)]
        doubles = parts(model.upsample, nn.ConvTranspose1d)
        self._doubles = [Doubling(conv, batch, n) for conv, n in zip(doubles, lengths[:0:-1], strict=True)]
        self._final, self._norm = Convolution(model.final_conv, batch, places), Norm(model.final_norm)
        self._out = Convolution(model.conv_out, batch, places)

    def refresh(self) -> None:
        """Reads where the weights lie, whatever tensors they are now."""
        for pair in (*self._down, self._mid, *self._up):
            for block in pair.blocks:
                block.refresh()
        others: list[Convolution | Doubling | Norm] = [*self._halves, *self._doubles]
        for part in (*others, self._final, self._norm, self._out):
            part.refresh()

    def forward_biased(self, x: Tensor, bias: Tensor) -> Tensor:
        """As of `UNet1D`, for trajectories of this number; a buffer, which the next call overwrites."""
        self._film.copy_(bias)
        self._down[0].input.copy_(x)
        for i, pair in enumerate(self._down):
            # What a level leaves is halved for the next, and lies beside what comes up to it again.
            target = self._halves[i].input if i < len(self._halves) else self._mid.input
            pair(target)
            if i > 0:
                beside = self._up[len(self._down) - 1 - i].input
                beside[:, :, beside.shape[2] - target.shape[2] :].copy_(target)
            if i < len(self._halves):
                self._down[i + 1].input.copy_(self._halves[i]().transpose(1, 2))
        above = self._up[0].input if self._up else self._final.input
        self._mid(above[:, :, : self._channels[-1]])
        for i, (pair, double) in enumerate(zip(self._up, self._doubles, strict=True)):
            pair(double.input)
            above = self._up[i + 1].input if i + 1 < len(self._up) else self._final.input
            double(above[:, :, : self._channels[-2 - i]])
        self._out.input.copy_(self._norm(self._final()).transpose(1, 2))
        return self._out().transpose(1, 2)
