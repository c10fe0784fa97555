"""How good images are: a digit classifier with its features, and distances between sets of images."""

from fastddpm.evaluation.classifier import DigitClassifier, load_digit_classifier
from fastddpm.evaluation.metrics import (
    frechet_distance,
    mean_pairwise_distance,
    nearest_distances,
    precision_recall,
)
from fastddpm.evaluation.statistics import read_statistics

__all__ = [
    "DigitClassifier",
    "frechet_distance",
    "load_digit_classifier",
    "mean_pairwise_distance",
    "nearest_distances",
    "precision_recall",
    "read_statistics",
]
