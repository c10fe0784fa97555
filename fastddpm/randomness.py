"""Where the noise of a chain comes from: the noise spec, or torch generators in another library's order.

`PhiloxNoise` (`noise="philox"`): every sample has a seed, and its noise depends on nothing else.
`TorchNoise` (`noise="torch"`): drawn from a generator outside the loop, into a ring that the step reads.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Literal, Protocol

import numpy as np
import torch
from torch import Tensor

from fastddpm.checks import BadArgument, check_count, quoted, seed_list
from fastddpm.plans import Plan
from fastddpm.transfer import to_device
from fastddpm_kernels import normal

TASK_STREAM = 4
RING_BYTES = 256 * 2**20
MAX_SEED = 2**63 - 1

NoiseKind = Literal["torch", "philox"]
Generators = torch.Generator | Sequence[torch.Generator]


def checked_seeds(seeds: Sequence[int] | Tensor | np.ndarray, name: str = "seeds") -> Tensor:
    """Seeds as an int64 tensor ``(B,)`` on the CPU.

    Raises:
        ValueError: not a flat, non-empty list of integers in [0, 2**63).
    """
    return torch.tensor(seed_list(seeds, name), dtype=torch.int64)


def check_ordinals(ordinals: Tensor, count: int) -> None:
    """ValueError unless there is an int64 for each of so many samples."""
    if ordinals.dtype != torch.int64 or ordinals.shape != (count,):
        raise BadArgument("ordinals", f"{ordinals.dtype} {tuple(ordinals.shape)}", f"int64 ({count},)")


def random_seeds(count: int, generator: torch.Generator | None = None) -> Tensor:
    """Fresh seeds from torch's random state, so that `torch.manual_seed` makes a run repeatable."""
    device = "cpu" if generator is None else generator.device
    return torch.randint(0, MAX_SEED, (count,), generator=generator, device=device).cpu()


def noise_source(
    noise: str,
    count: int,
    device: torch.device,
    *,
    seeds: Sequence[int] | Tensor | None = None,
    generator: Generators | None = None,
    dtype: torch.dtype = torch.float32,
) -> PhiloxNoise | TorchNoise:
    """Where the noise of ``count`` images comes from.

    Args:
        noise: ``philox`` or ``torch``.
        count: images.
        device: where the state is.
        seeds: of ``philox``, one per image; None draws fresh ones from ``generator``.
        generator: of ``torch``, one, one per image, or None for torch's global state.
        dtype: of torch's draws.

    Raises:
        ValueError: naming the argument, what was given and what is accepted.
    """
    if not isinstance(noise, str) or noise not in ("torch", "philox"):
        raise BadArgument("noise", quoted(noise), "'philox' or 'torch'")
    if noise == "torch":
        if seeds is not None:
            raise BadArgument("seeds", 'seeds with noise="torch", which draws from generators,', "None")
        generators = generator if isinstance(generator, (list, tuple)) else [generator]
        if not all(one is None or isinstance(one, torch.Generator) for one in generators):
            raise BadArgument("generator", repr(generator), "a torch.Generator or one per image")
        return TorchNoise(generator, device, dtype)
    if generator is not None and not isinstance(generator, torch.Generator):
        raise BadArgument(
            "generator", 'a list with noise="philox", where seeds are per image,', "one torch.Generator"
        )
    if generator is not None and seeds is not None:
        raise BadArgument("generator", 'one with seeds and noise="philox"', "one of the two")
    values = random_seeds(count, generator) if seeds is None else checked_seeds(seeds)
    check_count("seeds", len(values), count)
    return PhiloxNoise(values, device)


class PhiloxNoise:
    """Noise spec v1: x_T is step 0 of stream 0; steps are drawn inside the reverse step.

    Args:
        seeds: int64 ``(B,)`` on the host.
        device: where the state is.

    Attributes:
        host: the seeds there; of `TorchNoise`, which has none, None.
    """

    kind: Literal["philox"] = "philox"

    def __init__(self, seeds: Tensor, device: torch.device) -> None:
        self.host, self.device = seeds, device

    @functools.cached_property
    def seeds(self) -> Tensor:
        """The seeds on the device."""
        return to_device(self.host, self.device)

    def of(self, rows: Sequence[int]) -> PhiloxNoise:
        """The noise of some of the samples, by their places."""
        return PhiloxNoise(self.host[list(rows)], self.device)

    def initial(self, shape: tuple[int, ...]) -> Tensor:
        """x_T, float32 ``shape`` = ``(B, ...)``."""
        return normal(self.seeds, 0, shape[1:])

    def encoding(self, shape: tuple[int, ...], row: int) -> Tensor:
        """Noise to bring a given image to the level of plan row ``row`` (stream 4, step row + 1)."""
        return normal(self.seeds, row + 1, shape[1:], stream=TASK_STREAM)


