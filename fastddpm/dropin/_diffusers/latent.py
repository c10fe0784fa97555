"""What the drop-ins for pipelines of latents share: a call bound as the original's, chain, trajectory.

A call takes what the original's takes, by the original's own signature. A pipeline of this kind says how its
chain begins and what becomes of the last state.
"""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from fastddpm.batch import Batch, make_batch
from fastddpm.checks import whole
from fastddpm.dropin._diffusers.generators import one_each
from fastddpm.dropin._diffusers.pipeline import FastPipeline
from fastddpm.dropin.peer import Peer
from fastddpm.network import model_device_dtype, without_grad
from fastddpm.plans import Plan
from fastddpm.plans.plan import Float64
from fastddpm.randomness import Generators, PhiloxNoise, TorchNoise
from fastddpm.runner import Runner
from fastddpm.trajectory import Trajectory
from fastddpm.transfer import to_device

EXTRAS = ("seeds", "callback", "callback_steps")
"""What a call takes beyond the original's arguments."""
Asked = dict[str, Any]
"""The arguments of a call by name, the original's defaults and `EXTRAS` among them."""
Look = Callable[[int, Tensor], bool]
"""Is shown the live state after a row; says whether the chain goes on."""


@dataclasses.dataclass(frozen=True)
class Chain:
    """What one call walks.

    Attributes:
        stand: the pipeline's parts and methods, with a scheduler whose timesteps are set (`stand_in`).
        runner: of the network.
        plan: all steps.
        batch: noise, conditions and the state to begin from.
        scale: float64 ``[S + 1]``, of `state_scale`.
        dtype: of the original's latents.
        row: where the chain begins.
        tensors: what callbacks may ask for besides the latents, by the original's names.
    """

    stand: Peer
    runner: Runner
    plan: Plan
    batch: Batch
    scale: Float64
    dtype: torch.dtype
    row: int = 0
    tensors: Mapping[str, Tensor | None] = dataclasses.field(default_factory=dict)

    def shown(self, x: Tensor, done: int) -> Tensor:
        """Our state after ``done`` rows as the scheduler's, in the original's dtype."""
        factor = float(self.scale[done])
        return (x if factor == 1 else x * factor).to(self.dtype)


