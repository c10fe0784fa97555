"""A scheduler's plan on a device, and one step of it: the row of a timestep, then `reverse_step`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from fastddpm.checks import BadArgument
from fastddpm.dropin._diffusers.generators import Generators, one_each
from fastddpm.dropin._diffusers.network import with_log_variance
from fastddpm.engine.step import predicted_x0
from fastddpm.plans import Plan
from fastddpm.randomness import TorchNoise
from fastddpm.transfer import current, to_device
from fastddpm_kernels import N_COLUMNS, reverse_step

if TYPE_CHECKING:
    from typing import TypeGuard


class Rows:
    """The rows of a plan, found by timestep.

    Args:
        plan: its timesteps are those of the scheduler, without repetitions.
        timesteps: int64 ``(N,)``, the scheduler's own tensor.
        values: what is in it, on the host.
        log_variance: the second half of the model's output is to be replaced by its logarithm.
    """

    def __init__(
        self, plan: Plan, timesteps: Tensor, values: Sequence[int], *, log_variance: bool = False
    ) -> None:
        self.plan, self.timesteps, self.log_variance = plan, timesteps, log_variance
        self._row_of = {int(t): k for k, t in enumerate(plan.timesteps)}
        self._row_at = [self._row_of.get(t) for t in values]
        self._tensors: dict[torch.device, tuple[Tensor, Tensor, Tensor]] = {}

    def __contains__(self, timestep: int | Tensor) -> bool:
        """Whether a timestep has a row; one on a GPU is taken to have."""
        return is_on_device(timestep) or int(timestep) in self._row_of

    def find(self, timestep: int | Tensor, device: torch.device) -> tuple[Tensor, Tensor, bool]:
        """(table, counter, whether the row draws noise) for a timestep.

        An integer, or a tensor on the CPU, is looked up on the host. A tensor on a GPU is never read: an
        element of the scheduler's ``timesteps`` is known by where it lies in their memory, any other one is
        looked up by the GPU (draws: whether any row does), where one without a row gives NaN.
        """
        table, counters, row_of = self.tensors(device)
        if not is_on_device(timestep):
            row = self._row_of[int(timestep)]
        else:
            if timestep.numel() != 1:
                raise BadArgument("timestep", f"shape {tuple(timestep.shape)}", "one timestep")
            place = self._place(timestep)
            if place is None:
                # 0 stands for timestep -1.
                t = (timestep.reshape(1).to(torch.int64) + 1).clamp(0, len(row_of) - 1)
                counter = counters.index_select(0, row_of.index_select(0, t)).squeeze(0)
                return table, counter, bool(self.plan.draws is not None and self.plan.draws.any())
            row = place
        return table, counters[row], bool(self.plan.draws is not None and self.plan.draws[row])

    def tensors(self, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
        """On a device: table ``(S+1, 16)``, counters ``(S+1, 2)``, row of timestep - 1; row S is NaN."""
        if device not in self._tensors:
            steps = len(self.plan)
            table = np.full((steps + 1, N_COLUMNS), np.nan, np.float32)
            table[:steps] = self.plan.table
            counters = np.zeros((steps + 1, 2), np.int64)
            counters[:, 0] = np.arange(steps + 1)
            row_of = np.full(int(self.plan.timesteps[0]) + 3, steps, np.int64)
            row_of[self.plan.timesteps + 1] = np.arange(steps)
            table_, counters_, row_of_ = (
                to_device(torch.from_numpy(values), device) for values in (table, counters, row_of)
            )
            self._tensors[device] = (table_, counters_, row_of_)
        return self._tensors[device]

    def _place(self, timestep: Tensor) -> int | None:
        """The row of a tensor that is an element of `timesteps`, without reading it; None for any other."""
        ours = self.timesteps
        if timestep.untyped_storage()._cdata != ours.untyped_storage()._cdata or not ours.is_contiguous():
            return None
        place = timestep.storage_offset() - ours.storage_offset()
        is_element = 0 <= place < len(self._row_at) and timestep.dtype == ours.dtype
        return self._row_at[place] if is_element else None


def take_step(
    rows: Rows, found: tuple[Tensor, Tensor, bool], model_output: Tensor, sample: Tensor, noise: Tensor | None
) -> tuple[Tensor, Tensor]:
    """(x_next, x0) of one step, new tensors in the dtype that torch's arithmetic on the two would have.

    Args:
        rows: the plan.
        found: what `Rows.find` gave.
        model_output: ``(B, C, ...)``, or ``(B, 2C, ...)`` with learned variance.
        sample: ``(B, C, ...)``, any floating dtype; the state is float32 inside. Not changed.
        noise: ``(B, C, ...)``, or None where the step draws none.

    Raises:
        ValueError: shapes that do not fit each other or the variance_type.
    """
    table, counter, _ = found
    m = with_log_variance(model_output, sample.shape[1]) if rows.log_variance else model_output
    return take_row(rows.plan, table, counter, m, sample, noise)


def take_row(
    plan: Plan,
    table: Tensor,
    counter: Tensor,
    model_output: Tensor,
    sample: Tensor,
    noise: Tensor | None,
    *,
    kept: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The same of a row of a plan; ``kept (1-3, B, C, ...)`` are the predictions that its rows keep."""
    check_channels(plan, model_output, sample)
    dtype = torch.promote_types(sample.dtype, model_output.dtype)
    m = model_output.to(torch.float32) if model_output.dtype == torch.float64 else model_output
    x = torch.empty(sample.shape, dtype=torch.float32, device=sample.device).copy_(sample)
    x0 = torch.empty_like(x)
    counter = counter.expand(len(x), 2)  # all samples are at one row
    with current(x.device):
        reverse_step(
            x,
            m,
            table,
            counter,
            noise=None if noise is None else noise.to(x.device, torch.float32)[None],
            x0=x0,
            threshold=_threshold(plan, m, x, table, counter),
            kept=kept,
            combine=plan.combines,
            clip=plan.clip,
            divide=plan.divides,
            rederive=plan.rederives,
        )
    return x.to(dtype), x0.to(dtype)


