"""Pictures as callers of diffusers give and get them: tensors, of PIL, lists of either, arrays."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastddpm.checks import BadArgument
from fastddpm.dropin.peer import Peer


def picture(name: str, image: object, multiple: int) -> Tensor:
    """A picture, or several: ``(B, C, H, W)`` in [-1, 1].

    Args:
        name: of the argument, for messages.
        image: a tensor, as it is; of PIL, with sides cut to multiples; a list of either.
        multiple: of width and height.

    Raises:
        ValueError: anything else.
    """
    if isinstance(image, Tensor):
        return _of_pictures(name, image)
    images = list(image) if isinstance(image, (list, tuple)) and image else [image]
    if all(isinstance(one, Tensor) for one in images):
        return torch.cat([_of_pictures(name, one) for one in images])
    resized = [_resized(name, one, multiple, "LANCZOS", None) for one in images]
    if len({one.shape for one in resized}) > 1:
        raise BadArgument(name, "pictures of several sizes", "one size")
    return 2.0 * torch.cat(resized) - 1.0


def mask(name: str, image: object, multiple: int) -> Tensor:
    """A mask for all pictures, ``(1, 1, H, W)`` of 0 and 1; a tensor, or a list of these, as they are.

    Several masks of PIL are refused: diffusers takes them for the channels of one.
    """
    one = image[0] if isinstance(image, (list, tuple)) and len(image) == 1 else image
    if isinstance(one, (list, tuple)) and not all(isinstance(part, Tensor) for part in one):
        raise BadArgument(name, f"{len(one)} pictures", "one picture, or a tensor (B or 1, 1, H, W)")
    if isinstance(one, (Tensor, list, tuple)):
        return picture(name, one, multiple)
    return (_resized(name, one, multiple, "NEAREST", "L") >= 0.5).to(torch.float32)


def handed_out(pipeline: Peer, images: Any, output_type: str | None, return_dict: bool) -> Any:
    """Images as the pipelines of diffusers return them.

    Args:
        pipeline: the original, for its conversion to PIL.
        images: ``(B, C, H, W)`` in [0, 1], in the dtype of the original's. bfloat16, which NumPy does not
            have, becomes float32 there; the original raises a TypeError.
        output_type: ``pt``: ``(B, C, H, W)`` on the device; ``pil``: a list; anything else: NumPy
            ``(B, H, W, C)``.
        return_dict: an ImagePipelineOutput, else a tuple of one.
    """
    dtype = images.dtype
    if output_type != "pt":
        if dtype == torch.bfloat16:
            images = images.float()
        images = images.cpu().permute(0, 2, 3, 1).numpy()
        if output_type == "pil":
            images = pipeline.numpy_to_pil(images)
    if not return_dict:
        return (images,)
    import diffusers

    output: Any = diffusers.ImagePipelineOutput
    return output(images=images)


def _of_pictures(name: str, image: Any) -> Tensor:
    if image.ndim != 4:
        raise BadArgument(name, f"shape {tuple(image.shape)}", "a tensor (B, C, H, W)")
    values: Tensor = image
    return values


def _resized(name: str, image: Any, multiple: int, resampling: str, mode: str | None) -> Tensor:
    """One picture of PIL in [0, 1], ``(1, C, H, W)``."""
    from PIL import Image

    if not isinstance(image, Image.Image):
        raise BadArgument(name, type(image).__name__, "a tensor (B, C, H, W) or a PIL image")
    width, height = (size - size % multiple for size in image.size)
    converted = image if mode is None else image.convert(mode)
    values = np.array(converted.resize((width, height), resample=Image.Resampling[resampling]))
    levels = torch.from_numpy(values.astype(np.float32) / 255.0)
    return levels[None, None] if levels.ndim == 2 else levels.permute(2, 0, 1)[None]
