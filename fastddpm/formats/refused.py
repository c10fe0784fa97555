"""Networks of other repositories that are known by their tensors' names and not read: what to do instead."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from torch import Tensor

from fastddpm.wrappers import without_wrappers

_BY_ITS_CODE = "build the network by its own code: "
_OPTIMIZE = f"{_BY_ITS_CODE}fastddpm.optimize(diffusion) takes its GaussianDiffusion"
_SCORE = f"{_BY_ITS_CODE}fastddpm.score takes it"
_PIPELINES = "diffusers' own pipelines take it"
_SAMPLER = f"{_BY_ITS_CODE}fastddpm.Sampler(model, schedule) takes any model(x, t) -> epsilon"

# In this order, since the first names are parts of the later ones'.
_KNOWN: tuple[tuple[str, tuple[str, ...], str], ...] = (
    ("Palette with conv_resample=False", ("cond_embed.0.weight", "input_blocks.0.0.weight"), _SAMPLER),
    ("latent or stable diffusion", ("first_stage_model.encoder.conv_in.weight",), _PIPELINES),
    (
        "guided-diffusion with conv_resample=False",
        ("input_blocks.0.0.weight", "time_embed.0.weight"),
        _OPTIMIZE,
    ),
    (
        "lucidrains' classifier-free guidance",
        ("null_classes_emb", "classes_emb.weight"),
        _OPTIMIZE,
    ),
    ("score_sde_pytorch", ("all_modules.0.weight", "all_modules.2.weight"), _SCORE),
    ("score_sde_pytorch", ("all_modules.0.W", "all_modules.1.weight"), _SCORE),
    ("EDM", ("map_layer0.weight", "map_layer1.weight"), _SCORE),
    ("diffusers' UNet2DConditionModel", ("down_blocks.0.attentions.0.proj_in.weight",), _PIPELINES),
    (
        "diffusers' VAE",
        ("encoder.down_blocks.0.resnets.0.conv1.weight",),
        "only networks that denoise are read",
    ),
)
_PICKLED = (b"torch_utils.persistence", b"training.networks", b"dnnlib")
"""Modules that the pickles of EDM and StyleGAN name."""


def name_of(states: Iterable[Mapping[str, Tensor]]) -> str | None:
    """Whose tensors a document has, and what to do with them; None if they are of nobody known."""
    for state in states:
        names = [f".{without_wrappers(name)}" for name in state]
        for owner, wanted, instead in _KNOWN:
            if all(any(name.endswith(f".{one}") for name in names) for one in wanted):
                return f"of {owner}, which is not read here; {instead}"
    return None


def is_edm_pickle(content: bytes) -> bool:
    """Whether the first bytes of a file are those of a pickle of EDM's or StyleGAN's, which holds code."""
    return any(module in content for module in _PICKLED)
