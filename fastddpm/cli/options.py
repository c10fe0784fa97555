"""Options by the names of the arguments that they set, so that an error of an argument names the option."""

from __future__ import annotations

import re
import typing
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from typer.core import TyperCommand

from fastddpm.cli import option_file

FROM_FILE = "options of a file"
"""Of a command's `meta`: the options that stand in a file, with its name."""


class Sets:
    """In the annotation of an option: the arguments of the library that it sets and that have other names."""

    def __init__(self, *arguments: str) -> None:
        self.arguments = arguments


class OptionError(ValueError):
    """An error of an argument, with the option in its place."""


class Command(TyperCommand):
    """A command whose errors name its options, which may stand in a file."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Puts the options of a file before those that were typed.

        Raises:
            OptionError: an option in the file that is none or has a value that it cannot have.
        """
        options = {param.opts[0]: param for param in self.params if param.opts[0].startswith("--")}
        file, rest = option_file.split(args, [name for name in option_file.NAMES if name not in options])
        ctx.meta[FROM_FILE] = {}
        if file is None:
            return super().parse_args(ctx, rest)
        words = option_file.words_of(file, option_file.read(file), options)
        typed = {word.partition("=")[0] for word in rest}
        for name in words:
            if not typed.intersection((*options[name].opts, *options[name].secondary_opts)):
                ctx.meta[FROM_FILE][name] = f"{file}: {name.removeprefix('--')}"
        try:
            return super().parse_args(ctx, [word for some in words.values() for word in some] + rest)
        except Exception as error:
            name = next(iter(getattr(getattr(error, "param", None), "opts", [])), "")
            if name not in ctx.meta[FROM_FILE]:
                raise
            raise OptionError(f"{ctx.meta[FROM_FILE][name]}: {getattr(error, 'message', error)}") from error

    def invoke(self, ctx: Any) -> object:
        """Runs it.

        Raises:
            OptionError: for any error that names its `argument`, or advises one as Python has it.
        """
        try:
            return super().invoke(ctx)
        except Exception as error:
            names, argument = self.names(ctx.meta[FROM_FILE]), getattr(error, "argument", None)
            if argument is None:
                said = _with_options(str(error), names) if isinstance(error, ValueError) else str(error)
                if said == str(error):
                    raise
                raise OptionError(said) from error
            options = ", ".join(names.get(name, name) for name in argument.split(", "))
            raise OptionError(options + str(error).removeprefix(argument)) from error

    def names(self, from_file: Mapping[str, str] = MappingProxyType({})) -> dict[str, str]:
        """The options, by what they are called in the library; those of a file with its name."""
        typed = {param.name: param.opts[0] for param in self.params if param.opts[0].startswith("--")}
        options = {name: from_file.get(option, option) for name, option in typed.items()}
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
        # The command's own errors have the option already.
        return {**options, **others, **from_file}


def _with_options(said: str, names: dict[str, str]) -> str:
    """Words in which ``skip_broken=True`` is ``--skip-broken``."""
    return re.sub(r"\b(\w+)=True\b", lambda found: names.get(found[1], found[0]), said)
