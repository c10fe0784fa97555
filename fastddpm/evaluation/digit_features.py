"""The digit classifier as a feature extractor of torch-fidelity. Imported only where that is installed."""

from __future__ import annotations

from torch import Tensor
from torch_fidelity.feature_extractor_base import FeatureExtractorBase  # type: ignore[import-untyped]

from fastddpm.evaluation.classifier import load_digit_classifier

NAME = "fastddpm-digits"
LAYER = "64"


class DigitFeatures(FeatureExtractorBase):  # type: ignore[misc]
    """uint8 ``(B, 1, 28, 28)`` -> the 64 features of `DigitClassifier`, in float64 for the covariances."""

    def __init__(self, name: str, features_list: list[str], **options: object) -> None:
        super().__init__(name, features_list)
        self.classifier = load_digit_classifier()

    @staticmethod
    def get_provided_features_list() -> tuple[str, ...]:
        """The one layer."""
        return (LAYER,)

    @staticmethod
    def get_default_feature_layer_for_metric(metric: str) -> str:
        """The same for every metric."""
        return LAYER

    @staticmethod
    def can_be_compiled() -> bool:
        """torch-fidelity need not compile it."""
        return False

    def forward(self, images: Tensor) -> tuple[Tensor]:
        """One layer of features, float64 ``(B, 64)``."""
        return (self.classifier.features(images.float() / 127.5 - 1.0).double(),)
