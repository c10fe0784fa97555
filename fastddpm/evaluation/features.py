"""The network whose features are compared: Inception's, from a file of weights that is here, or ours."""

from __future__ import annotations

import hashlib
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from fastddpm.checks import BadArgument, check_choice
from fastddpm.evaluation.classifier import WEIGHTS as DIGIT_WEIGHTS
from fastddpm.evaluation.image_sets import ImageSet
from fastddpm.evaluation.statistics import Statistics
from fastddpm.extras import needed
from fastddpm.formats.files import read_tensors
from fastddpm.inputs import open_regular

INCEPTION = "inception-v3-compat"
WEIGHTS_FILE = "weights-inception-2015-12-05-6726825d.pth"
WEIGHTS_SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"
# Precision and recall look at the third nearest neighbour.
LEAST = 4
DIMENSIONS = {"inception": 2048, "digits": 64}
"""Of the features."""


class FeatureNetwork:
    """Images to features, by torch-fidelity.

    Args:
        features: ``inception``, of the network that FID is defined by, the 2048 of its last pooling; or
            ``digits``, the 64 of our classifier, for grey images of 28x28.
        weights: for ``inception``: the file that torch-fidelity publishes. Nothing is downloaded. Another
            file gives a warning, since its figures are no FID that can be compared. torch-fidelity would run
            what a file of weights tells it to; it is given a copy of the tensors alone.
        batch_size: images that the network sees at once.
        cuda: run it on the CUDA device.

    Raises:
        ValueError: naming the argument, what was given and what is accepted.
        CheckpointError: (a ValueError) weights that hold something else than tensors, or are damaged.
        MissingExtra: torch-fidelity is not there.
    """

    def __init__(
        self,
        features: str = "inception",
        weights: str | Path | None = None,
        *,
        batch_size: int = 64,
        cuda: bool = False,
    ) -> None:
        check_choice("features", features, DIMENSIONS)
        needed("torch_fidelity", by="evaluate")
        if features == "inception":
            _check_weights(weights)
        self.features, self._batch_size, self._cuda = features, batch_size, cuda
        file = DIGIT_WEIGHTS if features == "digits" or weights is None else Path(weights)
        self.weights = _digest(file)
        """SHA-256 of the file of weights."""
        if features == "inception" and self.weights.hex() != WEIGHTS_SHA256:
            warnings.warn(
                f"weights: {file} is not the {WEIGHTS_FILE} that torch-fidelity publishes (sha256 "
                f"{self.weights.hex()[:8]}..., {WEIGHTS_SHA256[:8]}... expected); its figures compare with "
                "no published ones",
                stacklevel=2,
            )
        self._network = _digits(cuda) if features == "digits" else _inception(file, cuda)

    @property
    def dimensions(self) -> int:
        """How many features an image has."""
        return DIMENSIONS[self.features]

    def statistics(self, images: ImageSet, name: str = "images") -> Statistics:
        """Of a set of at least 4 images.

        Args:
            images: for ``digits`` grey and 28x28.
            name: what errors call it.

        Raises:
            ValueError: too few; of another size; as reading an image raises it.
        """
        from torch_fidelity.utils import get_featuresdict_from_dataset  # type: ignore[import-untyped]

        check_images(name, images, self.features)
        seen: Dataset[Tensor] = Coloured(images) if self.features == "inception" else images
        (found,) = get_featuresdict_from_dataset(
            seen, self._network, self._batch_size, self._cuda, save_cpu_ram=True, verbose=False
        ).values()
        return Statistics.of(found, self.weights)


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


def check_images(name: str, images: ImageSet, features: str) -> None:
    """Holds a set of images to what features are of.

    Raises:
        ValueError: fewer than 4; for ``digits`` another shape than (1, 28, 28).
    """
    if len(images) < LEAST:
        raise BadArgument(name, f"{len(images)} images", f"at least {LEAST}")
    if features == "digits" and images.shape != (1, 28, 28):
        raise BadArgument(name, f"images {images.shape} with digits", "(1, 28, 28)")


def _check_weights(weights: str | Path | None) -> None:
    if weights is None or not Path(weights).is_file():
        raise BadArgument(
            "weights",
            repr(None if weights is None else str(weights)),
            f"for inception a file here, {WEIGHTS_FILE}, a release asset of torch-fidelity v0.2.0, "
            "which its documentation names (nothing is downloaded), or --features digits for grey "
            "28x28 images",
        )


def _digest(path: Path) -> bytes:
    digest = hashlib.sha256()
    with open_regular(path) as file:
        while piece := file.read(2**20):
            digest.update(piece)
    return digest.digest()


@contextmanager
def _tensors_alone(path: Path) -> Iterator[str]:
    """A file with the tensors of another and nothing else, in a folder of this process alone."""
    state = read_tensors(path)
    with tempfile.TemporaryDirectory(prefix="fastddpm-") as folder:
        copy = Path(folder) / WEIGHTS_FILE
        torch.save(state, copy)
        yield str(copy)


def _inception(path: Path, cuda: bool) -> nn.Module:
    with _tensors_alone(path) as copy:
        try:
            return _made(INCEPTION, str(DIMENSIONS["inception"]), cuda, copy)
        except RuntimeError as error:
            if "in loading state_dict" not in str(error):
                raise
            reason = " ".join(str(error).split())[:200]
            raise BadArgument(
                "weights", f"those of another network ({reason})", f"those of {INCEPTION}"
            ) from error


def _digits(cuda: bool) -> nn.Module:
    from torch_fidelity import register_feature_extractor  # type: ignore[import-untyped]
    from torch_fidelity.registry import FEATURE_EXTRACTORS_REGISTRY  # type: ignore[import-untyped]

    from fastddpm.evaluation.digit_features import LAYER, NAME, DigitFeatures

    if NAME not in FEATURE_EXTRACTORS_REGISTRY:
        register_feature_extractor(NAME, DigitFeatures)
    return _made(NAME, LAYER, cuda, None)


def _made(name: str, layer: str, cuda: bool, weights: str | None) -> nn.Module:
    from torch_fidelity.utils import create_feature_extractor

    network: nn.Module = create_feature_extractor(
        name, [layer], cuda=cuda, feature_extractor_weights_path=weights, verbose=False
    )
    return network
