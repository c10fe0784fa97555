"""The loops of a sampler, the last few, by what they depend on.

The key holds everything that a captured or compiled step depends on besides the contents of its buffers.
"""

from __future__ import annotations

import functools
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from fastddpm.copies import Copies
from fastddpm.engine.executors import Engine
from fastddpm.engine.graph import LONGEST_GRAPH, WARM_UP_STEPS
from fastddpm.engine.loop import Loop
from fastddpm.engine.refusal import refusal
from fastddpm.engine.step import StepCase
from fastddpm.network import Model, Network, modules_of
from fastddpm.tabulated import Form, bind
from fastddpm.weights import Inventory


class Loops:
    """The last few loops of a sampler, by what they depend on.

    Args:
        engine: resolved engine name.
        limit: loops kept; the one unused for longest goes first.
        may_fall_back: go on eagerly once a capture has failed, instead of raising.
        steps_per_graph: steps in one captured graph; None for all of the first plan, at most 64.
        in_integers: as of `Loop`.

    Attributes:
        engine: the one that runs: eager once a capture has failed that may.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        limit: int = 4,
        may_fall_back: bool = False,
        steps_per_graph: int | None = None,
        in_integers: bool = False,
    ) -> None:
        self.limit = limit
        self._in_integers = in_integers
        self.engine, self._may_fall_back = engine, may_fall_back
        self._steps_per_graph = steps_per_graph
        self._loops: OrderedDict[tuple[object, ...], Loop] = OrderedDict()
        self._inventories: dict[int, Inventory] = {}

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
        inventories: Sequence[Inventory] | None = None,
        copies: Copies | None = None,
    ) -> Loop:
        """The loop for a chain of this kind, made on first use; ``n_steps`` sizes its graphs then.

        ``inventories`` are those of the model, where they were just asked for. With ``copies`` the model is
        ours alone, and these say which tensors it holds.
        """
        capacity += WARM_UP_STEPS
        conditioning = {**cond, **({} if condition is None else {"": condition})}
        signature = tuple((k, tuple(v.shape), v.dtype) for k, v in sorted(conditioning.items()))
        # Where the weights lie: a captured graph reads those addresses, a compiled step that dtype.
        held = inventories or self.inventories(model)
        places = [copies.model] if copies is not None else list(map(Inventory.places, held))
        form = form_for(device, held)
        # A graph, or compiled code, has the hooks in it that there were.
        hooks = list(map(Inventory.hooks, held))
        network_key = (form, id(model), *places, *hooks)
        key = (*network_key, case, device, dtype, capacity, time_dtype, signature, *_global_key())
        found = self._loops.get(key)
        if found is not None:
            self._loops.move_to_end(key)
            return found
        while len(self._loops) >= self.limit:
            self._loops.popitem(last=False)[1].finish()
        network = bind(
            model,
            device=device,
            dtype=dtype,
            capacity=capacity,
            guided=case.guided,
            time_dtype=time_dtype,
            cond=cond,
            condition=condition,
            form=form,
        )
        ask = None
        if type(network) is Network and self._may_fall_back:
            ask = functools.partial(
                refusal,
                model,
                case.shape,
                dtype=dtype,
                guided=case.guided,
                time_dtype=time_dtype,
                cond=network.cond,  # the loop's own, x_self_cond, among them
                condition=condition,
            )
        self._loops[key] = Loop(
            network,
            case,
            capacity,
            self.engine,
            in_integers=self._in_integers,
            steps_per_graph=self._steps_per_graph or min(n_steps, LONGEST_GRAPH),
            on_fallback=self._fall_back if self._may_fall_back else None,
            refusal=ask,
        )
        return self._loops[key]

    def _fall_back(self) -> None:
        """Eager steps from here on, in loops to come too."""
        self.engine = "eager"

    def inventories(self, model: Model, *, is_ours: bool = False) -> list[Inventory]:
        """What the modules of a model hold now, one each; kept, as looking again is quicker.

        ``is_ours``: nobody else reaches the modules, so that their parts are those of the first look.
        """
        modules = modules_of(model)
        kept = self._inventories
        # With the modules themselves in them, which so keep their ids.
        self._inventories = {id(one): kept.get(id(one)) or Inventory([one]) for one in modules}
        held = [self._inventories[id(one)] for one in modules]
        return held if is_ours else [inventory.look() for inventory in held]

    def memory(self) -> int:
        """Bytes in the buffers and graphs of all kept loops."""
        return sum(loop.memory() for loop in self._loops.values())

    def clear(self) -> None:
        """Drops every kept loop with its buffers and graphs."""
        for loop in self._loops.values():
            loop.finish()
        self._loops.clear()
        self._inventories.clear()

    def __len__(self) -> int:
        return len(self._loops)


def form_for(device: torch.device, held: Sequence[Inventory]) -> Form:
    """What our UNet is run as, where it is one: on a GPU the form that is fastest there, unless hooked."""
    if device.type != "cuda" or any(inventory.is_hooked() for inventory in held):
        return "plain"
    return "deferred"


def _global_key() -> tuple[object, ...]:
    """Global settings that choose kernels."""
    backends: Any = torch.backends
    cuda, cudnn = backends.cuda, backends.cudnn
    matmul = cuda.matmul
    return (
        torch.is_autocast_enabled("cuda"),
        torch.get_autocast_dtype("cuda"),
        torch.is_autocast_enabled("cpu"),
        torch.get_autocast_dtype("cpu"),
        torch.are_deterministic_algorithms_enabled(),
        cudnn.enabled,
        cudnn.benchmark,
        cudnn.deterministic,
        # TF32, by either of torch's switches: reading the older, allow_tf32, fails once the newer was used.
        backends.fp32_precision,
        matmul.fp32_precision,
        cudnn.fp32_precision,
        cudnn.conv.fp32_precision,
        matmul.allow_fp16_reduced_precision_reduction,
        matmul.allow_bf16_reduced_precision_reduction,
        cuda.flash_sdp_enabled(),
        cuda.mem_efficient_sdp_enabled(),
        cuda.math_sdp_enabled(),
        cuda.cudnn_sdp_enabled(),
    )
