"""The loop as drop-ins use it: any plan, a batch of a peer's making, one network.

A drop-in turns the peer's arguments into a plan (`fastddpm.plans`) and a batch, and walks it here; the loop,
its kernel and its engines are those of `Sampler`.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fastddpm.chain import Turn, Walker, without_grad
from fastddpm.checks import BadArgument, check_count
from fastddpm.copies import Copies
from fastddpm.dropin.settings import Settings
from fastddpm.engine import Loops, resolve_engine
from fastddpm.finite import warn_if_not_finite
from fastddpm.network import Model, model_device_dtype
from fastddpm.plans import Plan
from fastddpm.precision import check_dtype, described
from fastddpm.progress import progress_bar
from fastddpm.randomness import PhiloxNoise, TorchNoise, checked_seeds, random_seeds
from fastddpm.request import Batch
from fastddpm.transfer import to_device


class Chains:
    """Walks plans with one network.

    Args:
        model: called as ``model(x, t, **cond)``; a module, or an object that holds modules as attributes.
        settings: noise, engine and dtype.
        capacity: plan rows that tables have room for at least, so that plans of several lengths share loops.
        device: where chains run; None for where the model's first parameter is.

    Attributes:
        copies: weights of the model that are copies of others, brought up to date before each chain.
    """

    def __init__(
        self, model: Model, settings: Settings, *, capacity: int, device: torch.device | None = None
    ) -> None:
        self.model, self.settings, self.capacity = model, settings, capacity
        seen_device, seen = model_device_dtype(model)
        self.device = device or seen_device
        self.dtype = settings.dtype or seen
        check_dtype(settings.precision, self.dtype)
        self.engine = resolve_engine(settings.engine, self.device)
        self.copies: Copies | None = None
        self._turn = Turn(self.device)
        self._loops = Loops(self.engine, on_fallback=self._fell_back if settings.engine == "auto" else None)

    def _fell_back(self) -> None:
        self.engine = self._loops.engine = "eager"

    def source(
        self,
        count: int,
        *,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        seeds: Sequence[int] | Tensor | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> PhiloxNoise | TorchNoise:
        """Where the noise of ``count`` images comes from.

        Args:
            count: images.
            generator: what the peer was given: one, one per image, or None for torch's global state.
            seeds: one per image, for ``noise="philox"`` only; None draws fresh ones.
            dtype: of the peer's own draws.

        Raises:
            ValueError: seeds with ``noise="torch"``, or not one per image.
        """
        if self.settings.noise == "torch":
            if seeds is not None:
                raise BadArgument(
                    "seeds", 'seeds to an object with noise="torch"', 'None, or optimize with "philox",'
                )
            return TorchNoise(generator, self.device, dtype)
        if generator is not None and not isinstance(generator, torch.Generator):
            raise BadArgument(
                "generator", 'a list with noise="philox", where seeds are per image,', "one torch.Generator"
            )
        values = random_seeds(count, generator) if seeds is None else checked_seeds(seeds)
        check_count("seeds", len(values), count)
        return PhiloxNoise(values, self.device)

    def batch(
        self,
        shape: Sequence[int],
        source: PhiloxNoise | TorchNoise,
        *,
        x: Tensor | None = None,
        cond: Mapping[str, Tensor] | None = None,
        condition: Tensor | None = None,
        guidance: Tensor | None = None,
    ) -> Batch:
        """A batch of shape ``(B, C, H, W)``; with ``guidance (B,)`` cond and condition come doubled."""
        count, channels, height, width = (int(n) for n in shape)
        return Batch(
            shape=(count, channels, height, width),
            x=None if x is None else to_device(x.detach(), self.device, torch.float32),
            count=count,
            source=source,
            guidance=guidance,
            cond=dict(cond or {}),
            condition=condition,
        )

    def walk(
        self,
        plan: Plan,
        batch: Batch,
        *,
        row: int = 0,
        every_step: bool = True,
        keep_x0: bool = False,
        self_condition: bool = False,
        progress: bool = True,
    ) -> Iterator[tuple[int, Tensor, Tensor | None]]:
        """Walks a plan; yields (rows done, x, x0) at the start and after each step, or each segment.

        RuntimeWarning after the last where x is not finite: libraries return such images.

        x ``(B, C, H, W)`` float32 is the live state and x0 the live prediction (None unless kept): clone what
        is to be kept. The last x is a tensor of its own: the next chain, of another thread perhaps, may begin
        before the caller has read it.

        Args:
            plan: what to do.
            batch: on what.
            row: where to start.
            every_step: yield after every step.
            keep_x0: keep each step's predicted clean image.
            self_condition: the model is given the last x0 as ``x_self_cond`` (zeros at first).
            progress: show a progress bar.
        """
        settings: dict[str, Any] = {"capacity": self.capacity, "precision": self.settings.precision}
        settings["copies"] = self.copies
        walker = Walker(self._loops, self.model, self.device, self.dtype, **settings)
        options: dict[str, Any] = {"row": row, "every_step": every_step, "keep_x0": keep_x0}
        with self._turn.taken(), progress_bar(progress, len(plan) - row) as advance:
            done, x = row, None
            with without_grad():
                steps = walker.walk(batch, plan, self_condition=self_condition, **options)
            while True:
                # Gradients are off inside a step and as the caller has them between two.
                with without_grad():
                    item = next(steps, None)
                if item is None:
                    break
                advance(item[0] - done)
                done, x, x0 = item[0], item[1].buffers.x, item[1].buffers.x0
                if done == len(plan):
                    x = x.clone()
                yield done, x, x0
            if x is not None:
                warn_if_not_finite(x, batch.seeds)

    def engine_in_words(self) -> str:
        """The engine that runs, and what another would give where nobody chose this one."""
        if self.settings.engine == "auto" and self.engine == "cudagraph":
            return (
                "cudagraph, chosen by auto; engine='compile' has fewer launches and passes a step, "
                "and compiles before its first"
            )
        return self.engine

    def computes_in(self, dtype: torch.dtype | None = None) -> str:
        """What the network computes in, in words; ``dtype`` where autocast makes it another than x's."""
        return described(self.settings.precision, dtype or self.dtype, self.device)

    def run(self, plan: Plan, batch: Batch, **options: Any) -> Tensor:
        """Walks a plan to its end: float32 ``(B, C, H, W)``, a tensor of its own. Options as of `walk`."""
        x: Tensor | None = None
        for _, state, _ in self.walk(plan, batch, **{"every_step": False, **options}):
            x = state
        assert x is not None
        return x


def in_dtype(module: nn.Module, dtype: torch.dtype | None) -> nn.Module:
    """The module itself, or a copy of it in another dtype; the original is left as it was."""
    _, seen = model_device_dtype(module)
    return module if dtype in (None, seen) else copy.deepcopy(module).to(dtype)
