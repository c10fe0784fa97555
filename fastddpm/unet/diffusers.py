"""What diffusers' ``UNet2DModel`` calls the parts and options of the network, as DDPM checkpoints use it.

Source: diffusers 0.42.1, models/unets/unet_2d.py and unet_2d_blocks.py. diffusers is not imported here.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from fastddpm.checks import BadArgument
from fastddpm.inputs import Fields, Json
from fastddpm.unet.config import MidAttention, UNetConfig
from fastddpm.unet.diffusers_names import modern, state_dict, their_state_dict
from fastddpm.unet.inference import assemble
from fastddpm.unet.matching import agrees
from fastddpm.unet.unet import UNet

__all__ = ["config", "from_module", "modern", "state_dict", "their_config", "their_state_dict"]

DEFAULTS: Json = {
    "sample_size": None,
    "in_channels": 3,
    "out_channels": 3,
    "center_input_sample": False,
    "time_embedding_type": "positional",
    "time_embedding_dim": None,
    "freq_shift": 0,
    "flip_sin_to_cos": True,
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"),
    "mid_block_type": "UNetMidBlock2D",
    "up_block_types": ("AttnUpBlock2D", "AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
    "block_out_channels": (224, 448, 672, 896),
    "layers_per_block": 2,
    "mid_block_scale_factor": 1,
    "downsample_padding": 1,
    "downsample_type": "conv",
    "upsample_type": "conv",
    "dropout": 0.0,
    "act_fn": "silu",
    "attention_head_dim": 8,
    "norm_num_groups": 32,
    "attn_norm_num_groups": None,
    "norm_eps": 1e-5,
    "resnet_time_scale_shift": "default",
    "add_attention": True,
    "class_embed_type": None,
    "num_class_embeds": None,
    "num_train_timesteps": None,
}
AVERAGING = (
    "decay",
    "min_decay",
    "optimization_step",
    "update_after_step",
    "use_ema_warmup",
    "inv_gamma",
    "power",
)
"""What EMAModel.save_pretrained adds to a configuration (training_utils.py): nothing of the network's."""
_FIXED: dict[str, tuple[object, ...]] = {
    "time_embedding_type": ("positional",),
    "mid_block_type": ("UNetMidBlock2D",),
    "mid_block_scale_factor": (1,),
    "downsample_type": ("conv",),
    "upsample_type": ("conv",),
    "act_fn": ("silu", "swish"),
    "resnet_time_scale_shift": ("default", "scale_shift"),
    "class_embed_type": (None, "timestep"),
}
"""Options with one meaning here, and the values that have it."""


