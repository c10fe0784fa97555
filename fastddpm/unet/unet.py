"""The noise-prediction network: a UNet with time embedding, class embedding and attention.

Data flows one way: (t, y) -> one bias per residual block -> x down, through the middle, up. What time and
class contribute is also to be had alone (:meth:`UNet.time_biases`, :meth:`UNet.class_biases`), since over a
sampling chain it can be computed once per step for all images, or once per chain.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastddpm.checks import BadArgument
from fastddpm.signatures import checked, in_words
from fastddpm.unet.blocks import (
    Attention,
    Downsample,
    ResidualBlock,
    Upsample,
    activate,
    make_norm,
    normalize,
    sinusoidal_embedding,
)
from fastddpm.unet.config import UNetConfig
from fastddpm.unet.size import MAX_PARAMETERS, check_parameters


class UNet(nn.Module):
    """UNet of Ho et al. 2020 with the options of :class:`UNetConfig`.

    Call: ``unet(x, t, class_labels=None)``.

    Example:
        >>> unet = UNet(UNetConfig(in_channels=3, base_channels=32, num_classes=10))
        >>> eps = unet(torch.randn(4, 3, 32, 32), torch.tensor([10, 20, 30, 40]), torch.tensor([0, 1, 2, 3]))
    """

    @checked
    def __init__(self, config: UNetConfig, *, max_parameters: int | None = MAX_PARAMETERS) -> None:
        """The network with fresh weights.

        Args:
            config: its options.
            max_parameters: that it may have, which is looked at before any is made; None for any number.

        Raises:
            ValueError: more parameters.
        """
        if max_parameters is not None:
            check_parameters(config, max_parameters)
        super().__init__()
        self.config = config
        base = config.base_channels
        widths = [base * m for m in config.channel_mults]
        self.time_mlp = _embedding_mlp(config)
        if config.embeds_class:
            rows = (config.num_classes or 0) + config.null_class
            by_label = config.class_conditioning == "embedding"
            self.class_embed = nn.Embedding(rows, config.time_dim) if by_label else _embedding_mlp(config)
        self.conv_in = nn.Conv2d(config.in_channels, base, 3, padding=1)
        self.down, self.mid, self.up = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()

        channels, skips = base, [base]
        for level, width in enumerate(widths):
            for _ in range(config.num_res_blocks):
                self.down.append(ResidualBlock(channels, width, config, level in config.attention_levels))
                channels = width
                skips.append(channels)
            if level != len(widths) - 1:
                self.down.append(
                    ResidualBlock(channels, channels, config, False, "down")
                    if config.resblock_updown
                    else Downsample(channels, config.downsample_padding)
                )
                skips.append(channels)
        for attention in (config.mid_attention == "norm", False):
            self.mid.append(ResidualBlock(channels, channels, config, attention))
        if config.mid_attention == "plain":
            self.mid[0].attention = Attention(channels, config, norm=False)
        for level, width in reversed(list(enumerate(widths))):
            for _ in range(config.num_res_blocks + 1):
                attends = level in config.attention_levels
                self.up.append(ResidualBlock(skips.pop() + channels, width, config, attends))
                channels = width
            if level != 0:
                self.up.append(
                    ResidualBlock(channels, channels, config, False, "up")
                    if config.resblock_updown
                    else Upsample(channels)
                )
        self.norm_out = make_norm(config, channels)
        self.conv_out = nn.Conv2d(channels, config.image_channels, 3, padding=1)

    @property
    def residual_blocks(self) -> list[ResidualBlock]:
        """The residual blocks in the order in which they run."""
        layers = [*self.down, *self.mid, *self.up]
        return [layer for layer in layers if isinstance(layer, ResidualBlock)]

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the weights."""
        return self.conv_in.weight.dtype

    @property
    def bias_width(self) -> int:
        """Width of what :meth:`time_biases` and :meth:`class_biases` return."""
        if self.config.embeds_class:
            return self.config.time_dim
        return sum(block.bias_width for block in self.residual_blocks)

    def time_biases(self, t: Tensor) -> Tensor:
        """What time contributes to the residual blocks.

        Args:
            t: ``(N,)`` timestep index (int64) or float time.

        Returns:
            ``(N, bias_width)``: the blocks' biases, block after block in the order they run. Where the class
            is added to the time embedding (``config.embeds_class``), the embedding before the activation,
            since biases of time and class do not add up there.
        """
        if not isinstance(t, Tensor) or t.ndim != 1:
            raise BadArgument("t", in_words(t), "a tensor (B,)")
        embedding: Tensor = self.time_mlp(self._sinusoidal(t, self.config.time_scale))
        return embedding if self.config.embeds_class else self._block_biases(embedding)

    def class_biases(self, class_labels: Tensor) -> Tensor:
        """What the class adds to :meth:`time_biases`: ``(B,)`` int64 -> ``(B, bias_width)``."""
        is_tensor = isinstance(class_labels, Tensor) and class_labels.ndim == 1
        by_row = self.config.class_conditioning != "timestep"
        if not is_tensor or (by_row and class_labels.is_floating_point()):
            raise BadArgument("class_labels", in_words(class_labels), "an int64 tensor (B,)")
        if not by_row:
            class_labels = self._sinusoidal(class_labels, 1.0)
        if self.config.embeds_class:
            embedding: Tensor = self.class_embed(class_labels)
            return embedding
        tables = [block.class_embed for block in self.residual_blocks]
        return torch.cat([table(class_labels) for table in tables if table is not None], dim=1)

    def _sinusoidal(self, t: Tensor, scale: float) -> Tensor:
        config = self.config
        shift, cosine_first = config.time_frequency_shift, config.time_cosine_first
        embedding = sinusoidal_embedding(
            t, config.base_channels, scale, shift=shift, cosine_first=cosine_first
        )
        return embedding.to(self.dtype)

    def _block_biases(self, embedding: Tensor) -> Tensor:
        """``(N, time_dim)`` -> ``(N, sum of the blocks' bias_width)``."""
        if self.config.time_activation:
            embedding = activate(embedding, self.config.activation)
        return torch.cat([block.time_proj(embedding) for block in self.residual_blocks], dim=1)

    def forward(self, x: Tensor, t: Tensor, class_labels: Tensor | None = None) -> Tensor:
        """Predicts the noise (or whatever it was trained to predict) in ``x``.

        Args:
            x: ``(B, in_channels, H, W)``; H and W plus twice ``initial_pad`` are multiples of
                ``config.size_multiple``.
            t: ``(B,)`` int64 timestep index, or float time.
            class_labels: ``(B,)`` int64 in ``[0, num_classes)``, or ``num_classes`` for no class where the
                network has a null class. Required for a class-conditional network, refused otherwise.

        Returns:
            ``(B, out_channels, H, W)`` in the dtype of the weights.

        Raises:
            ValueError: missing or unexpected ``class_labels``; a size the network cannot halve.
        """
        if (class_labels is None) != (self.config.num_classes is None):
            wanted, kind = "one each", "a class-conditional network"
            if class_labels is not None:
                wanted, kind = "None", "a network without classes (num_classes is None)"
            raise BadArgument(
                "class_labels", f"{'none' if class_labels is None else 'labels'} to {kind}", wanted
            )
        bias = self.time_biases(t)
        if class_labels is not None:
            bias = bias + self.class_biases(class_labels)
        return self.forward_biased(x, bias)

    def forward_biased(self, x: Tensor, bias: Tensor) -> Tensor:
        """The network with its time and class path already computed.

        Args:
            x: as in :meth:`forward`.
            bias: ``(B or 1, bias_width)``, the sum of :meth:`time_biases` and :meth:`class_biases`.
        """
        self.check_size(x)
        pad = self.config.initial_pad
        if self.config.embeds_class:
            bias = self._block_biases(bias)
        widths = [block.bias_width for block in self.residual_blocks]
        biases = iter(torch.split(bias, widths, dim=1))
        x = self.conv_in(self.prepared(x))
        skips = [x]
        for layer in self.down:
            x = layer(x, next(biases)) if isinstance(layer, ResidualBlock) else layer(x)
            skips.append(x)
        for layer in self.mid:
            x = layer(x, next(biases))
        for layer in self.up:
            if isinstance(layer, ResidualBlock):
                # A block that doubles the size follows those that take what was kept on the way down.
                x = torch.cat((x, skips.pop()), dim=1) if layer.resize == "none" else x
                x = layer(x, next(biases))
            else:
                x = layer(x)
        x = self.conv_out(normalize(x, self.norm_out, self.config.activation))
        return x[:, :, pad:-pad, pad:-pad] if pad else x

    def prepared(self, x: Tensor) -> Tensor:
        """What the first convolution sees of ``(B, any, H, W)``: centred and padded, where configured so."""
        pad = self.config.initial_pad
        x = 2 * x - 1 if self.config.center_input else x
        return F.pad(x, (pad, pad, pad, pad)) if pad else x

    def check_size(self, x: Tensor) -> None:
        """ValueError for an x that does not fit."""
        multiple, pad = self.config.size_multiple, 2 * self.config.initial_pad
        if not isinstance(x, Tensor):
            raise BadArgument("x", in_words(x), f"a tensor (B, {self.config.in_channels}, H, W)")
        if x.ndim != 4 or x.shape[1] != self.config.in_channels:
            raise BadArgument("x", f"shape {tuple(x.shape)}", f"(B, {self.config.in_channels}, H, W)")
        height, width = x.shape[-2:]
        if (height + pad) % multiple or (width + pad) % multiple:
            raise BadArgument(
                "x",
                f"size {height}x{width}",
                f"multiples of {multiple}, with {pad} (initial_pad) added to height and width,",
            )


def _embedding_mlp(config: UNetConfig) -> nn.Sequential:
    """The MLP from a sinusoidal embedding to ``time_dim``."""
    hidden = config.time_hidden or config.time_dim
    return nn.Sequential(
        nn.Linear(config.base_channels, hidden), nn.SiLU(), nn.Linear(hidden, config.time_dim)
    )
