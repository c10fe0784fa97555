"""A request for pictures, from JSON or from an address, as what is asked for each image."""

from __future__ import annotations

import dataclasses
import re
import secrets
from collections.abc import Mapping
from typing import Any

from starlette.datastructures import QueryParams

from fastddpm.checks import (
    MAX_SEED,
    BadArgument,
    check_choice,
    check_known,
    check_number,
    quoted,
    seed_list,
    whole,
)
from fastddpm.class_names import Names
from fastddpm.inputs import Json
from fastddpm.serving.http.asked import Asked
from fastddpm.serving.http.limits import Limits

FORMATS = ("b64_json", "png")
FIELDS = (
    "model",
    "seeds",
    "seed",
    "n",
    "class_labels",
    "class",
    "method",
    "num_inference_steps",
    "eta",
    "guidance_scale",
    "response_format",
    "stream",
    "preview_every",
)
IN_ADDRESSES = {
    "model": "model",
    "class": "class_labels",
    "method": "method",
    "steps": "num_inference_steps",
    "eta": "eta",
    "guidance_scale": "guidance_scale",
}
"""What an address calls them, and what the library does."""
DRAWN_SEEDS = 2**32
"""Below which seeds are that nobody gave: any client's numbers hold them."""
SEED = re.compile(r"[0-9]{1,19}")


@dataclasses.dataclass(frozen=True)
class Generation:
    """What a client wants.

    Attributes:
        asked: the images.
        response_format: of `FORMATS`.
        stream: events instead.
        preview_every: steps between two previews in a stream; None for none.
    """

    asked: list[Asked]
    response_format: str = "b64_json"
    stream: bool = False
    preview_every: int | None = None


def from_json(given: Json, limits: Limits, *, stream: bool) -> Generation:
    """What the body of ``POST /v1/images/generations`` asks for; ``stream`` where the body does not say.

    Raises:
        BadArgument: (a ValueError) naming the field.
    """
    check_known(list(given), FIELDS, of="a request")
    fields = {name: value for name, value in given.items() if value is not None}
    seeds = _seeds(fields, limits)
    method = fields.get("method")
    if method is not None and not isinstance(method, str):
        raise BadArgument("method", quoted(method), "a name")
    shared: dict[str, Any] = {"method": method}
    if "num_inference_steps" in fields:
        shared["num_inference_steps"] = whole("num_inference_steps", fields["num_inference_steps"], least=1)
    for name in ("eta", "guidance_scale"):
        if name in fields:
            shared[name] = check_number(name, fields[name])
    labels = _labels(fields, len(seeds))
    kind, streams = fields.get("response_format", "b64_json"), fields.get("stream", stream)
    check_choice("response_format", kind, FORMATS)
    if not isinstance(streams, bool):
        raise BadArgument("stream", quoted(streams), "true or false")
    if streams and kind == "png":
        raise BadArgument("response_format", "'png' with a stream", "b64_json")
    every = fields.get("preview_every")
    every = None if every is None else whole("preview_every", every, least=1)
    if every is not None and not streams:
        raise BadArgument("preview_every", f"{every} without a stream", "null, or stream true,")
    asked = [Asked(seed, label, **shared) for seed, label in zip(seeds, labels, strict=True)]
    return Generation(asked, kind, streams, every)


def from_address(seed: str, query: QueryParams, names: Names | None) -> Asked:
    """What ``GET /v1/images/{seed}.png`` asks for.

    Raises:
        BadArgument: (a ValueError) naming the part of the address.
    """
    check_known(list(query), tuple(IN_ADDRESSES), of="an address")
    twice = [name for name in query if len(query.getlist(name)) > 1]
    if twice:
        raise BadArgument(twice[0], f"{len(query.getlist(twice[0]))} times", "once")
    if not SEED.fullmatch(seed) or int(seed) > MAX_SEED:
        raise BadArgument("seed", quoted(seed), "an integer in [0, 2**63)")
    given: dict[str, Any] = {"method": query.get("method")}
    if "steps" in query:
        given["num_inference_steps"] = _integer("steps", query["steps"])
    for name in ("eta", "guidance_scale"):
        if name in query:
            given[name] = _number(name, query[name])
    if "class" in query:
        label = query["class"]
        given["class_label"] = label if label in (names or ()) or not SEED.fullmatch(label) else int(label)
    return Asked(int(seed), **given)


def in_address(error: BadArgument) -> BadArgument:
    """An error of an argument by the name that addresses have for it."""
    names = {argument: name for name, argument in IN_ADDRESSES.items()}
    found = ", ".join(names.get(name, name) for name in error.argument.split(", "))
    return BadArgument(found, error.given, error.accepted)


def _seeds(fields: Mapping[str, Any], limits: Limits) -> list[int]:
    if "seeds" in fields:
        both = [name for name in ("seed", "n") if name in fields]
        if both:
            raise BadArgument(both[0], "one beside seeds", "seeds, or seed and n,")
        seeds = fields["seeds"]
        if isinstance(seeds, list):
            limits.check_images(len(seeds))
        return seed_list(seeds)
    count = whole("n", fields.get("n", 1), least=1, most=limits.images)
    if "seed" not in fields:
        return [secrets.randbelow(DRAWN_SEEDS) for _ in range(count)]
    first = whole("seed", fields["seed"], least=0, most=MAX_SEED - count + 1)
    return list(range(first, first + count))


def _labels(fields: Mapping[str, Any], count: int) -> list[Any]:
    """A number or a name for every image, or None."""
    if "class" in fields and "class_labels" in fields:
        raise BadArgument("class", "one beside class_labels", "either of them")
    given = fields.get("class_labels", fields.get("class"))
    name = "class" if "class" in fields else "class_labels"
    listed = given if isinstance(given, list) and name == "class_labels" else [given]
    for one in listed:
        if one is not None and not isinstance(one, str):
            whole(name, one, least=0, most=MAX_SEED)
    if len(listed) not in (1, count):
        raise BadArgument(name, f"{len(listed)} for {count} images", "one for all, or one each,")
    return listed if len(listed) == count else listed * count


def _integer(name: str, text: str) -> int:
    if not SEED.fullmatch(text):
        raise BadArgument(name, quoted(text), "an integer of at least 1")
    return int(text)


def _number(name: str, text: str) -> float:
    try:
        if len(text) <= 40 and text.isascii() and "_" not in text:
            return check_number(name, float(text))
    except ValueError:
        pass
    raise BadArgument(name, quoted(text), "a finite number")
