"""Which Ray cluster a job runs on: the one that RAY_ADDRESS names, or one of this process's own.

Whoever reaches a Ray cluster can run code in it, and whoever names the cluster gets the job's. Left alone,
Ray joins the cluster that `ray_current_cluster` names, a file in a folder where anybody on the machine may
write, and its processes listen on every interface. A cluster started here is found by nobody:

- it is a new one (``address="local"``), whatever that file says;
- its processes listen on 127.0.0.1 alone, without the dashboard;
- calls between them carry a token (Ray's token authentication);
- its folder, with the sockets, is below one that this user alone may enter, and goes when the process ends.
"""

from __future__ import annotations

import atexit
import functools
import logging
import os
import secrets
import shutil
import signal
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import ModuleType

from fastddpm.checks import BadArgument

LOOPBACK = "127.0.0.1"
AUTH_MODE, AUTH_TOKEN, AUTH_TOKEN_PATH = "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"


def connected() -> ModuleType:
    """The module ray, connected to the cluster of RAY_ADDRESS, or to one started here for this process.

    Raises:
        ValueError: Ray is not installed, or its token cannot be written.
    """
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise BadArgument("workers", "'ray' without Ray (pip install 'fastddpm[ray]')", "'local'") from error
    if ray.is_initialized():
        return ray
    start = functools.partial(ray.init, log_to_driver=False, logging_level=logging.ERROR)
    with _sigterm_kept():
        if os.environ.get("RAY_ADDRESS", "local") not in ("", "local"):
            start()
        else:
            with _on_loopback(), _with_token():
                start(
                    address="local",
                    include_dashboard=False,
                    _node_ip_address=LOOPBACK,
                    _temp_dir=_private_folder(ray),
                )
    return ray


@contextmanager
def _on_loopback() -> Iterator[None]:
    """Ray as it is on one machine alone, where it takes 127.0.0.1 as it is given.

    Elsewhere it puts an address in its place that other machines can reach.
    """
    from ray._private import ray_constants

    before = ray_constants.ENABLE_RAY_CLUSTER
    ray_constants.ENABLE_RAY_CLUSTER = False
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before


@contextmanager
def _with_token() -> Iterator[None]:
    """Token authentication on for the processes started in the body, unless RAY_AUTH_MODE says otherwise.

    Ray's only way is its environment variable, which it reads when imported, and again when told to.
    """
    if AUTH_MODE in os.environ:
        yield
        return
    from ray._raylet import Config  # type: ignore[attr-defined, unused-ignore]

    _token_file()
    os.environ[AUTH_MODE] = "token"
    try:
        Config.initialize("")
        yield
    finally:
        os.environ.pop(AUTH_MODE, None)


def _token_file() -> None:
    """A token where Ray looks for one, for this user alone; one that Ray makes, all may read.

    Raises:
        ValueError: it cannot be written.
    """
    if os.environ.get(AUTH_TOKEN) or os.environ.get(AUTH_TOKEN_PATH):
        return
    path = Path.home() / ".ray" / "auth_token"
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with suppress(FileExistsError):
            file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(file, "w") as stream:
                stream.write(secrets.token_hex(32))
    except OSError as error:
        raise BadArgument(
            "workers",
            f"'ray', whose token {str(path)!r} cannot be written ({error.strerror}),",
            f"{AUTH_TOKEN} with one of your own, or {AUTH_MODE}=disabled,",
        ) from error


def _private_folder(ray: ModuleType) -> str:
    """A new folder for a cluster's sockets and logs, taken away when this process ends.

    Ray opens its own folder to all, so this is one within one. Its name is short: the path of a socket has
    107 bytes at most.
    """
    outer = tempfile.mkdtemp(prefix="ray-", dir=os.environ.get("RAY_TMPDIR"))
    atexit.register(_end, ray, outer, os.getpid())
    return str(Path(outer) / "r")


def _end(ray: ModuleType, folder: str, owner: int) -> None:
    if os.getpid() == owner:  # not in a fork
        ray.shutdown()
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _sigterm_kept() -> Iterator[None]:
    """The handler of SIGTERM as it was, where there was one: `ray.init` puts its own in its place."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if before not in (signal.SIG_DFL, None):
            signal.signal(signal.SIGTERM, before)
