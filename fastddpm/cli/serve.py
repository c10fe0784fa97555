"""`fastddpm serve`: models behind an address (docs/serving.md)."""

from __future__ import annotations

import ipaddress
import os
import warnings
from pathlib import Path
from typing import Annotated, cast
from urllib.parse import urlsplit

import typer

from fastddpm.checkpoint import load
from fastddpm.checks import BadArgument, check_choice, check_number
from fastddpm.cli.arguments import parse_device
from fastddpm.engine import Engine
from fastddpm.extras import needed
from fastddpm.options import ModelOptions
from fastddpm.precision import Precision
from fastddpm.sampler import Sampler
from fastddpm.sources import BUNDLED

TOKEN = "FASTDDPM_TOKEN"
WORKERS = ("local", "ray")
LOG_LEVELS = ("debug", "info", "warning", "error")


def serve(
    models: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[[NAME=]MODEL]...",
            help="Models as `fastddpm sample` takes them, by name; mnist, in the box, if none.",
        ),
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen at.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Of it; 0 for one that is free.")] = 8080,
    token: Annotated[
        str | None, typer.Option(help=f"That requests must bear; {TOKEN} of the environment, if left out.")
    ] = None,
    max_batch: Annotated[int, typer.Option(help="Images that share a step at most.")] = 16,
    max_waiting: Annotated[int, typer.Option(help="Images that wait for a model at most.")] = 256,
    max_images: Annotated[int, typer.Option(help="Images of a request at most.")] = 64,
    max_steps: Annotated[int, typer.Option(help="Steps of an image at most.")] = 1000,
    max_body: Annotated[int, typer.Option(help="Bytes of a request at most.")] = 8 * 2**20,
    deadline: Annotated[
        float, typer.Option(help="Seconds after which an image is given up; 0: never.")
    ] = 300.0,
    grace: Annotated[
        float, typer.Option(help="Seconds to finish what was accepted, once it is stopped.")
    ] = 30.0,
    log_level: Annotated[str, typer.Option(help="debug, info, warning or error.")] = "info",
    device: Annotated[
        str | None, typer.Option(help="cpu, cuda, cuda:1; the first CUDA device if any.")
    ] = None,
    engine: Annotated[
        str, typer.Option(help="auto, eager, compile, cudagraph, max or onnxruntime.")
    ] = "auto",
    precision: Annotated[
        str | None,
        typer.Option(help="Of the network: highest, tf32, bf16 or fp16; as torch is set, if left out."),
    ] = None,
    workers: Annotated[
        str, typer.Option(help="local: this process; ray: replicas on a Ray cluster, by Ray Serve.")
    ] = "local",
    replicas: Annotated[int, typer.Option(help="With --workers ray: how many, at least.")] = 1,
    max_replicas: Annotated[
        int | None, typer.Option(help="With --workers ray: at most; as --replicas, if left out.")
    ] = None,
) -> None:
    """Serve models over HTTP: the Open Inference Protocol, pictures and streams of them, metrics.

    Requests of any method, steps and guidance share batches, and each image is the one that its seed gives
    alone. SIGTERM and Ctrl-C end it once what was accepted is answered.
    """
    for module in ("starlette", "uvicorn", "prometheus_client"):
        needed(module, by="fastddpm serve")
    from fastddpm.serving.http.limits import Limits
    from fastddpm.serving.http.logs import LOGGER, json_lines
    from fastddpm.serving.http.server import address_of, listening, run
    from fastddpm.serving.http.service import Service

    check_choice("log_level", log_level, LOG_LEVELS)
    check_choice("workers", workers, WORKERS)
    if workers != "ray" and (replicas != 1 or max_replicas is not None):
        raise BadArgument("--replicas", "a number without --workers ray", "none, this process alone,")
    check_number("grace", grace, low=0, high=86_400)
    check_number("deadline", deadline, low=0)
    limits = Limits(max_batch, max_waiting, max_images, max_steps, max_body, deadline or None)
    secret = _token(os.environ.get(TOKEN) if token is None else token)
    places = named(models or ["mnist"])
    options: ModelOptions = {}
    if precision is not None:
        options["precision"] = cast("Precision", precision)  # as typed

    def loaded() -> dict[str, Sampler]:
        found = {name: load(place, device=parse_device(device), **options) for name, place in places.items()}
        return {name: one.replace(engine=cast("Engine", engine)) for name, one in found.items()}

    def said(address: str) -> None:
        if secret is None and not is_loopback(str(urlsplit(address).hostname)):
            warnings.warn(f"host: {host} without a token: whoever reaches it may draw", stacklevel=2)
        print(f"serving {', '.join(places)} at {address}", flush=True)

    if workers == "ray":
        from fastddpm.serving.http.ray_serve import Replicas, run_on_ray

        on_gpus = device is None or device.startswith("cuda")
        run_on_ray(
            loaded,
            limits,
            secret,
            host=host,
            port=port,
            replicas=Replicas(replicas, max_replicas or replicas, max_batch, on_gpus),
            grace=grace,
            started=said,
        )
        return
    with listening(host, port) as listener:
        service = Service(loaded(), limits, secret)
        address = address_of(listener)
        said(address)
        with json_lines(log_level):
            LOGGER.info("serving", extra={"fields": {"address": address, "models": list(places)}})
            run(service, listener, grace=grace)
            LOGGER.info("stopped")


def named(models: list[str]) -> dict[str, str]:
    """Where models are, by the names that they are served under.

    ``NAME=PATH`` says both. Else a bundled model has its own name, and any other the last part of its path.

    Raises:
        BadArgument: (a ValueError) one name for two.
    """
    found: dict[str, str] = {}
    for model in models:
        name, said, place = model.partition("=")
        if not said or Path(model).exists():
            name, place = Path(model.partition("@")[0]).name, model
            name = model if model in BUNDLED else Path(name).stem if name.endswith((".pth", ".pt")) else name
        if name in found:
            raise BadArgument("MODEL", f"two models by the name {name!r}", "NAME=MODEL with another name")
        found[name] = place
    return found


def is_loopback(host: str) -> bool:
    """Whether an address is this machine's own alone."""
    return ipaddress.ip_address(host.partition("%")[0]).is_loopback


def _token(given: str | None) -> str | None:
    if given is not None and (not given or not given.isascii() or not given.isprintable() or " " in given):
        raise BadArgument("token", f"one of {len(given)} characters", "printable ASCII without spaces")
    return given
