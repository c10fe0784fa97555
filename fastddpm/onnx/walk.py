"""Which plan sampler.onnx is to walk, in its inputs: of a formula that it knows, or given rows."""

from __future__ import annotations

import numpy as np

from fastddpm.checks import BadArgument
from fastddpm.onnx.folder import ModelFolder
from fastddpm.onnx.named import Numbers
from fastddpm.onnx.providers import Session
from fastddpm.plans import Plan

KEPT_IN_FILES = 3
"""Predictions of earlier rows that sampler.onnx keeps; PNDM's Runge-Kutta start needs five."""


def check_rows(session: Session, folder: ModelFolder, plan: Plan) -> None:
    """ValueError where sampler.onnx neither computes the plan's rows itself nor takes them."""
    if plan.kept > KEPT_IN_FILES:
        given = f"{plan.method!r}, whose rows keep {plan.kept} predictions,"
        raise BadArgument("method", given, f'one that keeps up to {KEPT_IN_FILES}, or loop="steps",')
    if plan.method not in folder.methods and not _times_type(session):
        raise BadArgument(
            "method",
            f"{plan.method!r} to an export of an earlier version, whose sampler.onnx takes no rows,",
            f'{", ".join(folder.methods)}; any with loop="steps", or exported again,',
        )


def walked(session: Session, folder: ModelFolder, plan: Plan, eta: float) -> dict[str, Numbers]:
    """The inputs of sampler.onnx, ``timesteps``, ``method`` and ``eta``, and for a plan that is not of its
    formulas ``rows`` and ``times``.

    Args:
        session: of sampler.onnx.
        folder: the export.
        plan: to be walked.
        eta: of ddim, else 0.
    """
    methods = folder.methods
    told = {"eta": np.asarray(eta, dtype=np.float32)}
    if plan.method in methods:
        number = np.asarray(methods.index(plan.method), dtype=np.int64)
        return {**told, "timesteps": plan.timesteps, "method": number}
    told |= {"timesteps": np.zeros(0, dtype=np.int64), "method": np.asarray(len(methods), dtype=np.int64)}
    dtype = np.float32 if _times_type(session) == "tensor(float)" else np.int64
    return {**told, "rows": plan.table, "times": plan.model_time.astype(dtype)}


def _times_type(session: Session) -> str:
    """ONNX Runtime's name of the type of the input ``times``; empty where there is none."""
    kinds = {one.name: str(one.type) for one in session.get_overridable_initializers()}
    return kinds.get("times", "")
