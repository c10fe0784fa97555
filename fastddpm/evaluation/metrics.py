"""Distances between two sets of images or features: Frechet, precision and recall, nearest neighbours.

Every function takes arrays whose first axis is the sample and flattens the rest; all arithmetic is float64.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastddpm.checks import BadArgument, whole
from fastddpm.signatures import in_words

Array = NDArray[np.float64]


def frechet_distance(a: ArrayLike, b: ArrayLike) -> float:
    """Frechet distance of the normal distributions fitted to two sets of features.

    ``|m_a - m_b|**2 + tr(C_a + C_b - 2 (C_a C_b)**0.5)``, covariances with n - 1: the FID of Heusel et al.
    2017 when the features are Inception's. Biased upwards by about (trace / n) for small sets, so figures
    are comparable only at equal numbers of samples.

    Args:
        a: ``(n, d)`` features, n >= 2.
        b: ``(m, d)`` features, m >= 2.

    Returns:
        The squared distance, >= 0, in squared units of the features.

    Raises:
        ValueError: too few samples, or another number of features.
    """
    a, b = _pair(a, b, least=2)
    covariance_a, covariance_b = np.atleast_2d(np.cov(a.T)), np.atleast_2d(np.cov(b.T))
    # tr (C_a C_b)^0.5 = tr (R C_b R)^0.5 with R = C_a^0.5: symmetric, so the square root is that of the
    # eigenvalues, also where a covariance is singular.
    values, vectors = np.linalg.eigh(covariance_a)
    root = (vectors * np.sqrt(values.clip(0))) @ vectors.T
    cross = np.sqrt(np.linalg.eigvalsh(root @ covariance_b @ root).clip(0)).sum()
    distance = np.square(a.mean(0) - b.mean(0)).sum() + np.trace(covariance_a) + np.trace(covariance_b)
    return max(0.0, float(distance - 2 * cross))


def precision_recall(generated: ArrayLike, real: ArrayLike, k: int = 3) -> tuple[float, float]:
    """Improved precision and recall, Kynkaanniemi et al. 2019.

    Precision is the share of generated samples that lie within some real sample's distance to its k-th
    nearest real neighbour; recall is the same with the roles exchanged.

    Args:
        generated: ``(n, d)`` features, n > k.
        real: ``(m, d)`` features, m > k.
        k: neighbour that sets the radius.

    Returns:
        (precision, recall), each in [0, 1].

    Raises:
        ValueError: not more than k samples, or another number of features.
    """
    k = whole("k", k, least=1)
    generated, real = _pair(generated, real, least=k + 1, names=("generated", "real"))
    between = _distances(generated, real)
    real_radius = np.sort(_distances(real, real), axis=1)[:, k]
    generated_radius = np.sort(_distances(generated, generated), axis=1)[:, k]
    precision = (between <= real_radius[None, :]).any(axis=1).mean()
    recall = (between <= generated_radius[:, None]).any(axis=0).mean()
    return float(precision), float(recall)


def nearest_distances(a: ArrayLike, b: ArrayLike) -> tuple[Array, NDArray[np.int64]]:
    """Euclidean distance of every sample of a to its nearest one in b, and that one's index.

    Args:
        a: ``(n, ...)``.
        b: ``(m, ...)``.

    Returns:
        float64 ``(n,)`` and int64 ``(n,)``.
    """
    a, b = _pair(a, b, least=1)
    distances = _distances(a, b)
    nearest = distances.argmin(axis=1)
    return distances[np.arange(len(a)), nearest], nearest.astype(np.int64)


def mean_pairwise_distance(a: ArrayLike) -> float:
    """Mean Euclidean distance between two different samples of a set: its diversity.

    Args:
        a: ``(n, ...)``, n >= 2.
    """
    a, _ = _pair(a, a, least=2)
    n = len(a)
    return float(_distances(a, a).sum() / (n * (n - 1)))


def _pair(a: ArrayLike, b: ArrayLike, least: int, names: tuple[str, str] = ("a", "b")) -> tuple[Array, Array]:
    rows = [_features(name, values, least) for name, values in zip(names, (a, b), strict=True)]
    first, second = (values.reshape(len(values), -1) for values in rows)
    if first.shape[1] != second.shape[1]:
        raise BadArgument(
            ", ".join(names), f"{first.shape[1]} and {second.shape[1]} features", "the same number"
        )
    return first, second


def _features(name: str, values: ArrayLike, least: int) -> Array:
    accepted = f"({least} or more, features)"
    try:
        array = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError):
        raise BadArgument(name, in_words(values), f"an array {accepted}") from None
    if array.ndim < 2 or len(array) < least:
        raise BadArgument(name, f"shape {array.shape}", accepted)
    return array


def _distances(a: Array, b: Array) -> Array:
    """Euclidean distances ``(n, m)``; a sample's distance to itself is exactly 0."""
    squared = np.square(a).sum(1)[:, None] + np.square(b).sum(1)[None, :] - 2 * a @ b.T
    distances: Array = np.sqrt(squared.clip(0))
    if a is b:
        np.fill_diagonal(distances, 0.0)
    return distances
