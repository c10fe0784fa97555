"""Distances between two sets of images or features: Frechet, precision and recall, nearest neighbours.

The public functions take arrays whose first axis is the sample and flatten the rest, in float64.
What has a name in papers is computed by torch-fidelity, whose figures others compare with.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from fastddpm.checks import BadArgument, whole
from fastddpm.extras import needed
from fastddpm.signatures import in_words

Array = NDArray[np.float64]
Normal = tuple[Array, Array]
"""Mean ``(d,)`` and covariance ``(d, d)``."""

# KID is the mean over random subsets of this size, or of all samples where there are fewer.
KID_SUBSET = 1000
NEIGHBOUR = 3


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
        MissingExtra: torch-fidelity is not there.
    """
    a, b = _pair(a, b, least=2)
    return distance_of(normal_of(a), normal_of(b))


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
        MissingExtra: torch-fidelity is not there.
    """
    k = whole("k", k, least=1)
    generated, real = _pair(generated, real, least=k + 1, names=("generated", "real"))
    return overlap(torch.from_numpy(generated), torch.from_numpy(real), k)


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


def normal_of(features: Array) -> Normal:
    """Mean and covariance, with n - 1, of features float64 ``(n, d)``, n >= 2."""
    fid = needed("torch_fidelity.metric_fid", by="a Frechet distance")
    found = fid.fid_features_to_statistics(torch.from_numpy(features))
    return found["mu"], np.atleast_2d(found["sigma"])


def distance_of(a: Normal, b: Normal) -> float:
    """Frechet distance of two normal distributions of the same number of features."""
    fid = needed("torch_fidelity.metric_fid", by="a Frechet distance")
    both = [{"mu": mean, "sigma": covariance} for mean, covariance in (a, b)]
    # Of a set and itself rounding may leave it below 0.
    return max(0.0, float(fid.fid_statistics_to_metric(*both, verbose=False)[fid.KEY_METRIC_FID]))


def kernel_distance(generated: Tensor, real: Tensor) -> tuple[float, float]:
    """KID of Binkowski et al. 2018, of features ``(n, d)``: mean and standard deviation over 100 subsets."""
    kid = needed("torch_fidelity.metric_kid", by="a kernel distance")
    size = min(KID_SUBSET, len(generated), len(real))
    found = kid.kid_features_to_metric(generated, real, kid_subset_size=size, verbose=False)
    return found[kid.KEY_METRIC_KID_MEAN], found[kid.KEY_METRIC_KID_STD]


def overlap(generated: Tensor, real: Tensor, k: int) -> tuple[float, float]:
    """Precision and recall of features ``(n, d)``, as `precision_recall` has them; n > k."""
    prc = needed("torch_fidelity.metric_prc", by="precision and recall")
    settings = {"prc_neighborhood": k, "save_cpu_ram": True, "verbose": False}
    found = prc.prc_features_to_metric(generated, real, **settings)
    return found[prc.KEY_METRIC_PRECISION], found[prc.KEY_METRIC_RECALL]


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
