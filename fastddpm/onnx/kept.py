"""What a solver's rows keep, outside of step.onnx: a step there reads one earlier prediction, as it is."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from fastddpm.plans import Plan
from fastddpm_kernels.table import FROM_KEPT, KEPT, X0, Column

Float32 = npt.NDArray[np.float32]


class Kept:
    """The predictions of earlier rows of a chain, and what the next row is made of in place of the last x0.

        K = h1*k1 + h2*k2 + h3*k3,  k_slot = x0, or i*x0 + j*x + n*m

    The network's output m is not among what a step gives. It is (x0 - p*x)/q where nothing clips x0, and
    where something does the plans of `fastddpm.plans` have n = 0.

    Args:
        plan: whose rows keep more than the last x0.
        shape: ``(B, ...)``.
    """

    def __init__(self, plan: Plan, shape: tuple[int, ...]) -> None:
        self._plan = plan
        self._places = np.zeros((plan.kept, *shape), dtype=np.float32)
        self._own = _own_weights(plan)

    def after(self, row: int, x: Float32, x0: Float32) -> Float32:
        """Keeps a row's prediction, and gives K of the row after it, float32 ``(B, ...)``.

        Args:
            row: which.
            x: the state that it began at.
            x0: the clean image that it predicted.
        """
        table = self._plan.table
        from_x0, from_x = self._own[row]
        self._places[int(table[row, Column.KEPT_SLOT])] = from_x0 * x0 + from_x * x
        weights = table[row + 1, FROM_KEPT[: len(self._places)]]
        total: Float32 = np.tensordot(weights, self._places, axes=1)
        return total


def keeps_more(plan: Plan) -> bool:
    """Whether a plan's rows keep more than the x0 of the row before."""
    return plan.kept > 1 or plan.combines


def _own_weights(plan: Plan) -> Float32:
    """What a row keeps, from x0 and from x, ``[S, 2]``."""
    table = plan.table.astype(np.float64)
    if not plan.combines:
        return np.tile(np.array([1.0, 0.0], dtype=np.float32), (len(plan), 1))
    i, j, n = table[:, KEPT].T
    p, q, _ = table[:, X0].T
    return np.stack([i + n / q, j - n * p / q], axis=1).astype(np.float32)
