"""`fastddpm convert`: a checkpoint of any library read here, as our folder or as a folder of diffusers."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fastddpm.checkpoint import FORMATS, read
from fastddpm.checks import BadArgument, check_choice
from fastddpm.formats.files import read_json
from fastddpm.formats.writing import save_pipeline
from fastddpm.model_folder import save_folder
from fastddpm.unet import UNet

TARGETS = ("fastddpm", "diffusers")


def convert(
    source: Annotated[str, typer.Argument(metavar="IN", help="Model folder, .pth or .safetensors file.")],
    target: Annotated[Path, typer.Argument(metavar="OUT", help="Folder to write.")],
    format: Annotated[str, typer.Option(help=f"Of IN: {', '.join(FORMATS)}.")] = "auto",
    to: Annotated[str, typer.Option(help="fastddpm: our folder; diffusers: a pipeline folder.")] = "fastddpm",
    config: Annotated[
        Path | None,
        typer.Option(exists=True, help="JSON with what IN does not say, such as SR3's configuration."),
    ] = None,
    ema: Annotated[bool, typer.Option(help="The averaged weights, where IN has both.")] = True,
) -> None:
    """Convert a checkpoint of another library into a model folder, or into a diffusers pipeline.

    The weights are the same; images are those of the library's own sampling up to rounding.
    """
    check_choice("to", to, TARGETS)
    given = None if config is None else read_json(config)
    loaded = read(source, format=format, config=given, ema=ema)
    if not isinstance(loaded.model, UNet):
        raise BadArgument(
            "IN",
            f"{source}, a {type(loaded.model).__name__} that our UNet does not express,",
            "any other network",
        )
    save = save_pipeline if to == "diffusers" else save_folder
    save(target, loaded.model, loaded.schedule, loaded.options)
    parameters = sum(value.numel() for value in loaded.model.parameters())
    print(
        f"{source} -> {target}: {to} folder, {parameters:,} parameters, {len(loaded.schedule)} timesteps, "
        f"{loaded.options.get('method', 'ddpm')}"
    )
