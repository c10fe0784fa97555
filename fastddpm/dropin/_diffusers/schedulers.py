"""Schedulers of diffusers whose step is one fused kernel: subclasses, so that all else is the original's.

A class's ``__name__`` and ``__module__`` are those of the original: they are what diffusers writes into
configurations and model_index.json, which then load without fastddpm.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from diffusers.schedulers.scheduling_ddim import DDIMScheduler, DDIMSchedulerOutput
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler, DDPMSchedulerOutput
from torch import Tensor

from fastddpm.checks import BadArgument
from fastddpm.dropin._diffusers.fast import Fast, needs_gradient
from fastddpm.dropin._diffusers.generators import Generators
from fastddpm.dropin._diffusers.rows import Rows, drawn, is_on_device, take_step
from fastddpm.plans.diffusers import from_ddim_scheduler, from_ddpm_scheduler


class FastDDPMScheduler(Fast, DDPMScheduler):  # type: ignore[misc]
    """A DDPMScheduler with a fused step; see `step`."""

    public_name = "FastDDPMScheduler"
    tables = ("alphas_cumprod",)

    def step(
        self,
        model_output: Tensor,
        timestep: int | Tensor,
        sample: Tensor,
        generator: Generators = None,
        return_dict: bool = True,
    ) -> Any:
        """One step, as `DDPMScheduler.step`: new tensors, the sample is not changed.

        Nothing waits for a GPU. A timestep on a GPU is not read: one taken from ``timesteps`` is known by its
        place in their memory; any other is looked up by the GPU, gives NaN if it is not among ``timesteps``
        (the original raises an IndexError), and draws noise also at t = 0, where it is multiplied by 0.

        Args:
            model_output: ``(B, C, ...)``, or ``(B, 2C, ...)`` with variance_type learned or learned_range.
            timestep: one of ``timesteps``.
            sample: ``(B, C, ...)``. float16 and bfloat16 are float32 inside.
            generator: one, a list with one per sample, or None.
            return_dict: a DDPMSchedulerOutput, else a tuple (prev_sample, pred_original_sample).

        Raises:
            ValueError: a timestep that is not among ``timesteps``, channels that do not fit the
                variance_type, or variance_type "fixed_large_log", which is NaN in diffusers.
        """
        rows = None
        if not needs_gradient(model_output, sample):
            rows = self._or_original((), lambda: self._rows_with(timestep))
        if rows is None:
            step: Callable[..., Any] = super().step  # which takes more than its annotations say
            return step(model_output, timestep, sample, generator, return_dict)
        if timestep not in rows:
            raise BadArgument("timestep", str(int(timestep)), "one of scheduler.timesteps")
        found = rows.find(timestep, sample.device)
        noise = drawn(generator, model_output, sample) if found[2] else None
        prev_sample, x0 = take_step(rows, found, model_output, sample, noise)
        if not return_dict:
            return prev_sample, x0
        return DDPMSchedulerOutput(prev_sample=prev_sample, pred_original_sample=x0)

    def set_timesteps(self, *args: object, **kwargs: object) -> None:
        """As `DDPMScheduler.set_timesteps`; with a device, the plan goes there at once."""
        self._forget()
        set_timesteps: Callable[..., None] = super().set_timesteps
        set_timesteps(*args, **kwargs)
        self.hold_tables()
        if self.timesteps.device.type != "cpu":
            rows = self._or_original((), self._current_rows)
            if rows is not None:
                rows.tensors(self.timesteps.device)

    def __reduce__(self) -> tuple[object, ...]:
        # By the public name: pickle would look for the original's class under the name that this one bears.
        return _restored, (self.public_name,), self._state()

    def _rows_with(self, timestep: int | Tensor) -> Rows:
        """All rows, or where another one is not finite that of a timestep on the host."""
        try:
            return self._current_rows()
        except ValueError:
            values, _ = self._held()
            if is_on_device(timestep) or int(timestep) not in values:
                raise
            place = values.index(int(timestep))
            # The step leads to the timestep after it.
            return self._made((int(timestep),), values[place : place + 2])

    def _current_rows(self) -> Rows:
        return self._made((), self._held()[0])

    def _made(self, key: tuple[int, ...], timesteps: list[int]) -> Rows:
        rows = self._rows_for(key)
        if rows is None:
            values, held = self._held()
            plan = from_ddpm_scheduler(held, timesteps=timesteps, log_variance=True)
            learned = self.config["variance_type"] == "learned"
            rows = self._keep(key, Rows(plan, self.timesteps, values, log_variance=learned))
        return rows


class FastDDIMScheduler(Fast, DDIMScheduler):  # type: ignore[misc]
    """A DDIMScheduler with a fused step; see `step`."""

    public_name = "FastDDIMScheduler"
    tables = ("alphas_cumprod", "final_alpha_cumprod")

    def step(
        self,
        model_output: Tensor,
        timestep: int | Tensor,
        sample: Tensor,
        eta: float = 0.0,
        use_clipped_model_output: bool = False,
        generator: Generators = None,
        variance_noise: Tensor | None = None,
        return_dict: bool = True,
    ) -> Any:
        """One step, as `DDIMScheduler.step`: new tensors, the sample is not changed.

        Nothing waits for a GPU. A timestep on a GPU is not read: one taken from ``timesteps`` is known by its
        place in their memory; any other is looked up by the GPU and gives NaN if it is not among them. A
        timestep on the host need not be among them.

        Args:
            model_output: ``(B, C, ...)``.
            timestep: one of the training timesteps.
            sample: ``(B, C, ...)``. float16 and bfloat16 are float32 inside.
            eta: with eta > 0 noise is drawn, or taken from variance_noise.
            use_clipped_model_output: eps anew from the clipped x0.
            generator: one, a list with one per sample, or None.
            variance_noise: ``(B, C, ...)``, in place of drawn noise.
            return_dict: a DDIMSchedulerOutput, else a tuple (prev_sample, pred_original_sample).

        Raises:
            ValueError: set_timesteps was not called; both generator and variance_noise; channels that do not
                fit; a timestep that the schedule does not have.
        """
        if self.num_inference_steps is None:
            raise BadArgument("num_inference_steps", "None", "a call of set_timesteps first")
        clipped, rows = bool(use_clipped_model_output), None
        if not needs_gradient(model_output, sample, variance_noise):
            if eta > 0 and generator is not None and variance_noise is not None:
                raise BadArgument("variance_noise", "one with a generator", "one of the two")
            key = (float(eta), clipped)
            rows = self._or_original(key, lambda: self._rows_at(timestep, *key))
        if rows is None:
            given = (model_output, timestep, sample, eta, clipped, generator, variance_noise, return_dict)
            return super().step(*given)
        found = rows.find(timestep, sample.device)
        noise = None
        if found[2]:
            noise = drawn(generator, model_output, sample) if variance_noise is None else variance_noise
        prev_sample, x0 = take_step(rows, found, model_output, sample, noise)
        if not return_dict:
            return prev_sample, x0
        return DDIMSchedulerOutput(prev_sample=prev_sample, pred_original_sample=x0)

    def set_timesteps(self, *args: object, **kwargs: object) -> None:
        """As `DDIMScheduler.set_timesteps`; with a device, the plan for eta = 0 goes there at once."""
        self._forget()
        set_timesteps: Callable[..., None] = super().set_timesteps
        set_timesteps(*args, **kwargs)
        self.hold_tables()
        if self.timesteps.device.type != "cpu":
            rows = self._or_original((0.0, False), lambda: self._rows_at(self.timesteps[0], 0.0, False))
            if rows is not None:
                rows.tensors(self.timesteps.device)

    def __reduce__(self) -> tuple[object, ...]:
        return _restored, (self.public_name,), self._state()

    def _rows_at(self, timestep: int | Tensor, eta: float, use_clipped_model_output: bool) -> Rows:
        """The rows of ``timesteps``; of one other timestep, or of one where another row is not finite."""
        key = (eta, use_clipped_model_output)
        rows = self._rows_for(key)
        if rows is None:
            values, _ = self._held()
            try:
                rows = self._keep(key, self._made(key, sorted(set(values), reverse=True)))
            except ValueError:
                if is_on_device(timestep):
                    raise
        if rows is not None and timestep in rows:
            return rows
        alone = (*key, int(timestep))
        return self._rows_for(alone) or self._keep(alone, self._made(key, [int(timestep)]))

    def _made(self, key: tuple[float, bool], timesteps: list[int]) -> Rows:
        values, held = self._held()
        steps: Any = self.num_inference_steps
        plan = from_ddim_scheduler(
            held,
            steps,
            eta=key[0],
            use_clipped_model_output=key[1],
            previous_timestep=self._habits.previous_timestep,
            timesteps=timesteps,
        )
        return Rows(plan, self.timesteps, values)


def _restored(public_name: str) -> FastDDPMScheduler | FastDDIMScheduler:
    kind = {"FastDDPMScheduler": FastDDPMScheduler, "FastDDIMScheduler": FastDDIMScheduler}[public_name]
    restored: FastDDPMScheduler | FastDDIMScheduler = kind.__new__(kind)
    return restored


for _kind, _original in ((FastDDPMScheduler, DDPMScheduler), (FastDDIMScheduler, DDIMScheduler)):
    _kind.__name__ = _kind.__qualname__ = _original.__name__
    _kind.__module__ = _original.__module__
