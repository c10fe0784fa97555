"""Callbacks of Stable Diffusion's pipelines: `callback_on_step_end`, and the older `callback`.

Both see the scheduler's latents, in tensors of their own. What the first puts in the latents' place goes on;
the texts and the guidance of a chain are fixed when it begins, since a captured loop has them in its buffers.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastddpm.checks import BadArgument
from fastddpm.dropin._diffusers.latent import Asked, Chain, callback_every


class StepEnd:
    """Called after each row; says whether the chain goes on, which a callback may end by ``pipe._interrupt``.

    Args:
        chain: that is walked.
        asked: its call's arguments.
    """

    def __init__(self, chain: Chain, asked: Asked) -> None:
        self._chain = chain
        self._on_end, self._callback = asked["callback_on_step_end"], asked["callback"]
        self._steps = asked["num_inference_steps"]
        self._names = asked["callback_on_step_end_tensor_inputs"]
        self._every = callback_every(asked)
        self._guidance = (chain.stand._guidance_scale, chain.stand._guidance_rescale)

    def __call__(self, done: int, x: Tensor) -> bool:
        """Shows the live state x ``(B, C, H, W)`` after ``done`` rows of the plan.

        Raises:
            ValueError: the callback changed the texts or the guidance.
        """
        chain, stand = self._chain, self._chain.stand
        step, timestep = done - 1 - chain.row, stand.scheduler.timesteps[done - 1]
        if self._on_end is not None:
            self._end(step, timestep, done, x)
        if self._callback is not None and self._is_whole(step) and step % self._every == 0:
            self._callback(step // stand.scheduler.order, timestep, _own(chain.shown(x, done), x))
        return not stand.interrupt

    def _is_whole(self, step: int) -> bool:
        """Whether a step of the original's ends here, which evaluates the network ``order`` times."""
        order, rows = self._chain.stand.scheduler.order, len(self._chain.plan) - self._chain.row
        warm_up = rows - (self._steps - self._chain.row // order) * order
        return step == rows - 1 or (step + 1 > warm_up and (step + 1) % order == 0)

    def _end(self, step: int, timestep: Tensor, done: int, x: Tensor) -> None:
        chain, stand = self._chain, self._chain.stand
        latents = _own(chain.shown(x, done), x)
        held = {"latents": latents, **chain.tensors}
        versions = {name: value._version for name, value in held.items() if value is not None}
        returned = self._on_end(stand, step, timestep, {name: held[name] for name in self._names})
        after = returned.pop("latents", latents)
        for name, value in chain.tensors.items():
            if returned.pop(name, value) is not value or (
                value is not None and value._version != versions[name]
            ):
                raise BadArgument("callback_on_step_end", f"one that changes {name}", "one that leaves it")
        if (stand._guidance_scale, stand._guidance_rescale) != self._guidance:
            raise BadArgument(
                "callback_on_step_end", "one that changes the guidance on the way", "one that leaves it"
            )
        if after is not latents or latents._version != versions["latents"]:
            x.copy_(after.to(torch.float32) / float(chain.scale[done]))


def _own(shown: Tensor, x: Tensor) -> Tensor:
    return shown.clone() if shown is x else shown
