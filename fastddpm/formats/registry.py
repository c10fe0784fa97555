"""The formats of state dicts, in the order in which they are asked."""

from __future__ import annotations

from fastddpm.formats import (
    abarankab,
    ddim,
    diffusers,
    guided_diffusion,
    lucidrains,
    ours,
    palette,
    pytorch_ddpm,
    sr3,
)
from fastddpm.formats.format import Format

FORMATS: dict[str, Format] = {
    "abarankab": Format(abarankab.ANCHOR, abarankab.recognises, abarankab.read),
    "sr3": Format(sr3.ANCHOR, sr3.recognises, sr3.read),
    "diffusers": Format(
        "time_embedding.linear_1.weight",
        diffusers.recognises_state,
        lambda state, buffers, given: diffusers.read_state(state, given),
    ),
    "fastddpm": Format(ours.ANCHOR, ours.recognises, lambda state, buffers, given: ours.read(state, given)),
    "lucidrains": Format(lucidrains.ANCHOR, lucidrains.recognises, lucidrains.read),
    "pytorch_ddpm": Format(
        pytorch_ddpm.ANCHOR,
        pytorch_ddpm.recognises,
        lambda state, buffers, given: pytorch_ddpm.read(state, given),
    ),
    "guided_diffusion": Format(
        guided_diffusion.ANCHOR,
        guided_diffusion.recognises,
        lambda state, buffers, given: guided_diffusion.read(state, given),
    ),
    "palette": Format(
        palette.ANCHOR, palette.recognises, lambda state, buffers, given: palette.read(state, given)
    ),
    "ddim": Format(ddim.ANCHOR, ddim.recognises, lambda state, buffers, given: ddim.read(state, given)),
}
