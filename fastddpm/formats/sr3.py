"""Janspiry's SR3 repository: state dicts of its GaussianDiffusion (``*_gen.pth``), and its configuration."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from fastddpm.checks import BadArgument, check_number, shortened
from fastddpm.formats import palette
from fastddpm.formats.files import CheckpointError, ConfigError
from fastddpm.formats.loaded import SHARED, Loaded, ask, groups_asked, known, network, schedule_of, square
from fastddpm.inputs import Fields
from fastddpm.options import SamplerOptions
from fastddpm.unet import sr3 as dialect
from fastddpm.unet.config import Options

ANCHOR = "final_conv.block.3.weight"
_OPTIONS = ("num_groups", "dropout", *SHARED)
_UNET = {
    "in_channel": "in_channels",
    "out_channel": "out_channels",
    "inner_channel": "base_channels",
    "channel_multiplier": "channel_mults",
    "res_blocks": "num_res_blocks",
}
"""Options of their configuration that the tensors show too, and ours of them."""


def recognises(state: Mapping[str, Tensor]) -> bool:
    """Whether a state dict is one of theirs."""
    return dialect.variant_of(state) is not None


def read(state: Mapping[str, Tensor], buffers: Mapping[str, Tensor], given: Fields) -> Loaded:
    """Reads a state dict of either variant.

    Args:
        state: of a network.
        buffers: of the GaussianDiffusion that held it; or none.
        given: the content of their JSON configuration; or, without one, ``num_groups`` (their norm_groups),
            ``image_size``, and ``schedule`` where no betas lie beside it. ``schedule_phase`` beside
            their ``model`` picks one of the two schedules of a configuration: ``val``, with which they
            sample, unless it is ``train``. Without a configuration the betas stored are the schedule.
            Or the JSON configuration of the Palette repository, whose ``sr3`` network has the same names and
            is told alphas_cumprod; its own files are known by the gammas among ``buffers``.

    Raises:
        CheckpointError: naming what is missing or contradicts the tensors.
    """
    variant = dialect.variant_of(state)
    if variant is None:
        raise CheckpointError("state dict: no network of the SR3 repository in it, of variant sr3 or ddpm")
    ours = dialect.state_dict(state)
    is_palette = palette.is_configuration(given) or ("gammas" in buffers and "betas" not in buffers)
    if palette.is_configuration(given):
        options = _from_palette(given)
    else:
        options = _from_configuration(given, variant) if "model" in given else dict(given)
    if "norm_groups" in options:
        options["num_groups"] = options.pop("norm_groups")
    shown = {name: options.pop(name) for name in _UNET.values() if name in options}
    if "in_channels" in shown and shown["in_channels"] == shown.get("out_channels"):
        shown["out_channels"] = None  # an unconditional network
    known(options, _OPTIONS)
    asked = {**groups_asked(ours), "image_size": "a side in pixels or (H, W)"}
    if "betas" in buffers:
        betas = buffers["betas"].detach().cpu().double().numpy()
        options.setdefault("schedule", betas)
    else:
        asked["schedule"] = "theirs, or a NoiseSchedule"
    ask(options, asked, "a state dict of the SR3 repository")
    schedule, (height, width) = schedule_of(options.pop("schedule")), square(options.pop("image_size"))
    unet = network(ours, {**shown, **options}, {"time_activation": variant == "ddpm", "activation": "silu"})
    defaults: SamplerOptions = {"method": "ddpm", "clip_sample_range": 1.0}
    if variant == "sr3":
        defaults["time_input"] = "alphas_cumprod" if is_palette else "noise_level"
    return Loaded(unet, schedule, {**defaults, "shape": [unet.config.image_channels, height, width]})


def _from_palette(document: Fields) -> Options:
    """Our options from the content of the Palette repository's JSON file."""
    unet, schedule = palette.configured(document, "sr3")
    names = {**_UNET, "channel_mults": "channel_mults", "image_size": "image_size", "dropout": "dropout"}
    options = {ours: unet[theirs] for theirs, ours in names.items() if theirs in unet}
    return options | {"num_groups": unet.get("norm_groups", 32), "schedule": schedule}


def _from_configuration(document: Fields, variant: str) -> Options:
    """Our options from the content of their JSON file."""
    model = document["model"]
    try:
        if model.get("which_model_G", variant) != variant:
            given = shortened(repr(model["which_model_G"]))
            raise ConfigError(f"which_model_G={given} given, the tensors show {variant!r}")
        unet, schedules = model["unet"], model["beta_schedule"]
        options = {ours: unet[theirs] for theirs, ours in _UNET.items() if theirs in unet}
        phase = document.get("schedule_phase", "val")
        options |= {
            "num_groups": unet.get("norm_groups") or 32,  # their default
            "dropout": check_number("dropout", unet.get("dropout") or 0.0, low=0.0, below=1.0),
            "image_size": model["diffusion"]["image_size"],
            "schedule": schedules[phase],
        }
    except BadArgument as error:
        raise ConfigError(error) from error
    except (AttributeError, KeyError, TypeError) as error:
        reason = f"{type(error).__name__}: {shortened(str(error))}"
        raise ConfigError(f"not a configuration of the SR3 repository ({reason})") from error
    return options
