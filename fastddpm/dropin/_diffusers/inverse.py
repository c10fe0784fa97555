"""diffusers' DDIMInverseScheduler with a fused step, as `schedulers` has those that draw."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from diffusers.schedulers.scheduling_ddim_inverse import DDIMInverseScheduler, DDIMSchedulerOutput
from torch import Tensor

from fastddpm.checks import BadArgument
from fastddpm.dropin._diffusers.fast import Fast, needs_gradient
from fastddpm.dropin._diffusers.rows import Rows, is_on_device, take_step
from fastddpm.plans.diffusers.ddim_inverse import from_ddim_inverse_scheduler


class FastDDIMInverseScheduler(Fast, DDIMInverseScheduler):  # type: ignore[misc]
    """A DDIMInverseScheduler with a fused step; see `step`."""

    public_name = "FastDDIMInverseScheduler"
    tables = ("alphas_cumprod", "initial_alpha_cumprod")
    thresholds = False

    def step(
        self, model_output: Tensor, timestep: int | Tensor, sample: Tensor, return_dict: bool = True
    ) -> Any:
        """One step to ``timestep``, as `DDIMInverseScheduler.step`: new tensors, the sample is not changed.

        Nothing waits for a GPU: a timestep there is found as by `FastDDIMScheduler`.

        Args:
            model_output: ``(B, C, ...)``, what the network says of the sample at ``timestep``.
            timestep: one of the training timesteps.
            sample: ``(B, C, ...)``. float16 and bfloat16 are float32 inside.
            return_dict: a DDIMSchedulerOutput, else a tuple (prev_sample, pred_original_sample).

        Raises:
            ValueError: set_timesteps was not called; channels that do not fit.
        """
        if self.num_inference_steps is None:
            raise BadArgument("num_inference_steps", "None", "a call of set_timesteps first")
        rows = None
        if not needs_gradient(model_output, sample):
            rows = self._or_original((), lambda: self._rows_at(timestep))
        if rows is None:
            return super().step(model_output, timestep, sample, return_dict)
        prev_sample, x0 = take_step(rows, rows.find(timestep, sample.device), model_output, sample, None)
        if not return_dict:
            return prev_sample, x0
        return DDIMSchedulerOutput(prev_sample=prev_sample, pred_original_sample=x0)

    def set_timesteps(self, *args: object, **kwargs: object) -> None:
        """As `DDIMInverseScheduler.set_timesteps`; with a device, the plan goes there at once."""
        self._forget()
        set_timesteps: Callable[..., None] = super().set_timesteps
        set_timesteps(*args, **kwargs)
        self.hold_tables()
        if self.timesteps.device.type != "cpu":
            rows = self._or_original((), lambda: self._rows_at(self.timesteps[0]))
            if rows is not None:
                rows.tensors(self.timesteps.device)

    def __reduce__(self) -> tuple[object, ...]:
        return _restored, (), self._state()

    def _rows_at(self, timestep: int | Tensor) -> Rows:
        """The rows of ``timesteps``; of one other timestep, or of one where another row is not finite."""
        rows = self._rows_for(())
        if rows is None:
            values, _ = self._held()
            try:
                rows = self._keep((), self._made(sorted(set(values), reverse=True)))
            except ValueError:
                if is_on_device(timestep):
                    raise
        if rows is not None and timestep in rows:
            return rows
        alone = (int(timestep),)
        return self._rows_for(alone) or self._keep(alone, self._made([int(timestep)]))

    def _made(self, timesteps: list[int]) -> Rows:
        values, held = self._held()
        steps: Any = self.num_inference_steps
        return Rows(from_ddim_inverse_scheduler(held, steps, timesteps), self.timesteps, values)


def _restored() -> FastDDIMInverseScheduler:
    made: FastDDIMInverseScheduler = FastDDIMInverseScheduler.__new__(FastDDIMInverseScheduler)
    return made


FastDDIMInverseScheduler.__name__ = FastDDIMInverseScheduler.__qualname__ = DDIMInverseScheduler.__name__
FastDDIMInverseScheduler.__module__ = DDIMInverseScheduler.__module__
