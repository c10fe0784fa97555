"""Where a checkpoint is that somebody names: here, in the box, in a training run, or on the Hub."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from fastddpm.formats import runs
from fastddpm.formats.files import CheckpointError
from fastddpm.formats.hub import check_unasked, downloaded, names_repository
from fastddpm.options import HubOptions

if TYPE_CHECKING:
    from typing_extensions import Unpack

ASSETS = Path(__file__).parent / "assets"
BUNDLED = ("mnist", "mnist_sr", "mnist_deblur", "photo_sr")
FILES = ("config.json", "model.safetensors", "schedule.json", "sampler.json")
"""Of a model folder."""


def located(
    source: str | Path, *, ema: bool = True, variant: str | None = None, **hub: Unpack[HubOptions]
) -> Path:
    """Where a checkpoint is: of a bundled model, a file or folder, a training run, the SR3 repository's name
    of a state, or what is kept of a repository on the Hugging Face Hub, fetched if need be.

    Arguments as of `fastddpm.load`.

    Raises:
        CheckpointError: nowhere, or a run without a model so far.
        ValueError: options of the Hub for something that is here.
    """
    path = Path(source)
    if names_repository(source) and not path.exists():
        return downloaded(str(source), ema=ema, variant=variant, **hub)
    check_unasked(source, **hub)
    if str(source) in BUNDLED and not path.is_dir():
        return ASSETS / str(source)
    if path.exists():
        return runs.model_of(path) if runs.recognises(path) else path
    if path.name and path.with_name(f"{path.name}_gen.pth").is_file():
        return path.with_name(f"{path.name}_gen.pth")
    raise CheckpointError(
        f"model folder {str(source)!r}: not found; a folder with {', '.join(FILES)}, a folder of diffusers, "
        f"a .pth or .safetensors file, or one of {', '.join(BUNDLED)} accepted"
    )
