"""Whether a provider computes the specified noise: some compute 64-bit integers wrongly, silently."""

from __future__ import annotations

import numpy as np

from fastddpm.onnx.errors import ProviderError
from fastddpm.onnx.providers import Session
from fastddpm.onnx.request import Float32
from fastddpm_kernels.noise import reference

SEEDS = np.array([0, 1, 5, 0x9E3779B97F4A7C15 >> 1, 2**32 - 1, 2**63 - 1], dtype=np.int64)
STEPS = (0, 1, 999)
N_ELEMENTS = 64
NORMALS = 1e-5
"""Largest difference of float32 normals from float64 ones; a wrong word makes differences of order 1."""

IMAGES = 2e-2
"""Largest difference between two ways through the same two steps, float16 networks included.

Rounding alone comes nowhere near in float32: see "How near" in docs/onnx.md. Other noise is other images.
"""


def check_noise(session: Session, provider: str) -> None:
    """Runs noise.onnx and compares its words, bit for bit, and its normals with NumPy's.

    Args:
        session: of noise.onnx.
        provider: its name, for the error.

    Raises:
        ProviderError: the numbers differ, or the provider cannot run it.
    """
    for step in STEPS:
        try:
            words, normals = session.run(
                ["words", "normals"], {"seeds": SEEDS, "step": np.asarray(step, dtype=np.int64)}
            )
        except Exception as error:  # ONNX Runtime's exceptions have no common class of their own
            raise _refused(provider, " ".join(str(error).split())[:200]) from error
        expected = reference.words(SEEDS, step, N_ELEMENTS).astype(np.int64)
        wrong = int((np.asarray(words) != expected).sum())
        if wrong:
            raise _refused(provider, f"{wrong} of {expected.size} random words differ from NumPy's")
        exact = reference.normal(SEEDS, step, (N_ELEMENTS,))
        error_of_normals = float(np.abs(np.asarray(normals, dtype=np.float64) - exact).max())
        if not error_of_normals <= NORMALS:
            raise _refused(provider, f"normals differ from NumPy's by {error_of_normals:.1e}")


def check_images(file: Float32, steps: Float32, provider: str) -> None:
    """Compares images of sampler.onnx with those of a step loop: a wrong noise changes them entirely.

    Raises:
        ProviderError: they are other images.
    """
    scale = max(1.0, float(np.abs(steps).max()))
    difference = float(np.abs(file - steps).max()) / scale
    if not difference <= IMAGES:
        raise _refused(provider, f"images differ by {difference:.1e} from those with NumPy's noise")


def _refused(provider: str, what: str) -> ProviderError:
    return ProviderError(
        "provider",
        f"{provider}, which computes the noise of sampler.onnx wrongly ({what}),",
        'cpu, or loop="steps", whose noise NumPy draws,',
    )
