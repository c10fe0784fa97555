"""What encodes the images of a policy: a ResNet, the places where its channels are strongest, a layer.

Names of tensors are LeRobot's, which are torchvision's by number.
Sources: lerobot 0.4.4, policies/diffusion/modeling_diffusion.py; He et al. 2016; Finn et al. 2016 (spatial
softmax).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastddpm.checks import BadArgument

BACKBONES = {"resnet18": (2, 2, 2, 2), "resnet34": (3, 4, 6, 3)}
"""Blocks of the levels, of those that are built of two convolutions a block."""
WIDTHS = (64, 128, 256, 512)
GROUP = 16
"""Channels of a group of GroupNorm."""


class Block(nn.Module):
    """Two convolutions and what goes past them.

    Args:
        inputs: channels.
        outputs: channels.
        stride: of the first convolution.
        group_norm: whether norms are of groups, or of batches.
    """

    def __init__(self, inputs: int, outputs: int, stride: int, *, group_norm: bool) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = _norm(outputs, group_norm)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = _norm(outputs, group_norm)
        self.downsample = None
        if stride > 1 or inputs != outputs:
            shortcut = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
            self.downsample = nn.Sequential(shortcut, _norm(outputs, group_norm))

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, H, W)``, halved by a stride of 2."""
        h = F.relu(self.bn1(self.conv1(x)))
        out: Tensor = self.bn2(self.conv2(h)) + (x if self.downsample is None else self.downsample(x))
        return F.relu(out)


class SpatialSoftmax(nn.Module):
    """Of each channel, where in the map it is strongest: the mean of the places, weighted by a softmax.

    Args:
        channels: of the map.
        keypoints: channels that it is made into.
        size: of the map.
    """

    pos_grid: Tensor

    def __init__(self, channels: int, keypoints: int, size: tuple[int, int]) -> None:
        super().__init__()
        self.nets = nn.Conv2d(channels, keypoints, 1)
        height, width = size
        y, x = torch.meshgrid(torch.linspace(-1, 1, height), torch.linspace(-1, 1, width), indexing="ij")
        self.register_buffer("pos_grid", torch.stack((x.flatten(), y.flatten()), dim=1))

    def forward(self, features: Tensor) -> Tensor:
        """``(B, K, 2)``, x and y in [-1, 1]."""
        attention: Tensor = self.nets(features).flatten(2).softmax(dim=2)
        return attention @ self.pos_grid


class ImageEncoder(nn.Module):
    """``(B, C, H, W)`` to ``(B, 2 * keypoints)``.

    Args:
        backbone: one of `BACKBONES`.
        channels: of an image.
        size: of what is seen of it.
        keypoints: places that are looked for.
        group_norm: whether norms are of groups, or of batches.
        resize: what an image is brought to before; None for as it is.
        crop: what of its middle is seen; None for all.

    Raises:
        ValueError: another backbone.
    """

    def __init__(
        self,
        backbone: str,
        channels: int,
        size: tuple[int, int],
        keypoints: int,
        *,
        group_norm: bool,
        resize: tuple[int, int] | None = None,
        crop: tuple[int, int] | None = None,
    ) -> None:
        super().__init__()
        if backbone not in BACKBONES:
            raise BadArgument("vision_backbone", repr(backbone), " or ".join(BACKBONES))
        if channels != 3:
            raise BadArgument("input_features", f"images of {channels} channels", "3")
        self.resize, self.crop = resize, crop
        stem = nn.Conv2d(channels, WIDTHS[0], 7, 2, 3, bias=False)
        levels, before = [], WIDTHS[0]
        for level, (width, count) in enumerate(zip(WIDTHS, BACKBONES[backbone], strict=True)):
            first = Block(before, width, 2 if level else 1, group_norm=group_norm)
            rest = [Block(width, width, 1, group_norm=group_norm) for _ in range(count - 1)]
            levels.append(nn.Sequential(first, *rest))
            before = width
        self.backbone = nn.Sequential(
            stem, _norm(WIDTHS[0], group_norm), nn.ReLU(), nn.MaxPool2d(3, 2, 1), *levels
        )
        height, width = size
        for _ in range(5):  # each rounds up
            height, width = (height + 1) // 2, (width + 1) // 2
        self.pool = SpatialSoftmax(before, keypoints, (height, width))
        self.out = nn.Linear(2 * keypoints, 2 * keypoints)

    def forward(self, images: Tensor) -> Tensor:
        """Features of images in the numbers that it was trained on."""
        if self.resize is not None:
            images = F.interpolate(images, self.resize, mode="bilinear", align_corners=False, antialias=True)
        if self.crop is not None:
            images = middle(images, self.crop)
        return F.relu(self.out(self.pool(self.backbone(images)).flatten(1)))


def middle(images: Tensor, size: tuple[int, int]) -> Tensor:
    """The middle of images, of this height and width; half a pixel goes to the even side, as in torchvision.

    Raises:
        ValueError: images that are smaller.
    """
    sides = images.shape[-2:]
    if sides[0] < size[0] or sides[1] < size[1]:
        raise BadArgument("crop_shape", f"{size} of images of {tuple(sides)}", "at most these")
    top, left = (round((side - wanted) / 2) for side, wanted in zip(sides, size, strict=True))
    return images[..., top : top + size[0], left : left + size[1]]


def _norm(channels: int, group_norm: bool) -> nn.Module:
    return nn.GroupNorm(channels // GROUP, channels) if group_norm else nn.BatchNorm2d(channels)
