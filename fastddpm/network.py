"""What the loop calls for a prediction: a model with its conditioning held in static buffers.

A `Network` is made once per loop. For each chain the loop puts values into its buffers, and `begin` derives
the rest from them and the weights; the buffers keep their addresses, so that a captured graph or a compiled
step goes on reading the right memory. Calling it with the state and the device counter gives the model's
output for the current plan row, without touching the host.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypedDict

import torch
from torch import Tensor, nn

from fastddpm.checks import BadArgument
from fastddpm.forks import ForkLock
from fastddpm.weights import Inventory
from fastddpm_kernels.compat import compiled

if TYPE_CHECKING:
    from typing_extensions import Unpack

Model = Callable[..., Any]


def unwrapped(output: object) -> Tensor:
    """The tensor in a model's output: itself, its `.sample`, or the only element of a tuple."""
    if isinstance(output, Tensor):
        return output
    sample = getattr(output, "sample", None)
    if isinstance(sample, Tensor):
        return sample
    if isinstance(output, (tuple, list)) and len(output) == 1 and isinstance(output[0], Tensor):
        return output[0]
    raise BadArgument(
        "model",
        f"one that returned {type(output).__name__}",
        "one that returns a tensor, an object with a tensor `.sample`, or a tuple of one tensor",
    )


def modules_of(model: Model) -> list[nn.Module]:
    """The modules that a model runs, as far as they can be seen: itself, or what a bound method's object, a
    `functools.partial` or a closure holds. Not what a function finds in global variables."""
    if isinstance(model, nn.Module):
        return [model]
    if isinstance(model, functools.partial):
        held = [model.func, *model.args, *model.keywords.values()]
    elif inspect.isfunction(model):
        held = [cell.cell_contents for cell in model.__closure__ or ()]
    elif inspect.ismethod(model):
        held = [model.__self__, model.__func__]
    else:
        # Any other object: the modules among its attributes, and no further.
        return [value for value in getattr(model, "__dict__", {}).values() if isinstance(value, nn.Module)]
    return [module for value in held for module in modules_of(value)]


def model_device_dtype(model: Model) -> tuple[torch.device, torch.dtype]:
    """Device and floating dtype of a model's first parameter; CPU and float32 if none can be seen."""
    for module in modules_of(model):
        first = _first_floating(module)
        if first is not None:
            return first.device, first.dtype
    return torch.device("cpu"), torch.float32


def _first_floating(module: nn.Module) -> nn.Parameter | None:
    """In the order of `torch.nn.Module.parameters`, without its names; None where there is none."""
    for parameter in module._parameters.values():
        if parameter is not None and parameter.is_floating_point():
            return parameter
    for child in module._modules.values():
        found = None if child is None else _first_floating(child)
        if found is not None:
            return found
    return None


class CompileOptions(TypedDict, total=False):
    """Of `torch.compile`."""

    mode: str
    fullgraph: bool


class Network:
    """Any model ``model(x, t, **cond)``, its time input and conditioning in static buffers.

    Args:
        model: the model; called with x ``(N, ...)`` in ``dtype`` and t ``(N,)``. It must not change x.
        device: where buffers are.
        dtype: what the model takes x in.
        capacity: plan rows the time buffer holds.
        guided: the batch is doubled, unconditional half first; ``cond`` tensors come doubled already.
        condition: image ``(N, Cc, ...)`` concatenated in front of x, as in SR3; only its shape is used here.
        time_dtype: int64 for an index, float32 for a noise level.
        cond: keyword tensors ``(N, ...)``; only their shapes and dtypes are used here.

    Attributes:
        given: buffers for the caller's tensors, by name.
        time: ``(capacity,)``, the time input of each plan row.
        layout: the memory format that the model is given x in, by the copy that casts it.
    """

    layout = torch.preserve_format

    def __init__(
        self,
        model: Model,
        *,
        device: torch.device,
        dtype: torch.dtype,
        capacity: int,
        guided: bool,
        time_dtype: torch.dtype,
        cond: Mapping[str, Tensor],
        condition: Tensor | None,
    ) -> None:
        self.model = model
        self.guided = guided
        self.dtype = dtype
        self.given = {name: torch.zeros_like(value, device=device) for name, value in cond.items()}
        self.cond = dict(self.given)
        self.condition = None if condition is None else torch.empty_like(condition, device=device)
        self.time = torch.zeros(capacity, dtype=time_dtype, device=device)
        self._compiled: Callable[[Tensor, Tensor], Tensor] | None = None

    def begin(self, rows: int) -> None:
        """Derives what else a chain of so many plan rows needs from the buffers and the weights.

        It runs on the device alone and into memory that stays, so that a graph may hold it; it is done for
        every chain, so that nothing derived is older than the weights.
        """

    def begin_conditions(self) -> None:
        """The part of `begin` that depends on the conditions and not on the plan's rows."""

    def tensors(self) -> list[Tensor]:
        """What it holds besides the model."""
        return [value for value in [*vars(self).values(), *self.given.values()] if isinstance(value, Tensor)]

    def compile(self, **options: Unpack[CompileOptions]) -> None:
        """Has torch.compile, with these options, compile what a call runs."""
        self._compiled = compiled(self.predict, **options)

    def inputs(self, x: Tensor) -> Tensor:
        """x as the model takes it: doubled for guidance, behind the condition, in the model's dtype."""
        x = self.doubled(x)
        if self.condition is not None:
            x = torch.cat((self.condition.to(x.dtype), x), dim=1)
        return x.to(self.dtype, memory_format=self.layout)

    def doubled(self, values: Tensor) -> Tensor:
        """Values of each sample, twice where guidance wants it."""
        return torch.cat((values, values)) if self.guided else values

    def __call__(self, x: Tensor, k: Tensor) -> Tensor:
        """Model output for state ``x (B, ...)`` at rows ``k`` (int64 ``(B,)``, on the device)."""
        return (self._compiled or self.predict)(x, self.time.index_select(0, k))

    def predict(self, x: Tensor, time: Tensor) -> Tensor:
        """Model output for x at the times ``(B,)`` of its rows."""
        return self.core(*self.arguments(x, time))

    def arguments(self, x: Tensor, time: Tensor) -> tuple[Tensor, ...]:
        """What `core` computes the output from."""
        x = self.inputs(x)
        return x, self.doubled(time), *self.cond.values()

    def core(self, x: Tensor, t: Tensor, *cond: Tensor) -> Tensor:
        """The output, from tensors alone: of x as the model takes it, t ``(N,)``, and conditions by place.

        In float32 where it is float64, as the state is.
        """
        m = unwrapped(self.model(x, t, **dict(zip(self.cond, cond, strict=True))))
        return m.to(torch.float32) if m.dtype == torch.float64 else m

    def run_by(self, compute: Callable[[Tensor, Tensor], Tensor]) -> None:
        """Has another compute what a call runs: as `predict`."""
        self._compiled = compute