def config(options: Fields, *, num_classes: int | None = None) -> UNetConfig:
    """Our configuration from that of a ``UNet2DModel``, whose defaults fill what is left out.

    Args:
        options: its config.json, or its keyword arguments.
        num_classes: classes of ``class_embed_type="timestep"``, which the configuration does not say.

    Raises:
        ValueError: an option that our network has not, naming it.
    """
    own = {name: value for name, value in options.items() if not name.startswith("_")}
    given = {**DEFAULTS, **{name: value for name, value in own.items() if name not in AVERAGING}}
    unknown = sorted(set(given) - set(DEFAULTS))
    if unknown:
        raise BadArgument(unknown[0], "an option that UNet2DModel has not", "those that it has")
    for name, accepted in _FIXED.items():
        if given[name] not in accepted:
            raise BadArgument(name, repr(given[name]), f"{' or '.join(map(repr, accepted))} by our UNet")
    for name in ("block_out_channels", "down_block_types", "up_block_types"):
        if not isinstance(given[name], (list, tuple)) or not given[name]:
            raise BadArgument(name, repr(given[name]), "a list with an entry per level by our UNet")
    widths = list(given["block_out_channels"])
    if not all(isinstance(width, int) and width > 0 for width in widths):
        raise BadArgument("block_out_channels", str(widths), "integers above 0")
    if any(width % widths[0] for width in widths):
        raise BadArgument("block_out_channels", str(widths), "multiples of the first by our UNet")
    by_time = given["class_embed_type"] == "timestep"
    if by_time and num_classes is None:
        raise BadArgument("num_classes", "None with class_embed_type 'timestep'", "a number of classes")
    return UNetConfig(
        in_channels=given["in_channels"],
        out_channels=None if given["out_channels"] == given["in_channels"] else given["out_channels"],
        base_channels=widths[0],
        channel_mults=tuple(width // widths[0] for width in widths),
        num_res_blocks=given["layers_per_block"],
        time_dim=given["time_embedding_dim"] or 4 * widths[0],
        time_cosine_first=bool(given["flip_sin_to_cos"]),
        time_frequency_shift=given["freq_shift"],
        time_conditioning="scale_shift" if given["resnet_time_scale_shift"] == "scale_shift" else "bias",
        num_classes=num_classes if by_time else given["num_class_embeds"],
        class_conditioning="timestep" if by_time else "embedding",
        attention_levels=_attention_levels(given),
        attention_head_dim=given["attention_head_dim"],
        mid_attention=_mid_attention(given),
        activation="silu",
        norm="gn",
        num_groups=given["norm_num_groups"],
        norm_eps=given["norm_eps"],
        dropout=given["dropout"],
        downsample_padding=given["downsample_padding"],
        center_input=bool(given["center_input_sample"]),
    )


def _attention_levels(given: Fields) -> tuple[int, ...]:
    down, up = list(given["down_block_types"]), list(given["up_block_types"])
    for name, kinds, plain in (
        ("down_block_types", down, ("DownBlock2D", "AttnDownBlock2D")),
        ("up_block_types", up, ("UpBlock2D", "AttnUpBlock2D")),
    ):
        other = [kind for kind in kinds if kind not in plain]
        if other:
            raise BadArgument(name, str(other[0]), f"{' and '.join(plain)} by our UNet")
    levels = [kind.startswith("Attn") for kind in down]
    if levels != [kind.startswith("Attn") for kind in reversed(up)]:
        raise BadArgument("up_block_types", str(up), f"attention on the levels of {down} by our UNet")
    return tuple(level for level, attends in enumerate(levels) if attends)


def _mid_attention(given: Fields) -> MidAttention:
    if not given["add_attention"]:
        return "none"
    groups = given["attn_norm_num_groups"]
    if groups is None:
        return "norm" if given["resnet_time_scale_shift"] == "default" else "plain"
    if groups != given["norm_num_groups"]:
        raise BadArgument("attn_norm_num_groups", str(groups), "None or norm_num_groups by our UNet")
    return "norm"


def their_config(ours: UNetConfig) -> Json:
    """Keyword arguments of a ``UNet2DModel`` that computes what ours does; ``sample_size`` is left open.

    Raises:
        ValueError: an option that their network has not, naming it.
    """
    widths = [ours.base_channels * m for m in ours.channel_mults]
    attends = [level in ours.attention_levels for level in range(len(widths))]
    by_time = ours.class_conditioning == "timestep"
    shifted = ours.time_conditioning == "scale_shift"
    theirs = {
        **DEFAULTS,
        "in_channels": ours.in_channels,
        "out_channels": ours.image_channels,
        "center_input_sample": ours.center_input,
        "time_embedding_dim": ours.time_dim,
        "freq_shift": ours.time_frequency_shift,
        "flip_sin_to_cos": ours.time_cosine_first,
        "down_block_types": ["AttnDownBlock2D" if a else "DownBlock2D" for a in attends],
        "up_block_types": ["AttnUpBlock2D" if a else "UpBlock2D" for a in reversed(attends)],
        "block_out_channels": widths,
        "layers_per_block": ours.num_res_blocks,
        "downsample_padding": ours.downsample_padding,
        "dropout": ours.dropout,
        "attention_head_dim": ours.attention_head_dim,
        "norm_num_groups": ours.num_groups,
        "attn_norm_num_groups": ours.num_groups if shifted and ours.mid_attention == "norm" else None,
        "norm_eps": ours.norm_eps,
        "resnet_time_scale_shift": "scale_shift" if shifted else "default",
        "add_attention": ours.mid_attention != "none",
        "class_embed_type": "timestep" if by_time and ours.num_classes else None,
        "num_class_embeds": None if by_time or ours.num_classes is None else _rows(ours),
    }
    back = config(theirs, num_classes=ours.num_classes).to_dict()
    # Read back as one class more; and without classes there is no way of putting them in.
    back |= {"null_class": ours.null_class, "num_classes": ours.num_classes}
    wanted = ours.to_dict()
    if ours.image_channels == ours.in_channels:
        wanted["out_channels"] = None  # which says the same
    if ours.num_classes is None:
        back["class_conditioning"] = wanted["class_conditioning"]
    for name, value in wanted.items():
        if back[name] != value:
            raise BadArgument(name, f"{value!r}, which diffusers' UNet2DModel has not,", repr(back[name]))
    return theirs


def _rows(ours: UNetConfig) -> int:
    return (ours.num_classes or 0) + ours.null_class


def from_module(module: nn.Module, *, num_classes: int | None = None) -> UNet | None:
    """Our network with the weights of a live ``UNet2DModel``; those of attention are copies, others shared.

    Args:
        module: their network, or code copied from it; left as it was.
        num_classes: as of :func:`config`.

    Returns:
        None where it is another network, or ours does not give its outputs to 1e-4 relative.
    """
    options = getattr(module, "config", None)
    if not isinstance(options, Mapping) or "block_out_channels" not in options:
        return None
    try:
        ours = config(options, num_classes=num_classes)
        unet = assemble(ours, state_dict(module.state_dict(), ours))
    except (ValueError, TypeError):
        return None

    def call(x: Tensor, t: Tensor, labels: Tensor | None) -> object:
        return module(x, t, class_labels=labels).sample

    return unet if agrees(unet, module, call) else None
