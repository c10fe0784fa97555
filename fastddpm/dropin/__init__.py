"""Drop-ins: an object of another library goes in, one with the same call and the same images comes out.

Each module named in `PEERS` knows one library: ``DESCRIPTION``, ``recognises(obj)`` and
``build(obj, settings, **options)``. Objects are recognised by what they hold, never by their class's name or
module, so code copied into someone's project is recognised too.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, overload

import torch

from fastddpm.dropin.settings import PeerOptions, Report, Settings
from fastddpm.dropin.strangers import known_as
from fastddpm.dropin.wrapped import held, seen_through
from fastddpm.engine import Engine
from fastddpm.network import Model
from fastddpm.plans.method_options import MethodOptions
from fastddpm.precision import Precision, dtype_of
from fastddpm.randomness import NoiseKind
from fastddpm.sampler import Sampler
from fastddpm.schedule import NoiseSchedule

if TYPE_CHECKING:
    from typing_extensions import Unpack

# In the order in which they are asked; a plain callable with a schedule comes after them.
PEERS = (
    "diffusers_pipelines",
    "diffusers_schedulers",
    "lucidrains",
    "abarankab",
    "sr3",
    "guided_diffusion",
    "policies",
    "trajectories",
)

__all__ = ["PEERS", "Report", "Settings", "Unrecognised", "optimize"]


# Subclasses of diffusers' schedulers, which is imported when one of them is asked for.
_SCHEDULERS = ("FastDDPMScheduler", "FastDDIMScheduler")


def __getattr__(name: str) -> Any:
    if name in _SCHEDULERS:
        return getattr(importlib.import_module("fastddpm.dropin.diffusers_schedulers"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


class Unrecognised(TypeError):
    """`optimize` was given an object that it does not know."""


class NetworkOptions(MethodOptions, total=False):
    """Of `fastddpm.Sampler`, those that `optimize` takes with a bare network and its schedule."""

    null_label: int | None
    shape: Sequence[int] | None
    device: torch.device | str | None
    steps_per_graph: int | None


@overload
def optimize(
    obj: Model,
    *,
    schedule: NoiseSchedule,
    noise: NoiseKind = "torch",
    engine: Engine = "auto",
    dtype: torch.dtype | None = None,
    precision: Precision | None = None,
    **options: Unpack[NetworkOptions],
) -> Sampler: ...


@overload
def optimize(
    obj: object,
    *,
    noise: NoiseKind = "torch",
    engine: Engine = "auto",
    dtype: torch.dtype | None = None,
    precision: Precision | None = None,
    **options: Unpack[PeerOptions],
) -> Any: ...


def optimize(
    obj: object,
    *,
    noise: NoiseKind = "torch",
    engine: Engine = "auto",
    dtype: torch.dtype | None = None,
    precision: Precision | None = None,
    **options: Any,
) -> Any:
    """A fast object with the call of ``obj``, whose images for the same seed are the same.

    The original is left as it was and its network is shared, not copied: weights changed in place are used
    by the next call. The result's ``original`` is the object given, or what is inside where that is a
    wrapper; ``report()`` says what became of it.

    Args:
        obj: a pipeline, scheduler, diffusion object or network of a library listed in docs/dropin.md; in
            wrappers of one module too (DataParallel, DistributedDataParallel, compiled, ema_pytorch's EMA,
            of which the average is taken). Of a trainer that holds one an error names the attribute to give.
        noise: ``torch`` consumes the random stream as the original does; ``philox`` draws by the noise spec,
            one seed per image, inside the kernel.
        engine: ``auto``, ``eager``, ``compile``, ``cudagraph``, ``max`` or ``onnxruntime``.
        dtype: what the network runs in; None for what the original runs in.
        precision: what it computes in, as of :class:`fastddpm.Sampler`: ``highest``, ``tf32``, or ``bf16``
            and ``fp16``, which are the same as a ``dtype``; None as the original, by torch's settings.
        **options: of the library's drop-in, in docs/dropin.md; with any other callable ``schedule``, and
            options of :class:`fastddpm.Sampler`, which it becomes.

    Raises:
        Unrecognised: what to give instead of an object of some libraries; or listing what is known, and how
            to use `Sampler` instead.
        TypeError, ValueError: an option that this library's drop-in does not have, a value that is not
            accepted, or a configuration that cannot be reproduced.
    """
    dtype = dtype_of(precision, dtype)
    settings = Settings(noise=noise, engine=engine, dtype=dtype, precision=precision)
    inside: object = obj
    peer = _peer_of(obj)
    if peer is None and (further := seen_through(obj, _is_known)) is not None:
        inside = further[1]
        peer = _peer_of(inside)
    if peer is not None:
        return peer.build(inside, settings, **options)
    if callable(obj) and not isinstance(obj, type) and "schedule" in options:
        return _sampler(obj, settings, **options)
    places = held(obj, _is_known)
    if places:
        raise Unrecognised(
            f"obj: {type(obj).__name__} given, what it holds at {' or '.join(places[:4])} accepted"
        )
    stranger = known_as(obj)
    if stranger is not None:
        name = type(obj).__name__
        raise Unrecognised(f"obj: {name} given, {stranger.owner}; {stranger.instead} accepted")
    known = [*(peer.DESCRIPTION for peer in _peers()), "any callable model(x, t, **cond) with schedule="]
    raise Unrecognised(
        f"obj: {type(obj).__name__} given; known are {'; '.join(known)}. For any other network that predicts "
        "noise: fastddpm.Sampler(model, fastddpm.NoiseSchedule.linear(1000)), with model(x, t) -> epsilon"
    )


def _peers() -> Iterator[Any]:
    """The modules of libraries, each imported when it is its turn to be asked."""
    return (importlib.import_module(f"fastddpm.dropin.{name}") for name in PEERS)


def _peer_of(obj: object) -> Any:
    """The module of the library that an object is of, or None."""
    return next((peer for peer in _peers() if peer.recognises(obj)), None)


def _is_known(obj: object) -> bool:
    return _peer_of(obj) is not None


def _sampler(
    model: Model, settings: Settings, *, schedule: NoiseSchedule, **options: Unpack[NetworkOptions]
) -> Sampler:
    """A bare network has no call to keep: it becomes a `Sampler`, whose ``sample`` takes ``noise=``."""
    engine, dtype, precision = settings.engine, settings.dtype, settings.precision
    return Sampler(model, schedule, engine=engine, dtype=dtype, precision=precision, **options)