class TorchNoise:
    """Noise from torch generators, in draws of the whole batch, or of one sample each for a list.

    Args:
        generator: one generator, a list with one per sample, or None for torch's global state. It may live on
            the CPU while the state is on a GPU, as in diffusers.
        device: where the state is.
        dtype: of the draws; they are then made float32, as the state is.
        rows: samples that a draw of one generator is of, where a library draws for more than there are, which
            have the first; None for as many as there are.
        order: of the axes in memory, for rows of a plan after the first: where a library draws like a state
            that its network has left in that order, torch's generator fills it in another way; None for that
            of the axes.
    """

    kind: Literal["torch"] = "torch"
    host: Tensor | None = None

    def __init__(
        self,
        generator: Generators | None,
        device: torch.device,
        dtype: torch.dtype = torch.float32,
        *,
        rows: int | None = None,
        order: Sequence[int] | None = None,
    ) -> None:
        self.generator, self.device, self.dtype, self.rows = generator, device, dtype, rows
        self.order = order
        self._staging: Staging | None = None

    @property
    def is_per_sample(self) -> bool:
        """Whether every sample has a generator of its own."""
        return isinstance(self.generator, (list, tuple))

    def of(self, rows: Sequence[int]) -> TorchNoise:
        """The noise of some of the samples, by their places; all of them with one generator."""
        if not isinstance(self.generator, (list, tuple)):
            return self
        return TorchNoise([self.generator[i] for i in rows], self.device, self.dtype)

    @property
    def is_staged(self) -> bool:
        """Whether noise drawn on the host goes to a card."""
        if self.device.type != "cuda" or self.generator is None:
            return False
        generators = [self.generator] if isinstance(self.generator, torch.Generator) else self.generator
        return all(generator.device.type == "cpu" for generator in generators)

    def draw(self, shape: tuple[int, ...]) -> Tensor:
        """Standard normals, float32 ``shape``, on the state's device."""
        return to_device(self._drawn(shape), self.device, torch.float32)

    initial = draw

    def encoding(self, shape: tuple[int, ...], row: int) -> Tensor:
        """Noise to bring a given image to the level of a plan row: the generator's next draw."""
        return self.draw(shape)

    def fill(self, ring: Tensor, plan: Plan, start: int, stop: int) -> None:
        """Draws z for plan rows start .. stop-1 into their slots ``k % K``; only where the method draws.

        From the host to a card it goes through a `Staging`, so that the next rows are drawn while the card
        works on these.
        """
        if self.is_staged and self._staging is None:
            self._staging = Staging(tuple(ring.shape))
        target = ring if self._staging is None else self._staging.take()
        rows = [k for k in range(start, stop) if plan.draws is not None and plan.draws[k]]
        for k in rows:
            target[k % len(ring)].copy_(self._drawn(tuple(ring.shape[1:]), self.order if k else None))
        if self._staging is not None:
            for slot in (k % len(ring) for k in rows):
                ring[slot].copy_(target[slot], non_blocking=True)
            self._staging.sent()

    def _drawn(self, shape: tuple[int, ...], order: Sequence[int] | None = None) -> Tensor:
        """In the dtype of the draws; on the host where it is staged, else on the state's device."""
        place = torch.device("cpu") if self.is_staged else self.device
        if isinstance(self.generator, (list, tuple)):
            rows = [self._draw((1, *shape[1:]), generator, order).to(place) for generator in self.generator]
            return torch.cat(rows)
        drawn = self._draw((self.rows or shape[0], *shape[1:]), self.generator, order)  # type: ignore[arg-type]
        return drawn[: shape[0]].to(place)

    def _draw(
        self, shape: tuple[int, ...], generator: torch.Generator | None, order: Sequence[int] | None
    ) -> Tensor:
        source = self.device if generator is None else generator.device
        if order is None:
            return torch.randn(shape, generator=generator, device=source, dtype=self.dtype)
        drawn = torch.empty_permuted(shape, tuple(order), device=source, dtype=self.dtype)
        return drawn.normal_(generator=generator)


class Event(Protocol):
    """What tells that a copy has ended: CUDA's, or one that stands for it."""

    def record(self) -> None: ...
    def synchronize(self) -> None: ...


class Staging:
    """Two page-locked buffers on the host, taken in turn: one is filled while the other is copied.

    Args:
        shape: of a buffer.
        event: makes what tells that a copy has ended; None for CUDA's.
        pinned: page-locked, without which a copy would wait for the card.
    """

    def __init__(
        self, shape: tuple[int, ...], *, event: Callable[[], Event] | None = None, pinned: bool = True
    ) -> None:
        self._buffers = [torch.zeros(shape, dtype=torch.float32, pin_memory=pinned) for _ in range(2)]
        made: Callable[[], Event] = event or torch.cuda.Event
        self._copied = [made(), made()]
        self._turn = 0

    def take(self) -> Tensor:
        """The buffer whose copy was sent longest ago, once that has ended: the host is two fills ahead at
        most."""
        self._turn = 1 - self._turn
        self._copied[self._turn].synchronize()
        return self._buffers[self._turn]

    def sent(self) -> None:
        """Notes that the copies from the buffer taken last are on their way in the current stream."""
        self._copied[self._turn].record()


def ring_length(shape: tuple[int, ...], steps: int) -> int:
    """Steps of noise that a ring holds: as many as the chain has, within 256 MiB, at least one."""
    return max(1, min(steps, RING_BYTES // (4 * math.prod(shape))))
