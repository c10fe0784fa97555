"""What a sampler draws besides images from noise: the way there, variations, inversions, rows between two."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from fastddpm.batch import Batch
from fastddpm.checks import MAX_SEED, BadArgument, whole
from fastddpm.configured import Callback, Configured
from fastddpm.finite import check_finite
from fastddpm.network import without_grad
from fastddpm.options import ConditionArguments, SampleArguments
from fastddpm.plans.inversion import inverse_plan
from fastddpm.progress import progress_bar
from fastddpm.request import make_batches
from fastddpm.signatures import checked, unexpected
from fastddpm.trajectory import Trajectory

if TYPE_CHECKING:
    from typing_extensions import Unpack

# What `sample_trajectory` and `sample_from` pass on.
SHARED_ARGUMENTS = (
    "batch_size",
    "seeds",
    "shape",
    "class_labels",
    "guidance_scale",
    "condition",
    "cond",
    "uncond",
    "known",
    "known_mask",
    "noise",
    "generator",
    "max_batch",
)
# What `invert` and `interpolate` do.
CONDITION_ARGUMENTS = ("class_labels", "guidance_scale", "condition", "cond", "uncond", "max_batch")
# Of `sample` besides: some of these are arguments of some of the others.
OTHER_ARGUMENTS = ("x_T", "callback", "callback_every", "progress", "timestep", "images")


class Variations(Configured):
    """Ways to draw that `fastddpm.Sampler` has besides `sample`."""

    @checked
    @without_grad()
    def sample_trajectory(
        self,
        batch_size: int | None = None,
        *,
        frames: int | None = None,
        predicted: bool = False,
        x_T: Tensor | None = None,
        progress: bool = True,
        **request: Unpack[SampleArguments],
    ) -> Tensor:
        """Draws images and keeps the way there.

        Args:
            batch_size: as in `Sampler.sample`.
            frames: states kept, evenly spread, the first and the last among them; None for all S + 1.
            predicted: keep the predicted clean image of each step instead of the state (S frames at most).
            x_T: as in `Sampler.sample`.
            progress: show a progress bar.
            **request: ``seeds``, ``shape``, ``class_labels``, ``guidance_scale``, ``condition``, ``cond``,
                ``uncond``, ``known``, ``known_mask``, ``noise``, ``generator`` and ``max_batch`` of
                `Sampler.sample`.

        Returns:
            float32 ``(F, B, ...)``; the last frame is what `Sampler.sample` returns.
        """
        _check_names("sample_trajectory", request, SHARED_ARGUMENTS)
        batches = self._batches(request, batch_size=batch_size, x=x_T)
        trajectory = Trajectory(len(self.plan), frames, predicted)
        pieces: list[Tensor] = []
        bar = progress_bar(progress, len(batches) * len(self.plan))
        with self.running() as runner, bar as advance:
            for batch in batches:
                done, stops = 0, trajectory.stops
                for k, loop in runner.segments(batch, self.plan, stops=stops, keep_x0=predicted):
                    advance(k - done)
                    done = k
                    trajectory.look(k, loop.buffers.x, loop.buffers.x0)
                frames_of_batch = trajectory.taken()[:, : batch.count]
                check_finite(frames_of_batch.transpose(0, 1), batch.source.host)
                pieces.append(frames_of_batch)
        return torch.cat(pieces, dim=1)

    @checked
    @without_grad()
    def sample_from(
        self,
        images: Tensor,
        timestep: int,
        *,
        batch_size: int | None = None,
        progress: bool = True,
        callback: Callback | None = None,
        callback_every: int = 1,
        **request: Unpack[SampleArguments],
    ) -> Tensor:
        """Variations of given images (SDEdit, Meng et al. 2022): noised to a timestep, then sampled from it.

        Args:
            images: float ``(B, ...)`` in the model's range.
            timestep: in [0, T); the larger, the freer. The chain starts at the plan's first timestep that is
                not above it.
            batch_size: None, or the number of images.
            progress: show a progress bar.
            callback: as in `Sampler.sample`.
            callback_every: likewise.
            **request: ``seeds``, ``shape``, ``class_labels``, ``guidance_scale``, ``condition``, ``cond``,
                ``uncond``, ``known``, ``known_mask``, ``noise``, ``generator`` and ``max_batch`` of
                `Sampler.sample`.

        Returns:
            float32 ``(B, ...)``.
        """
        _check_names("sample_from", request, SHARED_ARGUMENTS)
        row = self._row_of(timestep)
        batches = self._batches_of(images, request, batch_size=batch_size)
        # q(x_t | x_0): Ho et al. 2020, eq. 4
        abar = self.plan.levels(self.schedule)[row]
        scale, sigma = np.sqrt(abar), np.sqrt(1 - abar)
        for batch in batches:
            batch.x = float(scale) * batch.initial() + float(sigma) * batch.source.encoding(batch.shape, row)
        return self._run(
            batches,
            self.plan.restarted(row),
            row=row,
            callback=callback,
            callback_every=callback_every,
            progress=progress,
        )

    @checked
    @without_grad()
    def invert(
        self, images: Tensor, *, progress: bool = True, **request: Unpack[ConditionArguments]
    ) -> Tensor:
        """The noise that a deterministic DDIM chain draws images from (DDIM inversion, Song et al. 2021).

        ``sample(x_T=sampler.invert(images))`` gives the images again, the closer the more steps there are: a
        step up assumes that the network says the same at both of its ends. Without guidance, or with little.

        Args:
            images: float ``(B, ...)`` in the model's range.
            progress: show a progress bar.
            **request: ``class_labels``, ``guidance_scale``, ``condition``, ``cond``, ``uncond`` and
                ``max_batch`` of `Sampler.sample`.

        Returns:
            float32 ``(B, ...)``, for ``x_T`` of `Sampler.sample`.

        Raises:
            ValueError: a sampler of another method than ddim with eta 0; otherwise as of `Sampler.sample`.
        """
        _check_names("invert", request, CONDITION_ARGUMENTS)
        plan = inverse_plan(self.plan, self.schedule)
        drawn: SampleArguments = {**request}  # type: ignore[typeddict-item]  # more keys may be left out
        drawn["seeds"] = [0] * (len(images) if images.ndim else 0)
        batches = self._batches_of(images, drawn)
        return self._run(batches, plan, callback=None, callback_every=1, progress=progress)

    @checked
    def interpolate(
        self,
        first: Tensor,
        second: Tensor,
        timestep: int,
        *,
        steps: int = 8,
        seed: int = 0,
        progress: bool = True,
        callback: Callback | None = None,
        callback_every: int = 1,
        **request: Unpack[ConditionArguments],
    ) -> Tensor:
        """A row of images from one to another (Ho et al. 2020, section 4.3).

        Both are noised to ``timestep`` with the same noise, mixed linearly there, and sampled from there with
        the same noise, so that the row is smooth. With the same noise, mixing the latents is mixing the
        images, and keeps the variance that the network expects.

        Args:
            first: a state, ``(C, H, W)`` of an image, in the model's range.
            second: likewise.
            timestep: as in :meth:`sample_from`; a large one lets intermediate images be real ones.
            steps: images in the row, at least 2; the ends are variations of the two images.
            seed: of the noise.
            progress: show a progress bar.
            callback: as in `Sampler.sample`.
            callback_every: likewise.
            **request: ``class_labels``, ``guidance_scale``, ``condition``, ``cond``, ``uncond`` and
                ``max_batch`` of `Sampler.sample`.

        Returns:
            float32 ``(steps, ...)``.
        """
        _check_names("interpolate", request, CONDITION_ARGUMENTS)
        if not first.ndim or first.shape != second.shape:
            raise BadArgument(
                "first, second",
                f"shapes {tuple(first.shape)} and {tuple(second.shape)}",
                "one common shape, as (C, H, W) of images,",
            )
        steps, seed = whole("steps", steps, least=2), whole("seed", seed, least=0, most=MAX_SEED)
        weights = torch.linspace(0, 1, steps, device=first.device, dtype=torch.float32)
        weights = weights.reshape(-1, *(1,) * first.ndim)
        row_of_images = torch.lerp(first[None].float(), second[None].float(), weights)
        return self.sample_from(
            row_of_images,
            timestep,
            seeds=[seed] * steps,
            progress=progress,
            callback=callback,
            callback_every=callback_every,
            **request,
        )

    def _batches_of(
        self, images: Tensor, request: SampleArguments, *, batch_size: int | None = None
    ) -> list[Batch]:
        """The same for a chain that begins with images."""
        try:
            return self._batches(request, batch_size=batch_size, x=images)
        except BadArgument as error:
            raise BadArgument(error.argument.replace("x_T", "images"), error.given, error.accepted) from None

    def _batches(self, request: SampleArguments, *, batch_size: int | None, x: Tensor | None) -> list[Batch]:
        """The batches for keyword arguments of `Sampler.sample`, given to another method."""
        return make_batches(self.facts, batch_size=batch_size, x=x, **request)

    def _row_of(self, timestep: int) -> int:
        return self.plan.row_of(whole("timestep", timestep, least=0, most=len(self.schedule) - 1))


def _check_names(method: str, request: Mapping[str, object], accepted: Sequence[str]) -> None:
    """What a method passes on, held to the names that it has.

    Raises:
        ValueError: an argument of another way to draw.
        TypeError: any other, which is to be told where what a model takes goes.
    """
    for name in sorted(set(request) - set(accepted)):
        if name in SHARED_ARGUMENTS or name in OTHER_ARGUMENTS:
            raise BadArgument(name, "an argument that is none here", ", ".join(accepted))
        raise unexpected(method, name)
