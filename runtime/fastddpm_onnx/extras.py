"""Packages that may not be here: what asks for one says in one line how to get it."""

from __future__ import annotations

import importlib
from types import ModuleType

PACKAGES = {"PIL": "pillow", "torch": "fastddpm"}
"""Modules at the top whose package has another name, or comes with another."""


class MissingExtra(ImportError):
    """A package is not here. Read by whoever has to install it: one line."""


def needed(module: str, *, by: str) -> ModuleType:
    """A module of a package that may not be there.

    Raises:
        MissingExtra: (an ImportError) it is not installed, or something that it needs is not.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise missing(module, by=by, why=error) from error


def missing(module: str, *, by: str, why: ImportError | None = None) -> MissingExtra:
    """The error for a module that is not there, to be raised."""
    top = module.partition(".")[0]
    return MissingExtra(f"{by}: needs the package {PACKAGES.get(top, top)}: {install(top)}", name=top)


def install(module: str) -> str:
    """What brings a module at the top: ``pip install scipy``."""
    return f"pip install {PACKAGES.get(module, module)}"
