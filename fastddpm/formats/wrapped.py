"""The networks in what a training script saved: its dicts and lists, wrappers' prefixes, and averages.

A document holds state dicts at some depth; a state dict holds the tensors of a network under some prefix.
Neither the keys nor the prefixes are listed here: a network is where a format's names of tensors are, and
only the names of wrappers (`fastddpm.wrappers`) that may stand in the middle of a tensor's name are known.
"""

from __future__ import annotations

import dataclasses
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence

import torch
from torch import Tensor

from fastddpm.formats.files import CheckpointError, ConfigError
from fastddpm.formats.format import Format
from fastddpm.wrappers import COUNTER, is_average, without_wrappers

MAX_DEPTH = 8
"""Of dicts and lists in one another; what is deeper is not looked at."""
MAX_LIST = 64
"""Entries of a list that are looked at."""
MAX_FOUND = 32
"""Networks in one document."""
_LISTED = ("shadow_params", "shadow")
"""Keys of averages that are lists in the order of the parameters: torch_ema, diffusers' EMAModel."""
_COUNTED = ("running_mean", "running_var", "num_batches_tracked")
"""Of BatchNorm, which are buffers and no parameters."""

Place = tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Found:
    """A network in a document.

    Attributes:
        format: its key in the formats looked for.
        place: keys of the document, then parts of the prefix.
        state: its tensors under the format's own names.
        named: the same tensors under the names that they have in their state dict.
        buffers: what lies beside the network in the diffusion object that holds it, such as its betas.
        is_average: whether it is an average over a training, by the names that lead to it.
    """

    format: str
    place: Place
    state: dict[str, Tensor]
    named: dict[str, Tensor]
    buffers: dict[str, Tensor]
    is_average: bool

    @property
    def where(self) -> str:
        """The place as one word, to choose by."""
        return ".".join(self.place) or "."


def state_dicts(document: object) -> Iterator[tuple[Place, dict[str, Tensor]]]:
    """Every mapping in a document that holds tensors of weights, with the keys that lead to it, once each."""
    for place, value in _containers(document):
        tensors = {name: child for name, child in _entries(value) if isinstance(child, Tensor)}
        if any(name.endswith("weight") for name in tensors) and isinstance(value, Mapping):
            yield place, tensors


def _containers(document: object) -> Iterator[tuple[Place, object]]:
    """The dicts and lists in a document, outer ones first, each once: one may hold itself."""
    seen: set[int] = set()
    level: list[tuple[Place, object]] = [((), document)]
    for _ in range(MAX_DEPTH):
        below: list[tuple[Place, object]] = []
        for place, value in level:
            if id(value) in seen:
                continue
            seen.add(id(value))
            yield place, value
            for key, child in _entries(value):
                if isinstance(child, (Mapping, list, tuple)):
                    below.append(((*place, key), child))
        level = below


def networks(document: object, formats: Mapping[str, Format]) -> list[Found]:
    """The networks of these formats in a document.

    Raises:
        CheckpointError: more than `MAX_FOUND`.
    """
    found: list[Found] = []
    for place, tensors in state_dicts(document):
        counted = [name for name in tensors if name.rpartition(".")[2] == COUNTER]
        names = {name: without_wrappers(name) for name in tensors if name not in counted}
        if len(set(names.values())) < len(names):  # one of two would be lost
            names = {name: name for name in names}
        prefixes = _prefixes(names.values(), formats)
        for prefix in prefixes:
            further = tuple(other for other in prefixes if other != prefix and other.startswith(prefix))
            inside = {
                old: new
                for old, new in names.items()
                if new.startswith(prefix) and not (further and new.startswith(further))
            }
            state = {new[len(prefix) :]: tensors[old] for old, new in inside.items()}
            kind = next((name for name, format in formats.items() if format.recognises(state)), None)
            if kind is None:
                continue
            at = (*place, *prefix.split(".")[:-1])
            renamed = {new: tensors[old] for old, new in names.items()}
            named = {old: tensors[old] for old in inside}
            averaged = is_average(at) or bool(counted) or _repeats(found, at, state)
            found.append(Found(kind, at, state, named, _beside(renamed, prefix), averaged))
            found += _without_dots(found[-1], place, tensors)
            if len(found) > MAX_FOUND:
                raise CheckpointError(f"more than {MAX_FOUND} networks in it, at most that accepted")
    return found


def _without_dots(one: Found, place: Place, tensors: Mapping[str, Tensor]) -> list[Found]:
    """The average beside a network whose names it holds without their dots, as LitEma of CompVis does: the
    network's ``model.diffusion_model.out.weight`` is ``model_ema.diffusion_modeloutweight`` there."""
    first = next(iter(one.named))
    for counter in (name for name in tensors if name.rpartition(".")[2] == "num_updates"):
        prefix = counter.removesuffix("num_updates")
        for skipped in range(first.count(".")):
            names = {name: prefix + "".join(name.split(".")[skipped:]) for name in one.named}
            there = {name: tensors[short] for name, short in names.items() if short in tensors}
            if there:
                state = {
                    inner: there.get(name, value)
                    for (name, value), inner in zip(one.named.items(), one.state, strict=True)
                }
                at = (*place, *prefix.split(".")[:-1])
                named = {**one.named, **there}
                average = dataclasses.replace(one, place=at, state=state, named=named, is_average=True)
                return [average]
    return []


