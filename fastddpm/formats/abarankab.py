"""abarankab/DDPM: state dicts of its UNet, alone or within its GaussianDiffusion, which holds two."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from torch import Tensor

from fastddpm.formats.files import CheckpointError
from fastddpm.formats.loaded import SHARED, Loaded, ask, groups_asked, known, network, schedule_of, square
from fastddpm.inputs import Fields
from fastddpm.schedule import NoiseSchedule
from fastddpm.unet import abarankab as dialect

ANCHOR = "downs.0.conv_1.weight"
_ASKED = {
    "activation": "relu (their default), silu (their scripts'), mish or gelu",
    "time_scale": "their time_emb_scale, 1.0 unless set",
    "image_size": "a side in pixels or (H, W)",
}


def recognises(state: Mapping[str, object]) -> bool:
    """Whether a state dict is one of theirs."""
    return "init_conv.weight" in state and ANCHOR in state


def read(state: Mapping[str, Tensor], buffers: Mapping[str, Tensor], given: Fields) -> Loaded:
    """Reads a state dict.

    Args:
        state: of a UNet.
        buffers: of the GaussianDiffusion that held it, whose betas give the schedule; or none.
        given: what the tensors do not show: ``activation``, ``num_groups``, ``time_scale``, ``image_size``,
            ``initial_pad`` where it is not 0, ``norm`` where it is ``in``, and ``schedule`` for a bare UNet.
            Names of their arguments are taken too.

    Raises:
        CheckpointError: naming what is missing or contradicts the tensors.
    """
    theirs = {name: ours for ours, name in dialect.OPTIONS.items()} | {"img_size": "image_size"}
    options = {theirs.get(name, name): value for name, value in given.items()}
    known(options, (*dialect.OPTIONS, *SHARED))
    ours = dialect.state_dict(state)
    asked = dict(_ASKED) if "norm" in options else {**_ASKED, **groups_asked(ours)}
    if "betas" in buffers:
        options.setdefault("schedule", _schedule(buffers["betas"]))
    else:
        asked["schedule"] = "a NoiseSchedule, its betas, or the content of a schedule.json"
    ask(options, asked, "a state dict of abarankab/DDPM")
    schedule, (height, width) = schedule_of(options.pop("schedule")), square(options.pop("image_size"))
    unet = network(ours, options, {})
    multiple, pad = unet.config.size_multiple, 2 * unet.config.initial_pad
    if (height + pad) % multiple or (width + pad) % multiple:
        fits = f"one for which {height}x{width} plus twice it is a multiple of {multiple}"
        ask({}, {"initial_pad": f"pixels of padding, {fits}"}, "a state dict of abarankab/DDPM")
    shape = [unet.config.image_channels, height, width]
    # Their sampling: no clip, sigma = sqrt(beta).
    return Loaded(unet, schedule, {"method": "ddpm", "variance_type": "fixed_large", "shape": shape})


def _schedule(betas: Tensor) -> NoiseSchedule:
    """The schedule whose betas these are in float32: one of their two in float64, if it is one of those."""
    stored = betas.detach().float().cpu().numpy()
    if stored.ndim != 1 or not len(stored):
        raise CheckpointError(f"state dict: betas of shape {stored.shape} in it, one a timestep accepted")
    steps = len(stored)
    scale = 1000 / steps
    candidates = [NoiseSchedule.cosine(steps)]
    if 0.02 * scale <= 1:
        candidates.append(NoiseSchedule.linear(steps, 1e-4 * scale, 0.02 * scale))
    for candidate in candidates:
        if np.allclose(candidate.betas.astype(np.float32), stored, rtol=2e-7, atol=0):
            return candidate
    return NoiseSchedule.from_betas(stored.astype(np.float64))
