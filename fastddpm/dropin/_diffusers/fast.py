"""What schedulers of diffusers share whose step is a fused kernel on rows that are looked up by timestep."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

import torch
from torch import Tensor

from fastddpm.dropin._diffusers.options import Options
from fastddpm.dropin._diffusers.rows import Rows
from fastddpm.dropin.settings import Report
from fastddpm.inputs import Fields

OWN = ("_planned", "_rows", "_refused", "_options", "_host", "original")


class Fast:
    """What these schedulers share: the rows of the timesteps, kept until something they come from changes.

    ``set_timesteps`` reads ``alphas_cumprod``; values assigned later are used from the next call of it on.
    """

    public_name: ClassVar[str]
    tables: ClassVar[tuple[str, ...]]
    thresholds: ClassVar[bool] = True
    # The original's.
    config: Fields
    timesteps: Tensor

    def hold_tables(self) -> None:
        """Copies the tables and timesteps to the host, where rows are made: `add_noise` moves the others."""
        held = {name: getattr(self, name).detach().cpu() for name in self.tables}
        timesteps = self.timesteps
        self.__dict__["_host"] = (timesteps, timesteps.tolist(), Held(self.config, held))

    def _held(self) -> tuple[list[int], Held]:
        """The timesteps' values, and what plans are made from."""
        host = self.__dict__.get("_host")
        if host is None or host[0] is not self.timesteps or host[2].config is not self.config:
            self.hold_tables()
        _, values, held = self.__dict__["_host"]
        return values, held

    def _rows_for(self, key: tuple[object, ...]) -> Rows | None:
        """Rows made before for these arguments, the current configuration and the current timesteps."""
        basis = (self.config, self.timesteps)
        planned = self.__dict__.get("_planned")
        if planned is None or planned[0] is not basis[0] or planned[1] is not basis[1]:
            self.__dict__["_planned"], self.__dict__["_rows"] = basis, {}
        found: Rows | None = self.__dict__["_rows"].get(key)
        return found

    def _forget(self) -> None:
        """The timesteps or what they are made of may have changed."""
        for name in ("_planned", "_rows", "_refused", "_host"):
            self.__dict__.pop(name, None)

    def _keep(self, key: tuple[object, ...], rows: Rows) -> Rows:
        self.__dict__["_rows"][key] = rows
        return rows

    def _or_original(self, key: tuple[object, ...], make: Callable[[], Rows]) -> Rows | None:
        """Rows, or None where the original's step is to take a step: another of them may not be finite."""
        if self._refusal(key) is not None:
            return None
        try:
            return make()
        except ValueError as error:
            if self.config.get("variance_type") == "fixed_large_log":
                raise
            self.__dict__.setdefault("_refused", {})[key] = (self.config, self.timesteps, str(error))
            return None

    def _refusal(self, key: tuple[object, ...]) -> str | None:
        config, timesteps, why = self.__dict__.get("_refused", {}).get(key, (None, None, None))
        return why if config is self.config and timesteps is self.timesteps else None

    @property
    def _habits(self) -> Options:
        options: Options = self.__dict__.get("_options", Options())
        return options

    def _state(self) -> dict[str, object]:
        """What goes with a copy or a pickle: all but the rows, which are made again."""
        return {name: value for name, value in vars(self).items() if name not in OWN[:3]}

    def __repr__(self) -> str:
        return f"{self.public_name} in the place of {super().__repr__()}"

    def report(self) -> Report:
        """What a step is made of."""
        config = self.config
        why = ["steps that need gradients: they go through the original's step"]
        if self.thresholds and config["thresholding"]:
            why.append("dynamic thresholding: the quantile of |x0| is a pass of its own")
        if config.get("variance_type") == "learned":
            why.append("variance_type learned: the logarithm of the model's variance is a pass of its own")
        refused = filter(None, map(self._refusal, self.__dict__.get("_refused", {})))
        why += [f"these timesteps, by the original's step: {reason}" for reason in refused]
        return Report(
            peer=f"diffusers {type(self).__name__}, alone",
            network="the caller's",
            engine="eager: one reverse_step a step, on a copy of the sample",
            noise="torch generators, drawn as the original draws",
            precision="the caller's",
            fused=("x0", "clip", "update", "noise"),
            not_fused=tuple(why),
        )


class Held:
    """A configuration with the tensors that a plan is made from."""

    def __init__(self, config: Fields, tensors: dict[str, Tensor]) -> None:
        self.config = config
        self.alphas_cumprod = tensors["alphas_cumprod"]
        self.final_alpha_cumprod = tensors.get("final_alpha_cumprod")
        self.initial_alpha_cumprod = tensors.get("initial_alpha_cumprod")


def needs_gradient(*tensors: Tensor | None) -> bool:
    """Whether a step is to be differentiated, which only the original's is."""
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)