class LatentPipeline(FastPipeline):
    """A pipeline whose call is bound by the original's signature; what it draws becomes images afterwards."""

    def __call__(self, *args: Any, **options: Any) -> Any:
        """Draws images, as the original.

        Args:
            *args: the original's arguments, in its order.
            **options: the original's arguments by name; ``seeds``: one per image, with ``noise="philox"``;
                ``callback``: called as ``callback(step, timestep, latents)``, after each step or every
                ``callback_steps``.

        Returns:
            What the original returns.

        Raises:
            ValueError: naming the argument, what was given and what is accepted.
            TypeError: an argument that the original does not have.
        """
        asked = self._asked(args, options)
        with without_grad():
            chain = self._chain(asked)
            return self._finished(chain, self._last(chain, asked), asked)

    def sample_trajectory(
        self, *args: Any, frames: int | None = None, predicted: bool = False, **options: Any
    ) -> Tensor:
        """Draws latents and keeps the way there.

        Args:
            *args: as of the call.
            frames: states kept, evenly spread, the first and the last among them; None for all S + 1.
            predicted: keep the predicted clean latents of each step instead of the state (S frames at most).
            **options: as of the call.

        Returns:
            float32 ``(F, B, C, H, W)``, in the scheduler's range: the call decodes the last frame.
        """
        asked = self._asked(args, options)
        with without_grad():
            chain = self._chain(asked)
            trajectory = Trajectory(len(chain.plan) - chain.row, frames, predicted)
            for k, x, x0 in self._states(chain, every_step=True, keep_x0=predicted):
                trajectory.look(k - chain.row, x * float(chain.scale[k]), x0)
        return trajectory.taken()

    def _asked(self, args: Sequence[object], options: Mapping[str, object]) -> Asked:
        """The arguments of a call by name; TypeError for those that neither the original nor we have."""
        extras = {name: options[name] for name in EXTRAS if name in options}
        signature = inspect.signature(self.original.__call__)
        bound = signature.bind(*args, **{name: options[name] for name in options if name not in extras})
        bound.apply_defaults()
        asked: Asked = dict(bound.arguments)
        for one in signature.parameters.values():
            if one.kind is inspect.Parameter.VAR_KEYWORD and asked.pop(one.name):
                unknown = ", ".join(name for name in options if name not in signature.parameters)
                raise TypeError(f"{unknown}: given, beyond the original's {', '.join(EXTRAS)} accepted")
        return {**dict.fromkeys(EXTRAS), **asked, **extras}

    @abstractmethod
    def _chain(self, asked: Asked) -> Chain:
        """What a call walks."""

    @abstractmethod
    def _finished(self, chain: Chain, latents: Tensor, asked: Asked) -> Any:
        """What the original returns for its last latents."""

    def _states(self, chain: Chain, *, every_step: bool, keep_x0: bool = False) -> Any:  # of `Runner.walk`
        return chain.runner.walk(
            chain.plan,
            chain.batch,
            row=chain.row,
            every_step=every_step,
            keep_x0=keep_x0,
            progress=self._bar(len(chain.plan) - chain.row),
        )

    def _last(self, chain: Chain, asked: Asked) -> Tensor:
        """The last latents as the original has them, a tensor of their own."""
        look = self._look(chain, asked)
        done, last = chain.row, None
        with contextlib.closing(self._states(chain, every_step=look is not None)) as states:
            for k, x, _ in states:
                done, last = k, x
                if look is not None and k > chain.row and not look(k, x):
                    last = x.clone()
                    break
        assert last is not None
        return chain.shown(last, done)

    def _look(self, chain: Chain, asked: Asked) -> Look | None:
        """What is called after each step; None where nobody wants to see one."""
        callback = asked["callback"]
        if callback is None:
            return None
        every = callback_every(asked)

        def look(done: int, x: Tensor) -> bool:
            step = done - 1 - chain.row
            if step % every == 0:
                callback(step, chain.plan.model_time[done - 1].item(), chain.shown(x, done))
            return True

        return look

    def _count(self, asked: Asked, count: int) -> int:
        """Images: as many as there are seeds where one was asked for."""
        seeds = asked["seeds"]
        return len(seeds) if seeds is not None and count == 1 else count

    def _source(self, asked: Asked, count: int, *, generator: Generators | None) -> PhiloxNoise | TorchNoise:
        """Where the noise of a chain's steps comes from.

        Args:
            asked: seeds; the generator that seeds are drawn from, with ``noise="philox"``.
            count: images.
            generator: what the original gives its scheduler's step.
        """
        device, dtype = model_device_dtype(self.unet)
        is_philox = self.settings.noise == "philox"
        return self.settings.source(
            count,
            device,
            seeds=asked["seeds"],
            generator=asked["generator"] if is_philox else generator,
            dtype=dtype,
        )

    def _drawn(
        self,
        asked: Asked,
        shape: Sequence[int],
        source: PhiloxNoise | TorchNoise,
        *,
        device: torch.device | None,
        dtype: torch.dtype,
    ) -> Tensor:
        """The noise that a chain begins with, ``shape``, drawn as the original draws it or from the seeds."""
        if isinstance(source, PhiloxNoise):
            return source.initial(tuple(shape))
        from diffusers.utils.torch_utils import randn_tensor

        generator = one_each(asked["generator"], shape[0])
        first = generator[0] if isinstance(generator, list) else generator
        place = device if first is None else first.device  # where it draws in any case
        noise: Tensor = randn_tensor(tuple(shape), generator=generator, device=place, dtype=dtype)
        return noise if device is None else to_device(noise, device)


def callback_every(asked: Asked) -> int:
    """The steps from one call of ``callback`` to the next."""
    steps = asked["callback_steps"]
    return 1 if steps is None else whole("callback_steps", steps, least=1)


def begun(
    latents: Tensor,
    scale: float,
    source: PhiloxNoise | TorchNoise,
    cond: Mapping[str, Tensor],
    guidance: float | None = None,
) -> Batch:
    """A batch that begins from the scheduler's state.

    Args:
        latents: ``(B, C, H, W)``.
        scale: of `state_scale` at the row where the chain begins.
        source: of noise.
        cond: what the network is given by name, ``(B, ...)``, or ``(2B, ...)`` with guidance, the half
            without the condition first.
        guidance: the scale of classifier-free guidance; None without.
    """
    x = latents.to(torch.float32)
    batch = make_batch(latents.shape, source, x=x if scale == 1 else x / scale, cond=cond)
    if guidance is None:
        return batch
    return dataclasses.replace(batch, guidance=torch.full((len(latents),), guidance, dtype=torch.float32))
