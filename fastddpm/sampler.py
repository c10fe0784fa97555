"""The sampler: a trained model, a noise schedule and a method, made into images.

`Sampler` checks what the caller wants (`fastddpm.request`) and has each batch walked through its plan
(`fastddpm.plans`) by a `fastddpm.runner.Runner`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, cast

import numpy as np
import torch
from torch import Tensor

from fastddpm.batch import Batch
from fastddpm.checks import MAX_SEED, BadArgument, whole
from fastddpm.class_names import class_names as checked_names
from fastddpm.conditions import Conditions, Labels
from fastddpm.copies import InDtype
from fastddpm.engine import Engine
from fastddpm.facts import ModelFacts, model_facts
from fastddpm.finite import check_finite
from fastddpm.network import Model, model_device_dtype, without_grad
from fastddpm.options import ConditionArguments, RunOptions, SampleArguments, SamplerOptions
from fastddpm.plans import Method, Plan
from fastddpm.plans.formula import VarianceType
from fastddpm.plans.inversion import inverse_plan
from fastddpm.plans.method import MethodName, MethodOptions
from fastddpm.plans.plan import PredictionType, TimeInput
from fastddpm.plans.spacing import Timesteps, TimestepSpacing
from fastddpm.precision import Precision, described, dtype_of, precision_for
from fastddpm.progress import progress_bar
from fastddpm.randomness import NoiseKind
from fastddpm.request import make_batches
from fastddpm.runner import Runner
from fastddpm.schedule import NoiseSchedule
from fastddpm.signatures import checked
from fastddpm.trajectory import Trajectory
from fastddpm.transfer import device_of
from fastddpm.unet import UNet

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from fastddpm.plans.diffusers.config import SchedulerOrConfig

Callback = Callable[[int, int, Tensor], None]
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


class Sampler:
    """Draws images from a trained diffusion model.

    Args:
        model: ``model(x, t, **cond)`` with x ``(B, C, H, W)`` and t int64 ``(B,)``; a UNet of this package,
            or any callable that does not change x, whose states may have any shape ``(B, ...)``. Sampling
            runs its modules in eval mode, and puts them back; a RuntimeWarning says so where another thread
            trained them meanwhile.
        schedule: the noise schedule it was trained with.
        method: ``ddpm`` (Ho et al. 2020), ``ddim`` (Song et al. 2021), ``dpmpp_2m`` (DPM-Solver++(2M), Lu et
            al. 2022), or a solver: ``dpmpp_3m``, ``unipc``, ``heun`` and others (docs/math.md).
        num_inference_steps: steps, 1 to T; None for all T.
        prediction_type: what the model predicts: ``epsilon``, ``sample`` or ``v_prediction``.
        variance_type: of ddpm: ``fixed_small`` (the posterior variance), ``fixed_large`` (beta) or
            ``learned_range`` (2C output channels).
        sigma_scale: factor on ddpm's sigma, in [0, inf); 0 is a deterministic chain (and not DDIM).
        clip_sample_range: predicted x0 is clipped to +- this; None for no clip, as in the textbook.
        timestep_spacing: ``leading``, ``linspace`` or ``trailing``; of solvers also ``karras``,
            ``exponential`` or ``beta``. A UserWarning says where ``leading`` starts too far below T - 1 for a
            chain that begins with noise alone.
        timesteps: the timesteps themselves, strictly descending, instead of a spacing.
        eta: of ddim: 0 deterministic, 1 as noisy as ddpm; of heun and tcd as of :class:`Method`.
        time_input: what the model takes as t: ``timestep``, int64; or float32, ``noise_level``
            sqrt(alphas_cumprod[t]), as SR3 does, or ``alphas_cumprod``, as Palette does.
        solver_order: of solvers that can have several.
        scheduler: of the method ``diffusers``: a scheduler of that library, or its configuration, whose steps
            are taken; see :class:`Method`.
        null_label: the label that means "no class"; taken from our own networks.
        class_names: of classes 0, 1, ..., so that ``class_labels`` may be names; a model folder keeps them.
        shape: ``(C, H, W)`` of an image, or that of another state, such as ``(D,)`` of vectors, ``(C, T)`` of
            sound, ``(T, A)`` of actions or ``(C, D, H, W)`` of volumes, so that `sample` need not be told.
        device: where to run; None for where the model's weights are (a function's are found in its closure).
        dtype: what the model takes x in; None for its weights'. A `UNet` takes it in its weights' alone, so
            that bfloat16 and float16 are ``precision`` ``bf16`` and ``fp16`` there.
        precision: what the network computes in; the state, the tables and the noise stay float32.
            ``highest``: float32 without TF32. ``tf32``: float32 with TF32 in convolutions and products on
            CUDA, and as ``highest`` elsewhere. ``bf16`` and ``fp16``: a copy of the model, a torch Module
            with float32 weights, in that dtype; weights changed between calls are used by the next. None: in
            its weights' dtype, float32 as torch is set, which in torch's default is TF32 in convolutions on
            CUDA. Settings of torch hold while a loop is made or runs, and are then as they were.
        engine: ``auto``, ``eager``, ``compile``, ``cudagraph``, ``max`` or ``onnxruntime``; see
            docs/architecture.md.
        steps_per_graph: steps that a captured engine records in one CUDA graph; None for all of the first
            call's, at most 64.

    Attributes:
        method: the method's options (`fastddpm.plans.Method`); None of a sampler with a given plan.
        plan: what to do at each step.

    Raises:
        ValueError: naming the argument, what was given and what is accepted.
        EngineUnavailable: ``cudagraph`` or ``max`` without a CUDA device.
    """

    method: Method | None
    _options: RunOptions

    @checked
    def __init__(
        self,
        model: Model,
        schedule: NoiseSchedule,
        *,
        method: MethodName = "ddpm",
        num_inference_steps: int | None = None,
        prediction_type: PredictionType = "epsilon",
        variance_type: VarianceType = "fixed_small",
        sigma_scale: float = 1.0,
        clip_sample_range: float | None = None,
        timestep_spacing: TimestepSpacing = "leading",
        timesteps: Timesteps | None = None,
        eta: float = 0.0,
        time_input: TimeInput = "timestep",
        solver_order: int | None = None,
        scheduler: SchedulerOrConfig | None = None,
        null_label: int | None = None,
        class_names: Sequence[str] | None = None,
        shape: Sequence[int] | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        precision: Precision | None = None,
        engine: Engine = "auto",
        steps_per_graph: int | None = None,
    ) -> None:
        self.method = Method(
            method=method,
            num_inference_steps=num_inference_steps,
            prediction_type=prediction_type,
            variance_type=variance_type,
            sigma_scale=sigma_scale,
            clip_sample_range=clip_sample_range,
            timestep_spacing=timestep_spacing,
            timesteps=timesteps,
            eta=eta,
            time_input=time_input,
            solver_order=solver_order,
            scheduler=scheduler,
        )
        plan = self.method.plan(schedule)
        self.method.warn_if_late(schedule, plan, stacklevel=5)
        self._set_up(
            model,
            schedule,
            plan,
            null_label=null_label,
            class_names=class_names,
            shape=shape,
            device=device,
            dtype=dtype,
            precision=precision,
            engine=engine,
            steps_per_graph=steps_per_graph,
        )

    @classmethod
    def from_plan(
        cls, model: Model, schedule: NoiseSchedule, plan: Plan, **options: Unpack[RunOptions]
    ) -> Sampler:
        """A sampler that walks a plan made elsewhere (`fastddpm.plans`), such as a peer's arithmetic.

        Args:
            model: as in the constructor.
            schedule: likewise.
            plan: what to do at each step.
            **options: ``null_label``, ``class_names``, ``shape``, ``device``, ``dtype``, ``precision``,
                ``engine`` and ``steps_per_graph``, as in the constructor.
        """
        sampler = cls.__new__(cls)
        sampler.method = None
        sampler._set_up(model, schedule, plan, **options)
        return sampler

    @checked
    def _set_up(
        self,
        model: Model,
        schedule: NoiseSchedule,
        plan: Plan,
        *,
        null_label: int | None = None,
        class_names: Sequence[str] | None = None,
        shape: Sequence[int] | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        precision: Precision | None = None,
        engine: Engine = "auto",
        steps_per_graph: int | None = None,
    ) -> None:
        self.model, self.schedule, self.plan = model, schedule, plan
        self.null_label = None if null_label is None else whole("null_label", null_label, least=0)
        classes = (model.config.num_classes or 0) if isinstance(model, UNet) else None
        self.class_names = checked_names(class_names, classes)
        self.shape = None if shape is None else model_facts(model).checked_shape(shape)
        seen_device, seen_dtype = model_device_dtype(model)
        self.device = seen_device if device is None else device_of(device)
        is_ours = isinstance(model, UNet)
        self.precision = precision_for(precision, dtype, seen_dtype) if is_ours else precision
        self.dtype = dtype_of(self.precision, dtype) or seen_dtype
        if self.dtype not in (torch.float32, torch.float16, torch.bfloat16):
            raise BadArgument("model", f"{self.dtype} weights", "float32, float16 or bfloat16")
        self._cast: InDtype | None = None
        if self.precision in ("bf16", "fp16") and seen_dtype != self.dtype:
            self._check_cast(self.precision, seen_dtype)
        if steps_per_graph is not None:
            steps_per_graph = whole("steps_per_graph", steps_per_graph, least=1)
        self.runner = Runner(
            model,
            device=self.device,
            dtype=self.dtype,
            engine=engine,
            precision=self.precision,
            capacity=len(schedule),
            steps_per_graph=steps_per_graph,
        )
        self._options = {
            "null_label": null_label,
            "class_names": class_names,
            "shape": shape,
            "device": device,
            "dtype": dtype,
            "precision": precision,
            "engine": engine,
            "steps_per_graph": steps_per_graph,
        }

    def __reduce__(self) -> tuple[Callable[..., Sampler], tuple[object, ...]]:
        """For pickle and copies: model, schedule, plan and options; buffers and graphs are made anew."""
        return _rebuilt, (type(self), self.model, self.schedule, self.plan, self.method, self._options)

    @property
    def engine(self) -> Engine:
        """The engine that runs: `auto` resolved; eager once a capture has failed there."""
        return self.runner.engine

    @property
    def facts(self) -> ModelFacts:
        """What requests are checked against."""
        return model_facts(
            self.model,
            device=self.device,
            dtype=self.dtype,
            shape=self.shape,
            null_label=self.null_label,
            class_names=self.class_names,
        )

    def replace(self, **changes: Unpack[SamplerOptions]) -> Sampler:
        """A sampler on the same model with some arguments of the constructor changed."""
        options = self.options
        unknown = sorted(set(changes) - set(options))
        if unknown and self.method is None:
            raise BadArgument(
                unknown[0], "an option of a method, for a sampler of a given plan,", ", ".join(options)
            )
        if unknown:
            raise BadArgument(unknown[0], "no option of Sampler", ", ".join(options))
        options.update(changes)
        if self.method is None:
            given = cast("RunOptions", options)
            return Sampler.from_plan(self.model, self.schedule, self.plan, **given)
        return Sampler(self.model, self.schedule, **options)

    @property
    def options(self) -> SamplerOptions:
        """The constructor's keyword arguments; those of the method are not among a given plan's."""
        method: MethodOptions = {} if self.method is None else self.method.to_dict()
        return {**method, **self._options}

    def memory(self) -> int:
        """Bytes in the buffers and CUDA graphs of loops kept for another call."""
        return self.runner.loops.memory()

    def clear(self) -> None:
        """Drops buffers, captured graphs and compiled steps, which free their memory.

        torch keeps notes on what it compiled until the process ends, and Inductor its loaded modules.
        Measured with torch 2.14.1 and a network of 43,187 weights in three image sizes: 1.40 MB of tensors
        before, 0.17 MB after, which is the weights; and 3,000 tensors without storage, a thousand a size.
        Even `torch._dynamo.reset()`, which forgets everybody's compiled code, does not free these.
        """
        self.runner.loops.clear()

    def __repr__(self) -> str:
        return (
            f"Sampler({type(self.model).__name__}, method={self.plan.method!r}, steps={len(self.plan)}, "
            f"engine={self.engine!r}, device={str(self.device)!r}, "
            f"precision={described(self.precision, self.dtype, self.device)!r})"
        )

    # ------------------------------------------------------------------ sampling

    @checked
    @without_grad()
    def sample(
        self,
        batch_size: int | None = None,
        *,
        seeds: Sequence[int] | Tensor | None = None,
        shape: Sequence[int] | None = None,
        class_labels: Labels | None = None,
        guidance_scale: float = 1.0,
        condition: Tensor | None = None,
        cond: Conditions | None = None,
        uncond: Conditions | None = None,
        known: Tensor | None = None,
        known_mask: Tensor | None = None,
        noise: NoiseKind = "philox",
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        x_T: Tensor | None = None,
        max_batch: int | None = None,
        callback: Callback | None = None,
        callback_every: int = 1,
        progress: bool = True,
    ) -> Tensor:
        """Draws images.

        Args:
            batch_size: how many; None for one per seed, generator or row of x_T, else 1.
            seeds: one integer in [0, 2**63) per image; the image depends on its own seed only. None draws
                fresh ones from ``generator`` or torch's random state.
            shape: of one state, as of the constructor; None for the sampler's.
            class_labels: one label, or one per image: a number, or a name where the sampler has
                ``class_names``. None means the null label where the model has one.
                Models other than our UNet may take floating labels ``(B,)``, or vectors ``(B, D)``.
            guidance_scale: w of classifier-free guidance (Ho and Salimans 2022): m_u + w*(m_c - m_u). 1
                makes no second pass.
            condition: ``(B or 1, Cc, ...)``, as the state but for its channels, concatenated in front of x at
                every step, as in SR3.
            cond: tensors ``(B or 1, ...)`` that the model is given by name, such as ``{"y": vectors}``; those
                with floating numbers are given in its dtype.
            uncond: with guidance: of each of these names, what the half without the conditions is given, of
                the same shape; ``class_labels`` among them where they are no classes.
            known: ``(B or 1, ...)`` as the state: what is given of it. Where ``known_mask`` is True, the
                state holds it whenever the model sees it, and at the end, as models of trajectories are
                conditioned on where these begin (Janner et al. 2022, Diffuser; Chi et al. 2023, Diffusion
                Policy).
            known_mask: bool likewise; any side may be 1.
            noise: ``philox``: noise spec v1, from the seeds. ``torch``: from ``generator``, in the order in
                which plain PyTorch samplers draw.
            generator: for ``noise="torch"``: one generator, one per image, or None for torch's global state.
                For ``noise="philox"``: where fresh seeds come from.
            x_T: ``(B, ...)`` start of the chain, instead of noise.
            max_batch: larger batches are cut into batches of this size; the last is padded.
            callback: called after each step as ``callback(step, timestep, x)`` with the live state x of the
                batch; with ``max_batch`` once per step and batch, padding included.
            callback_every: steps from one call of it to the next; it also follows the last step. Captured
                engines run the steps between two calls as one replay.
            progress: show a progress bar.

        Returns:
            float32 ``(B, ...)``, of images ``(B, C, H, W)``, in the model's range (usually [-1, 1]),
            unclamped, on the model's device.

        Raises:
            ValueError: naming the argument, what was given and what is accepted.
            NonFiniteSamples: NaN or infinity among the images of a batch (`fastddpm.finite`); a
                FloatingPointError that names their seeds. The batches after it are not drawn.
        """
        batches = make_batches(
            self.facts,
            batch_size=batch_size,
            seeds=seeds,
            shape=shape,
            class_labels=class_labels,
            guidance_scale=guidance_scale,
            condition=condition,
            cond=cond,
            uncond=uncond,
            known=known,
            known_mask=known_mask,
            noise=noise,
            generator=generator,
            x=x_T,
            max_batch=max_batch,
        )
        return self._run(
            batches, self.plan, callback=callback, callback_every=callback_every, progress=progress
        )

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
            batch_size: as in :meth:`sample`.
            frames: states kept, evenly spread, the first and the last among them; None for all S + 1.
            predicted: keep the predicted clean image of each step instead of the state (S frames at most).
            x_T: as in :meth:`sample`.
            progress: show a progress bar.
            **request: ``seeds``, ``shape``, ``class_labels``, ``guidance_scale``, ``condition``, ``cond``,
                ``uncond``, ``known``, ``known_mask``, ``noise``, ``generator`` and ``max_batch`` of
                :meth:`sample`.

        Returns:
            float32 ``(F, B, ...)``; the last frame is what :meth:`sample` returns.
        """
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
                check_finite(frames_of_batch.transpose(0, 1), batch.seeds)
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
            callback: as in :meth:`sample`.
            callback_every: likewise.
            **request: ``seeds``, ``shape``, ``class_labels``, ``guidance_scale``, ``condition``, ``cond``,
                ``uncond``, ``known``, ``known_mask``, ``noise``, ``generator`` and ``max_batch`` of
                :meth:`sample`.

        Returns:
            float32 ``(B, ...)``.
        """
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
                ``max_batch`` of :meth:`sample`.

        Returns:
            float32 ``(B, ...)``, for ``x_T`` of :meth:`sample`.

        Raises:
            ValueError: a sampler of another method than ddim with eta 0; otherwise as of :meth:`sample`.
        """
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
            callback: as in :meth:`sample`.
            callback_every: likewise.
            **request: ``class_labels``, ``guidance_scale``, ``condition``, ``cond``, ``uncond`` and
                ``max_batch`` of :meth:`sample`.

        Returns:
            float32 ``(steps, ...)``.
        """
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

    # ------------------------------------------------------------------ running

    def _run(
        self,
        batches: list[Batch],
        plan: Plan,
        *,
        row: int = 0,
        callback: Callback | None,
        callback_every: int,
        progress: bool,
    ) -> Tensor:
        callback_every = whole("callback_every", callback_every, least=1)
        total = sum(batch.count for batch in batches)
        result = torch.empty((total, *batches[0].shape[1:]), dtype=torch.float32, device=self.device)
        filled = 0
        bar = progress_bar(progress, len(batches) * (len(plan) - row))
        with self.running() as runner, bar as advance:
            for batch in batches:
                done = row
                stops = set() if callback is None else {*range(row, len(plan), callback_every), len(plan)}
                for k, loop in runner.segments(batch, plan, row=row, stops=stops):
                    advance(k - done)
                    done = k
                    if callback is not None and k > row and k in stops:
                        callback(k - 1, int(plan.timesteps[k - 1]), loop.buffers.x)
                check_finite(loop.buffers.x[: batch.count], batch.seeds)
                result[filled : filled + batch.count] = loop.buffers.x[: batch.count]
                filled += batch.count
        return result

    @contextmanager
    def running(self) -> Iterator[Runner]:
        """The runner, with the model as it is, while nobody else uses it."""
        with self.runner.turn():
            self._follow()
            yield self.runner

    def _follow(self) -> None:
        """Has the runner run the model as it is, in another dtype its copy."""
        self.runner.model, self.runner.copies = self.model, None
        if self.precision not in ("bf16", "fp16") or model_device_dtype(self.model)[1] == self.dtype:
            return
        assert isinstance(self.model, torch.nn.Module)
        if self._cast is None or self._cast.original is not self.model:
            self._cast = InDtype(self.model, self.dtype)
        self.runner.copies = self._cast.copies()  # which may make the copy anew
        self.runner.model = self._cast.module

    def _check_cast(self, precision: str, weights: torch.dtype) -> None:
        if not isinstance(self.model, torch.nn.Module):
            raise BadArgument(
                "precision",
                f"{precision!r} for a model that is no torch Module and cannot be cast",
                "highest, tf32 or None, and dtype= for a model that takes x in another dtype,",
            )
        if weights != torch.float32:
            raise BadArgument(
                "precision", f"{precision!r} for {weights} weights", f"float32 or {self.dtype} ones"
            )

    def _batches_of(
        self, images: Tensor, request: SampleArguments, *, batch_size: int | None = None
    ) -> list[Batch]:
        """The same for a chain that begins with images."""
        try:
            return self._batches(request, batch_size=batch_size, x=images)
        except BadArgument as error:
            if "x_T" in request:
                raise
            raise BadArgument(error.argument.replace("x_T", "images"), error.given, error.accepted) from None

    def _batches(self, request: SampleArguments, *, batch_size: int | None, x: Tensor | None) -> list[Batch]:
        """The batches for keyword arguments of :meth:`sample`, given to another method."""
        unknown = sorted(set(request) - set(SHARED_ARGUMENTS))
        if unknown:
            raise BadArgument(unknown[0], "an argument that is none here", ", ".join(SHARED_ARGUMENTS))
        return make_batches(self.facts, batch_size=batch_size, x=x, **request)

    def _row_of(self, timestep: int) -> int:
        return self.plan.row_of(whole("timestep", timestep, least=0, most=len(self.schedule) - 1))


def _rebuilt(
    cls: type[Sampler],
    model: Model,
    schedule: NoiseSchedule,
    plan: Plan,
    method: Method | None,
    options: RunOptions,
) -> Sampler:
    sampler = cls.from_plan(model, schedule, plan, **options)
    sampler.method = method
    return sampler
