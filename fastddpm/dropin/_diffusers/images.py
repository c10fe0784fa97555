"""What a pipeline hands out: images in [0, 1] as tensors, arrays or PIL images."""

from __future__ import annotations

from typing import Any

import torch

from fastddpm.dropin.peer import Peer


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
