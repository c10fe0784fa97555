"""diffusers' ScoreSdeVeScheduler with a fused predictor and corrector (Song et al. 2021, algorithm 4)."""

from __future__ import annotations

from typing import Any, cast

import torch
from diffusers.schedulers.scheduling_sde_ve import ScoreSdeVeScheduler, SdeVeOutput
from diffusers.schedulers.scheduling_utils import SchedulerOutput
from torch import Tensor

from fastddpm.dropin._diffusers.exploding_twin import Exploding, Number, copied, first, is_ours
from fastddpm.dropin._diffusers.generators import Generators, one_each
from fastddpm.randomness import TorchNoise
from fastddpm.transfer import current, to_device
from fastddpm_kernels import N_COLUMNS, Column, reverse_step


class FastScoreSdeVeScheduler(Exploding, ScoreSdeVeScheduler):  # type: ignore[misc]
    """A ScoreSdeVeScheduler with a fused predictor and corrector."""

    public_name = "FastScoreSdeVeScheduler"
    # The original's.
    config: Any
    timesteps: Any
    precision = "float32; of float64 states the original's step"
    not_fused = ("the corrector's length: norms over the batch, in passes of their own",)

    def __reduce__(self) -> tuple[object, ...]:
        # By name pickle would look for the original's class, whose name this one bears.
        return _restored, (), self._state()

    def step_pred(
        self,
        model_output: Tensor,
        timestep: float | Tensor,
        sample: Tensor,
        generator: Generators = None,
        return_dict: bool = True,
    ) -> Any:
        """A step of the predictor, as `ScoreSdeVeScheduler.step_pred`: new tensors.

        Nothing waits for a GPU, where the original looks its levels up on the host. A timestep beyond the
        levels gives NaN there.

        Args:
            model_output: ``(B, C, ...)``, the score.
            timestep: in [0, 1], one or ``(B,)``.
            sample: ``(B, C, ...)``.
            generator: one, a list with one per sample, or None.
            return_dict: an SdeVeOutput, else a tuple (prev_sample, prev_sample_mean); float32.

        Raises:
            ValueError: set_timesteps was not called.
        """
        place = None
        if self.timesteps is not None and is_ours(model_output, sample):
            place = self._place(timestep, sample)
        if place is None:
            original = cast("Any", super())
            return original.step_pred(model_output, timestep, sample, generator, return_dict)
        noise = TorchNoise(one_each(generator, len(sample)), sample.device, sample.dtype).draw(sample.shape)
        x, mean = copied(sample), torch.empty(sample.shape, dtype=torch.float32, device=sample.device)
        with current(x.device):
            reverse_step(x, model_output, *place, noise=noise[None], x0=mean, divide=True)
        return SdeVeOutput(prev_sample=x, prev_sample_mean=mean) if return_dict else (x, mean)

    def step_correct(
        self,
        model_output: Tensor,
        sample: Tensor,
        generator: Generators = None,
        return_dict: bool = True,
    ) -> Any:
        """A step of the corrector, as `ScoreSdeVeScheduler.step_correct`: a new tensor.

        Nothing waits for a GPU but for noise of the host, which the original draws there too.

        Args:
            model_output: ``(B, C, ...)``, the score.
            sample: ``(B, C, ...)``.
            generator: of the host: one, a list with one per sample, or None.
            return_dict: a SchedulerOutput, else a tuple (prev_sample,); float32.

        Raises:
            ValueError: set_timesteps was not called.
        """
        if self.timesteps is None or not is_ours(model_output, sample):
            original = cast("Any", super())
            return original.step_correct(model_output, sample, generator, return_dict)
        host = TorchNoise(one_each(generator, len(sample)), torch.device("cpu"), torch.get_default_dtype())
        noise = to_device(host.draw(sample.shape), sample.device)
        length, noise_length = (torch.norm(v.flatten(1), dim=-1).mean() for v in (model_output, noise))
        size = (self.config.snr * noise_length / length) ** 2 * 2
        columns: dict[Column, Number] = {Column.FROM_M: size, Column.FROM_NOISE: (size * 2) ** 0.5}
        x = copied(sample)
        with current(x.device):
            row = self._row("along", x.device, columns)
            reverse_step(x, model_output, row, first(x), noise=noise[None], divide=True)
        return SchedulerOutput(prev_sample=x) if return_dict else (x,)

    def _place(self, timestep: float | Tensor, sample: Tensor) -> tuple[Tensor, Tensor] | None:
        """The table of all levels, and the row of each sample; None where the host finds no level."""
        table = self._table(sample.device)
        times = timestep * torch.ones(len(sample), device=sample.device)
        if times.shape != (len(sample),):
            return None
        rows = (times * (len(self.timesteps) - 1)).long()
        last = len(table) - 1
        is_known = (rows >= 0) & (rows < last)
        if sample.device.type == "cpu" and not bool(is_known.all()):
            return None
        counter = torch.zeros((len(sample), 2), dtype=torch.int64, device=sample.device)
        counter[:, 0] = rows.masked_fill(~is_known, last)
        return table, counter

    def _table(self, device: torch.device) -> Tensor:
        """A row for each of ``discrete_sigmas``, and one of NaN behind them, on a device."""
        levels = self.discrete_sigmas
        basis = (levels, 0 if levels.is_inference() else levels._version)
        held = self.__dict__.get("_levels")
        if held is None or held[0] is not levels or held[1] != basis[1]:
            held = self.__dict__["_levels"] = (*basis, {})
        tables: dict[torch.device, Tensor] = held[2]
        if device not in tables:
            sigmas = levels.detach().cpu()
            below = torch.cat((torch.zeros(1), sigmas[:-1]))
            diffusion = (sigmas**2 - below**2) ** 0.5
            table = torch.zeros((len(sigmas) + 1, N_COLUMNS))
            table[:, [Column.X0_FROM_X, Column.FROM_X0, Column.X0_DIVISOR]] = 1.0
            table[:-1, Column.X0_FROM_M], table[:-1, Column.FROM_NOISE] = diffusion**2, diffusion
            table[-1] = torch.nan
            tables[device] = to_device(table, device)
        return tables[device]


def _restored() -> FastScoreSdeVeScheduler:
    made: FastScoreSdeVeScheduler = FastScoreSdeVeScheduler.__new__(FastScoreSdeVeScheduler)
    return made


FastScoreSdeVeScheduler.__name__ = FastScoreSdeVeScheduler.__qualname__ = ScoreSdeVeScheduler.__name__
FastScoreSdeVeScheduler.__module__ = ScoreSdeVeScheduler.__module__
