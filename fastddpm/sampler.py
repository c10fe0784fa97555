"""The sampler: a trained model, a noise schedule and a method, made into images.

`Sampler` resolves and checks what the caller wants (`fastddpm.request`) and walks each batch through a plan
(`fastddpm.chain`, `fastddpm.plans`) by a loop (`fastddpm.engine`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from fastddpm.chain import walk
from fastddpm.engine import Engine, Loop, Loops, resolve_engine
from fastddpm.network import Model, model_device_dtype
from fastddpm.plans import Plan, make_plan
from fastddpm.progress import progress_bar
from fastddpm.request import Batch, make_batches
from fastddpm.schedule import NoiseSchedule

Callback = Callable[[int, int, Tensor], None]
# Steps between two looks at the host (progress, torch noise) when steps are graph replays.
GRAPH_SEGMENT = 64


class Sampler:
    """Draws images from a trained diffusion model.

    Args:
        model: ``model(x, t, **cond)`` with x ``(B, C, H, W)`` and t int64 ``(B,)``; a UNet of this package,
            or any callable. Sampling runs it in eval mode and leaves it as it was.
        schedule: the noise schedule it was trained with.
        method: ``ddpm`` (Ho et al. 2020), ``ddim`` (Song et al. 2021) or ``dpmpp_2m`` (DPM-Solver++(2M), Lu
            et al. 2022).
        num_inference_steps: steps, 1 to T; None for all T.
        prediction_type: what the model predicts: ``epsilon``, ``sample`` or ``v_prediction``.
        variance_type: of ddpm: ``fixed_small`` (the posterior variance), ``fixed_large`` (beta) or
            ``learned_range`` (2C output channels).
        sigma_scale: factor on ddpm's sigma, in [0, inf); 0 is a deterministic chain (and not DDIM).
        clip_sample_range: predicted x0 is clipped to +- this; None for no clip, as in the textbook.
        timestep_spacing: ``leading``, ``linspace`` or ``trailing``.
        timesteps: the timesteps themselves, strictly descending, instead of a spacing.
        eta: of ddim: 0 deterministic, 1 as noisy as ddpm.
        null_label: the label that means "no class"; taken from our own networks.
        shape: ``(C, H, W)`` of an image, so that `sample` need not be told.
        engine: ``auto``, ``eager``, ``compile``, ``cudagraph`` or ``max``; see docs/architecture.md.

    Raises:
        ValueError: naming the argument, what was given and what is accepted.
        EngineUnavailable: ``cudagraph`` or ``max`` without a CUDA device.
    """

    def __init__(
        self,
        model: Model,
        schedule: NoiseSchedule,
        *,
        method: str = "ddpm",
        num_inference_steps: int | None = None,
        prediction_type: str = "epsilon",
        variance_type: str = "fixed_small",
        sigma_scale: float = 1.0,
        clip_sample_range: float | None = None,
        timestep_spacing: str = "leading",
        timesteps: Sequence[int] | None = None,
        eta: float = 0.0,
        null_label: int | None = None,
        shape: Sequence[int] | None = None,
        engine: Engine = "auto",
    ) -> None:
        options = {
            name: value for name, value in locals().items() if name not in ("self", "model", "schedule")
        }
        self.model, self.schedule = model, schedule
        self._options: dict[str, Any] = options
        self.plan = make_plan(schedule, **options)
        self._set_up(engine, shape, null_label)

    @classmethod
    def from_plan(
        cls,
        model: Model,
        schedule: NoiseSchedule,
        plan: Plan,
        *,
        null_label: int | None = None,
        shape: Sequence[int] | None = None,
        engine: Engine = "auto",
    ) -> Sampler:
        """A sampler that walks a plan made elsewhere (`fastddpm.plans`), such as a peer's arithmetic."""
        sampler = cls.__new__(cls)
        sampler.model, sampler.schedule, sampler.plan = model, schedule, plan
        sampler._options = {"engine": engine, "shape": shape, "null_label": null_label}
        sampler._set_up(engine, shape, null_label)
        return sampler

    def _set_up(self, engine: Engine, shape: Sequence[int] | None, null_label: int | None) -> None:
        self.device, _ = model_device_dtype(self.model)
        self.shape = None if shape is None else tuple(int(v) for v in shape)
        self.null_label = null_label
        self.engine: Engine = resolve_engine(engine, self.device)
        self._loops = Loops(self.engine, on_fallback=self._fell_back if engine == "auto" else None)

    def replace(self, **changes: Any) -> Sampler:
        """A sampler on the same model with some arguments of the constructor changed."""
        if "method" not in self._options and set(changes) - set(self._options):
            raise ValueError(
                f"replace: this sampler has a given plan; only {', '.join(self._options)} change"
            )
        unknown = sorted(set(changes) - set(self._options))
        if unknown:
            raise ValueError(f"{unknown[0]}: not an option of Sampler; known: {', '.join(self._options)}")
        options = {**self._options, **changes}
        if "method" not in options:
            return Sampler.from_plan(self.model, self.schedule, self.plan, **options)
        return Sampler(self.model, self.schedule, **options)

    @property
    def options(self) -> dict[str, Any]:
        """The constructor's keyword arguments."""
        return dict(self._options)

    def memory(self) -> int:
        """Bytes held in static buffers for loops that may be used again; `clear` frees them."""
        return self._loops.memory()

    def clear(self) -> None:
        """Drops buffers, captured graphs and compiled steps."""
        self._loops.clear()

    def __repr__(self) -> str:
        return (
            f"Sampler({type(self.model).__name__}, method={self.plan.method!r}, steps={len(self.plan)}, "
            f"engine={self.engine!r}, device={str(self.device)!r})"
        )

    # ------------------------------------------------------------------ sampling

    @torch.no_grad()
    def sample(
        self,
        batch_size: int | None = None,
        *,
        seeds: Sequence[int] | Tensor | None = None,
        shape: Sequence[int] | None = None,
        class_labels: int | Sequence[int] | Tensor | None = None,
        guidance_scale: float = 1.0,
        condition: Tensor | None = None,
        noise: str = "philox",
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        x_T: Tensor | None = None,
        max_batch: int | None = None,
        callback: Callback | None = None,
        progress: bool = True,
    ) -> Tensor:
        """Draws images.

        Args:
            batch_size: how many; None for one per seed, generator or row of x_T, else 1.
            seeds: one integer in [0, 2**63) per image; the image depends on its own seed only. None draws
                fresh ones from torch's random state.
            shape: ``(C, H, W)`` of an image; None for the sampler's.
            class_labels: one label, or one per image. None means the null label where the model has one.
            guidance_scale: w of classifier-free guidance (Ho and Salimans 2022): m_u + w*(m_c - m_u). 1
                makes no second pass.
            condition: ``(B or 1, Cc, H, W)``, concatenated in front of x at every step, as in SR3.
            noise: ``philox``: noise spec v1, from the seeds. ``torch``: from ``generator``, in the order in
                which plain PyTorch samplers draw.
            generator: for ``noise="torch"``: one generator, one per image, or None for torch's global state.
            x_T: ``(B, C, H, W)`` start of the chain, instead of noise.
            max_batch: larger batches are cut into batches of this size; the last is padded.
            callback: called after each step as ``callback(step, timestep, x)`` with the live state x.
            progress: show a progress bar.

        Returns:
            float32 ``(B, C, H, W)`` in the model's range (usually [-1, 1]), unclamped, on the model's device.

        Raises:
            ValueError: naming the argument, what was given and what is accepted.
        """
        batches = make_batches(
            self,
            batch_size=batch_size,
            seeds=seeds,
            shape=shape,
            class_labels=class_labels,
            guidance_scale=guidance_scale,
            condition=condition,
            noise=noise,
            generator=generator,
            x=x_T,
            max_batch=max_batch,
        )
        return self._run(batches, self.plan, callback=callback, progress=progress)

    @torch.no_grad()
    def sample_trajectory(
        self,
        batch_size: int | None = None,
        *,
        frames: int | None = None,
        predicted: bool = False,
        progress: bool = True,
        **request: Any,
    ) -> Tensor:
        """Draws images and keeps the way there.

        Args:
            batch_size: as in :meth:`sample`, whose other arguments are taken too.
            frames: states kept, evenly spread, the first and the last among them; None for all S + 1.
            predicted: keep the predicted clean image of each step instead of the state (S frames at most).
            progress: show a progress bar.
            **request: further arguments of :meth:`sample`.

        Returns:
            float32 ``(F, B, C, H, W)``; the last frame is what :meth:`sample` returns.
        """
        batches = make_batches(self, batch_size=batch_size, x=request.pop("x_T", None), **request)
        available = len(self.plan) + (0 if predicted else 1)
        if frames is not None and not 2 <= frames <= available:
            raise ValueError(f"frames: {frames!r} given, None or 2 to {available} accepted")
        kept = set(evenly_spread(available, available if frames is None else frames))
        pieces: list[Tensor] = []
        with progress_bar(progress, len(batches) * len(self.plan)) as advance:
            for batch in batches:
                states = [] if predicted else [batch.x[: batch.count].clone()]
                for k, loop in self._walk(batch, self.plan, 0, segment=1, keep_x0=predicted):
                    advance(1)
                    source = loop.buffers.x0 if predicted else loop.buffers.x
                    if source is not None and (k - 1 if predicted else k) in kept:
                        states.append(source[: batch.count].clone())
                pieces.append(torch.stack(states))
        return torch.cat(pieces, dim=1)

    @torch.no_grad()
    def sample_from(
        self,
        images: Tensor,
        timestep: int,
        *,
        progress: bool = True,
        callback: Callback | None = None,
        **request: Any,
    ) -> Tensor:
        """Variations of given images (SDEdit, Meng et al. 2022): noised to a timestep, then sampled from it.

        Args:
            images: float ``(B, C, H, W)`` in the model's range.
            timestep: in [0, T); the larger, the freer. The chain starts at the plan's first timestep that is
                not above it.
            progress: show a progress bar.
            callback: as in :meth:`sample`.
            **request: further arguments of :meth:`sample`.

        Returns:
            float32 ``(B, C, H, W)``.
        """
        row = self._row_of(timestep)
        batches = make_batches(self, x=images, **request)
        t = int(self.plan.timesteps[row])
        # q(x_t | x_0): Ho et al. 2020, eq. 4
        scale, sigma = self.schedule.sqrt_alphas_cumprod[t], self.schedule.sqrt_one_minus_alphas_cumprod[t]
        for batch in batches:
            z = batch.source.encoding(tuple(batch.x.shape), row)
            batch.x = float(scale) * batch.x + float(sigma) * z
        return self._run(batches, self.plan.restarted(row), row=row, callback=callback, progress=progress)

    def interpolate(
        self, first: Tensor, second: Tensor, timestep: int, *, steps: int = 8, seed: int = 0, **request: Any
    ) -> Tensor:
        """A row of images from one to another (Ho et al. 2020, section 4.3).

        Both are noised to ``timestep`` with the same noise, mixed linearly there, and sampled from there with
        the same noise, so that the row is smooth. With the same noise, mixing the latents is mixing the
        images, and keeps the variance that the network expects.

        Args:
            first: ``(C, H, W)`` in the model's range.
            second: likewise.
            timestep: as in :meth:`sample_from`; a large one lets intermediate images be real ones.
            steps: images in the row, at least 2; the ends are variations of the two images.
            seed: of the noise.
            **request: further arguments of :meth:`sample`.

        Returns:
            float32 ``(steps, C, H, W)``.
        """
        if first.ndim != 3 or first.shape != second.shape:
            raise ValueError(
                f"first, second: shapes {tuple(first.shape)} and {tuple(second.shape)} given, "
                "one common (C, H, W) accepted"
            )
        if steps < 2:
            raise ValueError(f"steps: {steps!r} given, an integer of at least 2 accepted")
        weights = torch.linspace(0, 1, steps, device=first.device)[:, None, None, None]
        row_of_images = torch.lerp(first[None].float(), second[None].float(), weights)
        return self.sample_from(row_of_images, timestep, seeds=[seed] * steps, **request)

    # ------------------------------------------------------------------ running

    def _run(
        self, batches: list[Batch], plan: Plan, *, row: int = 0, callback: Callback | None, progress: bool
    ) -> Tensor:
        results: list[Tensor] = []
        segment = 1 if callback is not None or self.engine in ("eager", "compile") else GRAPH_SEGMENT
        with progress_bar(progress, len(batches) * (len(plan) - row)) as advance:
            for batch in batches:
                done = row
                for k, loop in self._walk(batch, plan, row, segment=segment):
                    advance(k - done)
                    if callback is not None:
                        callback(k - 1, int(plan.timesteps[k - 1]), loop.buffers.x)
                    done = k
                results.append(loop.buffers.x[: batch.count].clone())
        return torch.cat(results)

    def _walk(
        self, batch: Batch, plan: Plan, row: int, *, segment: int, keep_x0: bool = False
    ) -> Iterator[tuple[int, Loop]]:
        capacity = len(self.schedule)
        return walk(
            self._loops,
            self.model,
            batch,
            plan,
            row=row,
            segment=segment,
            capacity=capacity,
            keep_x0=keep_x0,
        )

    def _row_of(self, timestep: int) -> int:
        if (
            isinstance(timestep, bool)
            or not isinstance(timestep, int)
            or not 0 <= timestep < len(self.schedule)
        ):
            raise ValueError(
                f"timestep: {timestep!r} given, an integer from 0 to {len(self.schedule) - 1} accepted"
            )
        return self.plan.row_of(timestep)

    def _fell_back(self) -> None:
        self.engine = "eager"


def evenly_spread(available: int, count: int) -> list[int]:
    """``count`` indices from 0 to available - 1, both among them."""
    return [math.floor(i * (available - 1) / (count - 1) + 0.5) for i in range(count)]
