"""Drop-in for ``GaussianDiffusion`` and ``SpacedDiffusion`` of guided-diffusion and improved-diffusion."""

from __future__ import annotations

import functools
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from fastddpm.batch import make_batch
from fastddpm.checks import check_choice
from fastddpm.dropin.alterations import warn_if_random
from fastddpm.dropin.guided_diffusion_guidance import Guidance
from fastddpm.dropin.guided_diffusion_request import DdimRequest, Request, with_arguments_of
from fastddpm.dropin.network import PeerNetwork
from fastddpm.dropin.overrides import check_published
from fastddpm.dropin.peer import DropIn, Peer, holds
from fastddpm.dropin.settings import NetworkChoice, Report, Settings
from fastddpm.network import Model, model_device_dtype, modules_of
from fastddpm.plans import Plan
from fastddpm.plans.finished import finished_plan
from fastddpm.plans.guided_diffusion import TABLES, Process, ancestral_plan, ddim_plan
from fastddpm.runner import Runner
from fastddpm.unet import UNet

DESCRIPTION = "guided-diffusion and improved-diffusion GaussianDiffusion, SpacedDiffusion"

KEPT_MODELS = 4
"""Networks whose buffers and graphs a drop-in keeps between calls."""

_STEPS = (
    *("p_sample_loop", "p_sample_loop_progressive", "p_sample"),
    *("ddim_sample_loop", "ddim_sample_loop_progressive", "ddim_sample"),
    *("p_mean_variance", "q_posterior_mean_variance", "condition_mean", "condition_score"),
    *("_predict_xstart_from_eps", "_predict_xstart_from_xprev", "_predict_eps_from_xstart"),
    "_scale_timesteps",
)
_HELD = ("model_mean_type", "model_var_type", "num_timesteps", "p_sample_loop", "ddim_sample_loop")


def recognises(obj: Peer) -> bool:
    """Whether an object holds the tables (NumPy arrays) and the types of a GaussianDiffusion of theirs."""
    if not holds(obj, anything=(*TABLES, *_HELD)):
        return False
    types = (obj.model_mean_type, obj.model_var_type)
    arrays = all(isinstance(getattr(obj, name), np.ndarray) for name in TABLES)
    return arrays and all(isinstance(getattr(value, "name", None), str) for value in types)


def build(obj: Peer, settings: Settings, *, network: NetworkChoice = "auto") -> FastGuidedDiffusion:
    """The drop-in for an object that `recognises`.

    Args:
        obj: a GaussianDiffusion or SpacedDiffusion.
        settings: noise, engine and dtype (the network's, under autocast).
        network: ``auto``: on a GPU a copy in channels_last with its norms fused; ``original``.

    Raises:
        ValueError: a mean or variance type that is not one of theirs.
    """
    check_published(obj, _STEPS)
    check_choice("network", network, ("auto", "original"))
    return FastGuidedDiffusion(obj, settings, network)


