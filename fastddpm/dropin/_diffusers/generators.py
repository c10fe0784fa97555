"""Generators as a caller of diffusers gives them: one, a list, or None."""

from __future__ import annotations

import torch

from fastddpm.checks import BadArgument

Generators = torch.Generator | list[torch.Generator] | None


def one_each(generator: Generators, count: int, *, exactly: bool = False) -> Generators:
    """Generators as `diffusers.utils.randn_tensor` uses them.

    A list of one is that generator, drawing for the whole batch; of a longer list the first B are used.

    Args:
        generator: what the caller gave.
        count: B.
        exactly: a list has B elements, as DDIMPipeline asks.

    Raises:
        ValueError: too few of them, or not B where it has to be.
    """
    if not isinstance(generator, (list, tuple)):
        return generator
    if len(generator) != count and (exactly or 1 < len(generator) < count or not generator):
        raise BadArgument("generator", f"{len(generator)} for {count} images", "one, or one each,")
    return generator[0] if len(generator) == 1 else list(generator[:count])
