"""A loop: one network, one set of static buffers, one executor, for any number of chains of one kind.

`Loops` keeps the last few, by a key that holds everything a captured or compiled step depends on besides
the contents of its buffers.
"""

from __future__ import annotations

import functools
from collections import OrderedDict
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fastddpm.engine.executors import Engine, compiled_network, make_executor
from fastddpm.engine.graph import LONGEST_GRAPH, WARM_UP_STEPS
from fastddpm.engine.heap import keep_heap
from fastddpm.engine.step import StepBuffers, StepCase, step
from fastddpm.network import Model, Network, bind, modules_of
from fastddpm.plans import Plan
from fastddpm.randomness import PhiloxNoise

if TYPE_CHECKING:
    from fastddpm.request import Batch


class Loop:
    """Static buffers, the network on them, and the executor that advances them.

    Args:
        network: the model with its conditioning buffers.
        case: what is fixed in a step.
        capacity: plan rows the table holds; more than any plan by the graph's warm-up steps.
        engine: resolved engine name.
        options: `steps_per_graph` and `on_fallback` of :func:`make_executor`.
    """

    def __init__(
        self, network: Network, case: StepCase, capacity: int, engine: Engine, **options: Any
    ) -> None:
        self.network, self.case = network, case
        self.steps_per_graph: int = options["steps_per_graph"]
        device = network.time.device
        if device.type == "cpu":
            keep_heap()
        self.buffers = StepBuffers(case, capacity, device)
        changed = [self.buffers.x, self.buffers.counter]
        if case.self_condition and self.buffers.x0 is not None:
            network.cond["x_self_cond"] = self.buffers.x0
        if self.buffers.x0 is not None:
            changed.append(self.buffers.x0)
        predict = compiled_network(network) if engine == "max" else network
        one_step = functools.partial(step, predict, self.buffers, case)
        self.device = device
        with self.current():
            self._executor = make_executor(
                engine, one_step, changed, is_private=network.is_private, **options
            )

    def load(self, plan: Plan, batch: Batch, x: Tensor, row: int) -> None:
        """Puts one chain into the buffers: the state x at plan row ``row``, and all that goes with it.

        Tables are written anew each time, so weights changed since the last chain are used.
        """
        buffers = self.buffers
        buffers.x.copy_(x)
        buffers.counter.copy_(torch.tensor([row, 0]))
        buffers.table[: len(plan)].copy_(torch.tensor(plan.table))
        if buffers.x0 is not None:
            buffers.x0.zero_()
        if isinstance(batch.source, PhiloxNoise) and buffers.noise is not None:
            buffers.noise.copy_(batch.source.seeds)
        if batch.guidance is not None and buffers.guidance is not None:
            buffers.guidance.copy_(batch.guidance)
        time = torch.tensor(plan.model_time, device=buffers.x.device)
        self.network.load(time, batch.cond, batch.condition)

    def run(self, n_steps: int) -> None:
        """Advances the chain by ``n_steps`` plan rows."""
        with self.current():
            self._executor.run(n_steps)

    def current(self) -> AbstractContextManager[Any]:
        """Makes the loop's device the current one: Triton launches there, wherever its tensors are."""
        return torch.cuda.device(self.device) if self.device.type == "cuda" else nullcontext()

    def memory(self) -> int:
        """Bytes in the loop's buffers and in the memory pool of its graphs."""
        tensors = self.buffers.tensors() + self.network.tensors()
        return self._executor.memory() + sum(t.numel() * t.element_size() for t in tensors)


class Loops:
    """The last few loops of a sampler, by what they depend on.

    Args:
        engine: resolved engine name.
        limit: loops kept; the one unused for longest goes first.
        on_fallback: called when a capture failed; None makes that an error.
        steps_per_graph: steps in one captured graph; None for all of the first plan, at most 64.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        limit: int = 4,
        on_fallback: Callable[[], None] | None = None,
        steps_per_graph: int | None = None,
    ) -> None:
        self.engine, self.limit = engine, limit
        self._on_fallback, self._steps_per_graph = on_fallback, steps_per_graph
        self._loops: OrderedDict[tuple[Any, ...], Loop] = OrderedDict()

    def get(
        self,
        model: Model,
        case: StepCase,
        *,
        device: torch.device,
        dtype: torch.dtype,
        n_steps: int,
        capacity: int,
        time_dtype: torch.dtype,
        cond: Mapping[str, Tensor],
        condition: Tensor | None,
    ) -> Loop:
        """The loop for a chain of this kind, made on first use; ``n_steps`` sizes its graphs then."""
        capacity += WARM_UP_STEPS
        conditioning = {**cond, **({} if condition is None else {"": condition})}
        signature = tuple((k, tuple(v.shape), v.dtype) for k, v in sorted(conditioning.items()))
        key = (case, device, dtype, capacity, time_dtype, signature, *_model_key(model), *_global_key())
        if key in self._loops:
            self._loops.move_to_end(key)
            return self._loops[key]
        while len(self._loops) >= self.limit:
            self._loops.popitem(last=False)
        network = bind(
            model,
            device=device,
            dtype=dtype,
            capacity=capacity,
            guided=case.guided,
            time_dtype=time_dtype,
            cond=cond,
            condition=condition,
            rearrange=self.engine == "compile" and device.type == "cpu",
        )
        self._loops[key] = Loop(
            network,
            case,
            capacity,
            self.engine,
            steps_per_graph=self._steps_per_graph or min(n_steps, LONGEST_GRAPH),
            on_fallback=self._on_fallback,
        )
        return self._loops[key]

    def memory(self) -> int:
        """Bytes in the buffers and graphs of all kept loops."""
        return sum(loop.memory() for loop in self._loops.values())

    def clear(self) -> None:
        """Drops every kept loop with its buffers and graphs."""
        self._loops.clear()

    def __len__(self) -> int:
        return len(self._loops)


def _model_key(model: Model) -> tuple[Any, ...]:
    """Where the weights lie: a captured graph reads those addresses, a compiled step that dtype."""
    tensors = [t for module in modules_of(model) for t in [*module.parameters(), *module.buffers()]]
    return (id(model), hash(tuple((t.data_ptr(), t.dtype) for t in tensors)))


def _global_key() -> tuple[Any, ...]:
    """Global settings that choose kernels."""
    cuda, cudnn = torch.backends.cuda, torch.backends.cudnn
    convolutions: Any = cudnn.conv  # type: ignore[attr-defined]
    return (
        *((torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)) for kind in ("cuda", "cpu")),
        torch.are_deterministic_algorithms_enabled(),
        (cudnn.enabled, cudnn.benchmark, cudnn.deterministic),
        # TF32, by either of torch's switches: reading the older, allow_tf32, fails once the newer was used.
        *(place.fp32_precision for place in (torch.backends, cuda.matmul, cudnn, convolutions)),
        cuda.matmul.allow_fp16_reduced_precision_reduction,
        cuda.matmul.allow_bf16_reduced_precision_reduction,
        *(getattr(cuda, f"{kind}_sdp_enabled")() for kind in ("flash", "mem_efficient", "math", "cudnn")),
    )
