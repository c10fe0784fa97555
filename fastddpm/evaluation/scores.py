"""FID, KID, precision and recall of a set of images, computed by torch-fidelity."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path

from fastddpm.checks import BadArgument
from fastddpm.evaluation.features import DIMENSIONS, FeatureNetwork, check_images
from fastddpm.evaluation.image_sets import ImageSet
from fastddpm.evaluation.metrics import NEIGHBOUR, distance_of, kernel_distance, overlap
from fastddpm.evaluation.statistics import Statistics


@dataclass(frozen=True)
class Scores:
    """How near generated images are to real ones.

    All but the first are None where of the real images mean and covariance alone are known.

    Attributes:
        frechet: Frechet distance of the features; 0 is best. It is the FID (Heusel et al. 2017) where these
            are Inception's, of the published weights.
        kid: the kernel's distance of Binkowski et al. 2018, mean over 100 subsets; near 0 is best.
        kid_std: its standard deviation over the subsets.
        precision: share of generated images within the real ones (Kynkaanniemi et al. 2019, k = 3).
        recall: share of real images within the generated ones.
    """

    frechet: float
    kid: float | None = None
    kid_std: float | None = None
    precision: float | None = None
    recall: float | None = None


def score(
    generated: ImageSet,
    real: ImageSet | Statistics,
    *,
    features: str = "inception",
    weights: str | Path | None = None,
    batch_size: int = 64,
    cuda: bool = False,
    save_statistics: Path | None = None,
) -> Scores:
    """Compares two sets of images.

    Args:
        generated: at least 4 images.
        real: at least 4 images, or what `fastddpm.evaluation.read_statistics` read of them.
        features: ``inception`` or ``digits``, as of `fastddpm.evaluation.features.FeatureNetwork`, and for
            precision and recall the same. Sets of no more images than features give a warning: their
            covariances are singular.
        weights: for ``inception``, its file.
        batch_size: images that the network sees at once.
        cuda: run the network on the CUDA device.
        save_statistics: an npz file, to which the statistics of ``real`` are written.

    Raises:
        ValueError: naming the argument, what was given and what is accepted; statistics of another number of
            features, or of other weights.
        CheckpointError: (a ValueError) weights that hold something else than tensors, or are damaged.
        MissingExtra: torch-fidelity is not there.
    """
    for name, images in (("generated", generated), ("real", real)):
        if isinstance(images, ImageSet):
            check_images(name, images, features)
        elif features in DIMENSIONS and len(images.mu) != DIMENSIONS[features]:
            raise BadArgument(
                name,
                f"statistics of {len(images.mu):,} features with {features}",
                f"those of {DIMENSIONS[features]:,}",
            )
    network = FeatureNetwork(features, weights, batch_size=batch_size, cuda=cuda)
    if isinstance(real, Statistics):
        _check_same_network(real, network)
        reference = real
    else:
        reference = network.statistics(real, "real")
    if save_statistics is not None:
        reference.write(save_statistics)
    drawn = network.statistics(generated, "generated")
    _warn_of_few({"generated": drawn, "real": reference})
    return compared(drawn, reference)


def compared(generated: Statistics, real: Statistics) -> Scores:
    """The scores of two sets' statistics, of the same features."""
    distance = distance_of((generated.mu, generated.sigma), (real.mu, real.sigma))
    if generated.features is None or real.features is None:
        return Scores(distance)
    kernel = kernel_distance(generated.features, real.features)
    return Scores(distance, *kernel, *overlap(generated.features, real.features, NEIGHBOUR))


def _check_same_network(real: Statistics, network: FeatureNetwork) -> None:
    if real.weights is not None and real.weights != network.weights:
        raise BadArgument(
            "real",
            f"statistics of other weights (sha256 {real.weights.hex()[:8]}...)",
            f"those of the weights in use ({network.weights.hex()[:8]}...)",
        )


def _warn_of_few(sets: dict[str, Statistics]) -> None:
    """UserWarning for sets whose covariance of the features has no full rank."""
    few = [
        f"{len(one.features):,} {name}"
        for name, one in sets.items()
        if one.features is not None and len(one.features) <= len(one.mu)
    ]
    if few:
        warnings.warn(
            f"{' and '.join(few)} images for {len(sets['real'].mu):,} features: with no more images than "
            "features the covariance is singular, and the Frechet distance is above that of many images; it "
            "compares at equal numbers alone",
            stacklevel=3,
        )
