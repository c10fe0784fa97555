"""What is kept of a set of images when it is compared: mean and covariance of its features, and these.

The files are those of pytorch-fid, ``mu`` and ``sigma`` in an npz. Ours hold the features too, from which
KID, precision and recall follow, so that the network need see a reference only once.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fastddpm.arrays import array_names, read_array
from fastddpm.checks import BadArgument
from fastddpm.evaluation.metrics import Array, normal_of
from fastddpm.files import replacing
from fastddpm.inputs import InputError
from fastddpm.jobs.npz import write_npz
from fastddpm.signatures import checked

DIGEST_BYTES = 32


@dataclass(frozen=True)
class Statistics:
    """Of the features of a set of images.

    Attributes:
        mu: float64 ``(d,)``, their mean.
        sigma: float64 ``(d, d)``, their covariance with n - 1.
        features: ``(n, d)``, or None where only the others are known.
        weights: SHA-256 of the weights of the network whose features they are, or None where nothing says.
    """

    mu: Array
    sigma: Array
    features: Tensor | None = None
    weights: bytes | None = None

    @classmethod
    def of(cls, features: Tensor, weights: bytes | None = None) -> Statistics:
        """Those of features ``(n, d)``, n >= 2. Needs torch-fidelity."""
        return cls(*normal_of(features.double().cpu().numpy()), features, weights)

    def write(self, path: Path) -> None:
        """Writes them as pytorch-fid reads them, with what it does not read beside it.

        Args:
            path: ends in ``.npz``; whole or not there, and replaced where it is.

        Raises:
            ValueError: another ending.
            OSError: it cannot be written.
        """
        check_path("path", path)
        arrays: dict[str, npt.NDArray[np.generic]] = {"mu": self.mu, "sigma": self.sigma}
        if self.features is not None:
            arrays["features"] = self.features.numpy()
        if self.weights is not None:
            arrays["weights_sha256"] = np.frombuffer(self.weights, np.uint8)
        with replacing(path) as temporary:
            write_npz(temporary, arrays)


def check_path(name: str, path: Path) -> None:
    """Holds a path that statistics are written to to its ending.

    Raises:
        ValueError: no ``.npz``.
    """
    if path.suffix != ".npz":
        raise BadArgument(name, repr(str(path)), "a file ending in .npz")


def holds_statistics(path: Path) -> bool:
    """Whether a file is an npz with ``mu`` and ``sigma`` and no images (``arr_0``).

    Raises:
        InputError: (a ValueError) an ``.npz`` that is none.
    """
    if path.suffix != ".npz" or not path.is_file():
        return False
    names = array_names(path)
    return "arr_0" not in names and {"mu", "sigma"} <= names


@checked
def read_statistics(path: str | Path) -> Statistics:
    """Reads what pytorch-fid or `Statistics.write` wrote.

    Args:
        path: an npz file with ``mu`` ``(d,)`` and ``sigma`` ``(d, d)`` of floating point, and perhaps
            ``features`` ``(n, d)`` and ``weights_sha256``, 32 bytes.

    Raises:
        InputError: (a ValueError) no such file or arrays; other shapes; numbers that are not finite; a
            ``sigma`` that is no covariance, since it is not symmetric or has a negative diagonal.
    """
    path = Path(path)
    names = array_names(path)
    mu, sigma = (_floats(path, name) for name in ("mu", "sigma"))
    if mu.ndim != 1 or not len(mu) or sigma.shape != (len(mu), len(mu)):
        raise InputError(f"{path}: mu {mu.shape} and sigma {sigma.shape} found, (d,) and (d, d) accepted")
    if (
        not np.allclose(sigma, sigma.T, rtol=1e-4, atol=1e-6 * np.abs(sigma).max())
        or sigma.diagonal().min() < 0
    ):
        raise InputError(f"{path}: sigma is not the covariance of anything: symmetric, no negative variance")
    features = _floats(path, "features") if "features" in names else None
    if features is not None and (features.ndim != 2 or len(features) < 2 or features.shape[1] != len(mu)):
        raise InputError(f"{path}: features {features.shape} found, (2 or more, {len(mu)}) accepted")
    weights = read_array(path, "weights_sha256") if "weights_sha256" in names else None
    if weights is not None and (weights.dtype != np.uint8 or weights.shape != (DIGEST_BYTES,)):
        raise InputError(
            f"{path}: weights_sha256 {weights.dtype} {weights.shape} found, uint8 (32,) accepted"
        )
    return Statistics(
        mu.astype(np.float64),
        sigma.astype(np.float64),
        None if features is None else torch.from_numpy(np.ascontiguousarray(features)),
        None if weights is None else weights.tobytes(),
    )


def _floats(path: Path, name: str) -> npt.NDArray[np.floating[npt.NBitBase]]:
    array = read_array(path, name)
    if array.dtype not in (np.float32, np.float64) or not np.isfinite(array).all():
        raise InputError(f"{path}: {name} of {array.dtype} found, finite float32 or float64 accepted")
    return array
