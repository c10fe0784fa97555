"""What wrappers of modules call the module inside, and so what stands before the names of its tensors."""

from __future__ import annotations

import re

SAME = ("module", "_orig_mod", "_forward_module", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
"""Of wrappers that compute what is inside: DataParallel and DistributedDataParallel, torch.compile, Fabric
and DeepSpeed, FullyShardedDataParallel, activation checkpoints."""
AVERAGE = "ema_model"
"""Of ema_pytorch's EMA, the average; the network in training is its ``online_model``."""
COUNTER = "n_averaged"
"""The one tensor of its own that an AveragedModel of torch.optim.swa_utils has beside its ``module``."""
_AVERAGES = re.compile(r"(?<![a-z])(ema|shadow|averaged?|avg|swa)(?![a-z])")
_ONLINE = re.compile(r"(?<![a-z])online(?![a-z])")


def is_average(names: tuple[str, ...]) -> bool:
    """Whether names that lead to weights, outermost first, say that these are an average (of any training).

    The last one that says anything decides: ``("ema", "online_model")`` are the weights in training.
    """
    for name in reversed(names):
        words = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower()
        if _ONLINE.search(words):
            return False
        if _AVERAGES.search(words):
            return True
    return False


def without_wrappers(name: str) -> str:
    """The name of a tensor without the wrappers that compute what is inside, wherever these stand in it."""
    return ".".join(part for part in name.split(".") if part not in SAME)
