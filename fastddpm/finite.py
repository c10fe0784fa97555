"""What every chain ends with: a look at whether its images are finite.

NaN spreads through a chain without an error: from weights that a float16 training left broken, from
activations beyond float16's 65504, from a guidance that drives the state away. The look is taken once, after
the last step: one reduction over the images and one read on the host, outside of what is captured. It needs
no torch.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from torch import Tensor

    Images = Tensor | npt.NDArray[np.generic]
    Seeds = Tensor | npt.NDArray[np.generic] | Sequence[int] | None

# Seeds that a message names.
NAMED = 8
CAUSES = (
    "likely causes: float16 overflow (bfloat16 and float32 have room), NaN among the model's weights, a "
    "guidance_scale that is too large"
)


class NonFiniteSamples(FloatingPointError):
    """A chain ended with NaN or infinity among its images; the message says of which seeds."""


def check_finite(images: Images, seeds: Seeds = None, *, what: str = "images") -> None:
    """Refuses images that are not finite.

    Args:
        images: ``(B, ...)``, of torch on any device or of NumPy.
        seeds: int, one each; None where they have none: their places are named then.
        what: they are called in the message.

    Raises:
        NonFiniteSamples: NaN or infinity among the values, with the seeds and the likely causes.
    """
    if not is_finite(images):
        raise NonFiniteSamples(_message(images, seeds, what))


def warn_if_not_finite(images: Images, seeds: Seeds = None) -> None:
    """RuntimeWarning instead, for what stands in the place of a library that returns such images."""
    if not is_finite(images):
        said = f"{_message(images, seeds, 'images')}; returned as they are, as the original does"
        warnings.warn(said, RuntimeWarning, stacklevel=3)


def is_finite(images: Images) -> bool:
    """Whether all values are finite: by their extremes, which NaN passes through, in one pass."""
    if isinstance(images, np.ndarray):
        return bool(np.isfinite(images.min()) and np.isfinite(images.max()))
    low, high = images.aminmax()
    return math.isfinite(high.mul(0.5).sub(low, alpha=0.5))  # one read on the host; halves do not overflow


def _message(images: Images, seeds: Seeds, what: str) -> str:
    values = images if isinstance(images, np.ndarray) else images.detach().float().cpu().numpy()
    places = np.flatnonzero(~np.isfinite(values.reshape(len(values), -1)).all(axis=1)).tolist()
    names = [place if seeds is None else int(seeds[place]) for place in places]
    kind = "at places" if seeds is None else "of seeds"
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    listed = ", ".join(map(str, names[:NAMED]))
    return f"{what}: {len(names)} of {len(values)} hold NaN or infinity ({kind} {listed}{more}); {CAUSES}"
