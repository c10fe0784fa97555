"""The tasks: each makes a condition from a clean image, and says what the network predicts beside it.

With a ``gain`` g the network's x_0 is g * (clean - base), the residual over the image that the condition
shows (SRDiff, Li et al. 2022); without one it is the clean image itself (SR3).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Literal, get_args

import torch
from torch import Tensor

from fastddpm.checks import BadArgument, check_choice, check_number, whole
from fastddpm.signatures import checked
from fastddpm.tasks import degradations

Blur = Literal["gaussian", "motion"]


@dataclass(frozen=True)
class Task(ABC):
    """What all tasks share.

    Attributes:
        gain: factor on the residual that the network predicts, above 0; None: it predicts the image.

    Raises:
        ValueError: naming the field, what was given and what is accepted.
    """

    gain: float | None = None

    def __post_init__(self) -> None:
        if self.gain is not None:
            check_number("gain", self.gain, low=1e-3)

    def channels(self, image_channels: int) -> int:
        """Channels of the condition for images of so many channels."""
        return image_channels

    @abstractmethod
    def condition(self, x_0: Tensor, ordinals: Tensor, seed: int) -> Tensor:
        """The condition for clean images.

        Args:
            x_0: float32 ``(B, C, H, W)`` in [-1, 1].
            ordinals: int64 ``(B,)``, each sample's number in the run: what is random follows from it.
            seed: the run's seed.

        Returns:
            float32 ``(B, channels(C), H, W)``.
        """

    def base(self, condition: Tensor, image_channels: int) -> Tensor:
        """The image that the condition shows, ``(B, C, H, W)``: what the restored one is compared with."""
        return condition[:, :image_channels]

    def target(self, x_0: Tensor, condition: Tensor) -> Tensor:
        """What the network's x_0 is for a clean image."""
        return x_0 if self.gain is None else self.gain * (x_0 - self.base(condition, x_0.shape[1]))

    def restored(self, predicted: Tensor, condition: Tensor) -> Tensor:
        """Inverse of :meth:`target`: the image for the network's x_0."""
        if self.gain is None:
            return predicted
        return self.base(condition, predicted.shape[1]) + predicted / self.gain


@dataclass(frozen=True)
class SuperResolve(Task):
    """The image scaled down by ``factor`` and up again, both bicubic, with the 256 levels of a file between.

    Attributes:
        factor: 2 to 16; it divides height and width.
    """

    factor: int = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "factor", whole("factor", self.factor, least=2, most=16))

    @checked
    def condition(self, x_0: Tensor, ordinals: Tensor, seed: int) -> Tensor:
        """Small and large again."""
        height, width = _size(x_0)
        if height % self.factor or width % self.factor:
            raise BadArgument("factor", f"{self.factor} for images of {height}x{width}", "a common divisor")
        small = degradations.rescaled(x_0, height // self.factor, width // self.factor)
        return self.enlarged(degradations.quantized(small))

    def enlarged(self, small: Tensor) -> Tensor:
        """The condition for a small image ``(B, C, h, w)``: ``(B, C, factor * h, factor * w)``."""
        height, width = small.shape[2:]
        large = degradations.rescaled(small, self.factor * height, self.factor * width)
        return large.clamp(-1, 1)


@dataclass(frozen=True)
class Deblur(Task):
    """Blurred, then noisy, then of the 256 levels of a file.

    Attributes:
        blur: ``gaussian``, of ``sigma`` pixels, or ``motion``: a line of ``length`` pixels whose direction is
            drawn for each sample.
        sigma: of the Gaussian, in pixels.
        length: of the line, in pixels.
        noise: standard deviation, where the image's range is [-1, 1].
    """

    blur: Blur = "gaussian"
    sigma: float = 2.0
    length: int = 9
    noise: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("blur", self.blur, get_args(Blur))
        check_number("sigma", self.sigma, low=0.1, high=20.0)
        check_number("length", self.length, low=2, high=64)
        check_number("noise", self.noise, low=0.0, high=2.0)

    @checked
    def condition(self, x_0: Tensor, ordinals: Tensor, seed: int) -> Tensor:
        """The blurred, noisy image."""
        _size(x_0)
        if self.blur == "gaussian":
            blurred = degradations.gaussian_blur(x_0, self.sigma)
        else:
            angles = math.pi * degradations.uniform(ordinals, seed)[:, 0]
            blurred = degradations.motion_blur(x_0, int(self.length), angles)
        noisy = blurred + self.noise * degradations.noise_like(x_0, ordinals, seed)
        return degradations.quantized(noisy)


@dataclass(frozen=True)
class Inpaint(Task):
    """A rectangle of the image is unknown: 0 there, and one more channel that is 1 there and 0 elsewhere."""

    gain: float | None = field(default=None, init=False)

    def channels(self, image_channels: int) -> int:
        """The image and the mask."""
        return image_channels + 1

    @checked
    def condition(self, x_0: Tensor, ordinals: Tensor, seed: int) -> Tensor:
        """With a rectangle drawn for each sample, sides of a quarter to a half of the image's."""
        unknown = degradations.boxes(degradations.uniform(ordinals, seed), *_size(x_0))
        return self.masked(x_0, unknown)

    def masked(self, images: Tensor, unknown: Tensor) -> Tensor:
        """The condition for images ``(B, C, H, W)`` and masks ``(B, 1, H, W)``, 1 where unknown."""
        return torch.cat((images * (1 - unknown), unknown), dim=1)


@dataclass(frozen=True)
class Colorize(Task):
    """The image in grey; the network draws the colours."""

    def channels(self, image_channels: int) -> int:
        """One; the images have three."""
        if image_channels != 3:
            raise BadArgument("channels", f"images of {image_channels}", "3 by the task colorize")
        return 1

    @checked
    def condition(self, x_0: Tensor, ordinals: Tensor, seed: int) -> Tensor:
        """The luma."""
        _size(x_0)
        return degradations.quantized(degradations.grey(x_0))

    def base(self, condition: Tensor, image_channels: int) -> Tensor:
        """The grey image in three channels."""
        return condition.expand(-1, image_channels, -1, -1)


def _size(images: Tensor) -> tuple[int, int]:
    """Height and width of images ``(B, C, H, W)``."""
    if images.ndim != 4:
        raise BadArgument("x_0", f"shape {tuple(images.shape)}", "(B, C, H, W)")
    return images.shape[2], images.shape[3]
