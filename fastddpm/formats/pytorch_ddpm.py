"""w86763777/pytorch-ddpm: state dicts of its UNet, such as ``net_model`` and ``ema_model`` of its ckpt.pt."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from fastddpm.formats.files import CheckpointError
from fastddpm.formats.loaded import SHARED, Loaded, ask, known, network, schedule_of, square
from fastddpm.inputs import Fields
from fastddpm.unet import pytorch_ddpm as dialect

ANCHOR = "time_embedding.timembedding.1.weight"
_ASKED = {
    "image_size": "a side in pixels or (H, W), 32 by default there",
    "schedule": "a NoiseSchedule or its betas, linear(1000) by default there",
}


def recognises(state: Mapping[str, object]) -> bool:
    """Whether a state dict is one of its."""
    return ANCHOR in state and "downblocks.0.block1.2.weight" in state


def read(state: Mapping[str, Tensor], given: Fields) -> Loaded:
    """Reads a state dict.

    Args:
        state: of a network.
        given: ``image_size`` and ``schedule``, which has as many timesteps as the network's table; and
            ``num_groups`` where it is not the 32 of its code.

    Raises:
        CheckpointError: naming what is missing or contradicts the tensors.
    """
    options = dict(given)
    known(options, ("num_groups", "dropout", *SHARED))
    ask(options, _ASKED, "a state dict of w86763777/pytorch-ddpm")
    schedule, (height, width) = schedule_of(options.pop("schedule")), square(options.pop("image_size"))
    table = state.get(dialect.TABLE)  # an average of what is trained has none
    if table is not None and not dialect.is_its_table(table):
        raise CheckpointError(
            f"{dialect.TABLE}: not the sines and cosines of its code, which alone are read here"
        )
    if table is not None and len(schedule) != len(table):
        raise CheckpointError(
            f"schedule: {len(schedule)} timesteps given, the {len(table)} of {dialect.TABLE} accepted"
        )
    unet = network(dialect.state_dict(state), options, dialect.FIXED)
    shape = [unet.config.image_channels, height, width]
    # Its sampling: fixedlarge, and clipped after the last step alone, which is left to who draws.
    return Loaded(unet, schedule, {"method": "ddpm", "variance_type": "fixed_large", "shape": shape})
