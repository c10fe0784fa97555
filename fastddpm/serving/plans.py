"""The plans that requests ask for: one for all that ask for the same, so that they share its rows."""

from __future__ import annotations

import threading
from collections import OrderedDict

from fastddpm.checks import BadArgument, whole
from fastddpm.plans import Method, Plan
from fastddpm.plans.method_options import MethodName
from fastddpm.sampler import Sampler

KEPT = 64


class RequestPlans:
    """The last plans of a sampler's model.

    Args:
        sampler: its schedule is used, and its method where a request says nothing.
        most: rows that a plan may have.
    """

    def __init__(self, sampler: Sampler, most: int) -> None:
        self._sampler, self._most = sampler, most
        self._plans: OrderedDict[Method, Plan] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, method: MethodName | None, steps: int | None, eta: float | None) -> Plan:
        """The plan of a request; None for what the sampler's method has.

        Raises:
            ValueError: naming the argument, what was given and what is accepted.
        """
        if steps is not None:
            steps = whole("num_inference_steps", steps, least=1, most=len(self._sampler.schedule))
        changes = {"method": method, "num_inference_steps": steps, "eta": eta}
        asked = {name: value for name, value in changes.items() if value is not None}
        if not asked:
            plan = self._sampler.plan
        elif self._sampler.method is None:
            raise BadArgument(", ".join(asked), "for a sampler of a given plan", "None")
        else:
            plan = self._kept(self._sampler.method.adapted(**asked))  # type: ignore[arg-type]
        if len(plan) > self._most:
            raise BadArgument("num_inference_steps", f"a plan of {len(plan)} rows", f"{self._most} at most")
        return plan

    def _kept(self, method: Method) -> Plan:
        with self._lock:
            plan = self._plans.get(method) or method.plan(self._sampler.schedule)
            self._plans[method] = plan
            self._plans.move_to_end(method)
            while len(self._plans) > KEPT:
                self._plans.popitem(last=False)
        return plan
