"""The stored outputs of repositories that are no packages, and the restated objects with their weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import Tensor, nn

from fastddpm_bench.peers import abarankab as peers_abarankab
from fastddpm_bench.peers import sr3 as peers_sr3

GOLDEN = Path(__file__).parent / "golden"


def abarankab(schedule: str) -> tuple[dict[str, Tensor], peers_abarankab.Diffusion]:
    """Of abarankab/DDPM, trained with a schedule, ``linear`` or ``cosine``."""
    tensors, config = stored(f"abarankab_{schedule}_public")
    network = peers_abarankab.Network(**config["unet"])
    size = (config["img_size"], config["img_size"])
    channels = config["unet"]["img_channels"]
    diffusion = peers_abarankab.Diffusion(network, size, channels, tensors["io.betas64"].numpy())
    return tensors, with_state(diffusion, tensors)


def sr3(kind: str) -> tuple[dict[str, Tensor], peers_sr3.Diffusion]:
    """Of the SR3 repository's variants, ``sr3`` or ``ddpm``."""
    tensors, config = stored(f"sr3repo_{kind}_public")
    options = config["unet"]
    # The repository's sr3 network takes no norm_groups, its ddpm network does.
    network = peers_sr3.Network(kind, **options)
    diffusion = peers_sr3.Diffusion(network, options["image_size"], options["out_channel"], kind=kind)
    diffusion.set_new_noise_schedule(config["schedule"])
    return tensors, with_state(diffusion, tensors)


def stored(name: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors and the configuration of a file in tests/golden."""
    with safe_open(GOLDEN / f"{name}.safetensors", "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        return tensors, json.loads(file.metadata()["config"])


def with_state(diffusion: nn.Module, tensors: dict[str, Tensor]) -> Any:
    """A diffusion object with the stored weights, in eval mode."""
    state = {name[len("state.") :]: value for name, value in tensors.items() if name.startswith("state.")}
    diffusion.load_state_dict(state)
    return diffusion.eval()
