"""What is asked for one image, as `fastddpm.serving.Scheduler.submit` takes it."""

from __future__ import annotations

import dataclasses
from typing import cast

from torch import Tensor

from fastddpm.plans.method_options import MethodName, MethodOptions


@dataclasses.dataclass(frozen=True, eq=False)
class Asked:
    """One image of a request.

    Attributes:
        seed: in [0, 2**63).
        class_label: a number, or a name where the model has names; None for no class.
        method: of the chain; None for the model's own.
        num_inference_steps: likewise.
        eta: likewise.
        guidance_scale: 1 for none.
        condition: float32 ``(1, Cc, H, W)``, or None.
    """

    seed: int
    class_label: int | str | None = None
    method: str | None = None
    num_inference_steps: int | None = None
    eta: float | None = None
    guidance_scale: float = 1.0
    condition: Tensor | None = None

    @property
    def changes(self) -> MethodOptions:
        """What it changes of the model's method."""
        given = {"method": self.method, "num_inference_steps": self.num_inference_steps, "eta": self.eta}
        return cast("MethodOptions", {name: value for name, value in given.items() if value is not None})

    @property
    def method_name(self) -> MethodName | None:
        """The method, which whoever takes it checks."""
        return cast("MethodName | None", self.method)
