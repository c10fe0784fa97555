"""Drop-in for diffusers' RePaintPipeline: DDIM's steps, in a known part and one that is drawn, and back.

Lugmayr et al. 2022, algorithm 1, with the step of Song et al. 2021, equation 12. `fastddpm.repaint` is this
package's own, for models of any library.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastddpm.checks import BadArgument, check_number, whole
from fastddpm.dropin._diffusers.latent import Asked, Chain, LatentPipeline, begun, callback_every
from fastddpm.dropin._diffusers.pictures import handed_out, mask, picture
from fastddpm.dropin._diffusers.standin import stand_in
from fastddpm.dropin._diffusers.times import Times
from fastddpm.engine import Loop
from fastddpm.network import model_device_dtype, without_grad
from fastddpm.plans import Plan
from fastddpm.plans.diffusers import from_ddim_scheduler
from fastddpm.transfer import to_device
from fastddpm.turn import computing_in


class FastRePaintPipeline(LatentPipeline):
    """In the place of a RePaintPipeline; its call and extras are `LatentPipeline`'s, without seeds."""

    peer = "RePaintPipeline"

    def check(self) -> None:
        """ValueError for a pipeline that cannot be reproduced, before any image is asked for."""
        if not hasattr(self.scheduler, "undo_step"):
            raise BadArgument("scheduler", type(self.scheduler).__name__, "a RePaintScheduler")
        if self.settings.noise == "philox":
            raise BadArgument("noise", "'philox' for a RePaintPipeline", '"torch", or fastddpm.repaint,')
        super().check()

    def sample_trajectory(
        self, *args: Any, frames: int | None = None, predicted: bool = False, **options: Any
    ) -> Tensor:
        """Refused: a chain that goes back has no states evenly spread over it; ``callback`` sees them all.

        Raises:
            ValueError: always.
        """
        raise BadArgument("sample_trajectory", "a RePaintPipeline", "a pipeline whose chain never goes back")

    def _plan(
        self,
        num_inference_steps: int,
        *,
        eta: float | None = None,
        use_clipped_model_output: bool = False,
        times: Times | None = None,
    ) -> Plan:
        steps = whole("num_inference_steps", num_inference_steps, least=1)
        total = int(self.scheduler.config["num_train_timesteps"])
        return from_ddim_scheduler(self.scheduler, min(steps, total), eta=eta or 0.0)

    def _chain(self, asked: Asked) -> Chain:
        plan = self._plan(asked["num_inference_steps"], eta=check_number("eta", asked["eta"]))
        jumps = [whole(name, asked[name], least=1) for name in ("jump_length", "jump_n_sample")]
        image = picture("image", asked["image"], 8)
        device, dtype = model_device_dtype(self.unet)
        generator, count = asked["generator"], len(image)
        if isinstance(generator, list) and len(generator) != count:
            raise BadArgument("generator", f"{len(generator)} for {count} images", "one, or one each,")
        source = self._source(asked, count, generator=None)
        stand = stand_in(self.original, asked["num_inference_steps"], *jumps, device=device)
        noise = self._drawn(asked, image.shape, source, device=device, dtype=dtype)
        tensors = {
            "image": image.to(device, dtype),
            "mask": mask("mask_image", asked["mask_image"], 32).to(device, dtype),
        }
        return Chain(
            stand,
            self._ready(),
            plan,
            begun(noise, 1.0, source, {}),
            np.ones(len(plan) + 1),
            dtype,
            tensors=tensors,
        )

    def _last(self, chain: Chain, asked: Asked) -> Tensor:
        """The state after every visit of a row, and every way back."""
        scheduler, runner = chain.stand.scheduler, chain.runner
        visits = scheduler.timesteps.tolist()
        given = asked["generator"]
        generator = given[0] if isinstance(given, list) else given
        callback, every = asked["callback"], callback_every(asked)
        with runner.turn(), self._bar(len(visits)) as advance, without_grad():
            # The loop, loaded: it is run here.
            segments = runner.segments(chain.batch, chain.plan, stops=None)
            with computing_in(runner.precision, runner.device):
                _, loop = next(segments)
                x, before = loop.buffers.x, visits[0] + 1
                for visit, timestep in enumerate(visits):
                    if timestep < before:
                        _step(chain, loop, timestep, generator)
                    else:
                        x.copy_(scheduler.undo_step(x.to(chain.dtype), before, generator))
                    before = timestep
                    advance(1)
                    if callback is not None and visit % every == 0:
                        callback(visit, timestep, x.to(chain.dtype, copy=True))
                return x.to(chain.dtype, copy=True)

    def _finished(self, chain: Chain, latents: Tensor, asked: Asked) -> Any:
        kind = "np" if asked["output_type"] == "pt" else asked["output_type"]
        return handed_out(self.original, (latents / 2 + 0.5).clamp(0, 1), kind, asked["return_dict"])

    def _not_fused(self) -> list[str]:
        return ["the known part, and the ways back: passes of their own, between the steps"]


def _step(chain: Chain, loop: Loop, timestep: int, generator: torch.Generator | None) -> None:
    """One row, whose noise the known part shares (diffusers' steps 5 to 9)."""
    from diffusers.utils.torch_utils import randn_tensor

    scheduler, buffers = chain.stand.scheduler, loop.buffers
    x, image, known = buffers.x, chain.tensors["image"], chain.tensors["mask"]
    assert image is not None
    assert known is not None
    noise = randn_tensor(image.shape, generator=generator, device=x.device, dtype=chain.dtype)
    row = chain.plan.row_of(timestep)
    if buffers.noise is not None:
        buffers.noise[row % len(buffers.noise)].copy_(noise)
    buffers.counter.copy_(to_device(torch.tensor([row, 0]), x.device))
    loop.run(1)
    previous = timestep - scheduler.config.num_train_timesteps // scheduler.num_inference_steps
    level = scheduler.alphas_cumprod[previous] if previous >= 0 else scheduler.final_alpha_cumprod
    at_level = level**0.5 * image + (1 - level) ** 0.5 * noise
    x.copy_(known * at_level + (1.0 - known) * x)
