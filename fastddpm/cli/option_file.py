"""``--config FILE``: the options of a command in a YAML or JSON file, as words of the command line before it.

What is typed comes after them and wins. Commands whose own ``--config`` is something else have ``--options``
alone, which all have.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fastddpm.checks import BadArgument, quoted, shortened
from fastddpm.extras import needed
from fastddpm.inputs import InputError, read_bytes, read_json

NAMES = ("--config", "--options")
MAX_FILE = 2**20
"""Bytes."""


def split(args: Sequence[str], names: Sequence[str]) -> tuple[Path | None, list[str]]:
    """The file that the words of a command name, and the other words.

    Raises:
        ValueError: a name without a file, or two files.
    """
    files: list[Path] = []
    rest: list[str] = []
    words = iter(args)
    for word in words:
        name, equals, value = word.partition("=")
        if name not in names:
            rest.append(word)
            if word == "--":
                rest += words
            continue
        file = value if equals else next(words, "")
        if not file or files:
            raise BadArgument(name, "no file" if not file else "two files", "one YAML or JSON file")
        files.append(Path(file))
    return (files[0] if files else None), rest


def read(path: Path) -> dict[str, object]:
    """The options in a file, as it has them.

    Raises:
        ValueError: no regular file of at most `MAX_FILE` bytes, or not a mapping of names; YAML with an
            alias, of which a few make any number of values.
        MissingExtra: YAML, without pyyaml.
    """
    if path.suffix.lower() == ".json":
        return read_json(path)
    if path.suffix.lower() not in (".yaml", ".yml"):
        raise BadArgument("--options", quoted(str(path)), "a file ending in .yaml, .yml or .json")
    yaml = needed("yaml", by=str(path))
    try:
        content = read_bytes(path, MAX_FILE)
        if any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(content, yaml.SafeLoader)):
            raise InputError(f"{path}: an alias (*name) given, values written out accepted")
        found = yaml.safe_load(content)
    except InputError:
        raise
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: not readable as YAML ({shortened(str(error), 160)})") from error
    found = {} if found is None else found
    if not isinstance(found, dict) or not all(isinstance(key, str) for key in found):
        raise InputError(f"{path}: a mapping of options to values accepted")
    return found


def words_of(path: Path, given: Mapping[str, object], options: Mapping[str, Any]) -> dict[str, list[str]]:
    """Each option of a file, by its first name, as words of a command line.

    Args:
        path: of the file, for errors.
        given: what it holds: names with or without dashes, in words apart by ``-`` or ``_``.
        options: the command's, by first name, as click has them.

    Raises:
        ValueError: naming the file and the key.
    """
    found: dict[str, list[str]] = {}
    known = {name.removeprefix("--"): name for name in options if name.startswith("--")}
    for key, value in given.items():
        name = known.get(key.removeprefix("--").replace("_", "-"))
        where = f"{path}: {shortened(key)}"
        if name is None:
            raise BadArgument(where, "an option that the command does not have", ", ".join(sorted(known)))
        if name in found:
            raise BadArgument(where, "the same option twice", "it once")
        if value is not None:
            found[name] = _words(where, value, name, options[name])
    return found


def _words(where: str, value: object, name: str, option: Any) -> list[str]:
    if option.is_flag:
        if not isinstance(value, bool):
            raise BadArgument(where, quoted(value), "true or false")
        return [name] if value else [*option.secondary_opts[:1]]
    values = value if isinstance(value, list) else [value]
    for one in values:
        if isinstance(one, bool):  # YAML takes no, off, yes and on for one
            raise BadArgument(where, quoted(one), "a number or text (in quotes, where YAML sees a bool)")
        if not isinstance(one, (str, int, float)):
            raise BadArgument(where, quoted(one), "a text, a number, true or false, or a list of them")
    return [f"{name}={','.join(map(str, values))}"]
