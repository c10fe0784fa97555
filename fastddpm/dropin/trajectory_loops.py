"""jannerm/diffuser's loop over trajectories, run by ours: same call, same trajectories."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from fastddpm.batch import make_batch
from fastddpm.checks import BadArgument, shown, whole
from fastddpm.dropin.guides import guide_of
from fastddpm.dropin.network import PeerNetwork
from fastddpm.dropin.peer import DropIn, Peer, parameters_of
from fastddpm.dropin.settings import NetworkChoice, Report, Settings
from fastddpm.network import in_eval_mode, model_device_dtype, unwrapped, without_grad
from fastddpm.plans import Plan
from fastddpm.plans.lucidrains import BUFFERS, Habits, ancestral_plan
from fastddpm.randomness import TorchNoise
from fastddpm.runner import Runner
from fastddpm.unet1d import UNet1D, temporal
from fastddpm.unet1d.inputs import of_actions

Conditions = Mapping[int, Tensor]
"""By place of the trajectory: the observation there, ``(B, observation_dim)``."""


class Sample(NamedTuple):
    """What the main branch's loop gives: best first, and every state where asked for.

    Attributes:
        trajectories: ``(B, horizon, action_dim + observation_dim)``.
        values: ``(B,)``, of the guide in the last step; 0 without one.
        chains: ``(B, T + 1, horizon, action_dim + observation_dim)``, in the order drawn; or None.
    """

    trajectories: Tensor
    values: Tensor
    chains: Tensor | None


class FastTrajectories(DropIn):
    """Draws trajectories as the GaussianDiffusion that it stands for; called as that is.

    Attributes:
        original: the diffusion; its attributes, buffers and weights are read anew by each call.
        settings: noise, engine and dtype.
    """

    def __init__(self, original: Peer, settings: Settings, network: NetworkChoice = "auto") -> None:
        super().__init__(original)
        self.settings, self._choice = settings, network
        self._network: PeerNetwork[UNet1D] | None = None
        self._ordered: tuple[nn.Module, tuple[int, ...], tuple[int, ...]] | None = None
        self._running()

    def __call__(self, cond: Conditions, *args: object, **options: object) -> object:
        """`conditional_sample`, as there."""
        return self.conditional_sample(cond, *args, **options)  # type: ignore[arg-type]

    def forward(self, cond: Conditions, *args: object, **options: object) -> object:
        """`conditional_sample`, as there."""
        return self.conditional_sample(cond, *args, **options)  # type: ignore[arg-type]

    def conditional_sample(
        self, cond: Conditions, *args: object, horizon: int | None = None, **options: object
    ) -> object:
        """Trajectories whose observations at some places are given.

        Args:
            cond: by place, 0 among them: the observation there, ``(B, observation_dim)``.
            *args: as of the original: of 2022 ``verbose`` and ``return_diffusion``, of the main branch
                ``horizon``.
            horizon: places; None for the original's.
            **options: of the original's loop, ``verbose``, ``return_diffusion`` or ``return_chain``, and what
                guides it; ``seeds`` (one per trajectory, with ``noise="philox"``) and ``generator``.

        Returns:
            As the original: float32 ``(B, horizon, action_dim + observation_dim)``, with all states if asked
            for; or a `Sample`.

        Raises:
            ValueError: naming the argument, what was given and what is accepted.
            TypeError: an argument that the original does not take.
        """
        if self._gives_samples() and args:
            horizon, args = args[0], args[1:]  # type: ignore[assignment]
        if not isinstance(cond, Mapping) or 0 not in cond:
            raise BadArgument("cond", shown(cond), "a mapping of places, 0 among them, to tensors")
        if horizon is not None:
            whole("horizon", horizon, least=1)
        shape = (len(cond[0]), horizon or self.original.horizon, self.original.transition_dim)
        return self.p_sample_loop(shape, cond, *args, **options)  # type: ignore[arg-type]

    def p_sample_loop(
        self,
        shape: Sequence[int],
        cond: Conditions,
        verbose: bool = True,
        keeps: bool = False,
        sample_fn: Callable[..., object] | None = None,
        *,
        seeds: Sequence[int] | Tensor | None = None,
        generator: torch.Generator | None = None,
        **options: object,
    ) -> object:
        """`conditional_sample` for a shape ``(B, horizon, action_dim + observation_dim)``."""
        samples = self._gives_samples()
        keeps = bool(options.pop("return_chain" if samples else "return_diffusion", keeps))
        if not samples:
            options |= {} if sample_fn is None else {"sample_fn": sample_fn}
            if options:
                raise TypeError(f"p_sample_loop() got an unexpected keyword argument {next(iter(options))!r}")
        guide = guide_of(self.original, sample_fn, options)
        runner, plan = self._running(), self._plan()
        known, mask = self._given(tuple(shape), cond, runner.device)
        source = self.settings.source(int(shape[0]), runner.device, seeds=seeds, generator=generator)
        if isinstance(source, TorchNoise):
            source.order = self._order(tuple(shape), cond)
        passed = {} if isinstance(runner.model, UNet1D) else _by_name(cond, int(shape[0]))
        if isinstance(runner.model, UNet1D):
            runner.model.check_shape("horizon", shape)
        batch = make_batch(shape, source, cond=passed, known=known, known_mask=mask)
        states: list[Tensor] = []
        values = torch.zeros(int(shape[0]), device=runner.device)
        stepwise = keeps or guide is not None
        for done, x, _ in runner.walk(plan, batch, every_step=stepwise, progress=verbose):
            x.copy_(torch.where(mask, known, x))
            if keeps:
                states.append(x.clone())
            if guide is not None and done < len(plan):
                moved, values = guide(x, cond, int(plan.timesteps[done]))
                x.copy_(moved)
        if not samples:
            return (x, torch.stack(states, dim=1)) if keeps else x
        order = torch.argsort(values, descending=True)
        return Sample(x[order], values[order], torch.stack(states, dim=1) if keeps else None)

    def report(self) -> Report:
        """What became of the original: network, engine, noise, what is fused and what is not."""
        drawn, runner, obj = self.settings.noise == "philox", self._running(), self.original
        clip = ("clip",) if obj.clip_denoised else ()
        return Report(
            peer="jannerm/diffuser GaussianDiffusion",
            network=self._chosen().words,
            engine=runner.engine_in_words(),
            noise="philox, one seed per trajectory" if drawn else "torch, in the original's order",
            precision=runner.computes_in(self.settings.dtype),
            fused=("x0", *clip, f"{obj.n_timesteps} steps of DDPM", "sigma * z"),
            not_fused=("a guide, where one is given: its gradients, between two steps",),
        )

    def _plan(self) -> Plan:
        objective = "pred_noise" if self.original.predict_epsilon else "pred_x0"
        habits = Habits(objective, rederives=False, draws_last=True)
        buffers = {name: getattr(self.original, name) for name in BUFFERS}
        return ancestral_plan(buffers, habits, clip=bool(self.original.clip_denoised))

    def _order(self, shape: tuple[int, ...], cond: Conditions) -> tuple[int, ...] | None:
        """Of the axes in memory, of the states after the first, by which the original's noise is drawn.

        A network's trajectories are a state's first term where it predicts these themselves, and decide; the
        published network's are a view of ``(B, D, T)``. Else it is the start, in the order of its axes.
        """
        if self.original.predict_epsilon:
            return None
        module = self.original.model
        if self._ordered is None or self._ordered[0] is not module or self._ordered[1] != shape:
            device = model_device_dtype(module)[0]
            x, t = torch.zeros(shape, device=device), torch.zeros(shape[0], device=device, dtype=torch.long)
            with without_grad(), in_eval_mode(module):
                out = unwrapped(module(x, dict(cond), t))
            strides = out.stride()
            order = tuple(sorted(range(out.ndim), key=lambda axis: -strides[axis]))
            self._ordered = module, shape, order
        order = self._ordered[2]
        return None if order == tuple(range(len(order))) else order

    def _gives_samples(self) -> bool:
        """Whether the original is of the main branch."""
        return "sample_fn" in parameters_of(self.original.p_sample_loop)

    def _given(self, shape: tuple[int, ...], cond: Conditions, device: torch.device) -> tuple[Tensor, Tensor]:
        """What is known of trajectories of a shape, and where."""
        known, mask = torch.zeros(shape, device=device), torch.zeros(shape, dtype=torch.bool, device=device)
        for place, value in cond.items():
            whole("cond", place, least=-shape[1], most=shape[1] - 1)
            accepted = f"a tensor ({shape[0]}, {self.original.observation_dim})"
            if (
                not isinstance(value, Tensor)
                or value.shape != known[:, place, self.original.action_dim :].shape
            ):
                raise BadArgument(f"cond[{place}]", shown(value), accepted)
            known[:, place, self.original.action_dim :] = value
            mask[:, place, self.original.action_dim :] = True
        return known, mask

    def _running(self) -> Runner:
        """What runs chains, with the network's weights as they are."""
        network = self._chosen()
        network.refresh()
        return network.runner

    def _chosen(self) -> PeerNetwork[UNet1D]:
        """The network; chosen anew where the original's is another one, was moved or altered."""
        module = self.original.model
        if self._network is None or not self._network.fits(module):
            self._network = PeerNetwork(
                module,
                _called,
                temporal,
                self.settings,
                choice=self._choice,
                times=torch.arange(self.original.n_timesteps),
                inputs=of_actions,
                arranges=False,
            )
        return self._network


_AT = "at_"


def _by_name(cond: Conditions, count: int) -> dict[str, Tensor]:
    """The conditions as tensors that a loop passes on by name."""
    return {f"{_AT}{place}": value.expand(count, -1) for place, value in cond.items()}


def _called(module: nn.Module, x: Tensor, t: Tensor, **cond: Tensor) -> object:
    return module(x, {int(name.removeprefix(_AT)): value for name, value in cond.items()}, t)