class FastGuidedDiffusion(DropIn):
    """``p_sample_loop``, ``ddim_sample_loop`` and their progressive forms as there, by our loop.

    The network comes with each call, as there. Its buffers and graphs are kept for the next call with it, for
    the last four networks; `clear` lets go of them.

    Attributes:
        original: the diffusion; its tables are read anew by each call.
        settings: noise, engine and dtype.
    """

    def __init__(self, original: Peer, settings: Settings, network: NetworkChoice = "auto") -> None:
        super().__init__(original)
        self.settings, self._choice = settings, network
        self._kept: OrderedDict[object, tuple[Model, Runner | PeerNetwork[UNet]]] = OrderedDict()
        self._network = "the module or function given with each call"
        self._warned: weakref.WeakSet[nn.Module] = weakref.WeakSet()
        self._engine = f"{settings.engine}, by the network's device"
        self._precision = "that of the module given with each call"
        self.process()

    @with_arguments_of(Request)
    def p_sample_loop(self, request: Request) -> Tensor:
        """Draws images: float32 ``(B, C, H, W)`` on the network's device. Arguments as of `Request`."""
        return self._last(self._steps(request, every_step=False))

    @with_arguments_of(DdimRequest)
    def ddim_sample_loop(self, request: DdimRequest) -> Tensor:
        """Draws images by DDIM; arguments as of `DdimRequest`."""
        return self._last(self._steps(request, every_step=False))

    @with_arguments_of(Request)
    def p_sample_loop_progressive(self, request: Request) -> Iterator[dict[str, Tensor]]:
        """Draws images; yields after each step its ``sample`` and ``pred_xstart``, float32 ``(B, C, H, W)``.

        Arguments as of `Request`. The network is in eval mode from the first step to the last.
        """
        return self._states(request)

    @with_arguments_of(DdimRequest)
    def ddim_sample_loop_progressive(self, request: DdimRequest) -> Iterator[dict[str, Tensor]]:
        """As of `p_sample_loop_progressive`, by DDIM; arguments as of `DdimRequest`."""
        return self._states(request)

    def clear(self) -> None:
        """Lets go of the kept networks, buffers and graphs."""
        self._kept.clear()

    def process(self) -> Process:
        """What the original holds."""
        obj = self.original
        spaced = getattr(obj, "timestep_map", None)
        return Process(
            tables={name: np.asarray(getattr(obj, name), dtype=np.float64) for name in TABLES},
            mean_type=obj.model_mean_type.name,
            variance_type=obj.model_var_type.name,
            rescale_timesteps=bool(getattr(obj, "rescale_timesteps", False)),
            timestep_map=spaced,
            original_steps=int(obj.num_timesteps if spaced is None else obj.original_num_steps),
        )

    def report(self) -> Report:
        """What became of the original: network, engine, noise, what is fused and what is not."""
        process, drawn = self.process(), self.settings.noise == "philox"
        not_fused = () if drawn else ("the noise z: torch's generator draws it before the step",)
        return Report(
            peer=DESCRIPTION,
            network=self._network,
            engine=self._engine,
            noise="philox, one seed per image" if drawn else "torch, in the original's order",
            precision=self._precision,
            fused=(
                f"x0 from {process.mean_type}",
                "clip_denoised",
                "the DDPM or DDIM update",
                f"{process.variance_type} variance * z",
                *(("the noise z",) if drawn else ()),
            ),
            not_fused=(
                *not_fused,
                "denoised_fn, cond_fn: the caller's functions, run eagerly before sigma * z",
            ),
        )

    def _states(self, request: Request) -> Iterator[dict[str, Tensor]]:
        for done, x, x0 in self._steps(request, every_step=True):
            if done:
                assert x0 is not None
                yield {"sample": x.clone(), "pred_xstart": x0.clone()}

    def _last(self, steps: Iterator[tuple[int, Tensor, Tensor | None]]) -> Tensor:
        x = None
        for _, x, _ in steps:  # noqa: B007
            pass
        assert x is not None
        return x.clone()

    def _plan(self, request: Request) -> Plan:
        if isinstance(request, DdimRequest):
            return ddim_plan(self.process(), eta=request.eta, clip_denoised=request.clip_denoised)
        return ancestral_plan(self.process(), clip_denoised=request.clip_denoised)

    def _steps(self, request: Request, *, every_step: bool) -> Iterator[tuple[int, Tensor, Tensor | None]]:
        """(rows done, live x, live x0 if every step is seen) at the start and after each step or segment."""
        plan, guidance = self._plan(request), None
        for module in modules_of(request.model):
            if module not in self._warned:
                self._warned.add(module)
                warn_if_random(module, "model")
        if request.is_guided:
            weights = self.process().gradient_weights(ancestral=not isinstance(request, DdimRequest))
            guidance = Guidance(plan, weights, request.denoised_fn, self._gradient(request))
        with self._runner(request, guidance) as runner:
            cond = request.tensors()
            if guidance is not None:
                cond, plan = {**cond, **guidance.tables(runner.device)}, finished_plan(plan)
            source = self.settings.source(int(request.shape[0]), runner.device, seeds=request.seeds)
            batch = make_batch(request.shape, source, x=request.noise, cond=cond)
            options = {"keep_x0": every_step and guidance is None, "progress": request.progress}
            for done, x, x0 in runner.walk(plan, batch, every_step=every_step, **options):
                yield done, x, x0 if guidance is None else guidance.pred_xstart

    def _gradient(self, request: Request) -> Callable[..., Tensor] | None:
        return request.cond_fn and functools.partial(request.cond_fn, **request.constants())

    @contextmanager
    def _runner(self, request: Request, guidance: Guidance | None) -> Iterator[Runner]:
        """The runner of the request's network, taken out of the kept ones while in use: a second loop with
        the same network, in a thread or between two yields, has one of its own."""
        device = None if request.device is None else torch.device(request.device)
        model, capacity = self._callable(request), int(self.original.num_timesteps)
        if guidance is not None:
            # Functions of the caller may do anything, reading on the host and autograd included.
            eager, guided = replace(self.settings, engine="eager"), functools.partial(guidance, model)
            yield eager.runner(guided, capacity=capacity, dtype=torch.float32, device=device)
            return
        key = _hashable(
            (id(request.model), device or model_device_dtype(model)[0], *request.constants().items())
        )
        kept = self._kept.pop(key, None)
        held = kept[1] if kept else None
        seen = model_device_dtype(request.model)[0]
        if isinstance(request.model, nn.Module) and seen.type == "cuda" and device in (None, seen):
            if not isinstance(held, PeerNetwork) or not held.fits(request.model):
                held = self._arranged(request.model, request.constants())
            held.refresh()
            runner, self._network = held.runner, f"of each call, the last {held.words}"
        else:
            if not isinstance(held, Runner):
                held = self.settings.runner(model, capacity=capacity, dtype=torch.float32, device=device)
            runner = held
        self._engine, self._precision = runner.engine, runner.computes_in(self.settings.dtype)
        try:
            yield runner
        finally:
            if key is not None:
                # The network is kept with its runner, so that its id stays its own.
                self._kept[key] = (request.model, held)
            while len(self._kept) > KEPT_MODELS:
                self._kept.popitem(last=False)

    def _arranged(self, module: nn.Module, constants: Mapping[str, object]) -> PeerNetwork[UNet]:
        """A module on a GPU, as it runs there."""

        def call(module: nn.Module, x: Tensor, t: Tensor, **cond: Tensor) -> object:
            return module(x, t, **constants, **cond)

        times = torch.arange(int(self.original.num_timesteps))
        return PeerNetwork(
            module, call, None, self.settings, choice=self._choice, times=times, tries_ours=False
        )

    def _callable(self, request: Request) -> Model:
        model = request.model
        if request.constants():
            model = functools.partial(model, **request.constants())
        if self.settings.dtype in (None, torch.float32):
            return model
        return functools.partial(_under_autocast, model, self.settings.dtype)


def _hashable(key: tuple[object, ...]) -> tuple[object, ...] | None:
    """The key, or None where a part of it cannot be compared: then buffers are for one call alone."""
    try:
        hash(key)
    except TypeError:
        return None
    return key


def _under_autocast(model: Model, dtype: torch.dtype, x: Tensor, t: Tensor, **cond: Tensor) -> object:
    # Without the cache: a captured graph would go on reading the weights as cast when captured.
    with torch.autocast(x.device.type, dtype, cache_enabled=False):
        return model(x, t, **cond)
