"""What the drop-ins for pipelines of pixels share: batch, images, trajectory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypedDict

from torch import Tensor

from fastddpm.batch import Batch, make_batch
from fastddpm.checks import whole
from fastddpm.dropin._diffusers.generators import Generators, one_each
from fastddpm.dropin._diffusers.network import image_shape, label_tensors
from fastddpm.dropin._diffusers.pictures import handed_out
from fastddpm.dropin._diffusers.pipeline import FastPipeline
from fastddpm.network import model_device_dtype
from fastddpm.plans import Plan
from fastddpm.runner import Runner
from fastddpm.trajectory import Trajectory

if TYPE_CHECKING:
    from typing_extensions import Unpack

Callback = Callable[[int, int, Tensor], None]
_EXTRAS = ("class_labels", "seeds", "callback")


class Extras(TypedDict, total=False):
    """What a call takes beyond the original's arguments."""

    class_labels: int | Sequence[int] | Tensor | None
    seeds: Sequence[int] | Tensor | None
    callback: Callback | None


class PixelPipeline(FastPipeline):
    """A pipeline whose network draws the images themselves."""

    def _batch(self, runner: Runner, batch_size: int, generator: Generators, extras: Extras) -> Batch:
        """The batch that a call asks for; see `__call__`."""
        unknown = [name for name in extras if name not in _EXTRAS]
        if unknown:
            raise TypeError(
                f"{', '.join(unknown)}: given, beyond the original's {', '.join(_EXTRAS)} accepted"
            )
        seeds = extras.get("seeds")
        count = whole("batch_size", batch_size, least=1)
        if seeds is not None and count == 1:
            count = len(seeds)
        source = self.settings.source(
            count,
            runner.device,
            generator=one_each(generator, count, exactly=self.peer == "DDIMPipeline"),
            seeds=seeds,
            dtype=model_device_dtype(self.unet)[1],
        )
        labels = label_tensors(self.unet, extras.get("class_labels"), count)
        return make_batch((count, *image_shape(self.unet)), source, cond=labels)

    def _images(
        self,
        plan: Plan,
        batch_size: int,
        generator: Generators,
        output_type: str | None,
        return_dict: bool,
        extras: Extras,
    ) -> Any:
        """What the original returns for the last state of a chain."""
        runner = self._ready()
        batch = self._batch(runner, batch_size, generator, extras)
        callback = extras.get("callback")
        last: Tensor | None = None
        every_step, bar = callback is not None, self._bar(len(plan))
        for k, x, _ in runner.walk(plan, batch, every_step=every_step, progress=bar):
            if callback is not None and k > 0:
                callback(k - 1, int(plan.model_time[k - 1]), x)
            last = x
        assert last is not None
        images = (last / 2).add_(0.5).clamp_(0, 1).to(model_device_dtype(self.unet)[1])
        return handed_out(self.original, images, output_type, return_dict)

    def sample_trajectory(
        self,
        batch_size: int = 1,
        generator: Generators = None,
        num_inference_steps: int = 50,
        *,
        frames: int | None = None,
        predicted: bool = False,
        eta: float | None = None,
        use_clipped_model_output: bool | None = None,
        **extras: Unpack[Extras],
    ) -> Tensor:
        """Draws images and keeps the way there.

        Args:
            batch_size: as of the call.
            generator: as of the call.
            num_inference_steps: as of the call.
            frames: states kept, evenly spread, the first and the last among them; None for all S + 1.
            predicted: keep the predicted clean image of each step instead of the state (S frames at most).
            eta: as of `FastDDIMPipeline`, as is the next; None is the scheduler's own.
            use_clipped_model_output: None is False.
            **extras: ``class_labels`` and ``seeds``, as of the call.

        Returns:
            float32 ``(F, B, C, H, W)`` in [-1, 1], unclamped: the call returns the last frame / 2 + 0.5.
        """
        plan = self._plan(
            num_inference_steps, eta=eta, use_clipped_model_output=bool(use_clipped_model_output)
        )
        trajectory = Trajectory(len(plan), frames, predicted)
        runner = self._ready()
        batch = self._batch(runner, batch_size, generator, extras)
        for k, x, x0 in runner.walk(plan, batch, keep_x0=predicted, progress=self._bar(len(plan))):
            trajectory.look(k, x, x0)
        return trajectory.taken()
