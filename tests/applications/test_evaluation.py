"""Measures of image quality, against closed forms and SciPy; the digit classifier on digits it never saw."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.linalg
import torch
from scipy.spatial.distance import cdist, pdist

from fastddpm.data import open_dataset
from fastddpm.evaluation import (
    frechet_distance,
    load_digit_classifier,
    mean_pairwise_distance,
    nearest_distances,
    precision_recall,
)

RNG = np.random.default_rng(7)
A, B = RNG.normal(size=(60, 5)), RNG.normal(1.0, 2.0, size=(80, 5)) @ RNG.normal(size=(5, 5))


def test_frechet_distance_is_that_of_the_matrix_square_root():
    covariances = np.cov(A.T), np.cov(B.T)
    root = scipy.linalg.sqrtm(covariances[0] @ covariances[1]).real
    expected = np.square(A.mean(0) - B.mean(0)).sum() + np.trace(covariances[0] + covariances[1] - 2 * root)
    assert frechet_distance(A, B) == pytest.approx(expected, rel=1e-9)
    assert frechet_distance(B, A) == pytest.approx(expected, rel=1e-9)


def test_frechet_distance_of_one_dimension_is_the_closed_form():
    """(m1 - m2)^2 + (s1 - s2)^2."""
    a, b = A[:, :1], B[:, :1]
    expected = (a.mean() - b.mean()) ** 2 + (a.std(ddof=1) - b.std(ddof=1)) ** 2
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-9)


def test_frechet_distance_to_itself_and_of_singular_sets():
    assert frechet_distance(A, A) == pytest.approx(0, abs=1e-9)
    flat = np.concatenate([A, np.zeros_like(A)], axis=1)
    moved = flat + np.eye(1, 10, 9)
    assert frechet_distance(flat, moved) == pytest.approx(1, rel=1e-6)


def test_precision_and_recall_by_hand():
    """Real at 0, 1, 2, 3 (each reaches 1 to its nearest); drawn at 0.5 and 2.5 inside, 10 and 11 outside."""
    real, drawn = np.array([[0.0], [1], [2], [3]]), np.array([[0.5], [2.5], [10.0], [11.0]])
    precision, recall = precision_recall(drawn, real, k=1)
    assert (precision, recall) == (0.5, 1.0)
    # The other way round the drawn points reach 2, 2, 1 and 1: all four real ones lie within.
    precision, recall = precision_recall(real, drawn, k=1)
    assert (precision, recall) == (1.0, 0.5)
    assert precision_recall(A, A) == (1.0, 1.0)
    assert precision_recall(A + 1000, A) == (0.0, 0.0)


def test_nearest_distances():
    distances, indices = nearest_distances(A.reshape(60, 1, 5), B.reshape(80, 1, 5))
    expected = cdist(A, B)
    np.testing.assert_allclose(distances, expected.min(1), rtol=1e-9)
    np.testing.assert_array_equal(indices, expected.argmin(1))


def test_mean_pairwise_distance():
    assert mean_pairwise_distance(A) == pytest.approx(pdist(A).mean(), rel=1e-9)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: frechet_distance(A[:1], B), r"shape \(1, 5\) given, \(2 or more, features\) accepted"),
        (lambda: frechet_distance(A, B[:, :3]), "5 and 3 features given"),
        (lambda: precision_recall(A[:3], B), r"\(4 or more, features\)"),
        (lambda: load_digit_classifier()(torch.zeros(1, 3, 28, 28)), r"\(B, 1, 28, 28\) accepted"),
    ],
)
def test_bad_arguments_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_classifier_reads_digits_it_never_saw():
    """The card's figure: 497 of 500, one either way for another processor's rounding."""
    data = open_dataset("mnist", split="test")
    images, labels = data.batch(torch.arange(len(data)))
    read, features = load_digit_classifier().read(images, batch_size=128)
    assert (read == labels).float().mean() == pytest.approx(0.994, abs=0.002)
    assert features.shape == (500, 64)
    # Upside down they are other digits, or none.
    assert (load_digit_classifier().read(images.flip(2, 3))[0] == labels).float().mean() < 0.6
