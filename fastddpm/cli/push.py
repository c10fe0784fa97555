"""`fastddpm push`: a model folder onto the Hugging Face Hub."""

from __future__ import annotations

from typing import Annotated

import typer

from fastddpm.checks import BadArgument
from fastddpm.publishing import push_to_hub


def push(
    model: Annotated[str, typer.Argument(help="Model folder, run, or any checkpoint that sample takes.")],
    repository: Annotated[str, typer.Argument(help="organisation/name; made if need be.")],
    private: Annotated[
        bool, typer.Option("--private", help="Of a new repository: its owners' alone.")
    ] = False,
    revision: Annotated[str | None, typer.Option(help="A branch that is there; main, if left out.")] = None,
    message: Annotated[str | None, typer.Option(help="Of the commit.")] = None,
    license: Annotated[str | None, typer.Option(help="For the card, such as apache-2.0.")] = None,
    dataset: Annotated[str | None, typer.Option(help="For the card: what the model was trained on.")] = None,
    metric: Annotated[
        list[str] | None,
        typer.Option(help="For the card: name=number, as measured on that; may be repeated."),
    ] = None,
) -> None:
    """Put a model on the Hugging Face Hub, with a card; `fastddpm sample organisation/name` draws from it.

    The account is that of `hf auth login`, or of HF_TOKEN.
    """
    url = push_to_hub(
        model,
        repository,
        private=private or None,
        revision=revision,
        message=message,
        license=license,
        dataset=dataset,
        metrics=_numbers(metric or []),
    )
    print(f"{model} -> {url}")


def _numbers(given: list[str]) -> dict[str, float]:
    found = {}
    for word in given:
        name, separator, number = word.partition("=")
        try:
            found[name] = float(number)
        except ValueError:
            separator = ""
        if not (name and separator):
            raise BadArgument("--metric", repr(word), "name=number")
    return found
