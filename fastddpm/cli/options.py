"""Options by the names of the arguments that they set, so that an error of an argument names the option."""

from __future__ import annotations

import re
import typing
from typing import Any

from typer.core import TyperCommand


class Sets:
    """In the annotation of an option: the arguments of the library that it sets and that have other names."""

    def __init__(self, *arguments: str) -> None:
        self.arguments = arguments


class OptionError(ValueError):
    """An error of an argument, with the option in its place."""


class Command(TyperCommand):
    """A command whose errors name its options."""

    def invoke(self, ctx: Any) -> object:
        """Runs it.

        Raises:
            OptionError: for any error that names its `argument`, or advises one as Python has it.
        """
        try:
            return super().invoke(ctx)
        except Exception as error:
            names, argument = self.names(), getattr(error, "argument", None)
            if argument is None:
                said = _with_options(str(error), names) if isinstance(error, ValueError) else str(error)
                if said == str(error):
                    raise
                raise OptionError(said) from error
            options = ", ".join(names.get(name, name) for name in argument.split(", "))
            raise OptionError(options + str(error).removeprefix(argument)) from error

    def names(self) -> dict[str, str]:
        """The options, by what they are called in the library."""
        options = {param.name: param.opts[0] for param in self.params if param.opts[0].startswith("--")}
        marks = {
            name: getattr(hint, "__metadata__", ())
            for name, hint in typing.get_type_hints(self.callback, include_extras=True).items()
        }
        others = {
            argument: options[name]
            for name, found in marks.items()
            for mark in found
            if isinstance(mark, Sets)
            for argument in mark.arguments
        }
        return {**options, **others}


def _with_options(said: str, names: dict[str, str]) -> str:
    """Words in which ``skip_broken=True`` is ``--skip-broken``."""
    return re.sub(r"\b(\w+)=True\b", lambda found: names.get(found[1], found[0]), said)