def drawn(
    generator: Generators, model_output: Tensor, sample: Tensor, dtype: torch.dtype | None = None
) -> Tensor:
    """Noise as the original draws it, in the model's dtype or another; float32 ``(B, C, ...)``."""
    generator = one_each(generator, len(sample))
    noise = TorchNoise(generator, model_output.device, dtype or model_output.dtype)
    return noise.draw(tuple(sample.shape))


def check_channels(plan: Plan, model_output: Tensor, sample: Tensor) -> None:
    """ValueError unless the model's output is the plan's, as diffusers raises one in the middle of it."""
    channels = sample.shape[1]
    wanted = 2 * channels if plan.learned_range else channels
    if model_output.shape[1] != wanted:
        raise BadArgument(
            "model_output",
            f"{model_output.shape[1]} channels for a sample of {channels}",
            f"{wanted} with this variance_type",
        )


def _threshold(plan: Plan, m: Tensor, x: Tensor, table: Tensor, counter: Tensor) -> Tensor | None:
    """Imagen's bound (Saharia et al. 2022, section 2.3): a quantile of |x0| within [1, maximum], ``(B,)``."""
    if plan.thresholding is None:
        return None
    ratio, maximum = plan.thresholding
    x0 = predicted_x0(x, m[:, : x.shape[1]].to(torch.float32), table, counter, divide=plan.divides)
    bound: Tensor = x0.abs().flatten(1).quantile(ratio, dim=1).clamp(1.0, maximum)
    return bound


def is_on_device(timestep: object) -> TypeGuard[Tensor]:
    return isinstance(timestep, Tensor) and timestep.device.type != "cpu"
