"""`fastddpm evaluate`: how near drawn images are to real ones."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fastddpm.checks import BadArgument, whole
from fastddpm.cli.arguments import parse_device
from fastddpm.cli.options import Sets
from fastddpm.evaluation.image_sets import ImageSet, open_images
from fastddpm.evaluation.scores import score
from fastddpm.evaluation.statistics import check_path, holds_statistics, read_statistics

LARGEST_BATCH = 2**20


def evaluate(
    folder: Annotated[
        str, typer.Argument(help="Images: a folder of `fastddpm sample --format`, of pictures, or an .npz.")
    ],
    reference: Annotated[
        str,
        typer.Option(
            help="Real images: mnist (its test split), a folder, an .npz, or one of statistics (mu, sigma)."
        ),
    ] = "mnist",
    features: Annotated[
        str, typer.Option(help="inception, or digits: our classifier's, for grey 28x28 images.")
    ] = "inception",
    weights: Annotated[
        Path | None, typer.Option(help="For inception: the file of weights that torch-fidelity publishes.")
    ] = None,
    save_statistics: Annotated[
        Path | None,
        typer.Option(help="An .npz to write the statistics of the real images to, for --reference."),
    ] = None,
    batch: Annotated[int, typer.Option(help="Images at a time."), Sets("batch_size")] = 64,
    device: Annotated[str | None, typer.Option(help="cpu or cuda; CUDA if any.")] = None,
) -> None:
    """Print FID, KID, precision and recall of drawn images, computed by torch-fidelity.

    On other features than Inception's the first two are called what they are, a Frechet and a kernel
    distance. Figures can be compared at equal numbers of images and equal features only.
    """
    whole("batch", batch, least=1, most=LARGEST_BATCH)
    if save_statistics is not None:
        check_path("--save-statistics", save_statistics)
    generated = _opened(folder, "FOLDER")
    read = holds_statistics(Path(reference))
    real = read_statistics(reference) if read else _opened(reference, "--reference")
    scores = score(
        generated,
        real,
        features=features,
        weights=weights,
        batch_size=batch,
        cuda=parse_device(device).type == "cuda",
        save_statistics=save_statistics,
    )
    theirs = f"{len(real)} of {reference}" if isinstance(real, ImageSet) else f"statistics in {reference}"
    print(f"{len(generated)} images of {folder} and {theirs}, features {features}:")
    # Another distance than that of Inception's features is compared with no FID.
    names = ("FID", "KID") if features == "inception" else ("Frechet distance", "kernel distance")
    print(f"{names[0]:<10} {scores.frechet:.4f}")
    if scores.kid is None:
        print(f"{names[1]}, precision and recall need more than mu and sigma: images, or their features.")
        return
    print(f"{names[1]:<10} {scores.kid:.6f} +- {scores.kid_std:.6f}")
    print(f"precision  {scores.precision:.4f}")
    print(f"recall     {scores.recall:.4f}")


def _opened(where: str, option: str) -> ImageSet:
    """Images, whose error names where the person gave them."""
    try:
        return open_images(where)
    except BadArgument as error:
        raise BadArgument(option, error.given, error.accepted) from error