@contextmanager
def without_grad() -> Iterator[None]:
    """No gradients, and no inference mode either: a tensor made there could not be a buffer later."""
    if not torch.is_inference_mode_enabled():
        before = torch.is_grad_enabled()
        torch.set_grad_enabled(False)  # what `torch.no_grad` does, without its objects
        try:
            yield
        finally:
            torch.set_grad_enabled(before)
        return
    with torch.inference_mode(False), torch.no_grad():
        yield


@dataclasses.dataclass
class _Chains:
    """Those that run a module at this moment.

    Attributes:
        threads: of each.
        training: the submodules to put back into training mode.
        versions: how often the weights of these had been written when the first chain began.
    """

    threads: list[int]
    training: list[nn.Module]
    versions: int

    def is_disturbed(self) -> bool:
        """Whether somebody has trained the module meanwhile."""
        return any(part.training for part in self.training) or _versions(self.training) != self.versions


def _versions(parts: Sequence[nn.Module]) -> int:
    weights = [weight for part in parts for weight in part._parameters.values() if weight is not None]
    return sum(weight._version for weight in weights if weight.requires_grad and not weight.is_inference())


_running: dict[int, _Chains] = {}


def _forget_other_threads() -> None:
    """In a child of a fork: their chains do not go on there, and put nothing back."""
    for module, chains in list(_running.items()):
        chains.threads = [thread for thread in chains.threads if thread == threading.get_ident()]
        if not chains.threads:
            _put_back(module)


_running_lock = ForkLock(_forget_other_threads)


@contextmanager
def in_eval_mode(model: Model, inventories: Sequence[Inventory] | None = None) -> Iterator[None]:
    """Puts a model into eval mode and every submodule back into its own mode afterwards.

    With several chains on one model, in several threads or samplers, the last to end puts it back. The mode
    is the model's and not the thread's: RuntimeWarning where a model in training mode was trained meanwhile.

    Args:
        model: of which `modules_of` sees the modules.
        inventories: of those modules, just looked at, where somebody keeps them.
    """
    modules, here = modules_of(model), threading.get_ident()
    kept = [Inventory([module]) for module in modules] if inventories is None else inventories
    entered: list[nn.Module] = []
    with _running_lock:
        for module, inventory in zip(modules, kept, strict=True):
            if id(module) not in _running:
                training = [part for part in inventory.parts if part.training]
                if not training:
                    continue
                _running[id(module)] = _Chains([], training, _versions(training))
            chains = _running[id(module)]
            entered.append(module)
            chains.threads.append(here)
            for part in chains.training:
                part.training = False
    disturbed = False
    try:
        yield
    finally:
        with _running_lock:
            for module in entered:
                found = _running.get(id(module))
                if found is not None and here in found.threads:  # not in a child of another thread's fork
                    found.threads.remove(here)
                    disturbed |= found.is_disturbed()
                    if not found.threads:
                        _put_back(id(module))
        if disturbed:
            warnings.warn(DISTURBED, RuntimeWarning, stacklevel=3)


DISTURBED = (
    "model: trained while images were drawn from it, which put it into eval mode: the images are of weights "
    "that changed on the way, and steps of the training were without dropout; draw from a copy of it "
    "(copy.deepcopy), or while it is not trained"
)


def _put_back(module: int) -> None:
    for part in _running[module].training:
        part.training = True
    del _running[module]
