"""The service as replicas on a Ray cluster: Ray Serve has the address, the balance and the number of them.

A replica is a process with all models and a scheduler for each, as `fastddpm.serving.http.server` runs one;
where the cluster has GPUs, it has one of its own. Whatever replica answers, the images are the same.
"""

from __future__ import annotations

import contextlib
import dataclasses
import threading
from collections.abc import Callable, Iterator, Mapping
from types import FrameType
from typing import TYPE_CHECKING

from fastddpm.checks import BadArgument, check_number, whole
from fastddpm.extras import needed
from fastddpm.interruption import NAMES, put_back, taken
from fastddpm.jobs.ray_cluster import connected
from fastddpm.sampler import Sampler
from fastddpm.serving.http.limits import Limits
from fastddpm.serving.http.server import address_of, listening

if TYPE_CHECKING:
    from starlette.applications import Starlette

APPLICATION = "fastddpm"


@dataclasses.dataclass(frozen=True)
class Replicas:
    """How many there are.

    Attributes:
        least: at any time.
        most: when there is much to do; Ray Serve starts one where those that are have more than ``batch``
            requests each, and ends one where they have fewer.
        batch: requests of a replica that it aims at.
        on_gpus: each has a GPU of its own, where the cluster has any.
    """

    least: int = 1
    most: int = 1
    batch: int = 16
    on_gpus: bool = True

    def __post_init__(self) -> None:
        """Raises BadArgument (a ValueError) naming the field."""
        whole("replicas", self.least, least=1)
        if whole("max_replicas", self.most, least=1) < self.least:
            raise BadArgument("max_replicas", str(self.most), f"{self.least}, the least, or more,")

    def options(self) -> dict[str, object]:
        """As a deployment of Ray Serve takes them."""
        if self.least == self.most:
            return {"num_replicas": self.least}
        return {
            "autoscaling_config": {
                "min_replicas": self.least,
                "max_replicas": self.most,
                "target_ongoing_requests": self.batch,
            }
        }


def run_on_ray(
    samplers: Callable[[], Mapping[str, Sampler]],
    limits: Limits,
    token: str | None,
    *,
    host: str,
    port: int,
    replicas: Replicas,
    grace: float,
    started: Callable[[str], None],
) -> None:
    """Serves until SIGINT, SIGTERM or SIGHUP, from the cluster of RAY_ADDRESS or one of this process's own.

    Then no request is let in any more, those that were are answered, for ``grace`` seconds at most, and the
    replicas end.

    Args:
        samplers: called in each replica: its models by name.
        limits: of each replica.
        token: that requests have to bear; None for none.
        host: where the proxies listen, on every machine of the cluster that has one.
        port: 0 for one that is free here.
        replicas: how many.
        grace: seconds.
        started: called with the address when all is ready.

    Raises:
        ValueError: naming the argument.
        MissingExtra: (an ImportError) Ray Serve is not installed.
        OSError: the address cannot be had.
    """
    grace = check_number("grace", grace, low=0)
    with listening(host, port) as listener:
        port, address = listener.getsockname()[1], address_of(listener)
    serve = needed("ray.serve", by="fastddpm serve --workers ray")

    def build() -> Starlette:
        from fastddpm.serving.http.app import make_app
        from fastddpm.serving.http.service import Service

        return make_app(Service(samplers(), limits, token))

    with _signalled() as stopping:
        ray = connected()
        gpus = int(replicas.on_gpus and ray.cluster_resources().get("GPU", 0) > 0)
        deployment = serve.deployment(
            serve.ingress(build)(),
            name=APPLICATION,
            max_ongoing_requests=limits.waiting + limits.batch,
            graceful_shutdown_timeout_s=grace,
            ray_actor_options={"num_gpus": gpus},
            **replicas.options(),
        )
        serve.start(http_options={"host": host, "port": port})
        try:
            serve.run(deployment.bind(), name=APPLICATION, route_prefix="/")
            started(address)
            stopping.wait()
        finally:
            serve.delete(APPLICATION)


@contextlib.contextmanager
def _signalled() -> Iterator[threading.Event]:
    """An event that is set when a signal asks for the end."""
    stopping = threading.Event()

    def handler(number: int, frame: FrameType | None) -> None:
        stopping.set()

    before = taken(handler, ("SIGINT", *NAMES))
    try:
        yield stopping
    finally:
        put_back(before)
