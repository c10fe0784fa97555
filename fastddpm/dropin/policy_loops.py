"""The loop of a policy, ``conditional_sample``, run by ours: same call, same actions."""

from __future__ import annotations

import inspect
from collections.abc import Callable

import torch
from torch import Tensor, nn

from fastddpm.batch import make_batch
from fastddpm.checks import BadArgument, check_known, shown
from fastddpm.dropin._diffusers.options import Options, Plans, Steps
from fastddpm.dropin._diffusers.scheduler_kinds import scheduler_kind
from fastddpm.dropin.network import PeerNetwork
from fastddpm.dropin.peer import Peer
from fastddpm.dropin.settings import NetworkChoice, Report, Settings
from fastddpm.formats._diffusers.betas import noise_schedule
from fastddpm.formats._diffusers.schedulers import sampler_options
from fastddpm.inputs import Fields
from fastddpm.network import model_device_dtype
from fastddpm.options import SamplerOptions
from fastddpm.plans import Plan
from fastddpm.plans.scheduler import SCHEDULER
from fastddpm.runner import Runner
from fastddpm.sampler import Sampler
from fastddpm.unet1d import UNet1D, names
from fastddpm.unet1d.inputs import of_actions

COMPILED = "_orig_mod"
"""What a module of torch.compile calls the one inside, as LeRobot's with ``compile_model``."""
STEP_OPTIONS = ("eta", "use_clipped_model_output")
"""Keyword arguments of a DDIMScheduler's step that a policy may pass on."""


class ActionLoop:
    """Draws trajectories ``(B, T, A)`` of actions, as the ``conditional_sample`` that it stands for.

    Called as that is. Observations come encoded, as tensors that the network is given by name in every step;
    or as the part of the trajectory where ``condition_mask`` is True, which is ``condition_data``'s whenever
    the network sees it, and at the end.

    Args:
        policy: whose network, scheduler and number of steps are read anew by each call.
        name: of the attribute that holds the network.
        original: the loop replaced, for its signature.
        settings: noise, engine and dtype.
        choice: ``auto``: our UNet1D where it gives the outputs; ``original``; ``ours``, or an error.
    """

    def __init__(
        self,
        policy: Peer,
        name: str,
        original: Callable[..., Tensor],
        settings: Settings,
        choice: NetworkChoice = "auto",
    ) -> None:
        self.policy, self.name, self.settings, self._choice = policy, name, settings, choice
        self._signature = inspect.signature(original)
        self._plans = Plans()
        self._network: PeerNetwork[UNet1D] | None = None
        self._running()

    def __call__(self, *args: object, **options: object) -> Tensor:
        """Trajectories in the dtype of ``condition_data``, or of the network's weights; without gradients.

        Raises:
            TypeError: arguments that the original does not take.
            ValueError: naming the argument, what was given and what is accepted.
        """
        bound = self._signature.bind(*args, **options)
        given = dict(bound.arguments)
        runner = self._running()
        plan = self._plan(given.pop("kwargs", {}))
        generator = given.pop("generator", None)
        x, known, mask = (given.pop(name, None) for name in ("noise", "condition_data", "condition_mask"))
        if "condition_data" in bound.arguments:
            data, of = given_part(known, mask)
            shape, dtype = tuple(data.shape), data.dtype
            known = data.detach().to(runner.device, torch.float32)
            mask = of.to(runner.device).reshape(*of.shape, *(1,) * (data.ndim - of.ndim)).expand(shape)
        else:
            dtype = model_device_dtype(self._module())[1]
            shape = self._shape(given["batch_size"]) if x is None else tuple(x.shape)
        given.pop("batch_size", None)
        cond = _tensors(given)
        if isinstance(runner.model, UNet1D):
            runner.model.check_shape("noise" if known is None else "condition_data", shape)
            check_rows(cond, shape[0])
        if not shape[0]:
            return torch.zeros(shape, dtype=dtype, device=runner.device)
        source = self.settings.source(shape[0], runner.device, generator=generator, dtype=dtype)
        batch = make_batch(shape, source, x=x, cond=cond, known=known, known_mask=mask)
        return runner.run(plan, batch, progress=False).to(dtype)

    def report(self) -> Report:
        """What became of the policy: network, engine, noise, what is fused and what is not."""
        drawn, runner = self.settings.noise == "philox", self._running()
        scheduler, steps = self.policy.noise_scheduler, self.policy.num_inference_steps
        return Report(
            peer=f"{type(self.policy).__name__}, its conditional_sample alone",
            network=self._chosen().words,
            engine=runner.engine_in_words(),
            noise="philox, one seed per trajectory" if drawn else "torch, in the original's order",
            precision=runner.computes_in(self.settings.dtype),
            fused=("x0", "clip", f"{steps} steps of its {type(scheduler).__name__}", "sigma * z"),
            not_fused=("what encodes observations: the policy's own, once a call, before the loop",),
        )

    def sampler(self) -> Sampler:
        """A `Sampler` of the network, schedule and number of steps as they are now.

        It draws trajectories ``(B, T, A)`` of encoded observations, ``sample(seeds=..., cond={"global_cond":
        ...})``, and can be exported (`fastddpm.export_onnx`). Weights are shared, tensors put in the place of
        others later are not followed.

        Raises:
            ValueError: a scheduler whose steps `Sampler` does not take.
        """
        self._running()
        network, policy, scheduler = self._chosen(), self.policy, self.policy.noise_scheduler
        config = {**scheduler.config, "_class_name": type(scheduler).__name__}
        unet = network.unet if network.runner.dtype == model_device_dtype(network.source)[1] else None
        width = unet.config.action_dim if unet is not None else self._width()
        horizon = getattr(policy, "horizon", None) or policy.config.horizon
        options = sampler_options(config)
        if options.get("method") == "ddim":
            options = self._of_ddim(options, config)
        return Sampler(
            network.source if unet is None else unet,
            noise_schedule(config),
            **{**options, "shape": (horizon, width), "num_inference_steps": policy.num_inference_steps},
        )

    def _of_ddim(self, options: SamplerOptions, config: Fields) -> SamplerOptions:
        """Those of a DDIMScheduler, with what the policy passes on to its steps.

        Our DDIM computes eps anew from the clipped x0; a scheduler that is not told to keeps the network's,
        and then its own steps are taken.
        """
        passed = getattr(self.policy, "kwargs", None) or {}
        eta = passed.get("eta", 0.0)
        if not config["clip_sample"] or passed.get("use_clipped_model_output"):
            return {**options, "eta": eta}
        if eta:
            given = f"{eta} with a DDIMScheduler that clips"
            raise BadArgument("eta", given, "0, clip_sample=False or use_clipped_model_output=True")
        return {"method": SCHEDULER, "scheduler": config}

    def _width(self) -> int:
        """A, numbers of a place of an action."""
        own = getattr(self.policy, "action_dim", None)
        return int(own if own is not None else self.policy.config.action_feature.shape[0])

    def _plan(self, options: dict[str, object]) -> Plan:
        scheduler = self.policy.noise_scheduler
        kind = scheduler_kind(scheduler)
        takes = STEP_OPTIONS if kind == "DDIMScheduler" else ()
        check_known(options, takes, of=f"the step of {type(scheduler).__name__}")
        steps = Steps(self.policy.num_inference_steps, **options)  # type: ignore[arg-type]
        plan = self._plans.get(scheduler, steps, Options(), kind=kind)
        if plan.learned_range:
            raise BadArgument("variance_type", "a learned one in a policy", "a fixed one")
        return plan

    def _shape(self, count: int) -> tuple[int, int, int]:
        config = self.policy.config
        return count, config.horizon, config.action_feature.shape[0]

    def _module(self) -> nn.Module:
        module: nn.Module = getattr(self.policy, self.name)
        inside = getattr(module, COMPILED, None)
        return inside if self._choice != "original" and isinstance(inside, nn.Module) else module

    def _running(self) -> Runner:
        """What runs chains, with the network's weights as they are."""
        network = self._chosen()
        network.refresh()
        return network.runner

    def _chosen(self) -> PeerNetwork[UNet1D]:
        """The network; chosen anew where the policy's is another one, was moved or altered."""
        module = self._module()
        if self._network is None or not self._network.fits(module):
            times = torch.arange(self.policy.noise_scheduler.config["num_train_timesteps"])
            self._network = PeerNetwork(
                module,
                _by_name,
                names,
                self.settings,
                choice=self._choice,
                times=times,
                inputs=of_actions,
                arranges=False,
            )
        return self._network


