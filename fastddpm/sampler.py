"""The sampler: a trained model, a noise schedule and a method, made into images.

`Sampler` checks what the caller wants (`fastddpm.request`) and has each batch walked through its plan
(`fastddpm.plans`) by a `fastddpm.runner.Runner`. How it is made stands in `fastddpm.configured`,
its other ways to draw in `fastddpm.variations`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fastddpm.conditions import Conditions, Labels
from fastddpm.configured import Callback
from fastddpm.network import without_grad
from fastddpm.randomness import NoiseKind
from fastddpm.request import make_batches
from fastddpm.signatures import checked
from fastddpm.variations import Variations

__all__ = ["Callback", "Sampler"]


class Sampler(Variations):
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
            ``log_snr`` (also ``exponential``) or ``beta``. A UserWarning says where ``leading`` starts too
            far below T - 1 for a chain that begins with noise alone.
        timesteps: the timesteps themselves, strictly descending, instead of a spacing.
        eta: of ddim: 0 deterministic, 1 as noisy as ddpm; of heun, tcd and sa_solver as of :class:`Method`.
        time_input: what the model takes as t: ``timestep``, int64; or float32, ``noise_level``
            sqrt(alphas_cumprod[t]), as SR3 does, or ``alphas_cumprod``, as Palette does.
        solver_order: of solvers that can have several.
        lower_order_final: of solvers in lambda: the last of few steps are of lower order, as in diffusers.
        sigmas: of a solver, its noise levels sqrt((1 - abar)/abar), strictly descending, in the place of a
            spacing; the network is told times between those of training.
        thresholding: dynamic thresholding of x0 (Saharia et al. 2022) in the place of a fixed clip.
        dynamic_thresholding_ratio: of it, which quantile of abs(x0) is the bound.
        sample_max_value: of it, the most that the bound can be.
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
