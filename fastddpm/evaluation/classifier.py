"""The digit classifier: what the project reads drawn or restored digits with, and whose features it compares.

A small convolutional network trained on the train split of the digits alone (`scripts/train_classifier.py`);
its card, `assets/digit_classifier/README.md`, says how well it reads the test split.
"""

from __future__ import annotations

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from fastddpm.checks import BadArgument
from fastddpm.sources import ASSETS

WEIGHTS = ASSETS / "digit_classifier" / "model.safetensors"


def _block(inputs: int, outputs: int) -> list[nn.Module]:
    return [nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]


class DigitClassifier(nn.Module):
    """Five 3x3 convolutions, two poolings, the mean over the picture, one linear layer.

    Call: ``classifier(images)``, float ``(B, 1, 28, 28)`` in [-1, 1] -> logits ``(B, 10)``.
    """

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            *_block(1, 32),
            *_block(32, 32),
            nn.MaxPool2d(2),
            *_block(32, 64),
            *_block(64, 64),
            nn.MaxPool2d(2),
            *_block(64, 64),
        )
        self.head = nn.Linear(64, 10)

    def features(self, images: Tensor) -> Tensor:
        """``(B, 1, 28, 28)`` in [-1, 1] -> ``(B, 64)``, the means that the last layer reads."""
        if images.ndim != 4 or images.shape[1:] != (1, 28, 28):
            raise BadArgument("images", f"shape {tuple(images.shape)}", "(B, 1, 28, 28)")
        means: Tensor = self.body(images).mean(dim=(2, 3))
        return means

    def forward(self, images: Tensor) -> Tensor:
        """``(B, 1, 28, 28)`` in [-1, 1] -> logits ``(B, 10)``."""
        logits: Tensor = self.head(self.features(images))
        return logits

    @torch.no_grad()
    def read(self, images: Tensor, batch_size: int = 250) -> tuple[Tensor, Tensor]:
        """Labels int64 ``(B,)`` and features float32 ``(B, 64)`` of any number of images in [-1, 1]."""
        labels, features = [], []
        for start in range(0, len(images), batch_size):
            features.append(self.features(images[start : start + batch_size]))
            labels.append(self.head(features[-1]).argmax(dim=1))
        return torch.cat(labels), torch.cat(features)


def load_digit_classifier() -> DigitClassifier:
    """The trained classifier, in eval mode, on the CPU."""
    classifier = DigitClassifier()
    classifier.load_state_dict(load_file(WEIGHTS))
    return classifier.eval()