def _tensors(given: dict[str, object]) -> dict[str, Tensor]:
    """Conditions without those that are None; BadArgument for any that is no tensor."""
    for name, value in given.items():
        if value is not None and not isinstance(value, Tensor):
            raise BadArgument(name, shown(value), "a tensor or None")
    return {name: value for name, value in given.items() if isinstance(value, Tensor)}


def given_part(data: object, mask: object) -> tuple[Tensor, Tensor]:
    """The data and mask by which a part of the trajectory is given; BadArgument for anything else.

    As the loops that index with the mask take it: of the first axes of the data, or of all.
    """
    if not isinstance(data, Tensor) or not data.ndim:
        raise BadArgument("condition_data", shown(data), "a tensor (B, T, A)")
    accepted = f"a bool tensor {tuple(data.shape)}"
    if not isinstance(mask, Tensor):
        raise BadArgument("condition_mask", shown(mask), accepted)
    if mask.dtype != torch.bool or mask.shape != data.shape[: mask.ndim]:
        raise BadArgument("condition_mask", f"{mask.dtype} of shape {tuple(mask.shape)}", accepted)
    return data, mask


def check_rows(cond: dict[str, Tensor], count: int) -> None:
    """BadArgument for conditions with a row for each of another number of trajectories."""
    for name, value in cond.items():
        if not value.ndim or value.shape[0] not in (1, count):
            accepted = f"a tensor ({count} or 1, ...)"
            raise BadArgument(name, f"shape {tuple(value.shape)}", accepted)


def _by_name(module: nn.Module, x: Tensor, t: Tensor, **cond: Tensor) -> object:
    return module(x, t, **cond)
