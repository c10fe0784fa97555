"""Packages that not everybody needs: what asks for one says in one line how to get it. Needs no torch."""

from __future__ import annotations

import importlib
from types import ModuleType

EXTRAS = {
    "accelerate": ("accelerate", "train"),
    "datasets": ("datasets", "train"),
    "matplotlib": ("matplotlib", "train"),
    "mlxtend": ("mlxtend", "train"),
    "sklearn": ("scikit-learn", "train"),
    "yaml": ("pyyaml", "train"),
    "onnx": ("onnx", "onnx"),
    "onnxruntime": ("onnxruntime", "onnx"),
    "onnxscript": ("onnxscript", "onnx"),
    "diffusers": ("diffusers", "diffusers"),
    "scipy": ("scipy", "score"),
    "skimage": ("scikit-image", "restore"),
    "torch_fidelity": ("torch-fidelity", "evaluate"),
    "ray": ("ray", "ray"),
    "huggingface_hub": ("huggingface-hub", "hub"),
    "starlette": ("starlette", "serve"),
    "uvicorn": ("uvicorn", "serve"),
    "prometheus_client": ("prometheus-client", "serve"),
}
"""Modules at the top: what their package is called, and the extra of this one that brings it."""


class MissingExtra(ImportError):
    """A package of an extra is not here. Read by whoever has to install it: one line."""


def needed(module: str, *, by: str) -> ModuleType:
    """A module of a package that may not be there.

    Args:
        module: its name, dotted.
        by: what needs it, as whoever asks for it knows it.

    Raises:
        MissingExtra: (an ImportError) it is not installed, or something that it needs is not.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise missing(module, by=by, why=error) from error


def missing(module: str, *, by: str, why: ImportError | None = None) -> MissingExtra:
    """The error for a module that is not there, to be raised.

    Args:
        module: its name, dotted; of a package that is not in `EXTRAS`, one that everybody needs.
        by: what needs it.
        why: what importing it raised, if it was tried.
    """
    top = module.partition(".")[0]
    package = EXTRAS.get(top, (top,))[0]
    fails = why is not None and why.name is not None and why.name.partition(".")[0] != top
    reason = f" (there is no {why.name})" if fails and why is not None else ""
    return MissingExtra(f"{by}: needs the package {package}{reason}: {install(top)}", name=top)


def install(module: str) -> str:
    """What brings a module at the top: ``pip install 'fastddpm[score]'``."""
    extra = f"[{EXTRAS[module][1]}]" if module in EXTRAS else ""
    return f"pip install 'fastddpm{extra}'"
