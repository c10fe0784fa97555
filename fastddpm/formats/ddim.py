"""ermongroup/ddim and pesser/pytorch_diffusion: state dicts of the network of Ho et al. 2020.

Papers use these weights (``model-790000.ckpt`` of CIFAR-10, ``ema_diffusion_lsun_...``).
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from fastddpm.formats.loaded import SHARED, Loaded, ask, known, network, schedule_of, square
from fastddpm.inputs import Fields
from fastddpm.unet import ddim as dialect

ANCHOR = "temb.dense.0.weight"
_ASKED = {
    "image_size": "a side in pixels or (H, W)",
    "schedule": "a NoiseSchedule or its betas, such as NoiseSchedule.linear(1000), theirs",
}


def recognises(state: Mapping[str, object]) -> bool:
    """Whether a state dict is one of theirs."""
    return ANCHOR in state and "down.0.block.0.conv1.weight" in state


def read(state: Mapping[str, Tensor], given: Fields) -> Loaded:
    """Reads a state dict.

    Args:
        state: of a network.
        given: ``image_size`` and ``schedule``; ``num_groups`` where it is not the 32 of their code.

    Raises:
        CheckpointError: naming what is missing or contradicts the tensors.
    """
    options = dict(given)
    known(options, ("num_groups", "dropout", *SHARED))
    ask(options, _ASKED, "a state dict of ermongroup/ddim")
    schedule, (height, width) = schedule_of(options.pop("schedule")), square(options.pop("image_size"))
    unet = network(dialect.state_dict(state), options, dialect.FIXED)
    shape = [unet.config.image_channels, height, width]
    # Ancestral sampling, in both repositories: clipped, and sigma = sqrt(beta) as for CIFAR-10.
    return Loaded(
        unet,
        schedule,
        {"method": "ddpm", "variance_type": "fixed_large", "clip_sample_range": 1.0, "shape": shape},
    )
