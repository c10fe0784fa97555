"""FID, KID, precision and recall of a set of images, computed by torch-fidelity.

The features are Inception's, with a file of weights that is here already, or those of our digit classifier.
"""

from __future__ import annotations

import hashlib
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor
from torch.utils.data import Dataset

from fastddpm.checks import BadArgument, check_choice
from fastddpm.evaluation.image_sets import ImageSet
from fastddpm.extras import needed
from fastddpm.formats.files import read_tensors
from fastddpm.inputs import open_regular

INCEPTION = "inception-v3-compat"
WEIGHTS_FILE = "weights-inception-2015-12-05-6726825d.pth"
WEIGHTS_SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"
# KID is the mean over random subsets of this size, or of all images where there are fewer.
KID_SUBSET = 1000
# Precision and recall look at the third nearest neighbour.
LEAST = 4
DIMENSIONS = {"inception": 2048, "digits": 64}
"""Of the features."""


@dataclass(frozen=True)
class Scores:
    """How near generated images are to real ones.

    Attributes:
        frechet: Frechet distance of the features; 0 is best. It is the FID (Heusel et al. 2017) where these
            are Inception's, of the published weights.
        kid: the kernel's distance of Binkowski et al. 2018, mean over 100 subsets; near 0 is best.
        kid_std: its standard deviation over the subsets.
        precision: share of generated images within the real ones (Kynkaanniemi et al. 2019, k = 3).
        recall: share of real images within the generated ones.
    """

    frechet: float
    kid: float
    kid_std: float
    precision: float
    recall: float


def score(
    generated: ImageSet,
    real: ImageSet,
    *,
    features: str = "inception",
    weights: str | Path | None = None,
    batch_size: int = 64,
    cuda: bool = False,
) -> Scores:
    """Compares two sets of images.

    Args:
        generated: at least 4 images.
        real: at least 4 images.
        features: ``inception``, of the network that FID is defined by, the 2048 of its last pooling, for
            precision and recall too; or ``digits``, the 64 of our classifier, for grey images of 28x28.
            Sets of no more images than features give a warning: their covariances are singular.
        weights: for ``inception``: the file that torch-fidelity publishes. Nothing is downloaded. Another
            file gives a warning, since its figures are no FID that can be compared. torch-fidelity would run
            what a file of weights tells it to; it is given a copy of the tensors alone.
        batch_size: images that the network sees at once.
        cuda: run the network on the CUDA device.

    Raises:
        ValueError: naming the argument, what was given and what is accepted; torch-fidelity is not there.
        CheckpointError: (a ValueError) weights that hold something else than tensors, or are damaged.
    """
    check_choice("features", features, DIMENSIONS)
    for name, images in (("generated", generated), ("real", real)):
        if len(images) < LEAST:
            raise BadArgument(name, f"{len(images)} images", f"at least {LEAST}")
        if features == "digits" and images.shape != (1, 28, 28):
            raise BadArgument(name, f"images {images.shape} with digits", "(1, 28, 28)")
    if features == "inception":
        _check_weights(weights)
    torch_fidelity = needed("torch_fidelity", by="evaluate")
    extractor = _digits() if features == "digits" else INCEPTION
    sets: list[Dataset[Tensor]] = [generated, real]
    if features == "inception":
        sets = [Coloured(generated), Coloured(real)]
    with _tensors_alone(weights if features == "inception" else None) as path:
        found = _calculated(
            torch_fidelity,
            input1=sets[0],
            input2=sets[1],
            feature_extractor=extractor,
            feature_extractor_weights_path=path,
            fid=True,
            kid=True,
            prc=True,
            kid_subset_size=min(KID_SUBSET, len(generated), len(real)),
            batch_size=batch_size,
            cuda=cuda,
            cache=False,
            save_cpu_ram=True,
            verbose=False,
        )
    _warn_of_few(generated, real, DIMENSIONS[features])
    return Scores(
        frechet=found["frechet_inception_distance"],
        kid=found["kernel_inception_distance_mean"],
        kid_std=found["kernel_inception_distance_std"],
        precision=found["precision"],
        recall=found["recall"],
    )


class Coloured(Dataset[Tensor]):
    """The same images with three channels: grey thrice, or colours without alpha."""

    def __init__(self, images: ImageSet) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Tensor:
        """uint8 ``(3, H, W)``."""
        image = self.images[index]
        return image.expand(3, -1, -1).clone() if len(image) == 1 else image[:3]


def _warn_of_few(generated: ImageSet, real: ImageSet, dimensions: int) -> None:
    """UserWarning for sets whose covariance of the features has no full rank."""
    sets = (("generated", generated), ("real", real))
    few = [f"{len(images):,} {name}" for name, images in sets if len(images) <= dimensions]
    if few:
        warnings.warn(
            f"{' and '.join(few)} images for {dimensions:,} features: with no more images than features the "
            "covariance is singular, and the Frechet distance is above that of many images; it compares at "
            "equal numbers alone",
            stacklevel=3,
        )


def _check_weights(weights: str | Path | None) -> None:
    if weights is None or not Path(weights).is_file():
        raise BadArgument(
            "weights",
            repr(None if weights is None else str(weights)),
            f"for inception a file here, {WEIGHTS_FILE}, a release asset of torch-fidelity v0.2.0, "
            "which its documentation names (nothing is downloaded), or --features digits for grey "
            "28x28 images",
        )


@contextmanager
def _tensors_alone(weights: str | Path | None) -> Iterator[str | None]:
    """A file with the tensors of ``weights`` and nothing else, in a folder of this process alone."""
    if weights is None:
        yield None
        return
    path = Path(weights)
    with open_regular(path) as file:
        digest = hashlib.sha256()
        while piece := file.read(2**20):
            digest.update(piece)
    if digest.hexdigest() != WEIGHTS_SHA256:
        warnings.warn(
            f"weights: {path} is not the {WEIGHTS_FILE} that torch-fidelity publishes (sha256 "
            f"{digest.hexdigest()[:8]}..., {WEIGHTS_SHA256[:8]}... expected); its figures compare with no "
            "published ones",
            stacklevel=4,
        )
    state = read_tensors(path)
    with tempfile.TemporaryDirectory(prefix="fastddpm-") as folder:
        copy = Path(folder) / WEIGHTS_FILE
        torch.save(state, copy)
        yield str(copy)


def _calculated(torch_fidelity: ModuleType, **arguments: object) -> dict[str, float]:
    try:
        found: dict[str, float] = torch_fidelity.calculate_metrics(**arguments)
    except RuntimeError as error:
        if "in loading state_dict" not in str(error):
            raise
        reason = " ".join(str(error).split())[:200]
        raise BadArgument(
            "weights", f"those of another network ({reason})", f"those of {INCEPTION}"
        ) from error
    return found


def _digits() -> str:
    """The name under which torch-fidelity knows our classifier."""
    from torch_fidelity import register_feature_extractor  # type: ignore[import-untyped]
    from torch_fidelity.registry import FEATURE_EXTRACTORS_REGISTRY  # type: ignore[import-untyped]

    from fastddpm.evaluation.digit_features import NAME, DigitFeatures

    if NAME not in FEATURE_EXTRACTORS_REGISTRY:
        register_feature_extractor(NAME, DigitFeatures)
    return NAME
