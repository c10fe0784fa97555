"""Variants that many contests have: other layouts, compiled networks, graph replays, our engines."""

from __future__ import annotations

import copy
import dataclasses
import sys
import types
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from fastddpm.engine.sessions import missing
from fastddpm.network import unwrapped
from fastddpm.timing import Call, replayed
from fastddpm_bench.contest import BenchSettings, Contestant, LeftOut
from fastddpm_kernels import machine_code


class Layout(NamedTuple):
    """How a network is run: what is added to a name, whether it is channels_last, how it is compiled."""

    name: str
    channels_last: bool
    compiled: Literal["default", "reduce-overhead", "max-autotune"] | None = None

    @property
    def is_replayed(self) -> bool:
        """Whether torch replays graphs of it on a GPU."""
        return self.compiled in ("reduce-overhead", "max-autotune")


AS_IT_COMES = Layout("", False)
CHANNELS_LAST = Layout(", channels_last", True)
COMPILED = Layout(", channels_last, compiled", True, "default")
REDUCED = Layout(", channels_last, reduce-overhead", True, "reduce-overhead")
TUNED = Layout(", channels_last, max-autotune", True, "max-autotune")


def layouts(settings: BenchSettings) -> list[Layout]:
    """How other people's networks are run: as they come, in channels_last, and compiled in channels_last.

    On a GPU as torch's own CUDA graphs of compiled code too, and of code that it has tuned, as our `max` has.
    """
    if settings.is_cuda:
        whole = [AS_IT_COMES, CHANNELS_LAST, COMPILED, REDUCED, TUNED]
        return [AS_IT_COMES, REDUCED] if settings.quick else whole
    return [AS_IT_COMES, CHANNELS_LAST] if settings.quick else [AS_IT_COMES, CHANNELS_LAST, COMPILED]


def arranged(module: nn.Module, layout: Layout) -> Any:
    """A copy of a network in a layout."""
    module = copy.deepcopy(module)
    if layout.channels_last:
        module = module.to(memory_format=torch.channels_last)
    if layout.compiled is None:
        return module
    if layout.compiled == "default":
        return torch.compile(module, dynamic=False)
    return OnDevice(torch.compile(module, dynamic=False, mode=layout.compiled))


class Outside(nn.Module):
    """Something around a network which is called as it is, and has what it has."""

    def __init__(self, inner: Any) -> None:
        super().__init__()
        self.inner = inner

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("inner"), name)


class OnDevice(Outside):
    """A network whose compiled code torch captures, and whose time is brought to where x is.

    Pipelines leave it on the host, where Inductor captures nothing.
    """

    def forward(self, x: Tensor, t: Tensor, *given: Any, **options: Any) -> Any:
        """The network's output."""
        torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]
        return self.inner(x, _brought(t, x.device), *given, **options)


def _brought(t: Tensor, device: torch.device) -> Tensor:
    """A time on a device. A copy of the host's number would wait for the steps before it: it is filled in."""
    if t.device.type == "cpu" and device.type != "cpu" and t.ndim == 0:
        return torch.full((), t.item(), dtype=t.dtype, device=device)
    return t.to(device)


class InDtype(Outside):
    """A network in another dtype, float32 outside, as whoever keeps the state in float32 writes it.

    diffusers' own way, the pipeline in that dtype, ends in an error for bfloat16, which NumPy does not have.
    The output is a tensor, so that the casts are compiled with the network.
    """

    dtype = torch.float32

    def __init__(self, inner: nn.Module, dtype: torch.dtype) -> None:
        super().__init__(inner.to(dtype))
        self._dtype = dtype

    def forward(self, x: Tensor, t: Tensor, **options: Any) -> Tensor:
        """The network's output, float32."""
        return unwrapped(self.inner(x.to(self._dtype), t, **options)).float()


class AsSample(Outside):
    """A network whose output is in an object as ``sample``, where pipelines look for it."""

    def forward(self, x: Tensor, t: Tensor, **options: Any) -> Any:
        """That object."""
        return types.SimpleNamespace(sample=unwrapped(self.inner(x, t, **options)))


def in_bfloat16(module: nn.Module, layout: Layout) -> AsSample:
    """A copy of a network in a layout, computing in bfloat16."""
    return AsSample(arranged(InDtype(copy.deepcopy(module), torch.bfloat16), layout))


def engines(settings: BenchSettings, *, in_float32: bool = True) -> tuple[str, ...]:
    """The engines of ours that run on the device; those that compile take minutes to begin.

    ONNX Runtime is among them on a CPU, where it is installed and the network is in float32.
    """
    if settings.is_cuda:
        return ("cudagraph", "compile") if settings.quick else ("eager", "cudagraph", "compile", "max")
    runtimes = ("onnxruntime",) if in_float32 and not missing() else ()
    return ("eager", *runtimes) if settings.quick else ("eager", *runtimes, "compile")


def numba_too(contestant: Contestant, settings: BenchSettings) -> list[Contestant]:
    """A call of our operators on a CPU by torch's operators and by numba's functions; on a GPU, replayed too.

    A process takes the first until the second pay for their start, which would be within the measurement.
    """
    if settings.is_cuda:
        return replayed_too(contestant, settings)
    name = f"{contestant.name}, numba"
    return [_by_numba(contestant, contestant.name, False), _by_numba(contestant, name, True)]


def _by_numba(contestant: Contestant, name: str, is_wanted: bool) -> Contestant:
    def build(shared: Any) -> Call:
        if is_wanted and not machine_code.HAS_NUMBA:
            raise LeftOut("numba is not installed")
        call = contestant.build(shared)
        return lambda: by_numba(call, is_wanted)

    return dataclasses.replace(contestant, name=name, build=build)


def by_numba(call: Call, is_wanted: bool) -> Any:
    """One call by numba's functions, or by torch's operators, however much the process has drawn."""
    before, machine_code.PAYS_FROM = machine_code.PAYS_FROM, 0 if is_wanted else sys.maxsize
    try:
        return call()
    finally:
        machine_code.PAYS_FROM = before


def replayed_too(contestant: Contestant, settings: BenchSettings) -> list[Contestant]:
    """A contestant, and on a GPU its call as replays of one CUDA graph too: without the launches.

    Its call must change nothing in place, since warm-up calls come before its first.
    """
    if not settings.is_cuda:
        return [contestant]

    def build(shared: Any) -> Call:
        return replayed(contestant.build(shared))

    graph = Contestant(f"{contestant.name}, replayed", build, contestant.ours, contestant.expected)
    return [contestant, graph]