def chosen(document: object, found: Sequence[Found], *, ema: bool, weights: object, where: str) -> Found:
    """The one network to take.

    Args:
        document: in which they were found.
        found: the networks, at least one.
        ema: the average, where there are averages too.
        weights: a place, instead of that; or None.
        where: of the document, for errors.

    Raises:
        ConfigError: several that fit and are not the same, or none at ``weights``: the places are listed.
        CheckpointError: an average that does not fit its network.
    """
    if weights is not None:
        named = [one for one in found if one.where == weights]
        if not named:
            given = textwrap.shorten(repr(weights), 60)
            raise ConfigError(f"weights={given} given, one of {_listed(found)} accepted")
        return named[0]
    averages = [one for one in found if one.is_average]
    plain = [one for one in found if not one.is_average]
    in_training = [one for one in plain if not any(is_average((part,)) for part in one.place)] or plain
    fitting = averages if averages and (ema or not plain) else in_training
    different = _different(fitting)
    if len(different) > 1:
        raise ConfigError(
            f"weights not given, and {where} has several networks: {_listed(different)}; "
            'config={"weights": ...} with one of these accepted'
        )
    one = different[0]
    if one.is_average:
        return _completed(one, in_training)
    return _with_listed(document, one, where) if ema else one


def _entries(value: object) -> list[tuple[str, object]]:
    if isinstance(value, Mapping):
        return [(key, child) for key, child in value.items() if isinstance(key, str)]
    if isinstance(value, (list, tuple)):
        return [(f"[{index}]", child) for index, child in enumerate(value[:MAX_LIST])]
    return []


def _prefixes(names: Iterable[str], formats: Mapping[str, Format]) -> list[str]:
    """Where a network may begin: what stands before a name that every network of a format has."""
    anchors = [format.anchor for format in formats.values()]
    prefixes: dict[str, None] = {}
    for name in names:
        for anchor in anchors:
            if name == anchor or name.endswith(f".{anchor}"):
                prefixes[name[: len(name) - len(anchor)]] = None
                if len(prefixes) > MAX_FOUND:
                    raise CheckpointError(f"more than {MAX_FOUND} networks in it, at most that accepted")
    return list(prefixes)


def _beside(names: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors of the innermost diffusion object around a prefix, known by its betas, or the gammas of
    Palette's; not of its parts."""
    parts = prefix.split(".")[:-1]
    for length in range(len(parts) - 1, -1, -1):
        outer = "".join(f"{part}." for part in parts[:length])
        if f"{outer}betas" in names or f"{outer}gammas" in names:
            inner = {name[len(outer) :]: value for name, value in names.items() if name.startswith(outer)}
            return {name: value for name, value in inner.items() if "." not in name}
    return {}


def _repeats(found: Sequence[Found], place: Place, state: Mapping[str, Tensor]) -> bool:
    """Whether a network is that of an earlier entry of the same list: [state, optimiser, epoch, average]."""
    return any(
        len(one.place) == len(place)
        and any(
            a != b and a.startswith("[") and b.startswith("[") for a, b in zip(one.place, place, strict=True)
        )
        and state.keys() <= one.state.keys()
        for one in found
    )


def _different(found: Sequence[Found]) -> list[Found]:
    """Without those whose tensors equal another one's: a script may save the same network twice."""
    kept: list[Found] = []
    for one in found:
        if not any(_is_same(one, other) for other in kept):
            kept.append(one)
    return kept


def _is_same(one: Found, other: Found) -> bool:
    if one.state.keys() != other.state.keys():
        return False
    return all(_equal(value, other.state[name]) for name, value in one.state.items())


def _equal(value: Tensor, other: Tensor) -> bool:
    return value is other or (
        value.shape == other.shape and value.dtype == other.dtype and torch.equal(value, other)
    )


def _completed(average: Found, plain: Sequence[Found]) -> Found:
    """An average with what only the network in training has: averages of parameters leave buffers out."""
    for one in plain:
        if one.format == average.format and average.state.keys() <= one.state.keys():
            return dataclasses.replace(
                average,
                state={**one.state, **average.state},
                buffers=average.buffers or one.buffers,
            )
    return average


def _with_listed(document: object, one: Found, where: str) -> Found:
    """The average of a network that a document holds as a list, in the order of parameters; else itself."""
    values = _averages_in_order(document)
    if values is None:
        return one
    names = [name for name in one.state if name.rsplit(".", 1)[-1] not in _COUNTED]
    if [value.shape for value in values] != [one.state[name].shape for name in names]:
        raise CheckpointError(
            f"{where}: an average of {len(values)} tensors in it, which are not the {len(names)} parameters "
            f"of {one.where}; ema=False (--no-ema) takes that one"
        )
    average = dict(zip(names, values, strict=True))
    return dataclasses.replace(one, state={**one.state, **average}, named=average, is_average=True)


def _averages_in_order(document: object) -> list[Tensor] | None:
    for _, value in _containers(document):
        for key, child in _entries(value):
            values = child if key in _LISTED and isinstance(child, list) else []
            if values and all(isinstance(one, Tensor) for one in values):
                return values
    return None


def _listed(found: Sequence[Found]) -> str:
    names = [textwrap.shorten(one.where, 40) for one in found]
    return ", ".join([*names[:4], f"and {len(names) - 4} more"] if len(names) > 5 else names)
