"""Drop-ins for diffusers' DDPMPipeline and DDIMPipeline: the same call, walked by our loop."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fastddpm.dropin._diffusers.generators import Generators
from fastddpm.dropin._diffusers.pixels import Extras, PixelPipeline

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["FastDDIMPipeline", "FastDDPMPipeline"]


class FastDDPMPipeline(PixelPipeline):
    """In the place of a DDPMPipeline; its scheduler may be a DDPM, DDIM or DPM-Solver++ one, as there."""

    peer = "DDPMPipeline"

    def __call__(
        self,
        batch_size: int = 1,
        generator: Generators = None,
        num_inference_steps: int = 1000,
        output_type: str | None = "pil",
        return_dict: bool = True,
        **extras: Unpack[Extras],
    ) -> Any:
        """Draws images, as the original.

        Args:
            batch_size: images.
            generator: one, a list with one per image, or None for torch's global state.
            num_inference_steps: S in 1 .. T.
            output_type: ``pil``, ``np`` or ``pt``.
            return_dict: an ImagePipelineOutput, else a tuple of one.
            **extras: ``class_labels``: an integer, or one per image, for a class-conditional UNet;
                ``seeds``: one per image, with ``noise="philox"``, in place of batch_size;
                ``callback``: called after each step as ``callback(step, timestep, x)`` with the live state x.

        Raises:
            ValueError: naming the argument, what was given and what is accepted.
        """
        plan = self._plan(num_inference_steps)
        return self._images(plan, batch_size, generator, output_type, return_dict, extras)


class FastDDIMPipeline(PixelPipeline):
    """In the place of a DDIMPipeline."""

    peer = "DDIMPipeline"
    only = "DDIMScheduler"

    def __call__(
        self,
        batch_size: int = 1,
        generator: Generators = None,
        eta: float = 0.0,
        num_inference_steps: int = 50,
        use_clipped_model_output: bool | None = None,
        output_type: str | None = "pil",
        return_dict: bool = True,
        **extras: Unpack[Extras],
    ) -> Any:
        """Draws images, as the original.

        Args:
            batch_size: images.
            generator: one, a list with one per image, or None for torch's global state.
            eta: 0 is DDIM, 1 has DDPM's variance; with eta > 0 every step draws, the last one included.
            num_inference_steps: S in 1 .. T.
            use_clipped_model_output: eps anew from the clipped x0; None is False.
            output_type: ``pil``, ``np`` or ``pt``.
            return_dict: an ImagePipelineOutput, else a tuple of one.
            **extras: as of `FastDDPMPipeline`.

        Raises:
            ValueError: naming the argument, what was given and what is accepted.
        """
        plan = self._plan(
            num_inference_steps, eta=eta, use_clipped_model_output=bool(use_clipped_model_output)
        )
        return self._images(plan, batch_size, generator, output_type, return_dict, extras)
